//! listen().

use crate::{
    ledger::{
        Ledger, Sink,
        calls::Call,
        tables::{LeaseIndex, NewLease},
    },
    model::{
        Change, Instant, Kind, Operation, Peer, Phase,
        observation::{Endpoints, ListenStart, Listening},
    },
};

impl Ledger {
    pub(in crate::ledger) fn listen_start(
        &mut self,
        start: &ListenStart<'_>,
        sink: &mut impl Sink,
    ) {
        let ListenStart { at, socket, local, userlocks, owner } = *start;
        let owner = self.owners.share(owner);
        if local.port.is_none() {
            let call = Call {
                began: at,
                netns: socket.netns,
                peer: Peer::NONE,
                operation: Operation::Listen,
                owner: Some(owner),
                own_range: None,
            };
            self.calls.begin(socket.cookie, call);
            return;
        }
        let endpoints = Endpoints { local, peer: Peer::NONE };
        let Some(index) = self.bound_lease(socket, endpoints, userlocks, owner) else { return };
        let index = self.begin_call(index, at, sink);
        if !self.visibility.ports_chosen {
            self.listens(index, at, sink);
        }
    }

    pub(in crate::ledger) fn listening(&mut self, listening: &Listening, sink: &mut impl Sink) {
        let Listening { at, socket, local, incarnation } = *listening;
        if let Some(index) = self.table.leases().of_socket(socket.cookie) {
            self.listens(index, at, sink);
            return;
        }
        self.note_incarnation(socket, local, incarnation);
        let owner = self.calls.end(socket.cookie).and_then(|call| call.owner);
        let Some(new) = NewLease::observed(socket, local, Peer::NONE, Kind::Listen, Phase::Listen)
        else {
            return;
        };
        let new = NewLease { owner, acquired: Some(at), ..new };
        let reuse = self.table.leases().reuse(new.netns, new.local_port, at);
        let index = self.insert_socket(new);
        self.emit(index, at, Change::Bind { requested_port: 0, reuse }, sink);
        self.emit(index, at, Change::Listen, sink);
    }

    /// The socket of a lease listens from now on.
    pub(in crate::ledger) fn listens(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        sink: &mut impl Sink,
    ) {
        self.call_succeeds(index);
        if self.table[index].lease.phase == Phase::Listen {
            return;
        }
        self.table.leases_mut().add_listener(index);
        self.table.bind_bucket(index);
        self.table.change(index, |entry| {
            entry.lease.phase = Phase::Listen;
            entry.lease.peer = Peer::NONE;
        });
        self.emit(index, at, Change::Listen, sink);
    }
}
