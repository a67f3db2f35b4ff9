//! Holds on ports, as a snapshot lists them.

use std::collections::BTreeSet;

use tracer_ebpf::{Owner, TcpState};

use super::{Addr, Cookie, Family, Netns, Port, Substate, observation::Userlocks};

/// A hold on a port that a snapshot found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The socket's cookie.
    pub cookie: Cookie,
    /// The network namespace.
    pub netns: Netns,
    /// The socket's family.
    pub family: Family,
    /// True for an IPv6 socket that accepts no IPv4 (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// Local address; unspecified for a wildcard.
    pub local_addr: Addr,
    /// The held port.
    pub local_port: Port,
    /// The peer. `None` unless connected or connecting.
    pub peer: Option<(Addr, Port)>,
    /// The kind of holder.
    pub by: HeldBy,
    /// Whether the peer of a TIME_WAIT sent timestamps. `None` for sockets, or if it could not be
    /// read.
    pub has_timestamps: Option<bool>,
    /// `sk_userlocks`. `None` if it could not be read.
    pub userlocks: Option<Userlocks>,
    /// A process that has the socket open. `None` if none has.
    pub owner: Option<Owner>,
}

/// How much of the host a snapshot covers.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Namespaces that are listed completely.
    pub listed: BTreeSet<Netns>,
    /// Namespaces of which only the sockets that processes have open are listed.
    pub unlisted: BTreeSet<Netns>,
    /// True if listing open files failed although the kernel supports it: sockets that are bound but
    /// idle are missing, and not every namespace was found.
    pub lacks_files: bool,
}

impl Coverage {
    /// Number of namespaces that are not listed completely. At least 1 if open files could not be
    /// listed, because then no namespace is.
    #[must_use]
    pub fn unlisted_count(&self) -> usize {
        if self.lacks_files {
            (self.listed.len() + self.unlisted.len()).max(1)
        } else {
            self.unlisted.len()
        }
    }
}

/// How to treat namespaces that the ledger knows and a snapshot does not reach: they are being torn
/// down, which may take seconds during which facts still arrive, or only orphaned sockets keep them
/// alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnreachedNamespaces {
    /// Trust the ledger: facts will report their end.
    KeepLeases,
    /// Assume that they hold nothing: facts were lost, perhaps those about their end.
    AssumeEmpty,
}

/// The kind of holder that a snapshot found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// A socket in this state.
    Socket(TcpState),
    /// A TIME_WAIT in this substate.
    TimeWait(Substate),
}
