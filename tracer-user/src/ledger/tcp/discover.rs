//! Sockets that held their port before they were first observed.

use std::sync::Arc;

use tracer_ebpf::Owner;

use crate::{
    ledger::{
        Ledger,
        tables::{LeaseIndex, NewLease},
    },
    model::{
        Kind, Netns, Phase, Port,
        observation::{Endpoints, SocketId, Userlocks},
    },
};

impl Ledger {
    /// The lease of a socket that is observed to hold a port already: the known one, or a new one.
    /// `None` if it holds no port.
    pub(super) fn bound_lease(
        &mut self,
        socket: SocketId,
        endpoints: Endpoints,
        userlocks: Userlocks,
        owner: Arc<Owner>,
    ) -> Option<LeaseIndex> {
        let index = match self.table.leases().of_socket(socket.cookie) {
            Some(index) => index,
            None => self.discover(socket, endpoints, userlocks, Phase::Bound)?,
        };
        self.table[index].lease.owner.get_or_insert(owner);
        Some(index)
    }

    /// Adds a lease that began before the tracer did. `None` if the socket holds no port.
    pub(super) fn discover(
        &mut self,
        socket: SocketId,
        Endpoints { local, peer }: Endpoints,
        userlocks: Userlocks,
        phase: Phase,
    ) -> Option<LeaseIndex> {
        let kind = self.likely_kind(socket.netns, local.port?, Some(userlocks), phase);
        let new = NewLease::observed(socket, local, peer, kind, phase)?;
        Some(self.insert_socket(new))
    }

    /// How a lease that is older than the tracer began, as far as its state shows. `userlocks` is
    /// `None` if they could not be read.
    pub(in crate::ledger) fn likely_kind(
        &self,
        netns: Netns,
        port: Port,
        userlocks: Option<Userlocks>,
        phase: Phase,
    ) -> Kind {
        let locks = userlocks.unwrap_or_default();
        match phase {
            _ if locks.has_bound_port() => Kind::Bind,
            Phase::Listen if locks.has_bound_addr() => Kind::BindAuto,
            Phase::Listen => Kind::Listen,
            Phase::Bound => Kind::BindAuto,
            _ if locks.is_connect_bind() => Kind::Connect,
            _ if self.table.leases().has_listener(netns, port) => Kind::Accept,
            Phase::TimeWait(_) => Kind::Connect,
            _ if self.visibility.marks_connect && userlocks.is_some() => Kind::BindAuto,
            _ => Kind::Connect,
        }
    }
}
