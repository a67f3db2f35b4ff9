//! Keeps the counts of [`Usage`](crate::capacity::Usage) in step with the leases.

use super::{LeaseIndex, port_table::PortTable};
use crate::model::{BucketClass, Destination, Instant, Kind, Lease, Phase, Substate, seconds};

impl PortTable {
    /// Puts a lease where it belongs in the counts, after its ends or its phase have changed.
    pub(super) fn recount(&mut self, index: LeaseIndex) {
        let Self { leases, usage, buckets: _ } = self;
        let entry = &leases[index];
        let wanted = destination_of(&entry.lease);
        let port = entry.lease.local_port;
        // connect() leaves the port out if its socket, or another one, was bound.
        let is_reusable = wanted.is_some()
            && entry.lease.kind == Kind::Connect
            && entry.lease.phase == Phase::TimeWait(Substate::TimeWait)
            && entry.lease.has_timestamps != Some(false)
            && leases.slot(entry.lease.netns, port).class == BucketClass::Connect;
        let entry = &mut leases[index];
        if let Some(counted) = entry.destination
            && usage.destination(counted) != wanted.as_ref()
        {
            usage.remove_connection(counted, port, entry.is_counted_reusable, usage.event_time());
            (entry.destination, entry.is_counted_reusable) = (None, false);
        }
        if let Some(wanted) = wanted
            && entry.destination.is_none()
        {
            entry.destination = usage.add_connection(wanted, port);
        }
        if let Some(counted) = entry.destination
            && entry.is_counted_reusable != is_reusable
        {
            entry.is_counted_reusable = is_reusable;
            usage.set_time_wait(counted, is_reusable);
        }
    }

    /// Tells the counts how long a TIME_WAIT that has just begun will keep the port from others.
    pub fn foresee_hold(&mut self, index: LeaseIndex, substate: Substate, at: Instant) {
        let entry = &self.leases[index];
        if let Some(counted) = entry.destination
            && let Some(acquired) = entry.lease.acquired
            && let Some(time_wait_s) =
                self.usage.time_wait_s(counted, substate, entry.lease.has_timestamps)
        {
            self.usage.add_hold_time(counted, at, seconds(at.since(acquired)) + time_wait_s);
        }
    }

    /// Takes a lease that ends out of the counts.
    pub(super) fn uncount(&mut self, index: LeaseIndex, at: Instant) {
        let entry = &mut self.leases[index];
        let Some(counted) = entry.destination.take() else { return };
        let Lease { acquired, time_wait, local_port, .. } = entry.lease;
        // That of a TIME_WAIT was known when it began.
        if let Some(acquired) = acquired.filter(|_| time_wait.is_none()) {
            self.usage.add_hold_time(counted, at, seconds(at.since(acquired)));
        }
        self.usage.remove_connection(counted, local_port, entry.is_counted_reusable, at);
    }
}

/// The destination that a lease's port is in use for. A connection to a listener is of no
/// destination: its port was not chosen.
pub(crate) fn destination_of(lease: &Lease) -> Option<Destination> {
    let is_connection = match lease.phase {
        Phase::Bound | Phase::Listen => false,
        Phase::Connecting | Phase::Established | Phase::Closing | Phase::TimeWait(_) => true,
    };
    let peer = lease.peer.get().filter(|_| is_connection && lease.kind != Kind::Accept)?;
    Some(Destination { netns: lease.netns, source: lease.local_addr, peer })
}
