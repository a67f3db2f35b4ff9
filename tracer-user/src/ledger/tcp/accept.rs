//! Connections that a listener accepts.

use crate::{
    ledger::{
        Ledger, Sink,
        tables::{Awaited, ConnectionKey, NewLease},
        timers::DueLease,
    },
    model::{
        Instant, Kind, Phase,
        observation::{Accepted, Endpoints, SocketId},
    },
};

/// How long the record of a new connection waits for the process that accepts it.
const ACCEPT_SETTLES_NS: u64 = 60_000_000;

impl Ledger {
    /// The last ACK of the handshake made a child of a listener. It belongs to the listener's owner
    /// until a process accepts it.
    pub(super) fn passive_open(
        &mut self,
        at: Instant,
        socket: SocketId,
        Endpoints { local, peer }: Endpoints,
        sink: &mut impl Sink,
    ) {
        let Some(new) = NewLease::observed(socket, local, peer, Kind::Accept, Phase::Established)
        else {
            return;
        };
        let leases = self.table.leases();
        let listener = leases.listener_of(new.netns, new.local_port, new.family, new.local_addr);
        let owner = listener.and_then(|listener| leases[listener].lease.owner.clone());
        let index = self.insert_socket(NewLease { owner, acquired: Some(at), ..new });
        let entry = &mut self.table[index];
        entry.lease.established = Some(at);
        entry.awaited = Some(Awaited::AcceptingProcess);
        if self.visibility.accepts {
            let id = entry.lease.id;
            self.unaccepted.push_back(DueLease { since: at, index, id });
        } else {
            self.announce(index, sink);
        }
    }

    pub(in crate::ledger) fn accepted(&mut self, accepted: &Accepted<'_>, sink: &mut impl Sink) {
        let Accepted { at: _, socket, endpoints, owner } = *accepted;
        let owner = Some(self.owners.share(owner));
        if let Some(index) = self.table.leases().of_socket(socket.cookie) {
            self.table[index].lease.owner = owner;
            self.announce(index, sink);
            return;
        }
        // The peer was faster: the connection has ended before it was accepted, except for its
        // TIME_WAIT.
        if let Some(index) = ConnectionKey::of_endpoints(socket.netns, endpoints)
            .and_then(|key| self.table.leases().of_time_wait(socket.cookie, &key))
        {
            self.table[index].lease.owner = owner;
        }
    }

    /// Emits the records of connections that no process has accepted for long enough.
    pub(in crate::ledger) fn settle_unaccepted(&mut self, now: Instant, sink: &mut impl Sink) {
        while let Some(DueLease { index, id, .. }) =
            self.unaccepted.pop_front_if(|due| now.since(due.since) >= ACCEPT_SETTLES_NS)
        {
            if self.table.leases().live(index, id).is_some() {
                self.announce(index, sink);
            }
        }
    }

    /// Drops the `accept` records that still wait: the first record of the tracer will show these
    /// leases as held.
    pub fn discard_waiting_records(&mut self) {
        self.unaccepted.clear();
        for entry in self.table.leases_mut().iter_mut() {
            entry.awaited = entry.awaited.filter(|awaited| *awaited != Awaited::AcceptingProcess);
        }
    }
}
