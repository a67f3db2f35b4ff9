//! bind().

use crate::{
    ledger::{
        Ledger, Sink,
        tables::{Claim, NewLease},
    },
    model::{
        Cause, Change, Failure, Kind, Operation, Peer, Phase, Reason,
        observation::{BindFailed, BindRequest, Bound, LocalEnd, SocketId},
    },
};

impl Ledger {
    pub(in crate::ledger) fn bound(&mut self, bound: &Bound<'_>, sink: &mut impl Sink) {
        let Bound { at, socket, local, request, incarnation, owner } = *bound;
        if self.table.leases().of_socket(socket.cookie).is_some() {
            return;
        }
        self.note_incarnation(socket, local, incarnation);
        let kind = match request {
            BindRequest::AnyPort => Kind::BindAuto,
            BindRequest::ThisPort => Kind::Bind,
        };
        let Some(new) = NewLease::observed(socket, local, Peer::NONE, kind, Phase::Bound) else {
            return;
        };
        let owner = self.owners.share(owner);
        let new = NewLease { owner: Some(owner), acquired: Some(at), ..new };
        let requested_port = match request {
            BindRequest::AnyPort => 0,
            BindRequest::ThisPort => new.local_port.0,
        };
        let reuse = self.table.leases().reuse(new.netns, new.local_port, at);
        let index = self.insert_socket(new);
        self.emit(index, at, Change::Bind { requested_port, reuse }, sink);
    }

    pub(in crate::ledger) fn bind_failed(&mut self, failed: &BindFailed<'_>, sink: &mut impl Sink) {
        let BindFailed { at, socket, requested, errno, holds_port, owner } = *failed;
        let SocketId { cookie, netns } = socket;
        let LocalEnd { family, v6_only, addr, port } = requested;
        let is_in_use = errno == libc::EADDRINUSE;
        let in_the_way = port.filter(|_| is_in_use).and_then(|port| {
            self.table.leases().in_the_way(netns, port, Claim { addr, v6_only }, cookie)
        });
        let cause = match errno {
            libc::EADDRINUSE => port.map(|_| Cause::PortHeld),
            libc::EADDRNOTAVAIL => Some(Cause::AddressNotLocal),
            libc::EACCES | libc::EPERM => Some(Cause::Permission),
            _ => Some(Cause::Other),
        };
        let is_search = is_in_use && port.is_none();
        let range = is_search.then(|| self.table.usage().range(netns)).flatten();
        let culprit = range.and_then(|_| self.culprits.of_range(&self.table, netns, at));
        self.emit_failure(
            Failure {
                at,
                netns,
                cookie,
                family,
                owner: Some(*owner),
                operation: Operation::Bind,
                errno,
                local_addr: addr,
                local_port: port.map_or(0, |port| port.0),
                peer: None,
                cause,
                holder: in_the_way
                    .or(culprit.map(|culprit| culprit.index))
                    .map(|index| &self.table[index].lease),
                holder_ports: culprit.map(|culprit| culprit.ports),
                range,
                own_range: None,
                is_of_range: port.is_some_and(|port| self.table.usage().is_choosable(netns, port)),
                search_ns: None,
            },
            sink,
        );
        // Another program at the hook that reports the bind may have refused it, and the kernel has
        // taken the port back (`__inet_bind`, net/ipv4/af_inet.c).
        if !holds_port && let Some(index) = self.table.leases().of_socket(cookie) {
            self.end_socket_hold(index, at, Reason::Closed, sink);
        }
    }
}
