//! The processes that acquire ports, and what each of them did while observed.

use rustc_hash::FxHashMap;
use tracer_ebpf::Owner;

use crate::{
    model::{Instant, seconds},
    record::Cgroup,
    views::owner_name::OwnerName,
};

/// Number of processes that have an entry of their own. Later processes share one per name.
const MAX_PROCESSES: usize = 10_000;

/// All owners, in the order in which they were seen.
#[derive(Debug, Default)]
pub(super) struct Owners {
    all: Vec<OwnerTally>,
    by_process: FxHashMap<(u32, [u8; 16]), OwnerId>,
    /// The shared entries of processes beyond [`MAX_PROCESSES`].
    by_name: FxHashMap<[u8; 16], OwnerId>,
}

/// An index into [`Owners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OwnerId(usize);

/// A process that acquired ports.
#[derive(Clone, Debug)]
pub(super) struct OwnerTally {
    /// Process, command and container. The pid is `None` for a shared entry.
    pub(super) name: OwnerName,
    pub(super) uid: u32,
    /// Its cgroup. `None` if its path is not known.
    pub(super) cgroup: Option<Cgroup>,
    /// Ports acquired during the observation.
    pub(super) taken: u64,
    /// Calls that got no port.
    pub(super) failed: u64,
    /// Connections that the peer closed first, and this owner after it.
    pub(super) closed_after_peer: u64,
    pub(super) rate_history: RateHistory,
}

impl Owners {
    /// The id of an owner, which is added if it is new.
    pub(super) fn id_of(&mut self, at: Instant, owner: &Owner, cgroup: Option<&Cgroup>) -> OwnerId {
        if let Some(known) = self.by_process.get(&(owner.pid, owner.comm)) {
            return *known;
        }
        let has_own_entry = self.all.len() < MAX_PROCESSES;
        if !has_own_entry && let Some(known) = self.by_name.get(&owner.comm) {
            return *known;
        }
        let id = OwnerId(self.all.len());
        self.all.push(OwnerTally {
            name: if has_own_entry {
                OwnerName::of_process(owner, cgroup)
            } else {
                OwnerName { pid: None, ..OwnerName::of_process(owner, cgroup) }
            },
            uid: owner.uid,
            cgroup: cgroup.cloned(),
            taken: 0,
            failed: 0,
            closed_after_peer: 0,
            rate_history: RateHistory { since: at, ..RateHistory::default() },
        });
        if has_own_entry {
            self.by_process.insert((owner.pid, owner.comm), id);
        } else {
            self.by_name.insert(owner.comm, id);
        }
        id
    }

    /// The owner with this id.
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

    /// Every owner with its id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (OwnerId, &OwnerTally)> {
        self.all.iter().enumerate().map(|(index, owner)| (OwnerId(index), owner))
    }
}

/// How many ports a process acquires in each second.
#[derive(Clone, Debug, Default)]
pub(super) struct RateHistory {
    /// When the process was first seen.
    since: Instant,
    /// The current second, counted from the start of the observation.
    second: u64,
    count: u64,
    /// Ports acquired in all seconds before it, and the maximum in one of them.
    before: u64,
    peak: u64,
    /// The latest jump.
    jump: Option<RateJump>,
}

/// A second in which a process acquired ports far faster than before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RateJump {
    /// Seconds since the start of the observation.
    pub(super) at_s: u64,
    /// Ports acquired in that second.
    pub(super) per_s: u64,
    /// The mean of the seconds before it.
    pub(super) before_per_s: f64,
}

impl RateHistory {
    /// A shorter history is not enough for a comparison.
    const MIN_HISTORY_S: u64 = 10;
    /// A jump reaches at least ten times the mean and twice the peak of the history, and at least
    /// fifty ports a second.
    const TIMES_THE_MEAN: f64 = 10.0;
    const MIN_PER_S: u64 = 50;

    /// Counts a port that was acquired. `first` is the start of the observation.
    pub(super) fn add_port(&mut self, first: Instant, now: Instant) {
        let second = now.since(first) / 1_000_000_000;
        if second != self.second {
            self.end_second(first);
            self.second = second;
        }
        self.count += 1;
    }

    fn end_second(&mut self, first: Instant) {
        self.jump = self.jump_now(first).or(self.jump);
        self.before += self.count;
        self.peak = self.peak.max(self.count);
        self.count = 0;
    }

    /// The latest jump, including the current second.
    pub(super) fn jump(&self, first: Instant) -> Option<RateJump> {
        self.jump_now(first).or(self.jump)
    }

    #[expect(clippy::cast_precision_loss, reason = "the precision suffices for rates")]
    fn jump_now(&self, first: Instant) -> Option<RateJump> {
        let seen_since = seconds(self.since.since(first)).floor();
        let history_s = self.second as f64 - seen_since;
        let mean = self.before as f64 / history_s.max(1.0);
        let is_jump = history_s >= Self::MIN_HISTORY_S as f64
            && self.count >= Self::MIN_PER_S
            && self.count >= 2 * self.peak
            && self.count as f64 >= Self::TIMES_THE_MEAN * mean;
        is_jump.then_some(RateJump { at_s: self.second, per_s: self.count, before_per_s: mean })
    }
}
