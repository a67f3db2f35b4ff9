//! Passes records to a view, and its output to the reader. A slow reader harms only itself: its
//! queue is bounded, and records that it misses are counted and reported.

use std::{io, time::Duration};

use super::{namespaces::Namespaces, stdout::Stdout};
use crate::{
    ledger::Ledger,
    model::Instant,
    record::{Body, Loss, LostAt, Record, Totals, filter::Filter},
    views::{Delivery, View},
};

/// How long the session waits at its end for a reader of the stream that reads nothing.
const READER_PATIENCE: Duration = Duration::from_secs(1);

/// Passes the records that the filter admits to a view, and writes its output to stdout.
pub(crate) struct Outlet<'a> {
    view: &'a mut dyn View,
    stdout: Stdout,
    queue: Queue,
    filter: Filter,
    /// The known namespaces, and which of their settings the reader has seen.
    pub namespaces: Namespaces,
    totals: Totals,
    dropped: Dropped,
}

/// The bytes that wait for the reader, and their limit.
struct Queue {
    limit_bytes: u64,
    /// Bytes up to the end of the first snapshot. It is never dropped, can be larger than the
    /// limit, and says nothing about the speed of the reader.
    snapshot_end: u64,
    /// True while records are dropped, until the queue is half empty. Otherwise every other record
    /// could be a `loss`.
    is_dropping: bool,
}

/// Records that were dropped.
#[derive(Default)]
struct Dropped {
    total: u64,
    /// Those that no `loss` record has reported yet.
    unreported: u64,
}

/// Which records are dropped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    /// Changes of leases, of which there are most.
    Ordinary,
    /// Records that explain an incident. A quarter of the queue is reserved for them.
    Important,
    /// The frame of the stream.
    Never,
}

impl Priority {
    fn of(body: &Body<'_>) -> Self {
        match body {
            Body::Lease { .. } => Self::Ordinary,
            Body::Namespace { .. }
            | Body::Fail { .. }
            | Body::Pressure(_)
            | Body::Scan(_)
            | Body::Loss(_)
            | Body::Verify(_) => Self::Important,
            Body::Start(_) | Body::Summary(_) => Self::Never,
        }
    }
}

impl Queue {
    /// True if a record may join the queue, given the bytes that were queued and those of them that
    /// were written.
    fn admits(&mut self, priority: Priority, queued: u64, written: u64) -> bool {
        let waiting = queued - written.max(self.snapshot_end).min(queued);
        if waiting < self.limit_bytes / 2 {
            self.is_dropping = false;
        }
        match priority {
            Priority::Ordinary => {
                self.is_dropping |= waiting >= self.limit_bytes / 4 * 3;
                !self.is_dropping
            }
            Priority::Important => waiting < self.limit_bytes,
            Priority::Never => true,
        }
    }
}

impl<'a> Outlet<'a> {
    /// An outlet whose queue holds at most `limit_bytes`.
    ///
    /// # Errors
    /// If the thread that writes cannot be started.
    pub fn new(
        view: &'a mut dyn View,
        filter: Filter,
        namespaces: Namespaces,
        limit_bytes: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            view,
            stdout: Stdout::start()?,
            queue: Queue { limit_bytes, snapshot_end: u64::MAX, is_dropping: false },
            filter,
            namespaces,
            totals: Totals::default(),
            dropped: Dropped::default(),
        })
    }

    /// Marks the end of the first snapshot. Later records may be dropped.
    pub fn end_snapshot(&mut self) {
        self.queue.snapshot_end = self.queued_bytes();
    }

    /// The filter.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Number of records shown, by type.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Number of records that were dropped because the reader was slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.total
    }

    /// Shows a record if the filter admits it. If no record has shown the settings of its namespace
    /// yet, they are shown first.
    pub fn show(&mut self, record: &Record<'_>, ledger: &Ledger) {
        if !self.filter.admits(record) {
            return;
        }
        if let Some(netns) = record.netns()
            && self.admits(Priority::Important)
            && let Some((settings, is_new)) = self.namespaces.unshown(netns)
        {
            let body = Body::Namespace { netns, settings: &settings, is_new };
            let settings = Record { at: record.at, body };
            if self.filter.admits(&settings) {
                self.pass_on(&settings, ledger);
            }
        }
        if self.admits(Priority::of(&record.body)) {
            self.report_dropped(record.at, ledger);
            self.pass_on(record, ledger);
        } else {
            self.dropped.total += 1;
            self.dropped.unreported += 1;
        }
    }

    /// Reports what was dropped, once there is space again.
    pub fn report_dropped(&mut self, at: Instant, ledger: &Ledger) {
        if self.dropped.unreported > 0 && self.admits(Priority::Ordinary) {
            self.report_dropped_now(at, ledger);
        }
    }

    /// Reports what was dropped, at the end.
    pub fn report_dropped_now(&mut self, at: Instant, ledger: &Ledger) {
        let count = std::mem::take(&mut self.dropped.unreported);
        if count > 0 {
            let loss = Loss { count, lost_at: LostAt::Reader, healed: false };
            self.pass_on(&Record { at, body: Body::Loss(&loss) }, ledger);
        }
    }

    /// Begins to write the output of the view.
    ///
    /// # Errors
    /// If an earlier write has failed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush(self.view.buffer())
    }

    /// Waits until more can be written, or for ever if nothing is being written. Cancelling it
    /// loses nothing.
    ///
    /// # Errors
    /// If the write has failed.
    pub async fn written(&mut self) -> io::Result<()> {
        self.stdout.written().await
    }

    /// Writes the rest. The reader of a stream must keep reading; the reader of a whole document
    /// may take any time.
    ///
    /// # Errors
    /// If a write fails.
    pub async fn finish(&mut self) -> io::Result<()> {
        let patience = match self.view.delivery() {
            Delivery::Stream => Some(READER_PATIENCE),
            Delivery::Whole => None,
        };
        self.stdout.finish(self.view.buffer(), patience).await
    }

    /// What [`finish`](Self::finish) did not write, also after it was cancelled.
    pub fn unwritten(&mut self) -> Option<(Delivery, usize)> {
        let records = self.stdout.unwritten_records(self.view.buffer());
        (records > 0).then(|| (self.view.delivery(), records))
    }

    fn admits(&mut self, priority: Priority) -> bool {
        let (queued, written) = (self.queued_bytes(), self.stdout.written_bytes());
        self.queue.admits(priority, queued, written)
    }

    /// Number of bytes that the view has produced so far.
    fn queued_bytes(&mut self) -> u64 {
        let buffered = self.view.buffer().len() + self.stdout.waiting_bytes();
        self.stdout.written_bytes() + buffered as u64
    }

    fn pass_on(&mut self, record: &Record<'_>, ledger: &Ledger) {
        let record_type = record.record_type();
        if record_type.is_selectable() {
            self.totals.add(record_type, 1);
        }
        self.view.record(record, ledger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(snapshot_end: u64) -> Queue {
        Queue { limit_bytes: 1000, snapshot_end, is_dropping: false }
    }

    #[test]
    fn failures_are_kept_longest() {
        let mut queue = queue(0);
        for (waiting, ordinary, important) in
            [(0, true, true), (749, true, true), (750, false, true), (1000, false, false)]
        {
            assert_eq!(queue.admits(Priority::Ordinary, waiting, 0), ordinary, "{waiting}");
            assert_eq!(queue.admits(Priority::Important, waiting, 0), important, "{waiting}");
            assert!(queue.admits(Priority::Never, waiting, 0));
        }
    }

    #[test]
    fn dropping_ends_when_the_queue_is_half_empty() {
        let mut queue = queue(0);
        assert!(!queue.admits(Priority::Ordinary, 800, 0));
        assert!(!queue.admits(Priority::Ordinary, 800, 300), "500 bytes wait");
        assert!(queue.admits(Priority::Ordinary, 800, 301));
        assert!(queue.admits(Priority::Ordinary, 1040, 301), "until it is full again");
    }

    #[test]
    fn the_first_snapshot_does_not_fill_the_queue() {
        let mut queue = queue(u64::MAX);
        assert!(queue.admits(Priority::Ordinary, 1_000_000, 0), "while it is shown");
        queue.snapshot_end = 1_000_000;
        assert!(queue.admits(Priority::Ordinary, 1_000_700, 10));
        assert!(!queue.admits(Priority::Ordinary, 1_000_800, 10));
        assert!(queue.admits(Priority::Ordinary, 1_000_800, 1_000_500));
    }
}
