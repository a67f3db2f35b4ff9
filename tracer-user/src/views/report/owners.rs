//! The processes that acquire ports, and what each of them did while observed.

use std::fmt;

use rustc_hash::FxHashMap;
use serde::Serialize;
use tracer_ebpf::Owner;

use crate::{
    model::{Instant, seconds},
    record::{Cgroup, comm},
};

/// Owners told apart by process. Those of later processes are told apart by name only.
const MOST_PROCESSES: usize = 10_000;

/// All owners, in the order in which they were seen.
#[derive(Debug, Default)]
pub(super) struct Owners {
    all: Vec<OwnerTally>,
    by_process: FxHashMap<(u32, [u8; 16]), OwnerId>,
    /// Those of which there are too many to tell processes apart.
    by_name: FxHashMap<[u8; 16], OwnerId>,
}

/// An owner's place in [`Owners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OwnerId(usize);

/// A process that acquired ports.
#[derive(Clone, Debug)]
pub(super) struct OwnerTally {
    /// Process, command and container. Without a pid: all later processes of this name on a host
    /// that had very many.
    pub(super) name: OwnerName,
    pub(super) uid: u32,
    /// Its cgroup, if that has a name.
    pub(super) cgroup: Option<Cgroup>,
    /// Ports acquired while observed.
    pub(super) taken: u64,
    /// Calls that got no port.
    pub(super) failed: u64,
    /// Connections that the peer closed first and that this owner closed then.
    pub(super) closed_after_peer: u64,
    pub(super) pace: Pace,
}

/// A process by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct OwnerName {
    pub pid: Option<u32>,
    pub comm: String,
    pub container: Option<String>,
}

impl fmt::Display for OwnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, comm, container } = self;
        write!(f, "{comm}")?;
        if let Some(pid) = pid {
            write!(f, "[{pid}]")?;
        }
        if let Some(container) = container {
            // As container tools abbreviate them.
            write!(f, " in {}", container.get(..12).unwrap_or(container))?;
        }
        Ok(())
    }
}

impl Owners {
    /// The owner's place, which it is given if it is new.
    pub(super) fn place(&mut self, at: Instant, owner: &Owner, cgroup: Option<&Cgroup>) -> OwnerId {
        if let Some(known) = self.by_process.get(&(owner.pid, owner.comm)) {
            return *known;
        }
        let tells_processes = self.all.len() < MOST_PROCESSES;
        if !tells_processes && let Some(known) = self.by_name.get(&owner.comm) {
            return *known;
        }
        let id = OwnerId(self.all.len());
        self.all.push(OwnerTally {
            name: OwnerName {
                pid: tells_processes.then_some(owner.pid),
                comm: comm(&owner.comm).into_owned(),
                container: cgroup.and_then(|cgroup| cgroup.container.clone()),
            },
            uid: owner.uid,
            cgroup: cgroup.cloned(),
            taken: 0,
            failed: 0,
            closed_after_peer: 0,
            pace: Pace { since: at, ..Pace::default() },
        });
        if tells_processes {
            self.by_process.insert((owner.pid, owner.comm), id);
        } else {
            self.by_name.insert(owner.comm, id);
        }
        id
    }

    /// The owner of this place.
    pub(super) fn get(&self, id: OwnerId) -> Option<&OwnerTally> {
        self.all.get(id.0)
    }

    pub(super) fn get_mut(&mut self, id: Option<OwnerId>) -> Option<&mut OwnerTally> {
        self.all.get_mut(id?.0)
    }

    /// The name of an owner; `None` if it is not known.
    pub(super) fn name(&self, id: Option<OwnerId>) -> Option<OwnerName> {
        self.get(id?).map(|owner| owner.name.clone())
    }

    /// Every owner with its place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (OwnerId, &OwnerTally)> {
        self.all.iter().enumerate().map(|(place, owner)| (OwnerId(place), owner))
    }
}

/// How fast a process takes ports, second by second.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// When the process was seen first.
    since: Instant,
    /// The current second, since the start of the observation.
    second: u64,
    count: u64,
    /// Ports taken in the seconds before it, and the most in one of them.
    before: u64,
    peak: u64,
    /// The latest jump.
    jump: Option<Jump>,
}

/// A process takes ports far faster than before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Jump {
    /// Seconds since the start of the observation.
    pub(super) at_s: u64,
    /// Ports in that second.
    pub(super) per_s: u64,
    /// Its mean before.
    pub(super) before_per_s: f64,
}

impl Pace {
    /// A past as long as this is one to compare with.
    const PAST_S: u64 = 10;
    /// A jump is to at least ten times the mean, and twice the peak, of the past, and to at least
    /// fifty ports a second.
    const TIMES_THE_MEAN: f64 = 10.0;
    const LEAST_PER_S: u64 = 50;

    /// A port was taken. `first` is the start of the observation.
    pub(super) fn tick(&mut self, first: Instant, now: Instant) {
        let second = now.since(first) / 1_000_000_000;
        if second != self.second {
            self.close(first);
            self.second = second;
        }
        self.count += 1;
    }

    fn close(&mut self, first: Instant) {
        self.jump = self.jump_now(first).or(self.jump);
        self.before += self.count;
        self.peak = self.peak.max(self.count);
        self.count = 0;
    }

    /// The latest jump, the current second included.
    pub(super) fn jump(&self, first: Instant) -> Option<Jump> {
        self.jump_now(first).or(self.jump)
    }

    #[expect(clippy::cast_precision_loss, reason = "rates need no more")]
    fn jump_now(&self, first: Instant) -> Option<Jump> {
        let seen_since = seconds(self.since.since(first)).floor();
        let past_s = self.second as f64 - seen_since;
        let mean = self.before as f64 / past_s.max(1.0);
        let is_jump = past_s >= Self::PAST_S as f64
            && self.count >= Self::LEAST_PER_S
            && self.count >= 2 * self.peak
            && self.count as f64 >= Self::TIMES_THE_MEAN * mean;
        is_jump.then_some(Jump { at_s: self.second, per_s: self.count, before_per_s: mean })
    }
}
