//! Facts: what a kernel hook saw, as fixed-size records. No interpretation.

use zerocopy::{CastError, FromBytes, Immutable, IntoBytes, KnownLayout};

/// An address as the kernel keeps it (`s6_addr32`): four words, each in network byte order. An
/// IPv4 address is in its IPv4-mapped form (RFC 4291, 2.5.5.2), which [`mapped`] makes.
///
/// Words and not bytes, because the programs would copy bytes one by one.
pub type Address = [u32; 4];

/// The IPv4-mapped form of an IPv4 address in network byte order.
#[inline(always)]
#[must_use]
pub const fn mapped(v4: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), v4]
}

/// Bits of [`Fact::flags`].
pub mod flags {
    /// The socket's family is `AF_INET6` (its addresses may still be IPv4-mapped).
    pub const IPV6: u8 = 1 << 0;
    /// An [`Owner`](super::Owner) follows the fact.
    pub const OWNER: u8 = 1 << 1;
    /// `RCV_SHUTDOWN | SEND_SHUTDOWN` are both set: somebody called close(), or both halves ended.
    pub const SHUTDOWN_BOTH: u8 = 1 << 2;
    /// `TCP_LINGER2` is negative: FIN_WAIT2 ends with a reset instead of a TIME_WAIT.
    pub const LINGER2_NEGATIVE: u8 = 1 << 3;
    /// Of a TIME_WAIT: the timer was due when it was cancelled. An expiry announces itself so.
    pub const TIMER_DUE: u8 = 1 << 4;
    /// Of a TIME_WAIT: the network namespace is being torn down.
    pub const NETNS_DYING: u8 = 1 << 5;
    /// Of a TIME_WAIT's start: it is certain that it had started before. Without this flag it may
    /// have.
    pub const REARMED: u8 = 1 << 7;
    /// Of a socket: it is IPv6 only (`IPV6_V6ONLY`).
    pub const V6ONLY: u8 = 1 << 6;
    /// Of a transition to CLOSE: the namespace has all the TIME_WAITs that it may have
    /// (`tcp_max_tw_buckets`).
    pub const TIME_WAITS_FULL: u8 = 1 << 4;
    /// Of a transition to CLOSE: the socket belongs to no file, because nobody has accepted it or
    /// because its file is closed.
    pub const ORPHAN: u8 = 1 << 5;
    /// Of a bind(): it had asked for port 0.
    pub const ANY_PORT: u8 = 1 << 4;
    /// Of a TIME_WAIT's start: the peer sent no timestamps.
    pub const NO_TIMESTAMPS: u8 = 1 << 2;
    /// Of [`BindFailed`](super::FactKind::BindFailed): the socket has no port, or no longer.
    pub const NO_PORT: u8 = 1 << 4;
}

/// What happened.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FactKind {
    /// CLOSE to SYN_SENT, in the connecting process; the port is 0 unless the socket was bound.
    /// `detail` is the socket's own range (`IP_LOCAL_PORT_RANGE`): the lower end in the lower half,
    /// the upper in the upper, each 0 if it has none.
    ConnectStart = 1,
    /// `BPF_SOCK_OPS_TCP_CONNECT_CB`: connect() has its port, the SYN is about to leave. `detail`
    /// tells the namespace's incarnation, as it does in every fact that can begin a lease.
    PortChosen = 2,
    /// Any state to ESTABLISHED; `detail` is the namespace's incarnation.
    Established = 3,
    /// ESTABLISHED (or SYN_RECV) to FIN_WAIT1 or CLOSE_WAIT; `state` is the new state.
    Closing = 4,
    /// Any state to CLOSE; `state` is the old state, `detail` is `sk_err`. The port is 0 if the
    /// socket has let go of it (`tcp_set_state` calls `inet_put_port` before the tracepoint).
    Closed = 5,
    /// `tcp_destroy_sock` of a socket that still holds its port: it lets go now.
    Destroyed = 6,
    /// CLOSE to LISTEN, in the listening process; the port is 0 unless the socket was bound.
    ListenStart = 7,
    /// `BPF_SOCK_OPS_TCP_LISTEN_CB`: listen() succeeded, the port is held; `detail` is the
    /// namespace's incarnation.
    Listening = 8,
    /// `cgroup/post_bind`: bind() got a port; `detail` is the namespace's incarnation.
    Bound = 9,
    /// bind() failed: `detail` is the errno, local address and port are the requested ones.
    BindFailed = 10,
    /// accept() handed the connection to this process.
    Accepted = 11,
    /// The TIME_WAIT timer was (re)armed; `state` is the substate.
    TimeWaitStart = 12,
    /// The TIME_WAIT timer was cancelled: to be re-armed, to expire, or because the TIME_WAIT was
    /// killed. What follows tells.
    TimeWaitCancel = 13,
    /// The TIME_WAIT timer expired: the port is let go.
    TimeWaitExpire = 14,
    /// A snapshot found this socket held; `state` is its state.
    Held = 15,
    /// A snapshot found an open file of a namespace: `netns` is its inode, `detail` the file
    /// descriptor in the owner's process.
    NamespaceFile = 16,
}

impl FactKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::ConnectStart,
            2 => Self::PortChosen,
            3 => Self::Established,
            4 => Self::Closing,
            5 => Self::Closed,
            6 => Self::Destroyed,
            7 => Self::ListenStart,
            8 => Self::Listening,
            9 => Self::Bound,
            10 => Self::BindFailed,
            11 => Self::Accepted,
            12 => Self::TimeWaitStart,
            13 => Self::TimeWaitCancel,
            14 => Self::TimeWaitExpire,
            15 => Self::Held,
            16 => Self::NamespaceFile,
            _ => return None,
        })
    }
}

/// A TCP state by the kernel's number (`include/net/tcp_states.h`; part of its user API).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the states are those of RFC 9293, by the kernel's names")]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynRecv = 12,
    /// Bound but neither connected nor listening: a pseudo-state of sock_diag since 6.8.
    BoundInactive = 13,
}

impl TcpState {
    /// The state with this number, if there is one.
    #[must_use]
    pub const fn from_u8(state: u8) -> Option<Self> {
        Some(match state {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            13 => Self::BoundInactive,
            _ => return None,
        })
    }
}

/// One record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fact {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The kernel's socket cookie; a TIME_WAIT has that of its socket. 0 if it has none yet.
    pub cookie: u64,
    /// Local address.
    pub local_addr: Address,
    /// Peer address.
    pub peer_addr: Address,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port, host byte order; 0 if none is held.
    pub local_port: u16,
    /// Peer port, host byte order.
    pub peer_port: u16,
    /// An errno or another number, by kind. An incarnation is the low half of the namespace's
    /// cookie (`net.net_cookie`), or 0 where there is none: it tells apart namespaces that had the
    /// same inode one after the other.
    pub detail: i32,
    /// A [`FactKind`].
    pub kind: u8,
    /// A union of [`flags`].
    pub flags: u8,
    /// A [`TcpState`], by kind.
    pub state: u8,
    /// `sk_userlocks`: `SOCK_BINDPORT_LOCK` is 8, `SOCK_CONNECT_BIND` (6.18) is 16.
    pub userlocks: u8,
}

/// The process in whose context a fact arose.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Owner {
    /// Process id (the kernel's tgid) in the initial pid namespace.
    pub pid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Id of the process's cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// Name of the process (its main thread's comm), NUL-padded.
    pub comm: [u8; 16],
}

/// A fact with its owner: what the programs write when they run in process context.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OwnedFact {
    /// The fact; its flags contain [`flags::OWNER`].
    pub fact: Fact,
    /// The process.
    pub owner: Owner,
}

const _: () = assert!(size_of::<Fact>() == 64);
const _: () = assert!(size_of::<Owner>() == 32);
const _: () = assert!(size_of::<OwnedFact>() == 96);
const _: () = assert!(core::mem::offset_of!(Owner, comm) % 8 == 0);

/// A record that is not a fact: the object and the agent do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The record has this many bytes, which is no fact's size.
    Size(usize),
    /// The record does not lie where a fact can: at a multiple of eight.
    Unaligned,
    /// The kind is unknown.
    Kind(u8),
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Size(size) => write!(f, "a fact of {size} bytes"),
            Self::Unaligned => write!(f, "a fact that is not aligned to eight bytes"),
            Self::Kind(kind) => write!(f, "a fact of the unknown kind {kind}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Reads one record, in its place: a copy by parts that is read as a whole right after costs more
/// than all the rest of reading it.
///
/// # Errors
/// If the bytes are not a fact of this version of the wire.
pub fn decode(bytes: &[u8]) -> Result<(FactKind, &Fact, Option<&Owner>), DecodeError> {
    let (fact, rest) = Fact::ref_from_prefix(bytes).map_err(|error| refusal(&error, bytes))?;
    let kind = FactKind::from_u8(fact.kind).ok_or(DecodeError::Kind(fact.kind))?;
    let owner = if fact.flags & flags::OWNER == 0 {
        None
    } else {
        Some(Owner::ref_from_prefix(rest).map_err(|error| refusal(&error, bytes))?.0)
    };
    Ok((kind, fact, owner))
}

fn refusal<T>(error: &CastError<&[u8], T>, record: &[u8]) -> DecodeError {
    match error {
        CastError::Alignment(_) => DecodeError::Unaligned,
        // Every bit pattern is valid.
        CastError::Size(_) | CastError::Validity(_) => DecodeError::Size(record.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(kind: u8, flags: u8) -> Fact {
        Fact {
            time_ns: 1,
            cookie: 2,
            local_addr: [3; 4],
            peer_addr: [4; 4],
            netns: 5,
            local_port: 6,
            peer_port: 7,
            detail: -8,
            kind,
            flags,
            state: 9,
            userlocks: 10,
        }
    }

    #[test]
    fn a_fact_survives_the_wire() {
        let fact = fact(FactKind::Closed as u8, 0);
        assert_eq!(decode(fact.as_bytes()), Ok((FactKind::Closed, &fact, None)));
    }

    #[test]
    fn an_owner_follows_its_fact() {
        let fact = fact(FactKind::Bound as u8, flags::OWNER);
        let owner = Owner { pid: 1, uid: 2, cgroup_id: 3, comm: *b"comm\0\0\0\0\0\0\0\0\0\0\0\0" };
        let record = OwnedFact { fact, owner };
        assert_eq!(decode(record.as_bytes()), Ok((FactKind::Bound, &fact, Some(&owner))));
        assert_eq!(decode(fact.as_bytes()), Err(DecodeError::Size(64)), "the owner is missing");
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let bytes = [0_u64; 9];
        assert_eq!(decode(&bytes.as_bytes()[..63]), Err(DecodeError::Size(63)));
        assert_eq!(decode(&bytes.as_bytes()[1..]), Err(DecodeError::Unaligned));
        assert_eq!(decode(fact(200, 0).as_bytes()), Err(DecodeError::Kind(200)));
    }
}
