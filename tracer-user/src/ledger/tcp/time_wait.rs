//! TIME_WAITs, by the timer of each.

use crate::{
    ledger::{
        Ledger, Sink,
        calls::LONGEST_CALL_NS,
        tables::{Awaited, Hold, NewLease},
        timers::DueLease,
    },
    model::{
        Change, Instant, Phase, Reason,
        observation::{
            Arming, Endpoints, SocketId, TimeWaitCancel, TimeWaitExpire, TimeWaitId, TimeWaitStart,
        },
    },
};

impl Ledger {
    pub(in crate::ledger) fn time_wait_start(
        &mut self,
        start: &TimeWaitStart,
        sink: &mut impl Sink,
    ) {
        let TimeWaitStart { at, time_wait, substate, arming, has_timestamps } = *start;
        let Some((cookie, key)) = Hold::of_time_wait(&time_wait) else { return };
        let has_timestamps = Some(has_timestamps);
        if let Some(index) = self.table.leases().of_time_wait(cookie, &key) {
            // Armed anew: the cancellation was part of that. The function that re-arms cancels
            // nothing, and may run when another CPU has just killed the TIME_WAIT.
            if arming == Arming::FirstOrAgain {
                self.timers.settle(&mut self.table, index);
            }
            let is_new = self.table[index].lease.phase != Phase::TimeWait(substate);
            self.table.change(index, |entry| {
                entry.lease.timer_armed = Some(at);
                entry.lease.has_timestamps = has_timestamps;
                entry.lease.phase = Phase::TimeWait(substate);
            });
            if is_new {
                self.emit(index, at, Change::TimeWait(substate), sink);
            }
            return;
        }
        if arming == Arming::Again {
            return;
        }
        let index = match self.table.leases().of_socket(cookie) {
            Some(index) => index,
            None => {
                let TimeWaitId { cookie: _, netns, endpoints: Endpoints { local, peer } } =
                    time_wait;
                let phase = Phase::TimeWait(substate);
                let kind = self.likely_kind(netns, key.local.1, None, phase);
                let socket = SocketId { cookie, netns };
                let Some(new) = NewLease::observed(socket, local, peer, kind, phase) else {
                    return;
                };
                self.insert_time_wait(new)
            }
        };
        let lease = &mut self.table[index].lease;
        (lease.time_wait, lease.timer_armed) = (Some(at), Some(at));
        lease.has_timestamps = has_timestamps;
        self.begin_time_wait(index, &key, substate, at, sink);
    }

    pub(in crate::ledger) fn time_wait_cancel(&mut self, cancel: &TimeWaitCancel) {
        let TimeWaitCancel { at, time_wait, cancel } = *cancel;
        let Some((cookie, key)) = Hold::of_time_wait(&time_wait) else { return };
        match self.table.leases().of_time_wait(cookie, &key) {
            Some(index) => self.timers.cancel(&mut self.table, index, key, at, cancel),
            None => self.window.end(|| Some(Hold::TimeWait(cookie, key))),
        }
    }

    pub(in crate::ledger) fn time_wait_expire(
        &mut self,
        expire: &TimeWaitExpire,
        sink: &mut impl Sink,
    ) {
        let TimeWaitExpire { at, time_wait } = *expire;
        let Some((cookie, key)) = Hold::of_time_wait(&time_wait) else { return };
        match self.table.leases().of_time_wait(cookie, &key) {
            Some(index) => self.end_time_wait(index, at, Reason::TimeWaitExpired, sink),
            None => self.window.end(|| Some(Hold::TimeWait(cookie, key))),
        }
    }

    /// Ends the TIME_WAITs whose timer was cancelled and for which nothing else has followed.
    pub(in crate::ledger) fn settle_timers(&mut self, now: Instant, sink: &mut impl Sink) {
        while let Some(due) = self.timers.pop_due(now) {
            if self.is_contested(due) {
                self.timers.contest(due);
            } else {
                self.end_cancelled(due, sink);
            }
        }
        for due in self.timers.take_contested() {
            if now.since(due.since) < LONGEST_CALL_NS && self.is_contested(due) {
                self.timers.contest(due);
            } else {
                self.end_cancelled(due, sink);
            }
        }
    }

    fn end_cancelled(&mut self, due: DueLease, sink: &mut impl Sink) {
        let DueLease { since, index, id } = due;
        if self.table.leases().live(index, id).is_some()
            && let Some(cancelled) = self.timers.of_lease(index)
            && cancelled.at == since
        {
            self.end_time_wait(index, cancelled.at, cancelled.reason, sink);
        }
    }

    /// True if a connect() to where the TIME_WAIT's connection went had begun when the TIME_WAIT was
    /// killed, and has not ended yet: the kernel ends a TIME_WAIT that it reuses in the middle of
    /// the call (`__inet_check_established`, net/ipv4/inet_hashtables.c).
    fn is_contested(&self, due: DueLease) -> bool {
        let Some(entry) = self.table.leases().live(due.index, due.id) else { return false };
        let Some(cancelled) = self.timers.of_lease(due.index) else { return false };
        let lease = &entry.lease;
        if cancelled.reason != Reason::TimeWaitKilled {
            return false;
        }
        self.calls.connects_to(lease.netns, lease.peer, cancelled.at)
            || self.table.leases().on_port(lease.netns, lease.local_port).any(|(_, entry)| {
                entry.awaited == Some(Awaited::CallResult)
                    && entry.lease.peer == lease.peer
                    && entry.lease.timer_armed <= Some(cancelled.at)
            })
    }
}
