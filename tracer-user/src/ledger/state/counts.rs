//! Keeps the counts of [`Usage`](crate::capacity::Usage) in step with the leases.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::{
    ledger::{Sink, marks::Mark, state::Ledger},
    model::{
        BucketClass, Destination, Instant, Kind, Lease, LeaseId, Netns, Phase, Port, RangeUse,
        Settings, Substate, seconds,
    },
};

/// Who holds most of the ports that connect() leaves out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Culprit {
    found: Instant,
    index: u32,
    id: LeaseId,
    ports: u32,
}

/// What a socket with a range of its own found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Narrow {
    found: Instant,
    destination: Destination,
    range: (Port, Port),
    range_use: RangeUse,
    /// Who holds most of the locked ports, and how many.
    culprit: Option<(LeaseId, u32, u32)>,
}

/// For how long an answer to that question is good: it takes a walk through the range.
const CULPRIT_LASTS_NS: u64 = 500_000_000;
/// For how long what was found in a socket's own range is good, for the same reason.
const NARROW_LASTS_NS: u64 = 20_000_000;
/// Leases on one port that are looked at.
const MOST_LOOKED_AT: usize = 256;

impl Ledger {
    /// Counts the ports of a namespace by these settings from now on.
    pub fn set_settings(&mut self, netns: Netns, settings: Arc<Settings>) {
        self.usage.begin_recount(netns, settings);
        let of_it: Vec<u32> = self
            .ports
            .chains_of(netns)
            .flat_map(|first| self.chain(first, |entry| entry.next_of_port))
            .map(|(index, _)| index)
            .collect();
        for index in &of_it {
            let entry = &mut self.leases[*index as usize];
            entry.destination = None;
            entry.marks.take(Mark::CountedTimeWait);
            let port = entry.lease.local_port;
            self.usage.hold_port(netns, port);
            let is_locked = self.ports.get(netns, port).class == BucketClass::Bind;
            self.usage.set_locked(netns, port, is_locked);
        }
        for index in of_it {
            self.recount(index);
        }
        self.usage.end_recount(netns);
    }

    /// Forgets the settings of a namespace that has ended.
    pub fn forget_settings(&mut self, netns: Netns) {
        self.usage.forget(netns);
    }

    /// Reports the levels that were crossed.
    pub(super) fn report_pressure(&mut self, sink: &mut impl Sink) {
        if self.usage.has_crossed() {
            for pressure in self.usage.take_crossed() {
                sink.pressure(&pressure, self);
            }
        }
    }

    /// Puts a lease where it belongs in the counts, after its ends or its phase have changed.
    pub(super) fn recount(&mut self, index: u32) {
        let entry = &self.leases[index as usize];
        let wanted = destination_of(&entry.lease);
        let port = entry.lease.local_port;
        // connect() leaves the port out if its socket, or another one, was bound.
        let is_time_wait = wanted.is_some()
            && entry.lease.kind == Kind::Connect
            && entry.lease.phase == Phase::TimeWait(Substate::TimeWait)
            && entry.lease.has_timestamps != Some(false)
            && self.ports.get(entry.lease.netns, port).class == BucketClass::Connect;
        if let Some(counted) = entry.destination
            && self.usage.destination(counted) != wanted.as_ref()
        {
            let was_time_wait = entry.marks.has(Mark::CountedTimeWait);
            let at = self.usage.event_time();
            self.usage.leave(counted, port, was_time_wait, at);
            let entry = &mut self.leases[index as usize];
            entry.destination = None;
            entry.marks.take(Mark::CountedTimeWait);
        }
        if let Some(wanted) = wanted
            && self.leases[index as usize].destination.is_none()
        {
            let counted = self.usage.join(wanted, port);
            self.leases[index as usize].destination = counted;
        }
        let entry = &mut self.leases[index as usize];
        if let Some(counted) = entry.destination
            && entry.marks.has(Mark::CountedTimeWait) != is_time_wait
        {
            entry.marks.set(Mark::CountedTimeWait, is_time_wait);
            self.usage.set_time_wait(counted, is_time_wait);
        }
    }

    /// A TIME_WAIT has begun: for how long it keeps the port from others is known in advance.
    pub(super) fn foresee_hold(&mut self, index: u32, substate: Substate, at: Instant) {
        let entry = &self.leases[index as usize];
        if let Some(counted) = entry.destination
            && let Some(acquired) = entry.lease.acquired
            && let Some(time_wait_s) =
                self.usage.time_wait_s(counted, substate, entry.lease.has_timestamps)
        {
            self.usage.hold_is_known(counted, at, seconds(at.since(acquired)) + time_wait_s);
        }
    }

    /// Takes a lease that ends out of the counts.
    pub(super) fn uncount(&mut self, index: u32, at: Instant) {
        let entry = &mut self.leases[index as usize];
        let Some(counted) = entry.destination.take() else { return };
        let Lease { acquired, time_wait, local_port, .. } = entry.lease;
        // That of a TIME_WAIT was known when it began.
        if let Some(acquired) = acquired.filter(|_| time_wait.is_none()) {
            self.usage.hold_is_known(counted, at, seconds(at.since(acquired)));
        }
        let is_time_wait = self.leases[index as usize].marks.has(Mark::CountedTimeWait);
        self.usage.leave(counted, local_port, is_time_wait, at);
    }

    /// The lease that stands for those that keep connect() from the ports of a range, and how many
    /// of these ports are its process's. Who bound before connecting is named before a listener,
    /// which holds its port for a purpose.
    pub(super) fn culprit(&mut self, netns: Netns, now: Instant) -> Option<(u32, u32)> {
        if let Some(known) = self.culprits.get(&netns)
            && now.since(known.found) < CULPRIT_LASTS_NS
            && self.leases.get(known.index as usize).is_some_and(|entry| entry.lease.id == known.id)
        {
            return Some((known.index, known.ports));
        }
        let (index, ports) = self.culprit_among(netns, self.usage.locked_ports(netns))?;
        let id = self.leases[index as usize].lease.id;
        self.culprits.insert(netns, Culprit { found: now, index, id, ports });
        Some((index, ports))
    }

    /// The ports of a socket's own range as a connect() of it sees them, and who holds most of
    /// those that others have bound.
    pub(super) fn use_within(
        &mut self,
        destination: &Destination,
        range: (Port, Port),
        now: Instant,
    ) -> (Option<RangeUse>, Option<(u32, u32)>) {
        let found = self
            .narrow
            .filter(|known| {
                known.destination == *destination
                    && known.range == range
                    && now.since(known.found) < NARROW_LASTS_NS
            })
            .unwrap_or_else(|| self.look_within(destination, range, now));
        self.narrow = Some(found);
        let culprit = found.culprit.filter(|(id, index, _)| {
            self.leases.get(*index as usize).is_some_and(|entry| entry.lease.id == *id)
        });
        (Some(found.range_use), culprit.map(|(_, index, ports)| (index, ports)))
    }

    fn look_within(
        &self,
        destination: &Destination,
        range: (Port, Port),
        found: Instant,
    ) -> Narrow {
        let netns = destination.netns;
        let counted = self.usage.index(destination);
        let mut range_use = RangeUse::default();
        let mut locked = Vec::new();
        for port in (range.0.0..=range.1.0).map(Port) {
            if !self.usage.is_choosable(netns, port) {
                range_use.reserved += 1;
                continue;
            }
            range_use.capacity += 1;
            let is_used = self
                .chain(self.ports.get(netns, port).first, |entry| entry.next_of_port)
                .take(MOST_LOOKED_AT)
                .any(|(_, entry)| counted.is_some() && entry.destination == counted);
            if is_used {
                range_use.used += 1;
            } else if self.usage.is_locked(netns, port) {
                range_use.bind_locked += 1;
                locked.push(port);
            }
        }
        let culprit = self
            .culprit_among(netns, locked)
            .map(|(index, ports)| (self.leases[index as usize].lease.id, index, ports));
        Narrow { found, destination: *destination, range, range_use, culprit }
    }

    fn culprit_among(
        &self,
        netns: Netns,
        locked: impl IntoIterator<Item = Port>,
    ) -> Option<(u32, u32)> {
        let mut tally: FxHashMap<(bool, u32), (u32, u32)> = FxHashMap::default();
        for port in locked {
            if let Some((index, serves)) = self.binder(netns, port) {
                let lease = &self.leases[index as usize].lease;
                let pid = lease.owner.as_ref().map_or(0, |owner| owner.pid);
                tally.entry((serves, pid)).or_insert((0, index)).0 += 1;
            }
        }
        let (_, (ports, index)) =
            tally.into_iter().max_by_key(|((serves, pid), (ports, _))| (!serves, *ports, *pid))?;
        Some((index, ports))
    }

    /// Who bound this port, and whether it serves there. Where the binder is gone and its bucket
    /// is not as it was before it came, whoever keeps the bucket.
    fn binder(&self, netns: Netns, port: Port) -> Option<(u32, bool)> {
        let first = self.ports.get(netns, port).first;
        let serves = |lease: &Lease| {
            lease.phase == Phase::Listen || matches!(lease.kind, Kind::Listen | Kind::Accept)
        };
        // The worst that can be said of a port, first.
        let rank = |lease: &Lease| match lease.kind {
            Kind::Bind | Kind::BindAuto if !serves(lease) => 0,
            Kind::Bind | Kind::BindAuto | Kind::Listen => 1,
            Kind::Accept => 2,
            Kind::Connect => 3,
        };
        self.chain(first, |entry| entry.next_of_port)
            .take(MOST_LOOKED_AT)
            .min_by_key(|(_, entry)| rank(&entry.lease))
            .map(|(index, entry)| (index, serves(&entry.lease)))
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
