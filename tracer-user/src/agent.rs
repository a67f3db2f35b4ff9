//! The agent: brings kernel, ledger and output together.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write as _},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant as Deadline, sleep, sleep_until},
};
use tracer_ebpf::{DecodeError, Hook, HookCounters, decode};

use crate::{
    filter::{Filter, Subject},
    kernel::{
        cgroup::{CgroupRoot, container_of},
        clock,
        loader::{self, HookStatus, LoadError, LoadOptions, Probes},
        memory,
        ring::Ring,
        snapshot,
    },
    ledger::{Failure, Instant, Kind, Lease, LeaseEvent, Ledger, Operation, Sight, Silence, Sink},
    output::{Cgroup, HookReport, Output, Start, Summary, names},
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
    #[error("the output cannot be written")]
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

/// Traces until the user, the duration or an error ends it.
///
/// # Errors
/// See [`AgentError`]. A reader of stdout that goes away is not an error.
pub async fn trace(options: Options, output: &mut dyn Output) -> Result<(), AgentError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signal)?;
    let Options { load, snapshot, duration, filter } = options;
    let began = Deadline::now();
    let mut probes = loader::load(load)?;
    let mut ledger = Ledger::new(sight(&probes.hooks));
    let mut warnings = std::mem::take(&mut probes.warnings);
    if snapshot {
        warnings.extend(take_snapshot(&mut probes, &mut ledger).await?);
    }
    let Probes { ring, hooks, cgroups, .. } = &mut probes;
    let mut reporter = Reporter {
        output,
        filter,
        cgroups: CgroupNames { root: cgroups.take(), known: HashMap::new() },
        totals: BTreeMap::new(),
    };
    reporter.begin(hooks, warnings, &ledger);
    let mut session = Session { ring, ledger, reporter, lost: 0, counted: Deadline::now() };
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
    ring: &'a mut Ring,
    ledger: Ledger,
    reporter: Reporter<'a>,
    lost: u64,
    counted: Deadline,
}

impl Session<'_> {
    /// Runs until it fails, or until nobody reads what it writes.
    async fn run(&mut self) -> Result<(), AgentError> {
        let mut idle_drains = 0;
        loop {
            self.reporter.flush()?;
            if is_reader_gone() {
                return Ok(());
            }
            if idle_drains >= IDLE_DRAINS && !self.ledger.is_unsettled() {
                self.ring.sleep().await.map_err(AgentError::Ring)?;
            }
            tokio::select! {
                () = sleep(DRAIN_INTERVAL) => {}
                filling = self.ring.filling() => filling.map_err(AgentError::Ring)?,
            }
            let drained = self.drain()?;
            idle_drains = if drained == 0 { idle_drains + 1 } else { 0 };
            if self.counted.elapsed() >= COUNTERS_INTERVAL && idle_drains <= IDLE_DRAINS {
                self.count_losses()?;
            }
        }
    }

    /// Takes what is on the ring now.
    fn drain(&mut self) -> Result<usize, AgentError> {
        let Self { ring, ledger, reporter, .. } = self;
        // Every fact of an earlier time than this is on the ring by now.
        let now = Instant(clock::monotonic_ns());
        let mut foreign = None;
        let drained =
            ring.drain(DRAIN_LIMIT, |record| enter(record, ledger, reporter, &mut foreign));
        if let Some(error) = foreign {
            return Err(AgentError::Foreign(error));
        }
        if drained < DRAIN_LIMIT {
            ledger.settle(now, reporter);
        }
        Ok(drained)
    }

    fn count_losses(&mut self) -> Result<(), AgentError> {
        self.counted = Deadline::now();
        let lost = lost(&self.ring.counters().map_err(AgentError::Ring)?);
        if lost > self.lost {
            self.reporter.output.loss(Instant(clock::monotonic_ns()), lost - self.lost);
            self.lost = lost;
        }
        Ok(())
    }

    /// Takes what is left on the ring and writes the summary.
    fn finish(&mut self, began: Deadline) -> Result<(), AgentError> {
        let Self { ring, ledger, reporter, .. } = self;
        let mut foreign = None;
        ring.drain_all(|record| enter(record, ledger, reporter, &mut foreign))
            .map_err(AgentError::Ring)?;
        if let Some(error) = foreign {
            return Err(AgentError::Foreign(error));
        }
        // Nothing more will come that could decide what is undecided.
        self.ledger.settle(Instant(u64::MAX), &mut self.reporter);
        self.count_losses()?;
        self.reporter.output.summary(&Summary {
            at: Instant(clock::monotonic_ns()),
            totals: std::mem::take(&mut self.reporter.totals),
            lost: self.lost,
            duration_s: began.elapsed().as_secs_f64(),
        });
        self.reporter.flush()
    }
}

/// Enters one record of the ring into the ledger.
fn enter(
    record: &[u8],
    ledger: &mut Ledger,
    sink: &mut impl Sink,
    foreign: &mut Option<DecodeError>,
) {
    match decode(record) {
        Ok((kind, fact, owner)) => ledger.apply(kind, &fact, owner, sink),
        Err(error) => *foreign = Some(error),
    }
}

/// Takes a snapshot while the programs already report, and merges the two. Returns what could not
/// be looked at, in sentences.
async fn take_snapshot(
    probes: &mut Probes,
    ledger: &mut Ledger,
) -> Result<Vec<String>, AgentError> {
    let mut problems = Vec::new();
    let files = probes.open_files().and_then(|files| {
        files.map_err(|error| problems.push(format!("open files cannot be listed: {error}"))).ok()
    });
    let mut foreign = None;
    ledger.begin_snapshot();
    let mut taking = tokio::task::spawn_blocking(|| snapshot::take(files));
    let taken = loop {
        probes.ring.drain(usize::MAX, |record| {
            enter(record, ledger, &mut Silence, &mut foreign);
        });
        tokio::select! {
            taken = &mut taking => break taken.map_err(io::Error::other).map_err(AgentError::Ring)?,
            () = sleep(Duration::from_millis(1)) => {}
        }
    };
    // What happened before the last look of the snapshot is on the ring by now.
    probes
        .ring
        .drain_all(|record| enter(record, ledger, &mut Silence, &mut foreign))
        .map_err(AgentError::Ring)?;
    if let Some(error) = foreign {
        return Err(AgentError::Foreign(error));
    }
    problems.extend(taken.problems);
    for held in &taken.held {
        ledger.adopt(held);
    }
    ledger.end_snapshot();
    memory::trim();
    Ok(problems)
}

fn sight(hooks: &[HookStatus]) -> Sight {
    let sees = |name: &str| hooks.iter().any(|hook| hook.name == name && hook.outcome.is_ok());
    Sight {
        ports_chosen: sees("sockops"),
        accepts: sees("sys_exit"),
        time_waits: sees("timer_expire_entry"),
    }
}

/// Facts that the programs could not put on the ring.
fn lost(counters: &[HookCounters; Hook::COUNT as usize]) -> u64 {
    counters.iter().map(|hook| hook.ring_full).sum()
}

/// Shows what the filter admits.
struct Reporter<'a> {
    output: &'a mut dyn Output,
    filter: Filter,
    cgroups: CgroupNames,
    totals: BTreeMap<&'static str, u64>,
}

impl Reporter<'_> {
    fn begin(&mut self, hooks: &[HookStatus], warnings: Vec<String>, ledger: &Ledger) {
        let at = Instant(clock::monotonic_ns());
        let Self { output, filter, cgroups, totals } = self;
        let mut held: Vec<&Lease> = ledger
            .leases()
            .filter(|lease| {
                let cgroup = filter.needs_cgroup().then(|| cgroups.of_lease(lease)).flatten();
                filter.admits(&Subject::of("held", lease, cgroup))
            })
            .collect();
        held.sort_by_key(|lease| (lease.netns, lease.local_port, lease.id));
        let hooks = hooks.iter().map(|hook| HookReport {
            name: hook.name,
            outcome: hook.outcome.clone().map_err(|refusal| (refusal.reason, refusal.loss)),
        });
        output.start(&Start {
            at,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "?".to_owned(), |release| release.trim().to_owned()),
            hooks: hooks.collect(),
            held: held.len(),
            warnings,
        });
        for lease in &held {
            output.held(at, lease, cgroups.of_lease(lease));
        }
        if !held.is_empty() {
            totals.insert("held", held.len() as u64);
        }
    }

    /// Writes to stdout what the output has collected.
    fn flush(&mut self) -> Result<(), AgentError> {
        let buffer = self.output.buffer();
        if buffer.is_empty() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let result = stdout.write_all(buffer).and_then(|()| stdout.flush());
        buffer.clear();
        result.map_err(AgentError::Write)
    }
}

impl Sink for Reporter<'_> {
    fn lease(&mut self, event: LeaseEvent<'_>) {
        let Self { output, filter, cgroups, totals } = self;
        let record = names::change(&event.change);
        let cgroup = cgroups.of_lease(event.lease);
        if filter.admits(&Subject::of(record, event.lease, cgroup)) {
            *totals.entry(record).or_default() += 1;
            output.lease(&event, cgroup);
        }
    }

    fn failure(&mut self, failure: Failure<'_>) {
        let Self { output, filter, cgroups, totals } = self;
        let cgroup = failure.owner.and_then(|owner| cgroups.get(owner.cgroup_id));
        let subject = Subject {
            record: "fail",
            netns: failure.netns,
            family: failure.family,
            kind: match failure.operation {
                Operation::Bind => Kind::Bind,
                Operation::Connect => Kind::Connect,
                Operation::Listen => Kind::Listen,
            },
            local_port: failure.local_port,
            peer: failure.peer,
            owner: failure.owner.as_ref(),
            cgroup,
        };
        if filter.admits(&subject) {
            *totals.entry("fail").or_default() += 1;
            output.failure(&failure, cgroup);
        }
    }
}

/// Names of cgroups, each looked up once.
struct CgroupNames {
    root: Option<CgroupRoot>,
    known: HashMap<u64, Option<Cgroup>>,
}

impl CgroupNames {
    /// Cgroups known before the memory of them is cleared: hosts that start a container a second
    /// must not grow it for ever.
    const MOST: usize = 10_000;

    fn of_lease(&mut self, lease: &Lease) -> Option<&Cgroup> {
        self.get(lease.owner?.cgroup_id)
    }

    fn get(&mut self, id: u64) -> Option<&Cgroup> {
        let Self { root, known } = self;
        if known.len() >= Self::MOST && !known.contains_key(&id) {
            known.clear();
        }
        known
            .entry(id)
            .or_insert_with(|| {
                let path = root.as_ref()?.path_of(id)?;
                let container = container_of(&path).map(str::to_owned);
                Some(Cgroup { path, container })
            })
            .as_ref()
    }
}

/// True if stdout is a pipe that nobody reads any more.
fn is_reader_gone() -> bool {
    let stdout = io::stdout();
    let mut poll = [PollFd::new(&stdout, PollFlags::empty())];
    matches!(rustix::event::poll(&mut poll, Some(&Timespec::default())), Ok(1..))
        && poll.iter().any(|poll| poll.revents().contains(PollFlags::ERR))
}
