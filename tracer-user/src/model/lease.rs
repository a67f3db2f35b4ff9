//! Leases: one holder's hold on one local port, and what happens to it.

use std::sync::Arc;

use tracer_ebpf::Owner;

use super::{Addr, BucketClass, Cookie, Family, Instant, LeaseId, Netns, Port};

/// How long a TIME_WAIT lasts, seconds (`TCP_TIMEWAIT_LEN`, include/net/tcp.h), before the timer
/// wheel rounds it up by as much as 4 s. No setting changes it.
pub const TIME_WAIT_S: u32 = 60;

/// How a lease began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// connect() chose the port.
    Connect,
    /// bind() asked for this port by number.
    Bind,
    /// bind() asked for any port (port 0).
    BindAuto,
    /// listen() chose the port of an unbound socket.
    Listen,
    /// Inherited from a listener at the third ACK.
    Accept,
}

/// What the holder of a lease is doing with the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Held by a socket that is not connected.
    Bound,
    /// Held by a listener.
    Listen,
    /// SYN sent, no answer yet.
    Connecting,
    /// The handshake is complete.
    Established,
    /// A FIN was sent or received.
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

/// Why a port was released.
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
    /// The connection timed out.
    TimedOut,
    /// `ss -K` or `tcp_abort`.
    Aborted,
    /// connect(AF_UNSPEC).
    Disconnected,
    /// The TIME_WAIT expired.
    TimeWaitExpired,
    /// A new connection took over the addresses and ports of the TIME_WAIT.
    TimeWaitReused,
    /// A reset, late data or `ss -K` ended the TIME_WAIT.
    TimeWaitKilled,
    /// There was no TIME_WAIT because `tcp_max_tw_buckets` was reached.
    TimeWaitOverflow,
    /// The network namespace was torn down.
    NetnsGone,
    /// The connection attempt failed for another reason.
    Failed,
    /// The end was not observed: a comparison found that the kernel no longer has the lease.
    Unseen,
}

/// The peer of a socket that is connected or connecting, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    addr: Addr,
    /// 0 if there is no peer, which saves the memory of an `Option`.
    port: u16,
}

impl Peer {
    /// No peer.
    pub const NONE: Self = Self { addr: Addr([0; 4]), port: 0 };

    /// The peer with this address and port; none if the port is 0.
    #[must_use]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port }
    }

    /// The address and port. `None` if there is no peer.
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

/// A lease, as the user sees it.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Number of the lease, unique in the run.
    pub id: LeaseId,
    /// The socket's cookie.
    pub cookie: Cookie,
    /// The network namespace in which the port is held.
    pub netns: Netns,
    /// How it began.
    pub kind: Kind,
    /// The socket's family.
    pub family: Family,
    /// True for an IPv6 socket that accepts no IPv4 (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// Local address; unspecified for a wildcard.
    pub local_addr: Addr,
    /// The held port.
    pub local_port: Port,
    /// The peer, once there is one.
    pub peer: Peer,
    /// What the holder is doing.
    pub phase: Phase,
    /// The process that acquired the port. `None` if it was not observed.
    pub owner: Option<Arc<Owner>>,
    /// When the port was acquired. `None` if that was before the tracer started.
    pub acquired: Option<Instant>,
    /// When the handshake of the present connection completed. `None` if it was not observed.
    pub established: Option<Instant>,
    /// When the first FIN of the present connection was sent or received. `None` before that.
    pub closing: Option<Instant>,
    /// The side that sent the first FIN. `None` if there was none or it is not known.
    pub closed_by: Option<Side>,
    /// When the TIME_WAIT began. `None` before that, or if it was not observed.
    pub time_wait: Option<Instant>,
    /// When the timer of the present phase was last armed. In a TIME_WAIT it runs for
    /// `tcp_fin_timeout` in substate FIN_WAIT2, and for 60 s plus the rounding of the timer wheel
    /// after that. While connecting it is the start of the attempt, when the timer of the first SYN
    /// is armed. `None` in other phases, or if it was not observed.
    pub timer_armed: Option<Instant>,
    /// Whether the peer of a TIME_WAIT sent timestamps (RFC 7323), without which `tcp_tw_reuse` has no
    /// effect (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c). `None` in other phases, and if the TIME_WAIT
    /// began before the start on a kernel without an iterator that shows it.
    pub has_timestamps: Option<bool>,
}

/// An earlier use of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// The lease that held the port last.
    pub previous: LeaseId,
    /// Nanoseconds between its release and this acquisition.
    pub idle_ns: u64,
    /// True if the port was taken over from a TIME_WAIT.
    pub from_time_wait: bool,
}

/// What happened to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A snapshot found the lease: it began before the tracer started, or its beginning was lost.
    Held {
        /// The class of the port's bucket. `None` if it is not recorded.
        bucket: Option<BucketClass>,
    },
    /// bind() or listen() acquired the port.
    Bind {
        /// The requested port; 0 for any.
        requested_port: u16,
        /// The port's previous use. `None` if none is remembered.
        reuse: Option<Reuse>,
    },
    /// connect() chose the port.
    Connect {
        /// Time from SYN_SENT to the choice of the port, in nanoseconds. `None` unless both were
        /// observed.
        search_ns: Option<u64>,
        /// The port's previous use. `None` if none is remembered.
        reuse: Option<Reuse>,
    },
    /// The handshake is complete.
    Established {
        /// Time since the port was chosen, in nanoseconds. `None` if that was not observed.
        handshake_ns: Option<u64>,
    },
    /// A connection to a listener is established: the third ACK arrived.
    Accept {
        /// Cookie of the listener. `None` if several listen on the port.
        listener: Option<Cookie>,
    },
    /// The socket listens.
    Listen,
    /// The phase, an address, the peer or the owner changed in a way that no other change says: a
    /// bound socket calls connect(), a socket keeps its port after its connection or outlives its
    /// TIME_WAIT, or a comparison with the kernel showed it.
    Update {
        /// The class of the port's bucket. `None` if it is not recorded.
        bucket: Option<BucketClass>,
    },
    /// The first FIN was sent or received.
    Closing {
        /// The side that sent it.
        by: Side,
    },
    /// A TIME_WAIT holds the port now, in this substate.
    TimeWait(Substate),
    /// The port was released.
    Release {
        /// Why it was released.
        reason: Reason,
    },
}

/// A change of a lease, with the lease as it is after it.
#[derive(Clone, Copy, Debug)]
pub struct LeaseEvent<'a> {
    /// When the kernel made the change.
    pub at: Instant,
    /// The lease after the change.
    pub lease: &'a Lease,
    /// The change.
    pub change: Change,
}
