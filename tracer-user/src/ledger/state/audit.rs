//! The ledger against the kernel: a fresh snapshot must show what the ledger holds.
//!
//! A snapshot is not an instant, and facts are under way while it is taken. What began or ended
//! since [`Ledger::begin_snapshot`] is therefore not held against either side, and what remains is
//! only believed when a second snapshot shows the same.

use std::collections::{BTreeMap, BTreeSet, hash_map::Entry};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Hold, Ledger, held_tuple, lease_tuple, phase_of};
use crate::ledger::{
    held::{Held, HeldBy},
    types::{BucketClass, Instant, LeaseId, Netns, Phase, Port, Reason, Sink},
};

/// A connect() or listen() that has had no result for so long had it in a fact that was lost (the
/// search of a full range takes milliseconds).
const LONGEST_CALL_NS: u64 = 10_000_000_000;

/// Where ledger and kernel differ.
#[derive(Debug, Default)]
pub struct Differences {
    /// Leases in the ledger.
    pub leases: usize,
    /// Leases that the kernel's holds make.
    pub kernel: usize,
    /// Holds of the kernel that the ledger lacks, or has otherwise.
    missing: FxHashMap<Hold, Held>,
    /// Holds of the ledger that the kernel lacks, or has otherwise.
    extra: FxHashMap<Hold, LeaseId>,
    /// Buckets whose class the ledger has otherwise, with the kernel's.
    classes: FxHashMap<(Netns, Port), BucketClass>,
}

impl Differences {
    /// Number of holds that only the kernel has.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Number of holds that only the ledger has.
    #[must_use]
    pub fn extra(&self) -> usize {
        self.extra.len()
    }

    /// Number of bind buckets whose class the ledger has otherwise than the kernel.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// True if both agree.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.classes.is_empty()
    }

    /// Keeps what an earlier comparison has found as well.
    pub fn retain_confirmed(&mut self, earlier: &Self) {
        self.missing.retain(|hold, held| {
            earlier.missing.get(hold).is_some_and(|before| before.by == held.by)
        });
        self.extra.retain(|hold, lease| earlier.extra.get(hold) == Some(lease));
        self.classes.retain(|bucket, class| earlier.classes.get(bucket) == Some(class));
    }

    /// Each difference in a sentence.
    pub fn descriptions(&self) -> impl Iterator<Item = String> {
        let missing = self.missing.values().map(|held| {
            format!(
                "missing in the ledger: socket {}, {}:{} in {}, {:?}",
                held.cookie.0, held.local_addr, held.local_port.0, held.netns.0, held.by
            )
        });
        let extra = self
            .extra
            .iter()
            .map(|(hold, lease)| format!("missing in the kernel: {hold:?} of lease {}", lease.0));
        let classes = self.classes.iter().map(|((netns, port), class)| {
            format!("the bucket of port {} in {} is of the class {class:?}", port.0, netns.0)
        });
        missing.chain(extra).chain(classes)
    }
}

impl Ledger {
    /// Compares with a snapshot that was taken since [`begin_snapshot`](Self::begin_snapshot),
    /// after every fact of its time was applied. Of the `unlisted` namespaces it shows only a part.
    /// Owners are corrected at once: a lease whose owner was not seen gains one, and one whose
    /// owner has handed it on (to a child that outlives it, or by `SCM_RIGHTS`) gets who has it.
    #[must_use]
    pub fn compare(&mut self, held: &[Held], unlisted: &BTreeSet<Netns>) -> Differences {
        let mut differences = Differences { leases: self.len(), ..Differences::default() };
        let mut seen = FxHashMap::with_capacity_and_hasher(held.len(), rustc_hash::FxBuildHasher);
        let mut matched = FxHashSet::default();
        for held in held {
            let Some(hold) = Hold::of(held) else { continue };
            match seen.entry(hold) {
                Entry::Vacant(place) => {
                    place.insert(held.owner.into_iter().collect::<Vec<_>>());
                }
                Entry::Occupied(mut owners) => {
                    owners.get_mut().extend(held.owner);
                    continue;
                }
            }
            let index = match hold {
                Hold::Socket(cookie) => self.socket_lease(cookie),
                Hold::TimeWait(cookie, tuple) => self.time_wait_lease(cookie, &tuple),
            };
            if let Some(index) = index {
                matched.insert((index, hold));
                if !self.agrees(index, held) {
                    let id = self.leases[index as usize].lease.id;
                    differences.missing.insert(hold, *held);
                    differences.extra.insert(hold, id);
                }
            } else if !self.has_just_ended(&hold) {
                differences.missing.insert(hold, *held);
            }
        }
        let leases: FxHashSet<u32> = matched.iter().map(|(index, _)| *index).collect();
        differences.kernel = leases.len() + differences.missing.len() - differences.extra.len();
        for (index, hold) in matched {
            let owner = &mut self.leases[index as usize].lease.owner;
            let holders = seen.get(&hold).map(Vec::as_slice).unwrap_or_default();
            let is_among_them =
                owner.is_some_and(|owner| holders.iter().any(|holder| holder.pid == owner.pid));
            if !is_among_them && let Some(holder) = holders.first() {
                *owner = Some(*holder);
            }
        }
        for (_, entry) in &self.leases {
            let lease = &entry.lease;
            if entry.changed == self.epoch || unlisted.contains(&lease.netns) {
                continue;
            }
            let socket = entry.held_by_socket.then_some(Hold::Socket(lease.cookie));
            let time_wait = lease_tuple(lease)
                .filter(|_| entry.held_by_time_wait && entry.cancel.is_none())
                .map(|tuple| Hold::TimeWait(lease.cookie, tuple));
            for hold in socket.into_iter().chain(time_wait) {
                if !seen.contains_key(&hold) {
                    differences.extra.insert(hold, lease.id);
                }
            }
        }
        differences
    }

    /// Compares the classes of bind buckets. One in which something changed while the snapshot was
    /// taken is not held against either side.
    pub fn compare_classes(
        &self,
        classes: &BTreeMap<Netns, BTreeMap<Port, BucketClass>>,
        differences: &mut Differences,
    ) {
        for (netns, ports) in classes {
            for (port, class) in ports {
                let is_other =
                    self.bucket_class(*netns, *port).is_some_and(|known| known != *class);
                let first = self.ports.get(*netns, *port).first;
                let has_changed = || {
                    self.chain(first, |entry| entry.next_of_port)
                        .any(|(_, entry)| entry.changed == self.epoch)
                };
                if is_other && !has_changed() {
                    differences.classes.insert((*netns, *port), *class);
                }
            }
        }
    }

    /// Takes the classes that a first snapshot found, of buckets whose holders are all from before
    /// our time: facts win.
    pub fn adopt_classes(&mut self, classes: &BTreeMap<Netns, BTreeMap<Port, BucketClass>>) {
        for (netns, ports) in classes {
            for (port, class) in ports {
                if self.leases_on(*netns, *port).all(|lease| lease.acquired.is_none()) {
                    self.correct_bucket_class(*netns, *port, *class);
                }
            }
        }
    }

    /// Makes the ledger agree with the kernel, and tells what that changes.
    pub fn heal(&mut self, differences: &Differences, at: Instant, sink: &mut impl Sink) {
        self.pending.retain(|_, pending| at.since(pending.began) < LONGEST_CALL_NS);
        for (hold, id) in &differences.extra {
            let index = match hold {
                Hold::Socket(cookie) => self.socket_lease(*cookie),
                Hold::TimeWait(cookie, tuple) => self.time_wait_lease(*cookie, tuple),
            };
            let Some(index) = index.filter(|index| self.leases[*index as usize].lease.id == *id)
            else {
                continue;
            };
            if let Some(held) = differences.missing.get(hold)
                && self.leases[index as usize].lease.local_port == held.local_port
            {
                self.correct(index, held);
                continue;
            }
            match hold {
                Hold::Socket(_) => self.drop_socket_hold(index, at, Reason::Unseen, sink),
                Hold::TimeWait(..) => self.end_time_wait(index, at, Reason::Unseen, sink),
            }
        }
        for held in differences.missing.values() {
            // Its call has ended, and the fact that told so was lost.
            self.pending.remove(&held.cookie);
            if let Some(index) = self.adopt(held) {
                sink.found(at, &self.leases[index as usize].lease);
            }
        }
        for ((netns, port), class) in &differences.classes {
            self.correct_bucket_class(*netns, *port, *class);
        }
        self.tell_pressure(sink);
    }

    /// True if a lease is what the snapshot shows of it.
    fn agrees(&self, index: u32, held: &Held) -> bool {
        let entry = &self.leases[index as usize];
        if entry.lease.local_port != held.local_port {
            return false;
        }
        match held.by {
            // The change of the substate can pass without an event.
            HeldBy::TimeWait(_) => true,
            HeldBy::Socket(_) if entry.held_by_time_wait || entry.changed == self.epoch => true,
            HeldBy::Socket(state) => phase_of(state) == entry.lease.phase,
        }
    }

    fn correct(&mut self, index: u32, held: &Held) {
        let key = (held.netns, held.local_port);
        self.unlist(index);
        let entry = &mut self.leases[index as usize];
        entry.lease.peer = held.peer.or(entry.lease.peer);
        entry.lease.phase = match held.by {
            HeldBy::Socket(state) => phase_of(state),
            HeldBy::TimeWait(substate) => Phase::TimeWait(substate),
        };
        if entry.lease.phase == Phase::Listen {
            self.listeners.entry(key).or_default().push(index);
            self.bind_bucket(index);
        }
        self.recount(index);
    }

    fn has_just_ended(&self, hold: &Hold) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.contains(hold))
    }
}

impl Hold {
    pub(super) fn of(held: &Held) -> Option<Self> {
        Some(match held.by {
            HeldBy::Socket(_) => Self::Socket(held.cookie),
            HeldBy::TimeWait(_) => Self::TimeWait(held.cookie, held_tuple(held)?),
        })
    }
}
