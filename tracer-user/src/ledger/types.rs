//! The words of the ledger.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU64,
    sync::Arc,
};

use tracer_ebpf::{Address, Owner};

use super::usage::{Pressure, Room};

/// A network namespace, by its inode (`readlink /proc/PID/ns/net`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Netns(pub u32);

/// A local or remote TCP port. Never 0 in a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u16);

/// The kernel's socket cookie (`ss -e` shows it as `sk:`). A socket keeps it for life, and hands
/// it to its TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// Nanoseconds of `CLOCK_MONOTONIC`, from the first one on: so an instant that may be unknown takes
/// no more memory than one that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instant(NonZeroU64);

impl Instant {
    /// The first.
    pub const BOOT: Self = Self(NonZeroU64::MIN);

    /// So many nanoseconds after the clock began.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        match NonZeroU64::new(ns) {
            Some(ns) => Self(ns),
            None => Self::BOOT,
        }
    }

    /// Nanoseconds since the clock began.
    #[must_use]
    pub const fn ns(self) -> u64 {
        self.0.get()
    }

    /// Nanoseconds from `earlier` to this instant; 0 if it is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.ns().saturating_sub(earlier.ns())
    }
}

impl Default for Instant {
    fn default() -> Self {
        Self::BOOT
    }
}

/// Number of a lease, unique in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// An IP address as the kernel's sockets hold it: IPv4 is in its mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addr(pub Address);

impl Addr {
    /// The wildcard of a family.
    #[must_use]
    pub fn unspecified(family: Family) -> Self {
        match family {
            Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::Ipv6 => IpAddr::from(Ipv6Addr::UNSPECIFIED).into(),
        }
    }

    /// An IPv4 address, or one in IPv4-mapped form.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.ip().is_ipv4()
    }

    /// Neither 0.0.0.0 nor :: binds a socket to an address.
    #[must_use]
    pub fn is_unspecified(self) -> bool {
        self.ip().is_unspecified()
    }

    /// The address, an IPv4-mapped one as IPv4.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(bytes).to_canonical()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let bytes = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = chunk.try_into().map_or(0, u32::from_ne_bytes);
        }
        Self(words)
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        IpAddr::V4(ip).into()
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// The family of a socket; an IPv6 socket may use IPv4-mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Family {
    Ipv4,
    Ipv6,
}

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

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::Connect, Self::Bind, Self::BindAuto, Self::Listen, Self::Accept];
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

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 14] = [
        Self::Closed,
        Self::ResetIn,
        Self::ResetOut,
        Self::Refused,
        Self::TimedOut,
        Self::Aborted,
        Self::Disconnected,
        Self::TimeWaitExpired,
        Self::TimeWaitReused,
        Self::TimeWaitKilled,
        Self::TimeWaitOverflow,
        Self::NetnsGone,
        Self::Failed,
        Self::Unseen,
    ];
}

/// The class of a bind bucket (`struct inet_bind_bucket`): who may join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BucketClass {
    /// Every owner got the port from connect(): a connect() to another destination may share it
    /// (`fastreuse` and `fastreuseport` are -1).
    Connect,
    /// Some owner bound the port: no connect() that chooses a port takes this one, whatever its
    /// source and destination (`__inet_hash_connect`, net/ipv4/inet_hashtables.c).
    Bind,
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

    /// Its address and port.
    #[must_use]
    pub fn get(self) -> Option<(Addr, Port)> {
        (self.port != 0).then_some((self.addr, Port(self.port)))
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

/// The call that got no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operation {
    Bind,
    Connect,
    Listen,
}

/// Why there was no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Every port of the range is in use for the destination.
    RangeFull,
    /// Ports of the range are not in use for the destination, but somebody bound them, so that
    /// connect() leaves them out.
    RangeBindLocked,
    /// Every port of the range is reserved.
    Reserved,
    /// Somebody else holds it.
    PortHeld,
    /// The address is not one of this namespace.
    AddressNotLocal,
    /// Not permitted.
    Permission,
    /// None of the above.
    Other,
}

/// A call that got no port.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// When.
    pub at: Instant,
    /// Where.
    pub netns: Netns,
    /// The socket.
    pub cookie: Cookie,
    /// Its family.
    pub family: Family,
    /// Who called.
    pub owner: Option<Owner>,
    /// What was called.
    pub operation: Operation,
    /// The errno that the caller got.
    pub errno: i32,
    /// The local address that the caller wanted, or that the route gave.
    pub local_addr: Addr,
    /// The port that the caller wanted, 0 for any.
    pub local_port: u16,
    /// Where connect() was to go.
    pub peer: Option<(Addr, Port)>,
    /// Why, where the ledger can tell.
    pub cause: Option<Cause>,
    /// The lease that is in the way. If a range is: one lease of the process that has bound most
    /// of it.
    pub holder: Option<&'a Lease>,
    /// Of a range that is in the way: how many of its ports that process has bound.
    pub holder_ports: Option<u32>,
    /// The ports of the range, where one was searched and its settings are known.
    pub room: Option<Room>,
    /// The range that was searched, if the socket had one of its own (`IP_LOCAL_PORT_RANGE`).
    pub own_range: Option<(Port, Port)>,
    /// The port that was asked for is one of those that connect() chooses from.
    pub is_of_range: bool,
    /// How long connect() searched.
    pub search_ns: Option<u64>,
}

/// Takes what the ledger tells.
pub trait Sink {
    /// A lease changed.
    fn lease(&mut self, event: LeaseEvent<'_>);
    /// A call got no port.
    fn failure(&mut self, failure: Failure<'_>);
    /// A snapshot found a lease whose beginning was lost.
    fn found(&mut self, at: Instant, lease: &Lease);
    /// A destination or a range crossed a level of use.
    fn pressure(&mut self, pressure: Pressure);
}
