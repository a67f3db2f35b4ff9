//! A tracing session: from the first probe to the summary.

use std::{io, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant as Deadline, sleep, sleep_until},
};

use super::{
    comparison::{Comparisons, Found},
    intake::{Discard, apply},
    losses::{Losses, ProgramLosses, Verdict},
    outlet::Outlet,
    reporter::Reporter,
};
use crate::{
    kernel::{
        hooks::{
            error::LoadError,
            loader::{self, LoadOptions},
            probes::{Counters, Probes},
        },
        host::{clock, memory},
        lists::{holders::HolderLists, snapshot},
        namespace::scope::Scope,
        wire::DecodeError,
    },
    ledger::Ledger,
    model::{Instant, Scan},
    record::{Body, Record, Summary, Verify, filter::Filter},
    sources::scan::Scans,
    views::{Delivery, View},
};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to load the programs.
    pub load: LoadOptions,
    /// Take a snapshot of what is held already.
    pub snapshot: bool,
    /// End by itself after this time.
    pub duration: Option<Duration>,
    /// Compare the ledger with the kernel so often.
    pub verify: Option<Duration>,
    /// What to show.
    pub filter: Filter,
    /// Bytes of records that may wait for a slow reader of stdout. Further ones are dropped and
    /// counted.
    pub queue_bytes: u64,
}

impl Options {
    /// The usual [`queue_bytes`](Self::queue_bytes).
    pub const QUEUE_BYTES: u64 = 32 << 20;
}

/// Why tracing ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It never began.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Reading the kernel's facts failed.
    #[error("the kernel's facts can no longer be read")]
    Ring(#[source] io::Error),
    /// The programs write something else than the agent reads.
    #[error("the eBPF object does not belong to this program")]
    Foreign(#[source] DecodeError),
    /// Writing failed, and not because the reader went away.
    #[error("the output cannot be written: {0}")]
    Write(#[source] io::Error),
    /// A document was not written whole before a signal ended the wait for its reader.
    #[error("the output was not written whole: the reader of stdout does not read")]
    Unread,
    /// Signals cannot be waited for.
    #[error("signals cannot be caught")]
    Signal(#[source] io::Error),
}

/// How long facts wait on the ring while there are any.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);
/// Facts taken from the ring at once; more only after the output had its turn.
const DRAIN_LIMIT: usize = 16_384;
/// Empty drains before the agent sleeps until it is woken.
const IDLE_DRAINS: u32 = 3;
/// How often the counters are looked at while there is something to count.
const COUNTERS_INTERVAL: Duration = Duration::from_millis(500);
/// How often the probes of closed ports are looked at.
const SCANS_INTERVAL: Duration = Duration::from_secs(1);

/// Traces until the user, the duration or an error ends it.
///
/// # Errors
/// See [`AgentError`]. A reader of stdout that goes away is not an error.
pub async fn trace(options: Options, view: &mut dyn View) -> Result<(), AgentError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signal)?;
    let began = Deadline::now();
    let duration = options.duration;
    let mut session = Session::begin(options, view).await?;
    let end = async {
        match duration {
            Some(duration) => sleep_until(began + duration).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = session.run() => outcome,
        () = end => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    let outcome = match outcome {
        Ok(()) => session.finish(began, [&mut interrupt, &mut terminate]).await,
        failed => failed,
    };
    match outcome {
        Err(AgentError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Tracing under way.
struct Session<'a> {
    probes: Probes,
    ledger: Ledger,
    reporter: Reporter<'a>,
    losses: Losses,
    /// When the counters were looked at last.
    counted: Deadline,
    /// Facts have come since.
    is_uncounted: bool,
    comparisons: Comparisons,
    scans: Scans,
    looked_for_scans: Deadline,
}

impl<'a> Session<'a> {
    /// Attaches the programs, takes a snapshot, and shows what is held.
    async fn begin(options: Options, view: &'a mut dyn View) -> Result<Self, AgentError> {
        let Options { load, snapshot, duration: _, verify, filter, queue_bytes } = options;
        let scope = load.scope;
        let mut probes = loader::load(&load)?;
        let mut ledger = Ledger::new(probes.sight());
        let mut discard = Discard::default();
        let mut warnings = std::mem::take(&mut probes.warnings);
        // Without one a comparison would find everything missing.
        if snapshot || verify.is_some() {
            let problems = take_snapshot(&mut probes, scope, &mut ledger, &mut discard).await?;
            warnings.extend(problems);
        }
        // What happened before this moment is on the ring, and gets no record.
        let begins = Instant::from_ns(clock::monotonic_ns());
        let mut foreign = None;
        probes
            .ring
            .drain_all(|record| apply(record, &mut ledger, &mut discard, &mut foreign))
            .map_err(AgentError::Ring)?;
        foreign.map_or(Ok(()), |error| Err(AgentError::Foreign(error)))?;
        ledger.discard_waiting_records();
        let outlet = Outlet::new(view, filter, discard.namespaces, queue_bytes)
            .map_err(AgentError::Write)?;
        let mut reporter = Reporter::new(outlet, probes.cgroups.take());
        reporter.begin(begins, &probes.hooks.statuses(), warnings, &mut ledger, snapshot);
        Ok(Self {
            probes,
            ledger,
            reporter,
            losses: Losses::default(),
            counted: Deadline::now(),
            is_uncounted: true,
            comparisons: Comparisons::new(scope, verify, snapshot),
            scans: Scans::default(),
            looked_for_scans: Deadline::now(),
        })
    }

    /// Runs until it fails, or until the reader of stdout goes away.
    async fn run(&mut self) -> Result<(), AgentError> {
        let mut idle_drains = 0;
        loop {
            let now = Instant::from_ns(clock::monotonic_ns());
            self.reporter.outlet.report_dropped(now, &self.ledger);
            self.reporter.outlet.flush().map_err(AgentError::Write)?;
            if is_reader_gone() {
                return Ok(());
            }
            let is_idle = idle_drains >= IDLE_DRAINS
                && !self.ledger.is_unsettled()
                && self.comparisons.are_idle(&self.losses);
            if is_idle {
                let count = self.is_uncounted.then_some(self.counted + COUNTERS_INTERVAL);
                let until = self.comparisons.wake_at().into_iter().chain(count).min();
                let written = self.reporter.outlet.written();
                let result = self.probes.ring.sleep(until, written).await;
                result.map_err(AgentError::Ring)?.unwrap_or(Ok(())).map_err(AgentError::Write)?;
            }
            tokio::select! {
                () = sleep(DRAIN_INTERVAL) => {}
                filling = self.probes.ring.filling() => filling.map_err(AgentError::Ring)?,
            }
            #[cfg(feature = "debug-log")]
            if let Some(log) = &mut self.probes.log {
                log.flush();
            }
            let drained = self.drain()?;
            idle_drains = if drained == 0 { idle_drains + 1 } else { 0 };
            self.is_uncounted |= drained > 0;
            // Once more after the last fact, for what was lost with it.
            if self.is_uncounted && self.counted.elapsed() >= COUNTERS_INTERVAL {
                self.count_losses()?;
            }
            if self.looked_for_scans.elapsed() >= SCANS_INTERVAL {
                self.look_for_scans();
            }
            self.compare().await?;
        }
    }

    /// Takes what is on the ring now.
    fn drain(&mut self) -> Result<usize, AgentError> {
        let Self { probes, ledger, reporter, .. } = self;
        // Every fact of an earlier time than this is on the ring by now.
        let now = Instant::from_ns(clock::monotonic_ns());
        let mut foreign = None;
        let drained = probes.ring.drain(DRAIN_LIMIT, |record| {
            apply(record, ledger, reporter, &mut foreign);
        });
        foreign.map_or(Ok(()), |error| Err(AgentError::Foreign(error)))?;
        if drained < DRAIN_LIMIT {
            ledger.settle(now, reporter);
        }
        Ok(drained)
    }

    /// Takes everything that the programs have reported by now.
    fn drain_all(&mut self) -> Result<(), AgentError> {
        let Self { probes, ledger, reporter, .. } = self;
        let mut foreign = None;
        probes
            .ring
            .drain_all(|record| apply(record, ledger, reporter, &mut foreign))
            .map_err(AgentError::Ring)?;
        foreign.map_or(Ok(()), |error| Err(AgentError::Foreign(error)))
    }

    fn count_losses(&mut self) -> Result<(), AgentError> {
        self.counted = Deadline::now();
        self.is_uncounted = false;
        let Counters { facts, unseen_firings, doubtful_firings } =
            self.probes.counters().map_err(AgentError::Ring)?;
        let ring_full = facts.ring_full;
        self.losses.count(&ProgramLosses { ring_full, unseen_firings, doubtful_firings });
        self.reporter.follow_settings(Instant::from_ns(clock::monotonic_ns()), &mut self.ledger);
        Ok(())
    }

    /// Reports scans. They leave no facts: they are looked for by the clock.
    fn look_for_scans(&mut self) {
        self.looked_for_scans = Deadline::now();
        let Some(probers) = &mut self.probes.probers else { return };
        let (scans, over) =
            self.scans.look(Instant::from_ns(clock::monotonic_ns()), probers.iter());
        for prober in &over {
            probers.remove(prober);
        }
        self.show_scans(&scans);
    }

    fn show_scans(&mut self, scans: &[Scan]) {
        let at = Instant::from_ns(clock::monotonic_ns());
        for scan in scans {
            self.reporter.show(&Record { at, body: Body::Scan(scan) }, &self.ledger);
        }
    }

    /// Compares the ledger with the kernel when that is due, a step at a time.
    async fn compare(&mut self) -> Result<(), AgentError> {
        let Some(taken) = self.comparisons.taken().await.map_err(AgentError::Ring)? else {
            let Self { probes, ledger, losses, comparisons, .. } = self;
            comparisons.begin_if_due(probes, ledger, losses);
            return Ok(());
        };
        self.drain_all()?;
        self.ledger.settle(Instant::from_ns(clock::monotonic_ns()), &mut self.reporter);
        let Self { probes, ledger, losses, comparisons, .. } = self;
        match comparisons.compare(taken, probes, ledger, losses) {
            Some(found) => self.conclude(&found),
            None => Ok(()),
        }
    }

    /// Heals what a comparison found and reports it.
    fn conclude(&mut self, Found { differences, lost }: &Found) -> Result<(), AgentError> {
        let at = Instant::from_ns(clock::monotonic_ns());
        self.count_losses()?;
        self.ledger.heal(differences, at, &mut self.reporter);
        let count = (differences.missing() + differences.extra()) as u64;
        match self.losses.judge(Deadline::now().into(), count, *lost) {
            Verdict::CompareAgain => return Ok(()),
            Verdict::Report { healed } => self.report_losses(at, healed),
        }
        if !self.comparisons.conclude() {
            return Ok(());
        }
        if self.comparisons.are_reported {
            let verify = Verify {
                leases: differences.leases as u64,
                kernel: differences.kernel as u64,
                missing: differences.missing() as u64,
                extra: differences.extra() as u64,
                classes: differences.classes() as u64,
                differences: differences.descriptions().collect(),
            };
            self.reporter.show(&Record { at, body: Body::Verify(&verify) }, &self.ledger);
        } else {
            self.losses.count_unseen(count);
        }
        Ok(())
    }

    fn report_losses(&mut self, at: Instant, healed: bool) {
        let Self { losses, reporter, ledger, .. } = self;
        losses.report(healed, |loss| {
            reporter.show(&Record { at, body: Body::Loss(loss) }, ledger);
        });
    }

    /// Takes what is left on the ring, shows the summary, and waits for the reader. A signal ends
    /// that wait.
    async fn finish(
        &mut self,
        began: Deadline,
        [interrupt, terminate]: [&mut Signal; 2],
    ) -> Result<(), AgentError> {
        self.drain_all()?;
        // Nothing more will come that could decide what is undecided.
        self.ledger.settle(Instant::from_ns(u64::MAX), &mut self.reporter);
        self.count_losses()?;
        if let Some(probers) = &self.probes.probers {
            let scans = self.scans.rest(probers.iter());
            self.show_scans(&scans);
        }
        let counters = self.probes.counters().map_err(AgentError::Ring)?.facts;
        let at = Instant::from_ns(clock::monotonic_ns());
        self.report_losses(at, false);
        self.ledger.advance(at);
        let outlet = &mut self.reporter.outlet;
        outlet.report_dropped_now(at, &self.ledger);
        let summary = Summary {
            at,
            totals: outlet.totals().by_name(),
            facts_seen: counters.seen,
            facts_filtered: counters.filtered,
            facts_received: self.probes.ring.received(),
            lost: self.losses.total(),
            dropped: outlet.dropped(),
            duration_s: began.elapsed().as_secs_f64(),
        };
        outlet.show(&Record { at, body: Body::Summary(&summary) }, &self.ledger);
        tokio::select! {
            written = outlet.finish() => written.map_err(AgentError::Write)?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        match outlet.unwritten() {
            None => Ok(()),
            Some((Delivery::Whole, _)) => Err(AgentError::Unread),
            Some((Delivery::Stream, records)) => {
                crate::stderr::write_line!(
                    "portlife: the reader of stdout does not read: the last {records} records are \
                     lost"
                );
                Ok(())
            }
        }
    }
}

/// Takes a snapshot while the programs already report, and merges the two. Returns what could not
/// be looked at, in sentences.
async fn take_snapshot(
    probes: &mut Probes,
    scope: Scope,
    ledger: &mut Ledger,
    discard: &mut Discard,
) -> Result<Vec<String>, AgentError> {
    let open_files = probes.open_files.clone();
    let mut foreign = None;
    let holders = probes.holders.clone().map(HolderLists::new);
    ledger.begin_snapshot();
    let mut taking = tokio::task::spawn_blocking(move || {
        snapshot::take(open_files.as_ref(), holders.as_ref(), scope)
    });
    let taken = loop {
        // A host that is faster than this process never leaves the ring empty.
        probes.ring.drain(DRAIN_LIMIT, |record| apply(record, ledger, discard, &mut foreign));
        tokio::select! {
            taken = &mut taking => break taken.map_err(io::Error::other).map_err(AgentError::Ring)?,
            () = sleep(Duration::from_millis(1)) => {}
        }
    };
    // What happened before the last look of the snapshot is on the ring by now.
    probes
        .ring
        .drain_all(|record| apply(record, ledger, discard, &mut foreign))
        .map_err(AgentError::Ring)?;
    foreign.map_or(Ok(()), |error| Err(AgentError::Foreign(error)))?;
    ledger.adopt_all(&taken.held);
    ledger.adopt_classes(&taken.classes);
    ledger.end_snapshot();
    memory::trim();
    Ok(taken.problems)
}

/// True if stdout is a pipe whose reader has gone away.
fn is_reader_gone() -> bool {
    let stdout = io::stdout();
    let mut poll = [PollFd::new(&stdout, PollFlags::empty())];
    matches!(rustix::event::poll(&mut poll, Some(&Timespec::default())), Ok(1..))
        && poll.iter().any(|poll| poll.revents().contains(PollFlags::ERR))
}
