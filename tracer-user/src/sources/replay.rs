//! Reads a recording back into records, and into a ledger that follows them.

use std::io::{self, BufRead, Read as _};

use jiff::Timestamp;

use crate::{
    ledger::{Ledger, Replay},
    model::{Change, Instant},
    record::{Body, OwnedRecord, Record, filter::Filter, json::Line},
};

/// Maximum length of a line. No record is that long.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Maximum length of what is skipped in search of the end of a line. What goes on without one for
/// longer is no text, and may have no end (`/dev/zero`).
const MAX_SKIPPED_BYTES: u64 = 1 << 30;
/// Maximum number of lines that are not records and are reported one by one.
const MAX_REPORTED: u64 = 10;

/// A recording that is being read.
#[derive(Debug, Default)]
pub struct Recording {
    replay: Replay,
    /// The time of day minus the monotonic time, in nanoseconds. `None` before the first record.
    pub realtime_offset_ns: Option<i128>,
    /// Number of lines that are records.
    pub records: u64,
    /// Number of lines that are not.
    pub damaged: u64,
    /// Problems, in sentences with the name of the recording and the line.
    pub problems: Vec<String>,
}

impl Recording {
    /// The ledger as it was after the latest record.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        self.replay.ledger()
    }

    /// Reads all of `input`, which is called `name` in problems. Passes each record that the filter
    /// admits to `take`, with the ledger as it was then. A filter does not change what the ledger
    /// counts.
    ///
    /// # Errors
    /// If the input cannot be read, or a line has no end in sight. Records that were read before have been passed on.
    pub fn read(
        &mut self,
        mut input: impl BufRead,
        name: &str,
        filter: &Filter,
        mut take: impl FnMut(&Record<'_>, &Ledger),
    ) -> io::Result<()> {
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            (&mut input).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                break;
            }
            let is_whole = line.last() == Some(&b'\n');
            let is_too_long = !is_whole && line.len() as u64 == MAX_LINE_BYTES;
            if is_too_long {
                skip_line(&mut input)?;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match Line::parse(line.trim_ascii()) {
                Ok(Line { time, record }) => {
                    self.records += 1;
                    if let Some(record) = record {
                        self.note_time(&time, &record);
                        self.follow(&record, filter, &mut take);
                    }
                }
                Err(error) => {
                    self.damaged += 1;
                    if self.damaged <= MAX_REPORTED {
                        let what = if is_too_long {
                            format!(
                                "expected a record, found a line of more than {MAX_LINE_BYTES} bytes"
                            )
                        } else if is_whole {
                            error.to_string()
                        } else {
                            format!(
                                "expected the end of the last record, which is cut off ({error})"
                            )
                        };
                        self.problems.push(format!("{name}:{number}: {what}"));
                    }
                }
            }
        }
        if self.damaged > MAX_REPORTED {
            let more = self.damaged - MAX_REPORTED;
            self.problems.push(format!("{name}: {more} more lines are no records"));
        }
        Ok(())
    }

    fn note_time(&mut self, time: &str, record: &OwnedRecord) {
        if self.realtime_offset_ns.is_none()
            && let Ok(time) = time.parse::<Timestamp>()
        {
            let at: Instant = record.with(|record| record.at);
            self.realtime_offset_ns = Some(time.as_nanosecond() - i128::from(at.ns()));
        }
    }

    /// A release is passed on before the ledger follows it, as a live one is: the view still finds
    /// the lease.
    fn follow(
        &mut self,
        record: &OwnedRecord,
        filter: &Filter,
        take: &mut impl FnMut(&Record<'_>, &Ledger),
    ) {
        record.with(|record| {
            self.replay.advance(record.at);
            let mut pass_on = |replay: &Replay| {
                if filter.admits(record) {
                    take(record, replay.ledger());
                }
            };
            match record.body {
                Body::Start(start) => self.replay.restart(start.buckets_recover),
                Body::Namespace { netns, settings, is_new } => {
                    if is_new {
                        self.replay.forget_settings(netns);
                    }
                    self.replay.set_settings(netns, settings.clone());
                }
                Body::Lease { event, .. } if matches!(event.change, Change::Release { .. }) => {
                    pass_on(&self.replay);
                    self.replay.apply(&event);
                    return;
                }
                Body::Lease { event, .. } => self.replay.apply(&event),
                _ => {}
            }
            pass_on(&self.replay);
        });
    }
}

/// Skips the rest of a line.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    let mut rest = input.take(MAX_SKIPPED_BYTES);
    rest.skip_until(b'\n')?;
    if rest.limit() == 0 {
        let what =
            format!("no line ends within {} MiB, so this is no recording", MAX_SKIPPED_BYTES >> 20);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(())
}
