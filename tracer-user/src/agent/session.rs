//! A tracing session: from the first probe to the summary.

use std::{io, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{Instant as Deadline, sleep, sleep_until},
};

use super::losses::{Losses, ProgramLosses, Verdict};
use super::namespaces::Namespaces;
use super::reporter::Reporter;

use crate::{
    kernel::{
        hooks::loader::{self, LoadError, LoadOptions, Probes},
        host::{clock, memory},
        lists::snapshot::{self, Snapshot},
        namespace::scope::Scope,
        wire::{DecodeError, decode_with},
    },
    ledger::{Differences, Ledger, Sink},
    model::{Failure, Instant, LeaseEvent, Pressure, Scan, Unknown},
    record::{Body, Record, Summary, Verify, filter::Filter},
    sources::scan::Scans,
    views::View,
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
/// How often it is looked at who tried closed ports.
const SCANS_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that may wait for a slow reader of stdout.
const MOST_BACKLOG_BYTES: usize = 32 << 20;
/// How often the ledger is compared with the kernel where the user does not say: there are
/// kernels that run no program in some places and count no miss, and a port that is shown as held
/// for ever would be worse than one that is let go late.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Traces until the user, the duration or an error ends it.
///
/// # Errors
/// See [`AgentError`]. A reader of stdout that goes away is not an error.
pub async fn trace(options: Options, output: &mut dyn View) -> Result<(), AgentError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signal)?;
    let Options { load, snapshot, duration, verify, filter } = options;
    let began = Deadline::now();
    let scope = load.scope;
    let mut probes = loader::load(&load)?;
    let mut ledger = Ledger::new(probes.sight());
    let mut audience = Nobody::default();
    let mut warnings = std::mem::take(&mut probes.warnings);
    // Without one a comparison would find everything missing.
    if snapshot || verify.is_some() {
        let taken = take_snapshot(&mut probes, scope, &mut ledger, &mut audience).await?;
        warnings.extend(taken);
    }
    // Whatever happened before this moment is on the ring, and goes untold.
    let begins = Instant::from_ns(clock::monotonic_ns());
    let mut foreign = None;
    probes
        .ring
        .drain_all(|record| enter(record, &mut ledger, &mut audience, &mut foreign))
        .map_err(AgentError::Ring)?;
    if let Some(error) = foreign {
        return Err(AgentError::Foreign(error));
    }
    ledger.discard_waiting_records();
    let mut reporter = Reporter::new(output, filter, probes.cgroups.take(), audience.namespaces)
        .map_err(AgentError::Write)?;
    reporter.begin(begins, &probes.hooks, warnings, &mut ledger, snapshot);
    // Without a snapshot the ledger does not have what was there before it, and need not.
    let checks = verify.or(snapshot.then_some(CHECK_INTERVAL));
    let mut session = Session {
        probes,
        scope,
        ledger,
        reporter,
        losses: Losses::default(),
        counted: Deadline::now(),
        is_uncounted: true,
        verifies: verify.is_some(),
        checks,
        next_check: Deadline::now() + checks.unwrap_or_default(),
        audit: None,
        scans: Scans::default(),
        looked_for_scans: Deadline::now(),
    };
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
        Ok(()) => session.finish(began),
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
    /// What the programs report, and snapshots must show.
    scope: Scope,
    ledger: Ledger,
    reporter: Reporter<'a>,
    losses: Losses,
    /// When the counters were looked at last.
    counted: Deadline,
    /// Facts have come since.
    is_uncounted: bool,
    /// Comparisons are reported, each of them.
    verifies: bool,
    /// How often ledger and kernel are compared.
    checks: Option<Duration>,
    next_check: Deadline,
    audit: Option<Audit>,
    scans: Scans,
    looked_for_scans: Deadline,
}

/// A comparison of the ledger with the kernel under way.
struct Audit {
    taking: JoinHandle<Snapshot>,
    /// What a first comparison found, which the present one confirms or does not.
    earlier: Option<Differences>,
    /// Facts lost when it began.
    lost: u64,
}

impl Session<'_> {
    /// Runs until it fails, or until nobody reads what it writes.
    async fn run(&mut self) -> Result<(), AgentError> {
        let mut idle_drains = 0;
        loop {
            self.reporter.flush().map_err(AgentError::Write)?;
            if is_reader_gone() {
                return Ok(());
            }
            let is_idle = idle_drains >= IDLE_DRAINS
                && !self.ledger.is_unsettled()
                && self.audit.is_none()
                && self.reporter.backlog() == 0
                && self.losses.unhealed() == 0
                && !(self.checks.is_some() && self.losses.are_in_doubt());
            if is_idle {
                // Where nothing happens there is nothing to check, unless it was asked for.
                let check = self.verifies.then_some(self.next_check);
                let count = self.is_uncounted.then_some(self.counted + COUNTERS_INTERVAL);
                let until = check.into_iter().chain(count).min();
                self.probes.ring.sleep(until).await.map_err(AgentError::Ring)?;
            }
            tokio::select! {
                () = sleep(DRAIN_INTERVAL) => {}
                filling = self.probes.ring.filling() => filling.map_err(AgentError::Ring)?,
            }
            if self.reporter.backlog() > MOST_BACKLOG_BYTES {
                // Better that the ring overflows, which is counted and healed, than memory.
                continue;
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
            self.audit().await?;
        }
    }

    /// Takes what is on the ring now.
    fn drain(&mut self) -> Result<usize, AgentError> {
        let Self { probes, ledger, reporter, .. } = self;
        // Every fact of an earlier time than this is on the ring by now.
        let now = Instant::from_ns(clock::monotonic_ns());
        let mut foreign = None;
        let drained = probes.ring.drain(DRAIN_LIMIT, |record| {
            enter(record, ledger, reporter, &mut foreign);
        });
        if let Some(error) = foreign {
            return Err(AgentError::Foreign(error));
        }
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
            .drain_all(|record| enter(record, ledger, reporter, &mut foreign))
            .map_err(AgentError::Ring)?;
        foreign.map_or(Ok(()), |error| Err(AgentError::Foreign(error)))
    }

    fn count_losses(&mut self) -> Result<(), AgentError> {
        self.counted = Deadline::now();
        self.is_uncounted = false;
        let counters = self.probes.ring.counters().map_err(AgentError::Ring)?;
        self.losses.count(&ProgramLosses {
            ring_full: counters.ring_full,
            unseen_firings: self.probes.unseen_firings(),
            doubtful_firings: self.probes.doubtful_firings(),
        });
        self.reporter.follow_settings(Instant::from_ns(clock::monotonic_ns()), &mut self.ledger);
        Ok(())
    }

    /// Tells who scans ports. Scans leave no facts: they are looked for by the clock.
    fn look_for_scans(&mut self) {
        self.looked_for_scans = Deadline::now();
        let Some(tried_ports) = &mut self.probes.tried_ports else { return };
        let (scans, over) =
            self.scans.look(Instant::from_ns(clock::monotonic_ns()), tried_ports.all());
        for prober in &over {
            tried_ports.forget(prober);
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
    async fn audit(&mut self) -> Result<(), AgentError> {
        let Some(audit) = &mut self.audit else {
            let now = Deadline::now();
            let is_due = self.checks.is_some()
                && (now >= self.next_check || self.losses.is_comparison_due(now.into()));
            if is_due || self.losses.unhealed() > 0 {
                self.begin_audit(None);
            }
            return Ok(());
        };
        if !audit.taking.is_finished() {
            return Ok(());
        }
        let snapshot = (&mut audit.taking).await.map_err(io::Error::other);
        let snapshot = snapshot.map_err(AgentError::Ring)?;
        let (earlier, lost) = (audit.earlier.take(), audit.lost);
        self.audit = None;
        self.drain_all()?;
        self.ledger.settle(Instant::from_ns(clock::monotonic_ns()), &mut self.reporter);
        let Snapshot { held, coverage, classes, problems: _ } = snapshot;
        let unknown = if self.losses.unhealed() > 0 { Unknown::Gone } else { Unknown::Believed };
        let mut differences = self.ledger.compare(&held, &coverage, unknown);
        self.ledger.compare_classes(&classes, &mut differences);
        self.ledger.end_snapshot();
        match earlier {
            None if !differences.is_empty() => self.begin_audit(Some(differences)),
            None => self.conclude(&differences, lost)?,
            Some(earlier) => {
                differences.retain_confirmed(&earlier);
                self.conclude(&differences, lost)?;
            }
        }
        Ok(())
    }

    fn begin_audit(&mut self, earlier: Option<Differences>) {
        let lost = self.losses.total();
        if earlier.is_none() {
            self.losses.begin_comparison();
        }
        let files = self.probes.open_files();
        let scope = self.scope;
        let lists = self.probes.holders.clone();
        self.ledger.begin_snapshot();
        let taking =
            tokio::task::spawn_blocking(move || snapshot::take(files, lists.as_deref(), scope));
        self.audit = Some(Audit { taking, earlier, lost });
    }

    /// Heals what a comparison found and reports it. `lost` is what was lost when it began.
    fn conclude(&mut self, differences: &Differences, lost: u64) -> Result<(), AgentError> {
        let at = Instant::from_ns(clock::monotonic_ns());
        self.count_losses()?;
        self.ledger.heal(differences, at, &mut self.reporter);
        let count = (differences.missing() + differences.extra()) as u64;
        match self.losses.judge(Deadline::now().into(), count, lost) {
            Verdict::CompareAgain => return Ok(()),
            Verdict::Report { healed } => self.report_losses(at, healed),
        }
        if let Some(interval) = self.checks.filter(|_| Deadline::now() >= self.next_check) {
            self.next_check = Deadline::now() + interval;
            if self.verifies {
                let verify = Verify {
                    leases: differences.leases as u64,
                    kernel: differences.kernel as u64,
                    missing: differences.missing() as u64,
                    extra: differences.extra() as u64,
                    classes: differences.classes() as u64,
                    differences: differences.descriptions().collect(),
                };
                let record = Record { at, body: Body::Verify(&verify) };
                self.reporter.show(&record, &self.ledger);
            } else {
                self.losses.count_unseen(count);
            }
        }
        Ok(())
    }

    fn report_losses(&mut self, at: Instant, healed: bool) {
        let Self { losses, reporter, ledger, .. } = self;
        losses.report(healed, |loss| {
            reporter.show(&Record { at, body: Body::Loss(loss) }, ledger);
        });
    }

    /// Takes what is left on the ring and writes the summary.
    fn finish(&mut self, began: Deadline) -> Result<(), AgentError> {
        self.drain_all()?;
        // Nothing more will come that could decide what is undecided.
        self.ledger.settle(Instant::from_ns(u64::MAX), &mut self.reporter);
        self.count_losses()?;
        if let Some(tried_ports) = &self.probes.tried_ports {
            let scans = self.scans.rest(tried_ports.all());
            self.show_scans(&scans);
        }
        let counters = self.probes.ring.counters().map_err(AgentError::Ring)?;
        let at = Instant::from_ns(clock::monotonic_ns());
        self.report_losses(at, false);
        let summary = Summary {
            at,
            totals: self.reporter.totals.by_name(),
            facts_seen: counters.seen,
            facts_filtered: counters.filtered,
            facts_received: self.probes.ring.received(),
            lost: self.losses.total(),
            duration_s: began.elapsed().as_secs_f64(),
        };
        self.ledger.advance(at);
        self.reporter.show(&Record { at, body: Body::Summary(&summary) }, &self.ledger);
        self.reporter.finish().map_err(AgentError::Write)
    }
}

/// Who hears what the ledger tells.
pub(crate) trait Audience: Sink {
    /// The namespaces that were seen.
    fn namespaces(&mut self) -> &mut Namespaces;
}

/// Nobody hears what precedes the first record.
#[derive(Default)]
struct Nobody {
    namespaces: Namespaces,
}

impl Audience for Nobody {
    fn namespaces(&mut self) -> &mut Namespaces {
        &mut self.namespaces
    }
}

impl Sink for Nobody {
    fn lease(&mut self, _event: LeaseEvent<'_>, _ledger: &Ledger) {}
    fn failure(&mut self, _failure: &Failure<'_>, _ledger: &Ledger) {}
    fn pressure(&mut self, _pressure: &Pressure, _ledger: &Ledger) {}
}

/// Enters one record of the ring into the ledger.
fn enter(
    record: &[u8],
    ledger: &mut Ledger,
    audience: &mut impl Audience,
    foreign: &mut Option<DecodeError>,
) {
    let decoded = decode_with(record, |observation| {
        audience.namespaces().prepare(observation, ledger);
        ledger.apply(observation, audience);
    });
    if let Err(error) = decoded {
        *foreign = Some(error);
    }
}

/// Takes a snapshot while the programs already report, and merges the two. Returns what could not
/// be looked at, in sentences.
async fn take_snapshot(
    probes: &mut Probes,
    scope: Scope,
    ledger: &mut Ledger,
    audience: &mut Nobody,
) -> Result<Vec<String>, AgentError> {
    let files = probes.open_files();
    let mut foreign = None;
    let lists = probes.holders.clone();
    ledger.begin_snapshot();
    let mut taking =
        tokio::task::spawn_blocking(move || snapshot::take(files, lists.as_deref(), scope));
    let taken = loop {
        // A host that is faster than this process never leaves the ring empty.
        probes.ring.drain(DRAIN_LIMIT, |record| {
            enter(record, ledger, audience, &mut foreign);
        });
        tokio::select! {
            taken = &mut taking => break taken.map_err(io::Error::other).map_err(AgentError::Ring)?,
            () = sleep(Duration::from_millis(1)) => {}
        }
    };
    // What happened before the last look of the snapshot is on the ring by now.
    probes
        .ring
        .drain_all(|record| enter(record, ledger, audience, &mut foreign))
        .map_err(AgentError::Ring)?;
    if let Some(error) = foreign {
        return Err(AgentError::Foreign(error));
    }
    ledger.adopt_all(&taken.held);
    ledger.adopt_classes(&taken.classes);
    ledger.end_snapshot();
    memory::trim();
    Ok(taken.problems)
}

/// True if stdout is a pipe that nobody reads any more.
fn is_reader_gone() -> bool {
    let stdout = io::stdout();
    let mut poll = [PollFd::new(&stdout, PollFlags::empty())];
    matches!(rustix::event::poll(&mut poll, Some(&Timespec::default())), Ok(1..))
        && poll.iter().any(|poll| poll.revents().contains(PollFlags::ERR))
}
