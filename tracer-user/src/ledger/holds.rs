//! The beginning and the end of a hold, and the events that report them.

use super::{
    Ledger, Sink,
    tables::{Awaited, ConnectionKey, Hold, Holders, LeaseIndex, NewLease},
};
use crate::{
    capacity::cause_of,
    model::{
        BucketClass, Change, Failure, Incarnation, Instant, Kind, LeaseEvent, Phase, Reason,
        Substate,
        observation::{LocalEnd, SocketId},
    },
};

// Holds.
impl Ledger {
    /// Adds the lease of a socket.
    pub(super) fn insert_socket(&mut self, new: NewLease) -> LeaseIndex {
        self.table.insert(new, Holders::Socket, self.window.number())
    }

    /// Adds the lease of a TIME_WAIT whose socket is unknown.
    pub(super) fn insert_time_wait(&mut self, new: NewLease) -> LeaseIndex {
        self.table.insert(new, Holders::TimeWait, self.window.number())
    }

    /// The socket releases the port. Its TIME_WAIT may continue to hold it.
    pub(super) fn end_socket_hold(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        reason: Reason,
        sink: &mut impl Sink,
    ) {
        let entry = &mut self.table[index];
        entry.changed = self.window.number();
        self.window.end(|| Some(Hold::Socket(entry.lease.cookie)));
        if entry.holders.has_time_wait() {
            entry.holders = Holders::TimeWait;
            (entry.socket_end, entry.close_reason) = (Some(at), Some(reason));
        } else {
            self.release(index, at, reason, sink);
        }
    }

    /// A TIME_WAIT holds the port from now on, after or beside the socket.
    pub(super) fn begin_time_wait(
        &mut self,
        index: LeaseIndex,
        key: &ConnectionKey,
        substate: Substate,
        at: Instant,
        sink: &mut impl Sink,
    ) {
        self.announce(index, sink);
        self.table.set_address(index, key.local.0);
        self.table.change(index, |entry| {
            entry.holders = entry.holders.and_time_wait();
            entry.awaited = None;
            entry.lease.phase = Phase::TimeWait(substate);
            entry.lease.peer = key.peer.into();
        });
        self.table.foresee_hold(index, substate, at);
        self.emit(index, at, Change::TimeWait(substate), sink);
    }

    /// Ends a TIME_WAIT. Its socket may still hold the port.
    pub(super) fn end_time_wait(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        reason: Reason,
        sink: &mut impl Sink,
    ) {
        self.timers.settle(&mut self.table, index);
        let entry = &mut self.table[index];
        entry.changed = self.window.number();
        self.window.end(|| {
            Some(Hold::TimeWait(entry.lease.cookie, ConnectionKey::of_lease(&entry.lease)?))
        });
        if entry.holders.has_socket() && entry.lease.kind == Kind::Bind {
            // The socket is still open, and bound to the port.
            let event_time = self.table.usage().event_time();
            self.table.set_time(at);
            self.table.change(index, |entry| {
                entry.holders = Holders::Socket;
                entry.lease.phase = Phase::Bound;
            });
            self.table.set_time(event_time);
            self.emit_update(index, at, sink);
        } else {
            // Any other socket released the port when its TIME_WAIT began, even if that observation
            // was lost. The end of a cancelled TIME_WAIT is known late: its socket may have been the
            // last to release the port.
            let last = entry.socket_end.filter(|socket_end| *socket_end > at);
            let (at, reason) = last.zip(entry.close_reason).unwrap_or((at, reason));
            self.release(index, at, reason, sink);
        }
    }

    /// Separates a socket that holds the port beside its TIME_WAIT and begins something new: the
    /// TIME_WAIT keeps the lease, and the socket gets one of its own.
    pub(super) fn separate_from_time_wait(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        sink: &mut impl Sink,
    ) -> LeaseIndex {
        let lease = self.table[index].lease.clone();
        self.end_socket_hold(index, at, Reason::Closed, sink);
        self.insert_socket(NewLease::of_socket_of(lease, at))
    }

    /// Records in which namespace a socket holds its port: another namespace may have had the inode
    /// before.
    pub(super) fn note_incarnation(
        &mut self,
        socket: SocketId,
        local: LocalEnd,
        incarnation: Option<Incarnation>,
    ) {
        if let (Some(_), Some(incarnation)) = (local.port, incarnation) {
            self.table.leases_mut().set_incarnation(socket.netns, incarnation);
        }
    }

    /// Ends a lease: its last holder has released the port.
    pub(super) fn release(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        reason: Reason,
        sink: &mut impl Sink,
    ) {
        self.emit(index, at, Change::Release { reason }, sink);
        self.timers.settle(&mut self.table, index);
        self.table.remove(index, at);
    }
}

// Events.
impl Ledger {
    /// Emits a change of a lease, after the `accept` record of that lease if it still waits.
    pub(super) fn emit(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        change: Change,
        sink: &mut impl Sink,
    ) {
        self.announce(index, sink);
        self.table[index].changed = self.window.number();
        sink.lease(LeaseEvent { at, lease: &self.table[index].lease, change }, self);
    }

    /// Emits that a lease is as it is now.
    pub(super) fn emit_update(&mut self, index: LeaseIndex, at: Instant, sink: &mut impl Sink) {
        let bucket = self.bucket_of(index);
        self.emit(index, at, Change::Update { bucket }, sink);
    }

    /// The class of the bucket of a lease's port.
    pub(super) fn bucket_of(&self, index: LeaseIndex) -> Option<BucketClass> {
        let lease = &self.table[index].lease;
        self.bucket_class(lease.netns, lease.local_port)
    }

    /// Emits the `accept` record of a listener's new connection, if it still waits for the accepting
    /// process.
    pub(super) fn announce(&mut self, index: LeaseIndex, sink: &mut impl Sink) {
        let entry = &mut self.table[index];
        if entry.awaited != Some(Awaited::AcceptingProcess) {
            return;
        }
        entry.awaited = None;
        let lease = &self.table[index].lease;
        let leases = self.table.leases();
        let listener = leases
            .listener_of(lease.netns, lease.local_port, lease.family, lease.local_addr)
            .map(|listener| leases[listener].lease.cookie);
        let at = lease.acquired.unwrap_or(Instant::BOOT);
        sink.lease(LeaseEvent { at, lease, change: Change::Accept { listener } }, self);
    }

    /// Emits the failure of a call that got no port, with its cause.
    pub(super) fn emit_failure(&self, failure: Failure<'_>, sink: &mut impl Sink) {
        let cause = cause_of(&failure);
        sink.failure(&Failure { cause, ..failure }, self);
    }

    /// Emits the levels of use that were crossed.
    pub(super) fn emit_pressure(&mut self, sink: &mut impl Sink) {
        for pressure in self.table.take_crossed() {
            sink.pressure(&pressure, self);
        }
    }
}
