//! Makes the ledger agree with the kernel.

use rustc_hash::FxHashSet;

use super::{adopt::phase_of, differences::Differences};
use crate::{
    ledger::{
        Ledger, Sink,
        tables::{Hold, LeaseIndex},
    },
    model::{Change, Held, HeldBy, Instant, Lease, LeaseEvent, Phase, Reason},
};

impl Ledger {
    /// Makes the ledger agree with the kernel, and emits what that changes.
    pub fn heal(&mut self, differences: &Differences, at: Instant, sink: &mut impl Sink) {
        self.calls.forget_lost(at);
        self.correct_owners(differences, at, sink);
        let turned = self.turn_into_time_waits(differences, at, sink);
        for (hold, Lease { id, .. }) in &differences.extra {
            let Some(index) = self.of_hold(hold).filter(|index| self.table[*index].lease.id == *id)
            else {
                continue;
            };
            if let Some(held) = differences.missing.get(hold)
                && self.table[index].lease.local_port == held.local_port
            {
                self.correct(index, held);
                self.emit_update(index, at, sink);
                continue;
            }
            match hold {
                Hold::Socket(_) => self.end_socket_hold(index, at, Reason::Unseen, sink),
                Hold::TimeWait(..) => self.end_time_wait(index, at, Reason::Unseen, sink),
            }
        }
        let missing = differences.missing.iter().filter(|(hold, _)| !turned.contains(*hold));
        for (_, held) in missing {
            // Its call has ended, and the observation that showed it was lost.
            self.calls.end(held.cookie);
            if let Some(index) = self.adopt(held) {
                let change = Change::Held { bucket: self.bucket_of(index) };
                let lease = &self.table[index].lease;
                sink.lease(LeaseEvent { at, lease, change }, self);
            }
        }
        for ((netns, port), class) in &differences.classes {
            self.table.correct_bucket_class(*netns, *port, *class);
            let on_port = self.table.leases().on_port(*netns, *port).next().map(|(index, _)| index);
            if let Some(index) = on_port {
                self.emit_update(index, at, sink);
            }
        }
        self.emit_pressure(sink);
    }

    /// Gives each lease whose owner was not seen, or has handed its socket on, the process that has
    /// the socket open.
    fn correct_owners(&mut self, differences: &Differences, at: Instant, sink: &mut impl Sink) {
        for ((index, id), owner) in &differences.owners {
            if self.table.leases().live(*index, *id).is_some() {
                self.table[*index].lease.owner = Some(self.owners.share(owner));
                self.emit_update(*index, at, sink);
            }
        }
    }

    /// Where the kernel has a TIME_WAIT and only the ledger has the socket that it replaced, the
    /// lease goes on: with its owner, which nothing else shows any more. Returns these TIME_WAITs.
    fn turn_into_time_waits(
        &mut self,
        differences: &Differences,
        at: Instant,
        sink: &mut impl Sink,
    ) -> FxHashSet<Hold> {
        let mut turned = FxHashSet::default();
        for (hold, held) in &differences.missing {
            if let Hold::TimeWait(cookie, key) = hold
                && let HeldBy::TimeWait(substate) = held.by
                && let Some(socket) = differences.extra.get(&Hold::Socket(*cookie))
                && !differences.missing.contains_key(&Hold::Socket(*cookie))
                && let Some(index) = self.table.leases().of_socket(*cookie)
                && self.table[index].lease.id == socket.id
                && !self.table[index].holders.has_time_wait()
                && socket.local_port == held.local_port
            {
                // When it began is not known.
                self.table[index].lease.timer_armed = None;
                self.begin_time_wait(index, key, substate, at, sink);
                turned.insert(*hold);
            }
        }
        turned
    }

    /// Makes a lease what the snapshot shows of it.
    fn correct(&mut self, index: LeaseIndex, held: &Held) {
        self.table.leases_mut().remove_listener(index);
        let phase = phase_of(held.by);
        if phase == Phase::Listen {
            self.table.leases_mut().add_listener(index);
            self.table.bind_bucket(index);
        }
        self.table.change(index, |entry| {
            let lease = &mut entry.lease;
            lease.peer = held.peer.map_or(lease.peer, Into::into);
            lease.phase = phase;
            lease.has_timestamps = held.has_timestamps.or(lease.has_timestamps);
        });
    }
}
