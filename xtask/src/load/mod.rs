//! A generator of real TCP load, in network namespaces of its own. It counts exactly what it does,
//! and any unexpected answer from the kernel ends it with an error, so a tracer that disturbed the
//! traffic would be noticed.
//!
//! A [`Worker`] is a thread in a namespace of its own that repeats the step of a [`Workload`], as
//! fast as it can or at a fixed rate. A step plays both sides of a connection with blocking calls.
//! Over the loopback interface connect() returns with the handshake done, so no step waits for
//! another thread.

mod connections;
mod counters;
mod rng;
mod workloads;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use tracer_user::kernel::namespace::sandbox::Sandbox;

pub use connections::{Close, Connections, Family};
pub use counters::{Counters, Counts, Event};
pub use workloads::{Failures, LongLived, Namespaces, SmallRange};

/// How often a worker repeats the step of its workload.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As fast as possible.
    Saturated,
    /// At this rate per second, evenly spaced.
    PerSecond(u32),
}

/// Work that is repeated.
pub trait Workload {
    /// Prepares the current namespace: its settings and listeners.
    fn begin(&mut self, env: &Environment<'_>) -> Result<()>;

    /// Does the work once.
    fn step(&mut self, env: &Environment<'_>) -> Result<()>;
}

/// Where a workload runs.
pub struct Environment<'a> {
    /// The namespace in which the worker started.
    pub sandbox: Sandbox,
    pub counters: &'a Counters,
    namespaces: &'a Mutex<BTreeSet<u32>>,
}

impl Environment<'_> {
    /// Moves the calling thread into another new namespace.
    pub fn new_namespace(&self) -> Result<Sandbox> {
        enter_new(self.counters, self.namespaces)
    }
}

/// A workload and how often to repeat it.
pub struct Worker {
    pub name: &'static str,
    pub pace: Pace,
    pub workload: Box<dyn Workload + Send>,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    namespaces: Arc<Mutex<BTreeSet<u32>>>,
    workers: Vec<Running>,
}

struct Running {
    name: &'static str,
    counters: Arc<Counters>,
    thread: JoinHandle<Result<()>>,
}

impl Load {
    /// Starts a thread for each worker.
    pub fn start(workers: Vec<Worker>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let namespaces = Arc::new(Mutex::new(BTreeSet::new()));
        let mut load = Self { stop, namespaces, workers: Vec::new() };
        for Worker { name, pace, mut workload } in workers {
            let counters = Arc::new(Counters::default());
            let (stop, namespaces) = (Arc::clone(&load.stop), Arc::clone(&load.namespaces));
            let counted = Arc::clone(&counters);
            let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
                let result = run(workload.as_mut(), pace, &counted, &namespaces, &stop);
                // If one worker fails, all stop.
                stop.store(true, Relaxed);
                result
            })?;
            load.workers.push(Running { name, counters, thread });
        }
        Ok(load)
    }

    /// True until a worker fails or the load is stopped.
    pub fn is_running(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    /// What all workers have done so far, added up.
    pub fn counts(&self) -> Counts {
        self.workers.iter().map(|worker| worker.counters.counts()).sum()
    }

    /// Stops all workers and closes their sockets.
    ///
    /// # Errors
    /// If the kernel gave any of them an unexpected answer.
    pub fn stop(self) -> Result<LoadResult> {
        let Self { stop, namespaces, workers } = self;
        stop.store(true, Relaxed);
        let counts = workers
            .into_iter()
            .map(|Running { name, counters, thread }| {
                thread
                    .join()
                    .map_err(|_| anyhow!("it panicked"))
                    .flatten()
                    .with_context(|| format!("worker '{name}' of the load failed"))?;
                Ok(counters.counts())
            })
            .sum::<Result<_>>()?;
        // Only now: a running worker can still enter another one.
        let namespaces = namespaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(LoadResult { counts, namespaces })
    }
}

/// What a load did, from start to stop.
pub struct LoadResult {
    pub counts: Counts,
    /// Inode numbers of the namespaces that it used.
    pub namespaces: BTreeSet<u32>,
}

fn run(
    workload: &mut dyn Workload,
    pace: Pace,
    counters: &Counters,
    namespaces: &Mutex<BTreeSet<u32>>,
    stop: &AtomicBool,
) -> Result<()> {
    let sandbox = enter_new(counters, namespaces)?;
    let env = Environment { sandbox, counters, namespaces };
    workload.begin(&env)?;
    let mut pacer = Pacer::new(pace);
    while !stop.load(Relaxed) {
        pacer.wait();
        workload.step(&env)?;
    }
    Ok(())
}

fn enter_new(counters: &Counters, namespaces: &Mutex<BTreeSet<u32>>) -> Result<Sandbox> {
    let sandbox = Sandbox::enter_new().context("cannot make a network namespace")?;
    counters.add(Event::Namespace);
    namespaces.lock().unwrap_or_else(PoisonError::into_inner).insert(sandbox.netns().0);
    Ok(sandbox)
}

struct Pacer {
    next: Instant,
    interval: Option<Duration>,
}

impl Pacer {
    /// A worker does not catch up on more delay than this.
    const MAX_BEHIND: Duration = Duration::from_millis(100);
    /// Shorter waits are skipped, so steps at high rates come in small bursts.
    const MIN_SLEEP: Duration = Duration::from_millis(2);

    fn new(pace: Pace) -> Self {
        let interval = match pace {
            Pace::Saturated => None,
            Pace::PerSecond(rate) => Some(Duration::from_secs(1) / rate.max(1)),
        };
        Self { next: Instant::now(), interval }
    }

    fn wait(&mut self) {
        let Some(interval) = self.interval else { return };
        let now = Instant::now();
        let early = self.next.saturating_duration_since(now);
        if early > Self::MIN_SLEEP {
            thread::sleep(early);
        }
        self.next = (self.next + interval).max(now - Self::MAX_BEHIND);
    }
}
