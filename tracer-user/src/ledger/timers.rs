//! TIME_WAITs whose timer was cancelled, until later observations show why.
//!
//! A timer is cancelled because it is armed again, because it expires, because a new connection
//! reuses the TIME_WAIT, or because the TIME_WAIT is killed. The first three are observed. If none
//! of them follows in time, it was a kill.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::tables::{Awaited, ConnectionKey, LeaseIndex, PortTable};
use crate::model::{Instant, LeaseId, Reason, observation::Cancel};

/// A TIME_WAIT timer that was cancelled before it was due is armed again at once, under the same
/// lock; the reuse by a connect() is known microseconds later, when it has its port, and that by a
/// client that comes back a round trip later, when its handshake is complete. A client further away
/// than this is not waited for: a record is to be emitted within a tenth of a second.
const KILL_SETTLES_NS: u64 = 40_000_000;

/// A timer that was due expires at once, unless its CPU is taken away (a virtual machine's may be).
const EXPIRY_SETTLES_NS: u64 = 1_000_000_000;

/// The cancelled timers.
#[derive(Debug, Default)]
pub(super) struct CancelledTimers {
    /// The lease of the TIME_WAIT, by its connection.
    by_connection: FxHashMap<ConnectionKey, LeaseIndex>,
    by_lease: FxHashMap<LeaseIndex, Cancelled>,
    /// Cancelled when due, oldest first.
    when_due: VecDeque<DueLease>,
    /// Cancelled before they were due, or with their namespace, oldest first.
    before_due: VecDeque<DueLease>,
    /// Perhaps killed by a connect() under way that reuses their ports.
    contested: Vec<DueLease>,
}

/// A cancelled timer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cancelled {
    pub at: Instant,
    /// Why the TIME_WAIT ends, if nothing shows another reason.
    pub reason: Reason,
}

/// A lease that waits for a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct DueLease {
    /// When the wait began.
    pub since: Instant,
    pub index: LeaseIndex,
    pub id: LeaseId,
}

impl CancelledTimers {
    /// Records that the timer of a lease's TIME_WAIT was cancelled.
    pub fn cancel(
        &mut self,
        table: &mut PortTable,
        index: LeaseIndex,
        key: ConnectionKey,
        at: Instant,
        cancel: Cancel,
    ) {
        let (reason, queue) = match cancel {
            Cancel::NetnsTeardown => (Reason::NetnsGone, &mut self.before_due),
            Cancel::BeforeDue => (Reason::TimeWaitKilled, &mut self.before_due),
            Cancel::WhenDue => (Reason::TimeWaitKilled, &mut self.when_due),
        };
        let entry = &mut table[index];
        entry.awaited = Some(Awaited::TimerOutcome);
        queue.push_back(DueLease { since: at, index, id: entry.lease.id });
        if self.by_connection.len() > table.leases().len() {
            // A loss can leave an entry behind.
            self.by_connection.retain(|key, index| is_cancelled(table, *index, key));
        }
        self.by_connection.insert(key, index);
        self.by_lease.insert(index, Cancelled { at, reason });
    }

    /// Records that the outcome for a lease is known: the timer is armed again, or the TIME_WAIT
    /// has ended.
    pub fn settle(&mut self, table: &mut PortTable, index: LeaseIndex) {
        let entry = &mut table[index];
        if entry.awaited != Some(Awaited::TimerOutcome) {
            return;
        }
        entry.awaited = None;
        self.by_lease.remove(&index);
        if let Some(key) = ConnectionKey::of_lease(&entry.lease) {
            self.by_connection.remove(&key);
        }
    }

    /// The TIME_WAIT of this connection whose timer is cancelled.
    pub fn of_connection(
        &self,
        table: &PortTable,
        key: &ConnectionKey,
    ) -> Option<(LeaseIndex, Cancelled)> {
        let index = *self.by_connection.get(key)?;
        let cancelled = *self.by_lease.get(&index)?;
        is_cancelled(table, index, key).then_some((index, cancelled))
    }

    /// How the timer of a lease was cancelled.
    pub fn of_lease(&self, index: LeaseIndex) -> Option<Cancelled> {
        self.by_lease.get(&index).copied()
    }

    /// The next TIME_WAIT that has waited long enough.
    pub fn pop_due(&mut self, now: Instant) -> Option<DueLease> {
        let pop = |queue: &mut VecDeque<DueLease>, settles_ns| {
            queue.pop_front_if(|due| now.since(due.since) >= settles_ns)
        };
        pop(&mut self.before_due, KILL_SETTLES_NS)
            .or_else(|| pop(&mut self.when_due, EXPIRY_SETTLES_NS))
    }

    /// The TIME_WAITs that waited for a connect() under way.
    pub fn take_contested(&mut self) -> Vec<DueLease> {
        std::mem::take(&mut self.contested)
    }

    /// Lets this TIME_WAIT wait for a connect() under way.
    pub fn contest(&mut self, due: DueLease) {
        self.contested.push(due);
    }

    /// True if no TIME_WAIT waits for a decision.
    pub fn is_empty(&self) -> bool {
        let Self { when_due, before_due, contested, by_connection: _, by_lease: _ } = self;
        when_due.is_empty() && before_due.is_empty() && contested.is_empty()
    }
}

/// True if this is the lease of a TIME_WAIT of this connection, whose timer is cancelled.
fn is_cancelled(table: &PortTable, index: LeaseIndex, key: &ConnectionKey) -> bool {
    table.leases().get(index).is_some_and(|entry| {
        entry.awaited == Some(Awaited::TimerOutcome)
            && ConnectionKey::of_lease(&entry.lease).as_ref() == Some(key)
    })
}
