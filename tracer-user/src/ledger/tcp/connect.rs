//! connect(), and the end of the handshake.

use tracer_ebpf::TcpState;

use crate::{
    ledger::{
        Ledger, Sink,
        calls::Call,
        tables::{Awaited, Claim, ConnectionKey, Entry, LeaseIndex, NewLease},
    },
    model::{
        Cause, Change, Destination, Failure, Instant, Kind, Lease, Netns, Operation, Phase, Port,
        Reason, Reuse,
        observation::{
            Closed, ConnectStart, Endpoints, Established, Open, OwnRange, PortChosen, SocketId,
        },
    },
};

impl Ledger {
    pub(in crate::ledger) fn connect_start(
        &mut self,
        start: &ConnectStart<'_>,
        sink: &mut impl Sink,
    ) {
        let ConnectStart { at, socket, endpoints, own_range, userlocks, owner } = *start;
        let Endpoints { local, peer } = endpoints;
        let owner = self.owners.share(owner);
        if local.port.is_none() {
            // The socket no longer holds a port. The observation of its release was lost.
            if let Some(index) = self.table.leases().of_socket(socket.cookie) {
                self.end_socket_hold(index, at, Reason::Closed, sink);
            }
            let call = Call {
                began: at,
                netns: socket.netns,
                peer,
                operation: Operation::Connect,
                owner: Some(owner),
                own_range,
            };
            self.calls.begin(socket.cookie, call);
            return;
        }
        let Some(index) = self.bound_lease(socket, endpoints, userlocks, owner) else { return };
        let index = self.begin_call(index, at, sink);
        let state = |lease: &Lease| (lease.phase, lease.peer, lease.local_addr);
        let before = state(&self.table[index].lease);
        self.table.set_address(index, local.addr);
        self.table.change(index, |entry| {
            entry.close_reason = None;
            let lease = &mut entry.lease;
            lease.phase = Phase::Connecting;
            lease.peer = peer;
            lease.established = None;
            lease.closing = None;
            lease.closed_by = None;
            lease.timer_armed = Some(at);
        });
        // Both copies of a program can report the same call.
        if state(&self.table[index].lease) != before {
            self.emit_update(index, at, sink);
        }
    }

    pub(in crate::ledger) fn port_chosen(&mut self, chosen: &PortChosen, sink: &mut impl Sink) {
        let PortChosen { at, socket, endpoints, incarnation, userlocks } = *chosen;
        let Endpoints { local, peer } = endpoints;
        self.note_incarnation(socket, local, incarnation);
        let from_time_wait = self.end_reused_time_wait(socket, endpoints, sink);
        let call = self.calls.end(socket.cookie);
        if let Some(index) = self.table.leases().of_socket(socket.cookie) {
            self.call_succeeds(index);
            self.table[index].lease.timer_armed = Some(at);
            return;
        }
        let kind = if userlocks.has_bound_port() { Kind::Bind } else { Kind::Connect };
        let Some(new) = NewLease::observed(socket, local, peer, kind, Phase::Connecting) else {
            return;
        };
        let search_ns = call.as_ref().map(|call| at.since(call.began));
        let owner = call.and_then(|call| call.owner);
        let new = NewLease { owner, acquired: Some(at), ..new };
        let reuse =
            from_time_wait.or_else(|| self.table.leases().reuse(new.netns, new.local_port, at));
        let index = self.insert_socket(new);
        self.table[index].lease.timer_armed = Some(at);
        self.emit(index, at, Change::Connect { search_ns, reuse }, sink);
    }

    pub(in crate::ledger) fn established(
        &mut self,
        established: &Established,
        sink: &mut impl Sink,
    ) {
        let Established { at, socket, endpoints, incarnation, open } = *established;
        let Endpoints { local, peer } = endpoints;
        if let Some(index) = self.table.leases().of_socket(socket.cookie) {
            self.handshake_complete(index, at, endpoints, sink);
            return;
        }
        self.note_incarnation(socket, local, incarnation);
        let from_time_wait = self.end_reused_time_wait(socket, endpoints, sink);
        if open == Open::Passive {
            self.passive_open(at, socket, endpoints, sink);
            return;
        }
        // Without the hook that reports the choice of connect(), this is the first observation of
        // the port.
        let call = self.calls.end(socket.cookie);
        let Some(new) = NewLease::observed(socket, local, peer, Kind::Connect, Phase::Established)
        else {
            return;
        };
        let began = call.as_ref().map(|call| call.began);
        let owner = call.and_then(|call| call.owner);
        let new = NewLease { owner, acquired: began, ..new };
        let reuse =
            from_time_wait.or_else(|| self.table.leases().reuse(new.netns, new.local_port, at));
        let index = self.insert_socket(new);
        self.table[index].lease.established = Some(at);
        self.emit(index, at, Change::Connect { search_ns: None, reuse }, sink);
        let handshake_ns = began.map(|began| at.since(began));
        self.emit(index, at, Change::Established { handshake_ns }, sink);
    }

    /// The handshake of a known lease's socket is complete.
    fn handshake_complete(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        Endpoints { local, peer }: Endpoints,
        sink: &mut impl Sink,
    ) {
        if self.table[index].lease.phase == Phase::Established {
            return;
        }
        self.call_succeeds(index);
        let attempt = self.table[index].lease.timer_armed.take();
        let handshake_ns = attempt.map(|attempt| at.since(attempt));
        self.table.set_address(index, local.addr);
        self.table.change(index, |Entry { lease, .. }| {
            lease.phase = Phase::Established;
            lease.established = Some(at);
            lease.peer = peer;
        });
        self.emit(index, at, Change::Established { handshake_ns }, sink);
    }

    /// A bound socket calls connect() or listen(). Returns its lease from now on, which is a new
    /// one if a TIME_WAIT of the socket is left on the port.
    pub(super) fn begin_call(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        sink: &mut impl Sink,
    ) -> LeaseIndex {
        let index = if self.table[index].holders.has_time_wait() {
            self.separate_from_time_wait(index, at, sink)
        } else {
            self.announce(index, sink);
            index
        };
        let entry = &mut self.table[index];
        entry.changed = self.window.number();
        entry.awaited = Some(Awaited::CallResult);
        index
    }

    /// The connect() or listen() of a bound socket has not failed.
    pub(super) fn call_succeeds(&mut self, index: LeaseIndex) {
        let entry = &mut self.table[index];
        entry.awaited = entry.awaited.filter(|awaited| *awaited != Awaited::CallResult);
    }

    /// connect() or listen() went back to CLOSE before it had a port.
    pub(super) fn call_failed(&mut self, closed: &Closed, call: &Call, sink: &mut impl Sink) {
        let Closed { at, socket, endpoints, error, is_shut_down, .. } = *closed;
        let SocketId { cookie, netns } = socket;
        let Endpoints { local, peer } = endpoints;
        let peer = peer.get();
        // With an error on the socket the call had its port, and the peer refused: the observation
        // that shows the port was lost. A close() ends a connect() that Fast Open had deferred.
        if error.is_some() || is_shut_down {
            return;
        }
        let (errno, search_ns) = match call.operation {
            // inet_csk_get_port fails with EADDRINUSE (net/ipv4/inet_connection_sock.c),
            // __inet_hash_connect with EADDRNOTAVAIL (net/ipv4/inet_hashtables.c).
            Operation::Connect => (libc::EADDRNOTAVAIL, Some(at.since(call.began))),
            Operation::Listen | Operation::Bind => (libc::EADDRINUSE, None),
        };
        let destination = peer
            .filter(|_| call.operation == Operation::Connect)
            .map(|peer| Destination { netns, source: local.addr, peer });
        let own_range = call.own_range.and_then(|own| self.own_range(netns, own));
        let Self { table, culprits, .. } = self;
        let (range, culprit) = match (destination, own_range) {
            (Some(destination), Some(range)) => {
                let (range_use, culprit) = culprits.of_own_range(table, &destination, range, at);
                (Some(range_use), culprit)
            }
            (Some(destination), None) => {
                let range = table.usage().range_for(&destination);
                let is_locked = range.is_some_and(|range| range.bind_locked > 0);
                (range, is_locked.then(|| culprits.of_range(table, netns, at)).flatten())
            }
            (None, _) => {
                let range = table.usage().range(netns);
                (range, range.and_then(|_| culprits.of_range(table, netns, at)))
            }
        };
        self.emit_failure(
            Failure {
                at,
                netns,
                cookie,
                family: local.family,
                owner: call.owner.as_deref().copied(),
                operation: call.operation,
                errno,
                local_addr: local.addr,
                local_port: 0,
                peer,
                cause: None,
                holder: culprit.map(|culprit| &self.table[culprit.index].lease),
                holder_ports: culprit.map(|culprit| culprit.ports),
                range,
                own_range,
                is_of_range: false,
                search_ns,
            },
            sink,
        );
    }

    /// The namespace's range narrowed by a socket's own. `None` if it is not known.
    fn own_range(&self, netns: Netns, OwnRange { low, high }: OwnRange) -> Option<(Port, Port)> {
        let number = |end: Option<Port>| end.map_or(0, |port| port.0);
        let range = self.table.usage().effective_range(netns, (number(low), number(high)))?;
        Some((range.low(), range.high()))
    }

    /// connect() or listen() of a bound socket went back to CLOSE without a SYN or a listener.
    pub(super) fn bound_call_failed(
        &mut self,
        index: LeaseIndex,
        at: Instant,
        from: Option<TcpState>,
        sink: &mut impl Sink,
    ) {
        let (operation, errno) = match from {
            Some(TcpState::SynSent) => (Operation::Connect, libc::EADDRNOTAVAIL),
            Some(TcpState::Listen) => (Operation::Listen, libc::EADDRINUSE),
            _ => return,
        };
        let leases = self.table.leases();
        let lease = &self.table[index].lease;
        let peer = lease.peer.get().filter(|_| operation == Operation::Connect);
        let holder = match peer {
            Some(peer) => leases
                .on_port(lease.netns, lease.local_port)
                .map(|(_, entry)| &entry.lease)
                .find(|other| other.id != lease.id && other.peer.get() == Some(peer)),
            None => leases
                .in_the_way(lease.netns, lease.local_port, Claim::of_lease(lease), lease.cookie)
                .map(|index| &self.table[index].lease),
        };
        self.emit_failure(
            Failure {
                at,
                netns: lease.netns,
                cookie: lease.cookie,
                family: lease.family,
                owner: lease.owner.as_deref().copied(),
                operation,
                errno,
                local_addr: lease.local_addr,
                local_port: lease.local_port.0,
                peer,
                cause: Some(Cause::PortHeld),
                holder,
                holder_ports: None,
                range: None,
                own_range: None,
                is_of_range: self.table.usage().is_choosable(lease.netns, lease.local_port),
                search_ns: lease
                    .timer_armed
                    .filter(|_| operation == Operation::Connect)
                    .map(|attempt| at.since(attempt)),
            },
            sink,
        );
    }

    /// Ends the TIME_WAIT whose addresses and ports a new connection has, if its timer was just
    /// cancelled because of the reuse.
    fn end_reused_time_wait(
        &mut self,
        socket: SocketId,
        endpoints: Endpoints,
        sink: &mut impl Sink,
    ) -> Option<Reuse> {
        let key = ConnectionKey::of_endpoints(socket.netns, endpoints)?;
        let (index, cancelled) = self.timers.of_connection(&self.table, &key)?;
        let previous = self.table[index].lease.id;
        self.end_time_wait(index, cancelled.at, Reason::TimeWaitReused, sink);
        Some(Reuse { previous, idle_ns: 0, from_time_wait: true })
    }
}
