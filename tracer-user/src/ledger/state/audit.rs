//! The ledger against the kernel: a fresh snapshot must show what the ledger holds.
//!
//! A snapshot is not an instant, and facts are under way while it is taken. What began or ended
//! since [`Ledger::begin_snapshot`] is therefore not held against either side, and what remains is
//! only believed when a second snapshot shows the same.

use std::{collections::BTreeMap, mem};

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::Owner;

use crate::{
    ledger::{
        Sink,
        marks::Mark,
        state::{Hold, Ledger, held_tuple, lease_tuple, phase_of},
    },
    model::{
        BucketClass, Change, Coverage, Held, HeldBy, Instant, Lease, LeaseEvent, Netns, Phase,
        Port, Reason, Unknown,
    },
};

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
    extra: FxHashMap<Hold, Lease>,
    /// Buckets whose class the ledger has otherwise, with the kernel's.
    classes: FxHashMap<(Netns, Port), BucketClass>,
}

/// The processes that have a lease's socket open.
struct Holders {
    first: Owner,
    /// The lease's owner is among them.
    has_owner: bool,
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
        self.extra.retain(|hold, lease| {
            earlier.extra.get(hold).is_some_and(|before| before.id == lease.id)
        });
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
        let extra = self.extra.values().map(|lease| {
            format!(
                "missing in the kernel: socket {}, {}:{} in {}, {:?} of lease {}",
                lease.cookie.0,
                lease.local_addr,
                lease.local_port.0,
                lease.netns.0,
                lease.phase,
                lease.id.0
            )
        });
        let classes = self.classes.iter().map(|((netns, port), class)| {
            format!("the bucket of port {} in {} is of the class {class:?}", port.0, netns.0)
        });
        missing.chain(extra).chain(classes)
    }
}

impl Ledger {
    /// Compares with a snapshot that was taken since [`begin_snapshot`](Self::begin_snapshot),
    /// after every fact of its time was applied.
    /// Owners are corrected at once: a lease whose owner was not seen gains one, and one whose
    /// owner has handed it on (to a child that outlives it, or by `SCM_RIGHTS`) gets who has it.
    #[must_use]
    pub fn compare(&mut self, held: &[Held], of: &Coverage, unknown: Unknown) -> Differences {
        let mut differences = Differences { leases: self.len(), ..Differences::default() };
        self.comparison = self.comparison.wrapping_add(1);
        let mut matched = 0;
        let mut holders: FxHashMap<u32, Holders> = FxHashMap::default();
        for held in held {
            let Some(hold) = Hold::of(held) else { continue };
            let index = match hold {
                Hold::Socket(cookie) => self.socket_lease(cookie),
                Hold::TimeWait(cookie, tuple) => self.time_wait_lease(cookie, &tuple),
            };
            let Some(index) = index else {
                if !self.has_just_ended(&hold) {
                    differences.missing.entry(hold).or_insert(*held);
                }
                continue;
            };
            if let Some(holder) = held.owner {
                let owner = &self.leases[index as usize].lease.owner;
                let holders =
                    holders.entry(index).or_insert(Holders { first: holder, has_owner: false });
                holders.has_owner |= owner.as_ref().is_some_and(|owner| owner.pid == holder.pid);
            }
            let entry = &mut self.leases[index as usize];
            let is_known = mem::replace(&mut entry.seen, self.comparison) == self.comparison;
            if !is_known {
                entry.marks.take(Mark::SeenSocket);
                entry.marks.take(Mark::SeenTimeWait);
            }
            let seen = match hold {
                Hold::Socket(_) => Mark::SeenSocket,
                Hold::TimeWait(..) => Mark::SeenTimeWait,
            };
            if entry.marks.replace(seen, true) {
                // Listed twice: as an open file, and by the kernel.
                continue;
            }
            matched += usize::from(!is_known);
            if !self.agrees(index, held) {
                differences.missing.insert(hold, *held);
                differences.extra.insert(hold, self.leases[index as usize].lease.clone());
            }
        }
        differences.kernel = matched + differences.missing.len() - differences.extra.len();
        for (index, Holders { first, has_owner }) in holders {
            if !has_owner {
                let owner = self.owners.share(&first);
                self.leases[index as usize].lease.owner = Some(owner);
            }
        }
        for (_, entry) in &self.leases {
            let lease = &entry.lease;
            let is_shown = of.listed.contains(&lease.netns)
                || unknown == Unknown::Gone
                    && !of.lacks_files
                    && !of.unlisted.contains(&lease.netns);
            if entry.changed == self.epoch || !is_shown {
                continue;
            }
            // What no snapshot can show is believed to last until a fact ends it.
            let is_idle = matches!(lease.phase, Phase::Bound | Phase::TimeWait(_));
            let is_listed = self.sight.bound_idle && !of.lacks_files || !is_idle;
            let is_seen = entry.seen == self.comparison;
            if entry.marks.has(Mark::HeldBySocket)
                && is_listed
                && !(is_seen && entry.marks.has(Mark::SeenSocket))
            {
                differences.extra.insert(Hold::Socket(lease.cookie), lease.clone());
            }
            if entry.marks.has(Mark::HeldByTimeWait)
                && !entry.marks.has(Mark::Cancelled)
                && !(is_seen && entry.marks.has(Mark::SeenTimeWait))
                && let Some(tuple) = lease_tuple(lease)
            {
                differences.extra.insert(Hold::TimeWait(lease.cookie, tuple), lease.clone());
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
        self.forget_lost_calls(at);
        let turned = self.turn_into_time_waits(differences, at, sink);
        for (hold, Lease { id, .. }) in &differences.extra {
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
        let missing = differences.missing.iter().filter(|(hold, _)| !turned.contains(*hold));
        for (_, held) in missing {
            // Its call has ended, and the fact that told so was lost.
            self.pending.remove(&held.cookie);
            if let Some(index) = self.adopt(held) {
                let lease = &self.leases[index as usize].lease;
                sink.lease(LeaseEvent { at, lease, change: Change::Held }, self);
            }
        }
        for ((netns, port), class) in &differences.classes {
            self.correct_bucket_class(*netns, *port, *class);
        }
        self.report_pressure(sink);
    }

    /// Where the kernel has a TIME_WAIT and only the ledger the socket that it replaced, the lease
    /// goes on: with its owner, which nothing else tells any more. Returns the TIME_WAITs.
    fn turn_into_time_waits(
        &mut self,
        differences: &Differences,
        at: Instant,
        sink: &mut impl Sink,
    ) -> FxHashSet<Hold> {
        let mut turned = FxHashSet::default();
        for (hold, held) in &differences.missing {
            if let Hold::TimeWait(cookie, tuple) = hold
                && let HeldBy::TimeWait(substate) = held.by
                && let Some(socket) = differences.extra.get(&Hold::Socket(*cookie))
                && !differences.missing.contains_key(&Hold::Socket(*cookie))
                && let Some(index) = self.socket_lease(*cookie)
                && self.leases[index as usize].lease.id == socket.id
                && !self.leases[index as usize].marks.has(Mark::HeldByTimeWait)
                && socket.local_port == held.local_port
            {
                // When it began is not known.
                self.leases[index as usize].lease.timer_armed = None;
                self.enter_time_wait(index, tuple, substate, at, sink);
                turned.insert(*hold);
            }
        }
        turned
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
            HeldBy::Socket(_)
                if entry.marks.has(Mark::HeldByTimeWait) || entry.changed == self.epoch =>
            {
                true
            }
            HeldBy::Socket(state) => phase_of(state) == entry.lease.phase,
        }
    }

    fn correct(&mut self, index: u32, held: &Held) {
        let key = (held.netns, held.local_port);
        self.unlist(index);
        let entry = &mut self.leases[index as usize];
        entry.lease.peer = held.peer.map_or(entry.lease.peer, Into::into);
        entry.lease.phase = match held.by {
            HeldBy::Socket(state) => phase_of(state),
            HeldBy::TimeWait(substate) => Phase::TimeWait(substate),
        };
        entry.lease.has_timestamps = held.has_timestamps.or(entry.lease.has_timestamps);
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
