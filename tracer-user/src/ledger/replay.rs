//! A ledger that follows recorded changes instead of facts: the same tables, the same counts.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    Ledger, Sink,
    tables::{ConnectionKey, Holders, LeaseIndex, NewLease},
};
use crate::model::{
    BucketClass, Change, Failure, Instant, Lease, LeaseEvent, LeaseId, Netns, Phase, Pressure,
    Settings, Visibility,
};

/// Follows a recording.
#[derive(Debug)]
pub(crate) struct Replay {
    ledger: Ledger,
    /// The index of each recorded lease.
    leases: FxHashMap<LeaseId, LeaseIndex>,
}

impl Default for Replay {
    fn default() -> Self {
        Self::new(true)
    }
}

impl Replay {
    fn new(buckets_recover: bool) -> Self {
        let ledger = Ledger::new(Visibility {
            ports_chosen: true,
            accepts: true,
            // Kernels that mark these sockets are those whose buckets recover.
            marks_connect: buckets_recover,
            bound_idle: true,
            since: Instant::BOOT,
        });
        Self { ledger, leases: FxHashMap::default() }
    }

    /// The ledger as it was at the present moment of the recording.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Sets the time of the changes that follow.
    pub(crate) fn advance(&mut self, at: Instant) {
        self.ledger.advance(at);
    }

    /// A new run begins, which numbers its leases anew, on a kernel with this rule for buckets.
    pub(crate) fn restart(&mut self, buckets_recover: bool) {
        *self = Self::new(buckets_recover);
    }

    /// Forgets the settings of a namespace whose inode a new one has now.
    pub(crate) fn forget_settings(&mut self, netns: Netns) {
        self.ledger.forget_settings(netns);
    }

    /// Sets the settings of a namespace from now on.
    pub(crate) fn set_settings(&mut self, netns: Netns, settings: Settings) {
        self.ledger.set_settings(netns, Arc::new(settings));
        self.ledger.emit_pressure(&mut DiscardEvents);
    }

    /// Applies a change of a lease. A lease that is not known is older than the recording.
    pub(crate) fn apply(&mut self, event: &LeaseEvent<'_>) {
        let LeaseEvent { at, lease, change } = *event;
        let ledger = &mut self.ledger;
        let index = match self.leases.get(&lease.id) {
            Some(known) => *known,
            None => {
                let index = ledger.enter_recorded(lease);
                self.leases.insert(lease.id, index);
                index
            }
        };
        if lease.owner.is_some() {
            ledger.table[index].lease.owner.clone_from(&lease.owner);
        }
        ledger.repeat(index, at, lease, change);
        if let Change::Release { reason } = change {
            self.leases.remove(&lease.id);
            ledger.release(index, at, reason, &mut DiscardEvents);
        }
        ledger.emit_pressure(&mut DiscardEvents);
    }
}

impl Ledger {
    /// Adds a recorded lease as its first record shows it.
    fn enter_recorded(&mut self, lease: &Lease) -> LeaseIndex {
        let Lease {
            id,
            cookie,
            netns,
            kind,
            family,
            v6_only,
            local_addr,
            local_port,
            peer,
            phase,
            ref owner,
            acquired,
            established,
            closing,
            closed_by,
            time_wait,
            timer_armed,
            has_timestamps,
        } = *lease;
        let new = NewLease {
            cookie,
            netns,
            family,
            v6_only,
            local_addr,
            local_port,
            peer,
            kind,
            phase,
            owner: owner.clone(),
            acquired,
            has_timestamps,
        };
        let index = match phase {
            Phase::TimeWait(_) => self.insert_time_wait(new),
            _ => self.insert_socket(new),
        };
        let lease = &mut self.table[index].lease;
        lease.id = id;
        (lease.established, lease.closing, lease.closed_by) = (established, closing, closed_by);
        (lease.time_wait, lease.timer_armed) = (time_wait, timer_armed);
        if phase == Phase::Listen {
            self.table.bind_bucket(index);
        }
        index
    }

    /// Applies a recorded change to a lease.
    fn repeat(&mut self, index: LeaseIndex, at: Instant, recorded: &Lease, change: Change) {
        let discard = &mut DiscardEvents;
        match change {
            Change::Held { bucket } => self.correct_bucket(index, bucket),
            Change::Bind { .. } | Change::Accept { .. } | Change::Release { .. } => {}
            Change::Connect { .. } => self.table[index].lease.timer_armed = Some(at),
            Change::Established { .. } => {
                self.table.set_address(index, recorded.local_addr);
                self.table.change(index, |entry| {
                    let lease = &mut entry.lease;
                    lease.peer = recorded.peer;
                    lease.phase = Phase::Established;
                    (lease.established, lease.timer_armed) = (Some(at), None);
                    (lease.closing, lease.closed_by) = (None, None);
                });
            }
            Change::Listen => self.listens(index, at, discard),
            Change::Update { bucket } => {
                self.update(index, at, recorded);
                self.correct_bucket(index, bucket);
            }
            Change::Closing { by } => {
                let lease = &mut self.table[index].lease;
                lease.phase = Phase::Closing;
                (lease.closed_by, lease.closing) = (Some(by), Some(at));
            }
            Change::TimeWait(substate) => {
                let entry = &mut self.table[index];
                entry.lease.has_timestamps = recorded.has_timestamps;
                entry.lease.timer_armed = Some(at);
                let is_first = !entry.holders.has_time_wait() || entry.lease.time_wait.is_none();
                if is_first && let Some(key) = ConnectionKey::of_lease(recorded) {
                    entry.lease.time_wait = Some(at);
                    self.begin_time_wait(index, &key, substate, at, discard);
                } else {
                    self.table.change(index, |entry| {
                        entry.lease.phase = Phase::TimeWait(substate);
                    });
                }
            }
        }
    }
}

impl Ledger {
    /// Sets the class of the bucket of a lease's port to the recorded one.
    fn correct_bucket(&mut self, index: LeaseIndex, recorded: Option<BucketClass>) {
        let Lease { netns, local_port, .. } = self.table[index].lease;
        if let Some(class) = recorded {
            self.table.correct_bucket_class(netns, local_port, class);
        }
    }

    /// Sets a lease to what the record of an [`Update`](Change::Update) shows.
    fn update(&mut self, index: LeaseIndex, at: Instant, recorded: &Lease) {
        let before = self.table[index].lease.phase;
        self.table.set_address(index, recorded.local_addr);
        if before == Phase::Listen && recorded.phase != Phase::Listen {
            self.table.leases_mut().remove_listener(index);
        }
        self.table.change(index, |entry| {
            let lease = &mut entry.lease;
            lease.peer = recorded.peer;
            lease.phase = recorded.phase;
            lease.closed_by = recorded.closed_by;
            match (before, recorded.phase) {
                (_, Phase::Connecting) => {
                    (lease.established, lease.closing) = (None, None);
                    lease.timer_armed = Some(at);
                }
                // The socket outlives its TIME_WAIT.
                (Phase::TimeWait(_), Phase::Bound) => entry.holders = Holders::Socket,
                (_, Phase::Bound) => {
                    lease.closing = lease.closing.or(lease.established.map(|_| at));
                }
                _ => {}
            }
        });
        if before != Phase::Listen && recorded.phase == Phase::Listen {
            self.table.leases_mut().add_listener(index);
            self.table.bind_bucket(index);
        }
    }
}

/// Discards events: the recording contains them already.
struct DiscardEvents;

impl Sink for DiscardEvents {
    fn lease(&mut self, _event: LeaseEvent<'_>, _ledger: &Ledger) {}
    fn failure(&mut self, _failure: &Failure<'_>, _ledger: &Ledger) {}
    fn pressure(&mut self, _pressure: &Pressure, _ledger: &Ledger) {}
}
