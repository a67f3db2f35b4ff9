//! The leases, and the counts of [`capacity`](crate::capacity) kept in step with them.

use std::{
    ops::{Index, IndexMut},
    sync::Arc,
};

use super::{
    LeaseIndex,
    entry::{Entry, Holders, NewLease, SnapshotNumber},
    leases::Leases,
};
use crate::{
    capacity::Usage,
    model::{Instant, Lease, Netns, Pressure, Settings, seconds},
};

/// Every lease, by socket and by port, with the class of each bind bucket and the counts of each
/// destination.
#[derive(Debug)]
pub(in crate::ledger) struct PortTable {
    pub(super) leases: Leases,
    pub(super) usage: Usage,
    pub(super) buckets: BucketRule,
}

/// When connect() may use a bind bucket again after a bind().
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ledger) enum BucketRule {
    /// As soon as all of its owners got the port from connect() (6.18).
    Recovers,
    /// Only after its last owner is gone.
    StaysBound,
}

impl Index<LeaseIndex> for PortTable {
    type Output = Entry;

    fn index(&self, index: LeaseIndex) -> &Entry {
        &self.leases[index]
    }
}

/// What is counted must be changed by the table's own methods: see [`change`](PortTable::change).
impl IndexMut<LeaseIndex> for PortTable {
    fn index_mut(&mut self, index: LeaseIndex) -> &mut Entry {
        &mut self.leases[index]
    }
}

impl PortTable {
    /// An empty table. Levels are crossed from this time on.
    pub fn new(buckets: BucketRule, since: Instant) -> Self {
        let mut usage = Usage::default();
        usage.set_time(since);
        Self { leases: Leases::default(), usage, buckets }
    }

    /// The leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The leases. Nothing that is counted may be changed.
    pub fn leases_mut(&mut self) -> &mut Leases {
        &mut self.leases
    }

    /// The counts.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Sets the time of the events that follow.
    pub fn set_time(&mut self, at: Instant) {
        self.usage.set_time(at);
    }

    /// The levels that were crossed since the last call, oldest first.
    pub fn take_crossed(&mut self) -> Vec<Pressure> {
        if self.usage.has_pressure() { self.usage.take_pressure() } else { Vec::new() }
    }

    /// Adds a lease.
    pub fn insert(
        &mut self,
        new: NewLease,
        holders: Holders,
        changed: SnapshotNumber,
    ) -> LeaseIndex {
        let (netns, port) = (new.netns, new.local_port);
        self.usage.set_adopting(new.acquired.is_none());
        let index = self.leases.insert(new, holders, changed);
        if self.leases[index].next_of_port.is_none() {
            self.usage.hold_port(netns, port);
        }
        self.join_bucket(index);
        self.recount(index);
        self.usage.set_adopting(false);
        index
    }

    /// Removes a lease that ends at this time.
    pub fn remove(&mut self, index: LeaseIndex, at: Instant) {
        self.uncount(index, at);
        let (Lease { netns, local_port, local_addr, acquired, .. }, next) =
            self.leases.remove(index, at);
        if next.is_some() {
            self.leave_bucket(netns, local_port, local_addr);
        } else {
            let held_s = acquired.map(|acquired| seconds(at.since(acquired)));
            self.usage.free_port(netns, local_port, at, held_s);
        }
    }

    /// Changes the phase or the peer of a lease, and counts it accordingly.
    pub fn change(&mut self, index: LeaseIndex, change: impl FnOnce(&mut Entry)) {
        change(&mut self.leases[index]);
        self.recount(index);
    }

    /// Counts the ports of a namespace by these settings from now on.
    pub fn set_settings(&mut self, netns: Netns, settings: Arc<Settings>) {
        self.usage.begin_recount(netns, settings);
        let indices: Vec<LeaseIndex> =
            self.leases.in_netns(netns).map(|(index, _)| index).collect();
        for index in &indices {
            let entry = &mut self.leases[*index];
            (entry.destination, entry.is_counted_reusable) = (None, false);
            let port = entry.lease.local_port;
            self.usage.hold_port(netns, port);
            let class = self.leases.slot(netns, port).class;
            self.usage.set_locked(netns, port, class.is_bind());
        }
        for index in indices {
            self.recount(index);
        }
        self.usage.end_recount(netns);
    }

    /// Forgets the settings of a namespace that has ended.
    pub fn forget_settings(&mut self, netns: Netns) {
        self.usage.forget(netns);
    }
}
