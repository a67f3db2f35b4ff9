//! Compares the ledger with the kernel: a snapshot must show the same holds.

use std::{collections::BTreeMap, mem};

use rustc_hash::FxHashMap;
use tracer_ebpf::Owner;

use super::{adopt::phase_of, differences::Differences};
use crate::{
    ledger::{
        Ledger,
        tables::{Awaited, ConnectionKey, Entry, Hold, LeaseIndex},
    },
    model::{BucketClass, Coverage, Held, HeldBy, Netns, Phase, Port, UnreachedNamespaces},
};

/// A comparison under way.
struct Comparison {
    differences: Differences,
    /// By the slot of the lease.
    shown: Vec<Shown>,
    holders: FxHashMap<LeaseIndex, SocketHolders>,
    /// Leases of which the snapshot has a hold.
    matched: usize,
}

/// The holds of a lease that the snapshot shows.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    socket: bool,
    time_wait: bool,
}

/// The processes that have the socket of a lease open.
struct SocketHolders {
    first: Owner,
    /// The lease's owner is among them.
    has_owner: bool,
}

impl Ledger {
    /// Compares with a snapshot that was taken since [`begin_snapshot`](Self::begin_snapshot),
    /// after every observation of its time was applied.
    ///
    /// Owners are no differences. [`heal`](Self::heal) corrects them: a lease whose owner was not
    /// seen gains one, and one whose owner has handed its socket on (to a child that outlives it, or
    /// by `SCM_RIGHTS`) gets the process that has it.
    #[must_use]
    pub fn compare(
        &self,
        held: &[Held],
        of: &Coverage,
        unreached: UnreachedNamespaces,
    ) -> Differences {
        let mut comparison = Comparison {
            differences: Differences { leases: self.lease_count(), ..Differences::default() },
            shown: vec![Shown::default(); self.table.leases().slots()],
            holders: FxHashMap::default(),
            matched: 0,
        };
        for held in held {
            self.compare_hold(held, &mut comparison);
        }
        let Comparison { mut differences, shown, holders, matched } = comparison;
        differences.kernel = matched + differences.missing.len() - differences.extra.len();
        for (index, SocketHolders { first, has_owner }) in holders {
            if !has_owner {
                differences.owners.push(((index, self.table[index].lease.id), first));
            }
        }
        for (index, entry) in self.table.leases().iter() {
            let netns = &entry.lease.netns;
            let is_covered = of.listed.contains(netns)
                || unreached == UnreachedNamespaces::AssumeEmpty
                    && !of.lacks_files
                    && !of.unlisted.contains(netns);
            if is_covered && entry.changed != self.window.number() {
                self.add_extra(entry, shown[index.slot()], of, &mut differences);
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
                let has_changed = || {
                    self.table
                        .leases()
                        .on_port(*netns, *port)
                        .any(|(_, entry)| entry.changed == self.window.number())
                };
                if is_other && !has_changed() {
                    differences.classes.insert((*netns, *port), *class);
                }
            }
        }
    }

    /// Compares one hold of the snapshot with the lease that it should be of.
    fn compare_hold(&self, held: &Held, comparison: &mut Comparison) {
        let Comparison { differences, shown, holders, matched } = comparison;
        let Some(hold) = Hold::of_held(held) else { return };
        let Some(index) = self.of_hold(&hold) else {
            if !self.window.has_ended(&hold) {
                differences.missing.entry(hold).or_insert(*held);
            }
            return;
        };
        let entry = &self.table[index];
        if let Some(holder) = held.owner {
            let holders =
                holders.entry(index).or_insert(SocketHolders { first: holder, has_owner: false });
            let owner = &entry.lease.owner;
            holders.has_owner |= owner.as_ref().is_some_and(|owner| owner.pid == holder.pid);
        }
        let shown = &mut shown[index.slot()];
        let is_first = !shown.socket && !shown.time_wait;
        let this = match hold {
            Hold::Socket(_) => &mut shown.socket,
            Hold::TimeWait(..) => &mut shown.time_wait,
        };
        if mem::replace(this, true) {
            // Listed twice: as an open file, and by the kernel.
            return;
        }
        *matched += usize::from(is_first);
        if !self.agrees(entry, held) {
            differences.missing.insert(hold, *held);
            differences.extra.insert(hold, entry.lease.clone());
        }
    }

    /// True if a lease is what the snapshot shows of it.
    fn agrees(&self, entry: &Entry, held: &Held) -> bool {
        if entry.lease.local_port != held.local_port {
            return false;
        }
        match held.by {
            // The change of the substate can pass without an event.
            HeldBy::TimeWait(_) => true,
            HeldBy::Socket(_)
                if entry.holders.has_time_wait() || entry.changed == self.window.number() =>
            {
                true
            }
            HeldBy::Socket(_) => phase_of(held.by) == entry.lease.phase,
        }
    }

    /// Adds the holds of a lease that the snapshot should show and does not.
    fn add_extra(&self, entry: &Entry, shown: Shown, of: &Coverage, differences: &mut Differences) {
        let lease = &entry.lease;
        // What no snapshot can show is believed to last until an observation ends it.
        let is_idle = matches!(lease.phase, Phase::Bound | Phase::TimeWait(_));
        let is_listed = self.visibility.bound_idle && !of.lacks_files || !is_idle;
        if entry.holders.has_socket() && is_listed && !shown.socket {
            differences.extra.insert(Hold::Socket(lease.cookie), lease.clone());
        }
        if entry.holders.has_time_wait()
            && entry.awaited != Some(Awaited::TimerOutcome)
            && !shown.time_wait
            && let Some(key) = ConnectionKey::of_lease(lease)
        {
            differences.extra.insert(Hold::TimeWait(lease.cookie, key), lease.clone());
        }
    }
}
