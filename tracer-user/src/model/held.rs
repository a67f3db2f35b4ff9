//! What a snapshot found.

use std::collections::BTreeSet;

use tracer_ebpf::{Owner, TcpState};

use super::{Addr, Cookie, Family, Netns, Port, Substate, observation::Userlocks};

/// A hold on a port that a snapshot found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The socket's cookie.
    pub cookie: Cookie,
    /// Where.
    pub netns: Netns,
    /// The socket's family.
    pub family: Family,
    /// An IPv6 socket that takes no IPv4.
    pub v6_only: bool,
    /// Local address.
    pub local_addr: Addr,
    /// The held port.
    pub local_port: Port,
    /// Peer, if connected or connecting.
    pub peer: Option<(Addr, Port)>,
    /// The holder.
    pub by: HeldBy,
    /// Of a TIME_WAIT: the peer sent timestamps, if that could be read.
    pub has_timestamps: Option<bool>,
    /// `sk_userlocks`, if it could be read.
    pub userlocks: Option<Userlocks>,
    /// The process that holds the socket, if one does.
    pub owner: Option<Owner>,
}

/// How much of the host a snapshot shows.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Namespaces whose holds it has all.
    pub listed: BTreeSet<Netns>,
    /// Namespaces of which it has only the sockets that processes hold.
    pub unlisted: BTreeSet<Netns>,
    /// What processes have open could not be listed, though this kernel can: sockets that are bound
    /// but idle are not shown, and not every namespace was found.
    pub lacks_files: bool,
}

/// What to think of namespaces that a snapshot does not know. Nothing leads to them any more: they
/// are being torn down, which may take seconds while the facts of it arrive, or they are kept alive
/// by orphaned sockets alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// They hold what the ledger says: the facts will come.
    Believed,
    /// They hold nothing: facts were lost, perhaps those of their end.
    Gone,
}

/// The holder that a snapshot found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// A socket in this state.
    Socket(TcpState),
    /// A TIME_WAIT in this substate.
    TimeWait(Substate),
}
