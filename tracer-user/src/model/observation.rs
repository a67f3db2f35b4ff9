//! Observations: what happened to a socket or to a TIME_WAIT, with exactly the fields that mean
//! something for what happened.
//!
//! An observation is a fact of the eBPF programs, decoded once where it enters the agent. Every
//! later stage reads only these types.

use tracer_ebpf::{
    Owner, TcpState,
    socket::{BINDADDR_LOCK, BINDPORT_LOCK, CONNECT_BIND},
};

use super::{Addr, Cookie, Family, Incarnation, Instant, Netns, Peer, Port, Side, Substate};

/// Something that the kernel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation<'a> {
    /// connect() was called.
    ConnectStart(ConnectStart<'a>),
    /// connect() has its port.
    PortChosen(PortChosen),
    /// A handshake is complete.
    Established(Established),
    /// A connection saw its first FIN.
    Closing(Closing),
    /// A socket went to CLOSE.
    Closed(Closed),
    /// A socket that still held its port is gone.
    Destroyed(Destroyed),
    /// listen() was called.
    ListenStart(ListenStart<'a>),
    /// listen() succeeded.
    Listening(Listening),
    /// bind() succeeded.
    Bound(Bound<'a>),
    /// bind() failed.
    BindFailed(BindFailed<'a>),
    /// accept() returned a connection.
    Accepted(Accepted<'a>),
    /// The timer of a TIME_WAIT was armed.
    TimeWaitStart(TimeWaitStart),
    /// The timer of a TIME_WAIT was cancelled.
    TimeWaitCancel(TimeWaitCancel),
    /// The timer of a TIME_WAIT expired.
    TimeWaitExpire(TimeWaitExpire),
}

impl<'a> Observation<'a> {
    /// When the kernel did it.
    #[must_use]
    pub fn at(&self) -> Instant {
        match self {
            Self::ConnectStart(ConnectStart { at, .. })
            | Self::PortChosen(PortChosen { at, .. })
            | Self::Established(Established { at, .. })
            | Self::Closing(Closing { at, .. })
            | Self::Closed(Closed { at, .. })
            | Self::Destroyed(Destroyed { at, .. })
            | Self::ListenStart(ListenStart { at, .. })
            | Self::Listening(Listening { at, .. })
            | Self::Bound(Bound { at, .. })
            | Self::BindFailed(BindFailed { at, .. })
            | Self::Accepted(Accepted { at, .. })
            | Self::TimeWaitStart(TimeWaitStart { at, .. })
            | Self::TimeWaitCancel(TimeWaitCancel { at, .. })
            | Self::TimeWaitExpire(TimeWaitExpire { at, .. }) => *at,
        }
    }

    /// The network namespace in which it happened.
    #[must_use]
    pub fn netns(&self) -> Netns {
        match self {
            Self::ConnectStart(ConnectStart { socket, .. })
            | Self::PortChosen(PortChosen { socket, .. })
            | Self::Established(Established { socket, .. })
            | Self::Closing(Closing { socket, .. })
            | Self::Closed(Closed { socket, .. })
            | Self::Destroyed(Destroyed { socket, .. })
            | Self::ListenStart(ListenStart { socket, .. })
            | Self::Listening(Listening { socket, .. })
            | Self::Bound(Bound { socket, .. })
            | Self::BindFailed(BindFailed { socket, .. })
            | Self::Accepted(Accepted { socket, .. }) => socket.netns,
            Self::TimeWaitStart(TimeWaitStart { time_wait, .. })
            | Self::TimeWaitCancel(TimeWaitCancel { time_wait, .. })
            | Self::TimeWaitExpire(TimeWaitExpire { time_wait, .. }) => time_wait.netns,
        }
    }

    /// The process that made the call. `None` if it happened outside of a call, or if the hook that
    /// reports it does not run in the process.
    #[must_use]
    pub fn owner(&self) -> Option<&'a Owner> {
        match self {
            Self::ConnectStart(ConnectStart { owner, .. })
            | Self::ListenStart(ListenStart { owner, .. })
            | Self::Bound(Bound { owner, .. })
            | Self::BindFailed(BindFailed { owner, .. })
            | Self::Accepted(Accepted { owner, .. }) => Some(owner),
            Self::PortChosen(_)
            | Self::Established(_)
            | Self::Closing(_)
            | Self::Closed(_)
            | Self::Destroyed(_)
            | Self::Listening(_)
            | Self::TimeWaitStart(_)
            | Self::TimeWaitCancel(_)
            | Self::TimeWaitExpire(_) => None,
        }
    }
}

/// A socket went from CLOSE to SYN_SENT: connect() begins to look for a port, unless the socket is
/// bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectStart<'a> {
    /// When the state changed.
    pub at: Instant,
    /// The connecting socket.
    pub socket: SocketId,
    /// The local port is `None` unless the socket is bound.
    pub endpoints: Endpoints,
    /// The socket's own range. `None` if it has none, or on a kernel before 6.3.
    pub own_range: Option<OwnRange>,
    /// `sk_userlocks` of the socket.
    pub userlocks: Userlocks,
    /// The process that called connect().
    pub owner: &'a Owner,
}

/// connect() holds its port and is about to send the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortChosen {
    /// When the hook ran, before the SYN.
    pub at: Instant,
    /// The connecting socket.
    pub socket: SocketId,
    /// The port that was chosen, or that the socket was bound to.
    pub endpoints: Endpoints,
    /// `None` on a kernel that assigns none (before 5.12).
    pub incarnation: Option<Incarnation>,
    /// `sk_userlocks` of the socket.
    pub userlocks: Userlocks,
}

/// A socket went to ESTABLISHED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Established {
    /// When the state changed.
    pub at: Instant,
    /// The connected socket: for a passive open the one that accept() is to return.
    pub socket: SocketId,
    /// Both ends of the connection.
    pub endpoints: Endpoints,
    /// `None` on a kernel that assigns none (before 5.12).
    pub incarnation: Option<Incarnation>,
    /// How the connection was opened.
    pub open: Open,
}

/// How a connection was opened (RFC 9293, 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// By connect().
    Active,
    /// By a listener: the socket was in SYN_RECV.
    Passive,
}

/// The first FIN of a connection was sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// When the state changed.
    pub at: Instant,
    /// The connected socket.
    pub socket: SocketId,
    /// Both ends of the connection.
    pub endpoints: Endpoints,
    /// The side that sent the FIN.
    pub by: Side,
    /// `sk_userlocks` of the socket.
    pub userlocks: Userlocks,
}

/// A socket went to CLOSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// When the state changed.
    pub at: Instant,
    /// The socket, which may live on.
    pub socket: SocketId,
    /// The local port is `None` if the socket has released it.
    pub endpoints: Endpoints,
    /// The state before. `None` if it is one that the kernel did not have when this was written.
    pub from: Option<TcpState>,
    /// `sk_err`, a positive errno. `None` if the socket has no error.
    pub error: Option<i32>,
    /// True if both directions are shut down: close() was called, or both sides have sent a FIN.
    pub is_shut_down: bool,
    /// True if the socket belongs to no file: the connection was never accepted, or its file is
    /// closed.
    pub is_orphan: bool,
    /// Why the socket leaves no TIME_WAIT behind. `None` if nothing prevented one, and for a state
    /// that is not followed by one.
    pub no_time_wait: Option<NoTimeWait>,
    /// `sk_userlocks` of the socket.
    pub userlocks: Userlocks,
}

/// Why a socket in FIN_WAIT2 or CLOSING leaves no TIME_WAIT behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTimeWait {
    /// `TCP_LINGER2` is negative: it ends with a reset.
    NegativeLinger2,
    /// The namespace already has `tcp_max_tw_buckets` of them.
    TooMany,
}

/// A socket that still held its port is destroyed, and releases the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// When the hook ran, before the release.
    pub at: Instant,
    /// The socket.
    pub socket: SocketId,
}

/// A socket went from CLOSE to LISTEN: listen() begins to look for a port, unless the socket is
/// bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenStart<'a> {
    /// When the state changed.
    pub at: Instant,
    /// The socket that is to listen.
    pub socket: SocketId,
    /// The local port is `None` unless the socket is bound.
    pub local: LocalEnd,
    /// `sk_userlocks` of the socket.
    pub userlocks: Userlocks,
    /// The process that called listen().
    pub owner: &'a Owner,
}

/// listen() succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// When the hook ran, at the end of listen().
    pub at: Instant,
    /// The listener.
    pub socket: SocketId,
    /// The address and port that it listens on.
    pub local: LocalEnd,
    /// `None` on a kernel that assigns none (before 5.12).
    pub incarnation: Option<Incarnation>,
}

/// bind() got a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound<'a> {
    /// When the hook ran, at the end of bind().
    pub at: Instant,
    /// The bound socket.
    pub socket: SocketId,
    /// The address and port that it is bound to.
    pub local: LocalEnd,
    /// What bind() asked for.
    pub request: BindRequest,
    /// `None` on a kernel that assigns none (before 5.12).
    pub incarnation: Option<Incarnation>,
    /// The process that called bind().
    pub owner: &'a Owner,
}

/// The port that bind() asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindRequest {
    /// The one that it got.
    ThisPort,
    /// Port 0, that is any port.
    AnyPort,
}

/// bind() returned an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindFailed<'a> {
    /// When the call returned.
    pub at: Instant,
    /// The socket.
    pub socket: SocketId,
    /// The address and port that were asked for; the port is `None` for any port.
    pub requested: LocalEnd,
    /// The errno, positive.
    pub errno: i32,
    /// True if the socket holds a port nevertheless: one that it was bound to before.
    pub holds_port: bool,
    /// The process that called bind().
    pub owner: &'a Owner,
}

/// accept() returned a connection to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted<'a> {
    /// When the call returned.
    pub at: Instant,
    /// The connected socket.
    pub socket: SocketId,
    /// Both ends of the connection. The local port is `None` if it has ended already.
    pub endpoints: Endpoints,
    /// The process that called accept().
    pub owner: &'a Owner,
}

/// The timer of a TIME_WAIT was armed: the TIME_WAIT begins, or starts again in this substate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWaitStart {
    /// When the timer was armed.
    pub at: Instant,
    /// The TIME_WAIT.
    pub time_wait: TimeWaitId,
    /// Its substate, which decides how long the timer runs.
    pub substate: Substate,
    /// Whether the TIME_WAIT existed before.
    pub arming: Arming,
    /// True if the peer sent timestamps (RFC 7323).
    pub has_timestamps: bool,
}

/// Whether a TIME_WAIT existed before its timer was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arming {
    /// It may be new, or its timer may have been cancelled to be armed again.
    FirstOrAgain,
    /// It existed before. The hook that reports this sees no cancellation of the timer.
    Again,
}

/// The timer of a TIME_WAIT was cancelled. What follows shows the reason: it is armed again, it
/// expires, another connection takes over its addresses and ports, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWaitCancel {
    /// When the timer was cancelled.
    pub at: Instant,
    /// The TIME_WAIT.
    pub time_wait: TimeWaitId,
    /// The circumstances.
    pub cancel: Cancel,
}

/// The circumstances in which the timer of a TIME_WAIT was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Its time had come: it is about to expire.
    WhenDue,
    /// Its time had not come.
    BeforeDue,
    /// The network namespace is being torn down.
    NetnsTeardown,
}

/// The timer of a TIME_WAIT expired, and the port is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWaitExpire {
    /// When the timer expired.
    pub at: Instant,
    /// The TIME_WAIT.
    pub time_wait: TimeWaitId,
}

/// A socket, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    /// 0 only on a kernel before 5.12, for a socket that was created before the programs were
    /// attached.
    pub cookie: Cookie,
    /// Its network namespace.
    pub netns: Netns,
}

/// A TIME_WAIT: it is known by the cookie of the socket that it replaced and by its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWaitId {
    /// The cookie of its socket. `None` if the TIME_WAIT began before the programs were attached
    /// and no snapshot has listed it yet: the kernel had assigned no cookie.
    pub cookie: Option<Cookie>,
    /// Its network namespace.
    pub netns: Netns,
    /// Both ends of its connection.
    pub endpoints: Endpoints,
}

/// Both ends of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The local end.
    pub local: LocalEnd,
    /// The other end, if the socket is connected or connecting.
    pub peer: Peer,
}

/// The local end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// The socket's family.
    pub family: Family,
    /// True for an IPv6 socket that takes no IPv4 (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// Local address; unspecified for a wildcard.
    pub addr: Addr,
    /// The held port. `None` if the socket holds none.
    pub port: Option<Port>,
}

/// The range of local ports that a socket sets for itself (`IP_LOCAL_PORT_RANGE`). An end that is
/// `None` is that of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRange {
    /// The lowest port.
    pub low: Option<Port>,
    /// The highest port.
    pub high: Option<Port>,
}

/// The part of `sk_userlocks` (`include/net/sock.h`) that concerns ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Userlocks(u8);

impl Userlocks {
    /// From the kernel's value, of which all other bits are ignored.
    #[must_use]
    pub const fn from_kernel(userlocks: u8) -> Self {
        Self(userlocks & (BINDADDR_LOCK | BINDPORT_LOCK | CONNECT_BIND))
    }

    /// bind() gave an address (`SOCK_BINDADDR_LOCK`).
    #[must_use]
    pub const fn has_bound_addr(self) -> bool {
        self.0 & BINDADDR_LOCK != 0
    }

    /// bind() asked for this very port (`SOCK_BINDPORT_LOCK`).
    #[must_use]
    pub const fn has_bound_port(self) -> bool {
        self.0 & BINDPORT_LOCK != 0
    }

    /// connect() chose the port (`SOCK_CONNECT_BIND`); never on a kernel before 6.18.
    #[must_use]
    pub const fn is_connect_bind(self) -> bool {
        self.0 & CONNECT_BIND != 0
    }
}
