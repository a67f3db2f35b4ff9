//! Leases: one holder's hold on one local port, and what happens to it.

use std::sync::Arc;

use tracer_ebpf::Owner;

use super::{Addr, Cookie, Family, Instant, LeaseId, Netns, Port};

/// How long a TIME_WAIT lasts, seconds (`TCP_TIMEWAIT_LEN`, include/net/tcp.h), before the timer
/// wheel rounds it up by as much as 4 s. No setting changes it.
pub const TIME_WAIT_S: u32 = 60;

/// How a lease began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// connect() chose the port.
    Connect,
    /// bind() asked for this port.
    Bind,
    /// bind() asked for any port.
    BindAuto,
    /// listen() chose the port.
    Listen,
    /// Inherited from a listener at the third ACK.
    Accept,
}

/// What the holder of a lease does with the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Held by a socket that is not connected.
    Bound,
    /// Held by a listener.
    Listen,
    /// SYN sent, no answer yet.
    Connecting,
    /// Both sides agree.
    Established,
    /// A FIN has gone either way.
    Closing,
    /// Held by a TIME_WAIT minisocket, in this substate.
    TimeWait(Substate),
}

/// What a TIME_WAIT minisocket waits for (`tw_substate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Substate {
    /// The peer's FIN, for `tcp_fin_timeout`.
    FinWait2,
    /// Old segments to die out, for 60 s and the timer wheel's rounding.
    TimeWait,
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The holder of the lease.
    Local,
    /// The other end.
    Peer,
}

/// Why a port was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// close() of a socket, or the orderly end of a connection whose peer closed first.
    Closed,
    /// The peer sent a reset.
    ResetIn,
    /// We sent a reset: SO_LINGER 0, unread data, or TCP_LINGER2 < 0.
    ResetOut,
    /// The peer refused the connection.
    Refused,
    /// No answer in time.
    TimedOut,
    /// `ss -K` or `tcp_abort`.
    Aborted,
    /// connect(AF_UNSPEC).
    Disconnected,
    /// The TIME_WAIT ran its course.
    TimeWaitExpired,
    /// A new connection took the same addresses and ports over.
    TimeWaitReused,
    /// A reset, late data or `ss -K` ended the TIME_WAIT.
    TimeWaitKilled,
    /// There should have been a TIME_WAIT, but there are `tcp_max_tw_buckets` of them already.
    TimeWaitOverflow,
    /// The network namespace was torn down.
    NetnsGone,
    /// The connection attempt failed in another way.
    Failed,
    /// It ended while facts were lost: the kernel no longer had it when the ledger was healed.
    Unseen,
}

/// Whom a socket is connected to, or goes to, if anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    addr: Addr,
    /// 0 if there is none, so that there being one takes no memory.
    port: u16,
}

impl Peer {
    /// There is none.
    pub const NONE: Self = Self { addr: Addr([0; 4]), port: 0 };

    /// The peer with this address and port; none if the port is 0.
    #[must_use]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port }
    }

    /// Its address and port. `None` if there is none.
    #[must_use]
    pub const fn get(self) -> Option<(Addr, Port)> {
        if self.port == 0 { None } else { Some((self.addr, Port(self.port))) }
    }
}

impl From<(Addr, Port)> for Peer {
    fn from((addr, port): (Addr, Port)) -> Self {
        Self { addr, port: port.0 }
    }
}

impl From<Option<(Addr, Port)>> for Peer {
    fn from(peer: Option<(Addr, Port)>) -> Self {
        peer.map_or(Self::NONE, Self::from)
    }
}

/// What the user sees of a lease's holder.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Unique in the run.
    pub id: LeaseId,
    /// The socket's cookie.
    pub cookie: Cookie,
    /// Where the port is held.
    pub netns: Netns,
    /// How it began.
    pub kind: Kind,
    /// The socket's family.
    pub family: Family,
    /// An IPv6 socket that takes no IPv4 (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// Local address; unspecified for a wildcard.
    pub local_addr: Addr,
    /// The held port.
    pub local_port: Port,
    /// Peer, once there is one.
    pub peer: Peer,
    /// What the holder does.
    pub phase: Phase,
    /// The process that acquired the port, where it could be seen.
    pub owner: Option<Arc<Owner>>,
    /// When the port was acquired, unless that was before the tracer started.
    pub acquired: Option<Instant>,
    /// When the handshake of the present connection was done, if it was seen.
    pub established: Option<Instant>,
    /// When the first FIN of the present connection was seen.
    pub closing: Option<Instant>,
    /// Who sent it.
    pub closed_by: Option<Side>,
    /// When the TIME_WAIT began.
    pub time_wait: Option<Instant>,
    /// When the timer of the present phase was armed. In TIME_WAIT, where that is the last time, it
    /// runs for `tcp_fin_timeout` in FIN_WAIT2, for 60 s and the rounding of the timer wheel after
    /// that. While connecting it is when the attempt began, which arms the first SYN's.
    pub timer_armed: Option<Instant>,
    /// Of a TIME_WAIT: the peer sent timestamps (RFC 7323), without which `tcp_tw_reuse` does
    /// nothing for it (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c). `None` if it was there before us,
    /// and the kernel has no iterator that tells.
    pub has_timestamps: Option<bool>,
}

/// An earlier use of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// The lease that held the port last.
    pub previous: LeaseId,
    /// Nanoseconds between its release and this acquisition.
    pub idle_ns: u64,
    /// It was taken over while the previous holder was in TIME_WAIT.
    pub from_time_wait: bool,
}

/// What happened to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A snapshot found the lease: it began before the tracer started, or its beginning was lost.
    Held,
    /// bind() or listen() acquired the port.
    Bind {
        /// What was asked for; 0 for any port.
        requested_port: u16,
        /// The port's earlier use.
        reuse: Option<Reuse>,
    },
    /// connect() chose the port.
    Connect {
        /// From SYN_SENT to the port's choice, if both were seen.
        search_ns: Option<u64>,
        /// The port's earlier use.
        reuse: Option<Reuse>,
    },
    /// The handshake is done.
    Established {
        /// From the port's choice to here, if both were seen.
        handshake_ns: Option<u64>,
    },
    /// The third ACK made a child of a listener.
    Accept {
        /// The listener, unless several share the port.
        listener: Option<Cookie>,
    },
    /// The socket listens.
    Listen,
    /// The phase, an address, the peer or the owner changed in a way that no other change says: a
    /// bound socket calls connect(), a socket keeps its port after its connection or outlives its
    /// TIME_WAIT, or a comparison with the kernel showed it.
    Update,
    /// The first FIN.
    Closing {
        /// Who sent it.
        by: Side,
    },
    /// A TIME_WAIT holds the port now, in this substate.
    TimeWait(Substate),
    /// The port was let go.
    Release {
        /// Why.
        reason: Reason,
    },
}

/// A change of a lease, with the lease as it is after it.
#[derive(Clone, Copy, Debug)]
pub struct LeaseEvent<'a> {
    /// When the kernel did it.
    pub at: Instant,
    /// The lease.
    pub lease: &'a Lease,
    /// What happened.
    pub change: Change,
}
