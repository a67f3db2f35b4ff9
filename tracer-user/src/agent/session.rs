//! A tracing session: from the first probe to the summary.

use std::{collections::BTreeSet, io, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::time::{Instant as Deadline, sleep, sleep_until};

use super::{
    comparison::{Comparisons, Found, OUTDATED},
    intake::{Discard, apply},
    losses::{Listed, Losses, NextStep, ProgramLosses},
    outlet::Outlet,
    reporter::Reporter,
    signals::Signals,
};
use crate::{
    kernel::{
        hooks::{
            error::LoadError,
            loader::{self, LoadOptions},
            probes::{Counters, Probes},
        },
        host::{clock, memory},
        lists::{
            holders::HolderLists,
            snapshot::{self, Snapshot},
        },
        namespace::scope::Scope,
        wire::DecodeError,
    },
    ledger::Ledger,
    model::{Instant, Netns, Scan},
    record::{Body, Record, Summary, Verify, filter::Filter},
    sources::scan::Scans,
    views::{Delivery, View},
};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to load the programs.
    pub load: LoadOptions,
    /// Take a snapshot of the ports that are held at the start.
    pub snapshot: bool,
    /// End after this time. `None` to run until a signal.
    pub duration: Option<Duration>,
    /// The interval of comparisons with the kernel that are reported. `None` for the default,
    /// unreported.
    pub verify: Option<Duration>,
    /// The records to show.
    pub filter: Filter,
    /// Maximum number of bytes that wait for a slow reader of stdout. Further records are dropped
    /// and counted.
    pub queue_bytes: u64,
}

impl Options {
    /// The default of [`queue_bytes`](Self::queue_bytes).
    pub const QUEUE_BYTES: u64 = 32 << 20;
}

/// Why tracing failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The programs could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Reading the kernel's facts failed.
    #[error("the kernel's facts can no longer be read")]
    Ring(#[source] io::Error),
    /// The programs and the agent disagree about the format of facts.
    #[error("the eBPF object does not belong to this program")]
    Foreign(#[source] DecodeError),
    /// Writing to stdout failed for another reason than a reader that went away.
    #[error("the output cannot be written: {0}")]
    Write(#[source] io::Error),
    /// A document was not written whole before a signal ended the wait for its reader.
    #[error("the output was not written whole: the reader of stdout does not read")]
    Unread,
    /// Signal handlers cannot be installed.
    #[error("signals cannot be caught")]
    Signal(#[source] io::Error),
}

/// The interval at which the ring is drained while facts arrive.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum number of facts that are taken from the ring before output is written.
const DRAIN_LIMIT: usize = 16_384;
/// Number of empty drains after which the agent sleeps until the ring wakes it.
const IDLE_DRAINS: u32 = 3;
/// The interval at which the counters are read while facts arrive.
const COUNTERS_INTERVAL: Duration = Duration::from_millis(500);
/// The interval at which attempts on closed ports are checked for scans.
const SCANS_INTERVAL: Duration = Duration::from_secs(1);

/// Problems of comparisons that are printed. Namespaces come and go, and each has its own.
const MAX_PROBLEMS: usize = 100;

/// Traces until a signal, the end of the duration, or an error.
///
/// # Errors
/// See [`AgentError`]. A reader of stdout that goes away is not an error.
pub async fn trace(options: Options, view: &mut dyn View) -> Result<(), AgentError> {
    let mut signals = Signals::catch().map_err(AgentError::Signal)?;
    let duration = options.duration;
    let begun = tokio::select! {
        begun = Session::begin(options, view) => begun,
        // The first snapshot of a large host takes seconds.
        () = signals.received() => return Ok(()),
    };
    let mut session = match begun {
        Ok(session) => session,
        // The kernel gives up checking a program when a signal arrives (EAGAIN, `bpf_check`,
        // kernel/bpf/verifier.c).
        Err(_) if has_arrived(&mut signals).await => return Ok(()),
        Err(error) => return Err(error),
    };
    let began = Deadline::now();
    let end = async {
        match duration {
            Some(duration) => sleep_until(began + duration).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = session.run() => outcome,
        () = end => Ok(()),
        () = signals.received() => Ok(()),
    };
    let outcome = match outcome {
        Ok(()) => session.finish(began, &mut signals).await,
        failed => failed,
    };
    match outcome {
        Err(AgentError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// True if one of the signals has arrived already.
async fn has_arrived(signals: &mut Signals) -> bool {
    // Signals are noticed when the runtime waits.
    const INSTANT: Duration = Duration::from_millis(1);
    tokio::select! {
        biased;
        () = signals.received() => true,
        () = sleep(INSTANT) => false,
    }
}

/// A running trace.
struct Session<'a> {
    probes: Probes,
    ledger: Ledger,
    reporter: Reporter<'a>,
    losses: Losses,
    /// When the counters were read last.
    counted: Deadline,
    /// True if facts have arrived since then.
    is_uncounted: bool,
    comparisons: Comparisons,
    /// What comparisons could not read and has been said, in sentences.
    problems: BTreeSet<String>,
    scans: Scans,
    looked_for_scans: Deadline,
}

impl<'a> Session<'a> {
    /// Attaches the programs, takes a snapshot, and shows the leases that are held.
    async fn begin(options: Options, view: &'a mut dyn View) -> Result<Self, AgentError> {
        let Options { load, snapshot, duration: _, verify, filter, queue_bytes } = options;
        let scope = load.scope;
        let mut probes = loader::load(&load)?;
        let mut ledger = Ledger::new(probes.visibility());
        let mut discard = Discard::default();
        let mut warnings = std::mem::take(&mut probes.warnings);
        let mut unreached = None;
        // Without a snapshot a comparison would find everything missing.
        if snapshot || verify.is_some() {
            let problems;
            (problems, unreached) =
                take_snapshot(&mut probes, scope, &mut ledger, &mut discard).await?;
            warnings.extend(problems);
        }
        // Facts from before this moment are on the ring already, and get no record.
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
            comparisons: Comparisons::new(scope, verify, snapshot, unreached),
            problems: BTreeSet::new(),
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
            // Read the counters once more after the last fact, for losses at the same time.
            if self.is_uncounted && self.counted.elapsed() >= COUNTERS_INTERVAL {
                self.count_losses()?;
            }
            if self.looked_for_scans.elapsed() >= SCANS_INTERVAL {
                self.check_for_scans();
            }
            self.compare().await?;
        }
    }

    /// Drains the ring.
    fn drain(&mut self) -> Result<usize, AgentError> {
        let Self { probes, ledger, reporter, .. } = self;
        // All facts from before this time are on the ring.
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

    /// Drains the ring until it has no fact from before this call.
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

    /// Reports scans. They cause no facts, so a map of attempts is read at intervals.
    fn check_for_scans(&mut self) {
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

    /// Performs the next step of a comparison with the kernel, if one is due.
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

    /// Heals the differences of a comparison, and reports them.
    fn conclude(&mut self, found: &Found) -> Result<(), AgentError> {
        let Found { differences, lost, unlisted, problems } = found;
        for problem in problems {
            if self.problems.len() < MAX_PROBLEMS && self.problems.insert(problem.clone()) {
                crate::stderr::write_line!("portlife: a comparison is incomplete: {problem}");
            }
        }
        let at = Instant::from_ns(clock::monotonic_ns());
        self.count_losses()?;
        self.ledger.heal(differences, at, &mut self.reporter);
        let count = (differences.missing() + differences.extra()) as u64;
        let listed = if *unlisted == 0 { Listed::Completely } else { Listed::Partly };
        match self.losses.evaluate(Deadline::now().into(), count, *lost, listed) {
            NextStep::CompareAgain => return Ok(()),
            NextStep::Report { healed } => self.report_losses(at, healed),
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
                unlisted: *unlisted as u64,
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

    /// Drains the ring, shows the summary, and waits for the reader. A signal ends the wait.
    async fn finish(&mut self, began: Deadline, signals: &mut Signals) -> Result<(), AgentError> {
        self.drain_all()?;
        // No further observations will arrive, so everything that is pending is decided now.
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
            () = signals.received() => {}
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

/// Takes a snapshot while the programs already report, and merges it with their facts. Returns what
/// could not be read, in sentences, and the first namespace that was not reached in time.
async fn take_snapshot(
    probes: &mut Probes,
    scope: Scope,
    ledger: &mut Ledger,
    discard: &mut Discard,
) -> Result<(Vec<String>, Option<Netns>), AgentError> {
    let open_files = probes.open_files.clone();
    let mut foreign = None;
    let holders = probes.holders.clone().map(HolderLists::new);
    ledger.begin_snapshot();
    let mut taking = tokio::task::spawn_blocking(move || {
        snapshot::take(open_files.as_ref(), holders.as_ref(), scope, None)
    });
    let taken = loop {
        // On a host that is faster than this process, the ring is never empty.
        probes.ring.drain(DRAIN_LIMIT, |record| apply(record, ledger, discard, &mut foreign));
        tokio::select! {
            taken = &mut taking => break taken.map_err(io::Error::other).map_err(AgentError::Ring)?,
            () = sleep(Duration::from_millis(1)) => {}
        }
    };
    // All facts from before the end of the snapshot are on the ring.
    probes
        .ring
        .drain_all(|record| apply(record, ledger, discard, &mut foreign))
        .map_err(AgentError::Ring)?;
    foreign.map_or(Ok(()), |error| Err(AgentError::Foreign(error)))?;
    let Snapshot { held, coverage: _, classes, mut problems, unreached } = taken;
    ledger.adopt_all(&held);
    ledger.adopt_classes(&classes);
    ledger.end_snapshot();
    // Nothing was adopted; the first comparison finds it.
    let is_outdated = ledger.is_snapshot_outdated();
    problems.extend(is_outdated.then(|| OUTDATED.to_owned()));
    let unreached = unreached.or(is_outdated.then_some(Netns(0)));
    drop((held, classes));
    memory::trim();
    Ok((problems, unreached))
}

/// True if stdout is a pipe whose reader has gone away.
fn is_reader_gone() -> bool {
    let stdout = io::stdout();
    let mut poll = [PollFd::new(&stdout, PollFlags::empty())];
    matches!(rustix::event::poll(&mut poll, Some(&Timespec::default())), Ok(1..))
        && poll.iter().any(|poll| poll.revents().contains(PollFlags::ERR))
}
