//! Real TCP load, in network namespaces of its own. What it does is counted exactly, and whatever
//! the kernel answers otherwise than expected ends it with an error: a tracer that disturbed the
//! traffic would be noticed.
//!
//! A [`Lane`] is a thread with a namespace of its own that repeats the step of a [`Scene`], as fast
//! as it can or at a pace. A step does both sides of a connection by blocking calls: over the
//! loopback interface connect() returns with the handshake done, so nothing ever waits for another
//! thread.

mod mixed;
mod pairs;
mod rng;
mod tally;

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

pub use mixed::{Failures, Long, Namespaces, SmallRange};
pub use pairs::{Close, Family, Pairs};
pub use tally::{Counts, Deed, Tally};

/// How often a lane repeats its step.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As often as it can.
    Saturated,
    /// So many times a second, evenly.
    PerSecond(u32),
}

/// What a lane repeats.
pub trait Scene {
    /// Prepares the namespace that the calling thread is in, such as its settings and listeners.
    fn begin(&mut self, place: &Place<'_>) -> Result<()>;

    /// Does it once.
    fn step(&mut self, place: &Place<'_>) -> Result<()>;
}

/// Where a scene plays.
pub struct Place<'a> {
    /// The namespace that the lane began in.
    pub sandbox: Sandbox,
    pub tally: &'a Tally,
    namespaces: &'a Mutex<BTreeSet<u32>>,
}

impl Place<'_> {
    /// Moves the calling thread into a further namespace.
    pub fn new_namespace(&self) -> Result<Sandbox> {
        enter_new(self.tally, self.namespaces)
    }
}

/// A thread of the load.
pub struct Lane {
    pub name: &'static str,
    pub pace: Pace,
    pub scene: Box<dyn Scene + Send>,
}

/// Load under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    namespaces: Arc<Mutex<BTreeSet<u32>>>,
    lanes: Vec<Running>,
}

struct Running {
    name: &'static str,
    tally: Arc<Tally>,
    thread: JoinHandle<Result<()>>,
}

impl Load {
    /// Starts a thread for each lane.
    pub fn start(lanes: Vec<Lane>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let namespaces = Arc::new(Mutex::new(BTreeSet::new()));
        let mut load = Self { stop, namespaces, lanes: Vec::new() };
        for Lane { name, pace, mut scene } in lanes {
            let tally = Arc::new(Tally::default());
            let (stop, namespaces) = (Arc::clone(&load.stop), Arc::clone(&load.namespaces));
            let counted = Arc::clone(&tally);
            let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
                let result = run(scene.as_mut(), pace, &counted, &namespaces, &stop);
                // One that fails ends all.
                stop.store(true, Relaxed);
                result
            })?;
            load.lanes.push(Running { name, tally, thread });
        }
        Ok(load)
    }

    /// True until a lane has failed or the load was stopped.
    pub fn is_running(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    /// What all lanes have done so far.
    pub fn counts(&self) -> Counts {
        self.lanes.iter().map(|lane| lane.tally.counts()).sum()
    }

    /// Ends all lanes and closes all that they hold.
    ///
    /// # Errors
    /// If any of them was given an answer that it did not expect.
    pub fn stop(self) -> Result<Done> {
        let Self { stop, namespaces, lanes } = self;
        stop.store(true, Relaxed);
        let counts = lanes
            .into_iter()
            .map(|Running { name, tally, thread }| {
                thread
                    .join()
                    .map_err(|_| anyhow!("it panicked"))
                    .flatten()
                    .with_context(|| format!("the load's lane '{name}' failed"))?;
                Ok(tally.counts())
            })
            .sum::<Result<_>>()?;
        // Until a lane has ended, it may enter a further one.
        let namespaces = namespaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Done { counts, namespaces })
    }
}

/// What a load did.
pub struct Done {
    pub counts: Counts,
    /// Inodes of the namespaces that it was in.
    pub namespaces: BTreeSet<u32>,
}

fn run(
    scene: &mut dyn Scene,
    pace: Pace,
    tally: &Tally,
    namespaces: &Mutex<BTreeSet<u32>>,
    stop: &AtomicBool,
) -> Result<()> {
    let sandbox = enter_new(tally, namespaces)?;
    let place = Place { sandbox, tally, namespaces };
    scene.begin(&place)?;
    let mut pacer = Pacer::new(pace);
    while !stop.load(Relaxed) {
        pacer.wait();
        scene.step(&place)?;
    }
    Ok(())
}

fn enter_new(tally: &Tally, namespaces: &Mutex<BTreeSet<u32>>) -> Result<Sandbox> {
    let sandbox = Sandbox::enter_new().context("no network namespace can be made")?;
    tally.add(Deed::Namespace);
    namespaces.lock().unwrap_or_else(PoisonError::into_inner).insert(sandbox.netns().0);
    Ok(sandbox)
}

struct Pacer {
    next: Instant,
    interval: Option<Duration>,
}

impl Pacer {
    /// A lane that is behind by more makes no attempt to catch up.
    const MOST_BEHIND: Duration = Duration::from_millis(100);
    /// Shorter waits are not worth a sleep: the steps come in small bursts instead.
    const LEAST_SLEEP: Duration = Duration::from_millis(2);

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
        if early > Self::LEAST_SLEEP {
            thread::sleep(early);
        }
        self.next = (self.next + interval).max(now - Self::MOST_BEHIND);
    }
}
