//! The records of the ring buffer: what a kernel hook saw, without interpretation.
//!
//! A record is a [`Fact`], or an [`OwnedFact`] where the hook runs in the context of the process
//! that made the call. Which of the two depends on the [`FactKind`] alone.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IP address as the kernel stores it (`s6_addr32`): four words, each in network byte order. An
/// IPv4 address is in its IPv4-mapped form (RFC 4291, 2.5.5.2), which [`mapped`] makes.
///
/// Words and not bytes: the eBPF backend would copy bytes one at a time.
pub type Address = [u32; 4];

/// The IPv4-mapped form of an IPv4 address in network byte order.
#[inline(always)]
#[must_use]
pub const fn mapped(v4: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), v4]
}

/// The value of [`Fact::protocol`] for TCP. UDP is to be 17, its number in the IP header.
pub const IPPROTO_TCP: u8 = 6;

/// What happened. Each kind documents the fields of [`Fact`] that mean something for it, beside
/// `time_ns`, `kind`, `protocol`, `netns` and the cookie. All others are 0.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FactKind {
    /// A socket went from CLOSE to SYN_SENT in the process that called connect().
    ///
    /// The owner, both ends (the local port is 0 unless the socket was bound), the
    /// [own range](Fact::own_range), the userlocks.
    ConnectStart = 1,
    /// connect() has its port and the SYN is about to leave (`BPF_SOCK_OPS_TCP_CONNECT_CB`).
    ///
    /// Both ends, the [incarnation](Fact::incarnation), the userlocks.
    PortChosen = 2,
    /// A socket went from some state to ESTABLISHED.
    ///
    /// Both ends, the [incarnation](Fact::incarnation), the old [state](Fact::state), the
    /// userlocks.
    Established = 3,
    /// A connection went to FIN_WAIT1 or CLOSE_WAIT.
    ///
    /// Both ends, the new [state](Fact::state), the userlocks.
    Closing = 4,
    /// A socket went from some state to CLOSE.
    ///
    /// Both ends (the local port is 0 if the socket has released it: `tcp_set_state` calls
    /// `inet_put_port` before the tracepoint), the old [state](Fact::state),
    /// [`sk_err`](Fact::errno), the userlocks, the flags of [`closed`].
    Closed = 5,
    /// A socket that still holds its port is being destroyed, and releases the port now
    /// (`tcp_destroy_sock`).
    ///
    /// Both ends, the userlocks.
    Destroyed = 6,
    /// A socket went from CLOSE to LISTEN in the process that called listen().
    ///
    /// The owner, both ends (the local port is 0 unless the socket was bound), the userlocks.
    ListenStart = 7,
    /// listen() succeeded, and the port is held (`BPF_SOCK_OPS_TCP_LISTEN_CB`).
    ///
    /// The local end, the [incarnation](Fact::incarnation), the userlocks.
    Listening = 8,
    /// bind() got a port (`cgroup/post_bind4`, `cgroup/post_bind6`). The kernel sets the userlocks
    /// only after this.
    ///
    /// The owner, the local end, the [incarnation](Fact::incarnation), the flags of [`bound`].
    Bound = 9,
    /// bind() failed.
    ///
    /// The owner, the local end as it was requested (port 0 for any), the
    /// [errno](Fact::errno), the flags of [`bind_failed`].
    BindFailed = 10,
    /// accept() returned the connection to this process.
    ///
    /// The owner, both ends.
    Accepted = 11,
    /// The timer of a TIME_WAIT was armed, for the first time or again.
    ///
    /// Both ends, the substate as the [state](Fact::state), the flags of [`time_wait_start`].
    TimeWaitStart = 12,
    /// The timer of a TIME_WAIT was cancelled: because it is armed again, because it expires, or
    /// because the TIME_WAIT was killed. The facts that follow show which.
    ///
    /// Both ends, the substate as the [state](Fact::state), the flags of [`time_wait_cancel`].
    TimeWaitCancel = 13,
    /// The timer of a TIME_WAIT expired, and the port is released.
    ///
    /// Both ends, the substate as the [state](Fact::state).
    TimeWaitExpire = 14,
    /// The snapshot of open files contains this socket, which holds a port. Not on the ring.
    ///
    /// The owner, both ends, the [state](Fact::state), the userlocks, the owner's
    /// [file descriptor](Fact::fd).
    Held = 15,
    /// The snapshot of open files contains a file of the network namespace `netns`. Not on the
    /// ring.
    ///
    /// The owner, the owner's [file descriptor](Fact::fd).
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

    /// True if the record is an [`OwnedFact`], false if it is a [`Fact`] alone.
    #[must_use]
    pub const fn has_owner(self) -> bool {
        match self {
            Self::ConnectStart
            | Self::ListenStart
            | Self::Bound
            | Self::BindFailed
            | Self::Accepted
            | Self::Held
            | Self::NamespaceFile => true,
            Self::PortChosen
            | Self::Established
            | Self::Closing
            | Self::Closed
            | Self::Destroyed
            | Self::Listening
            | Self::TimeWaitStart
            | Self::TimeWaitCancel
            | Self::TimeWaitExpire => false,
        }
    }
}

/// Bits of [`Fact::socket`], with the same meaning for every kind. Bits 5 to 7 are free for further
/// options of a socket.
pub mod socket {
    /// The family is `AF_INET6` (the addresses may still be IPv4-mapped).
    pub const IPV6: u8 = 1 << 0;
    /// The socket is IPv6 only (`IPV6_V6ONLY`).
    pub const V6ONLY: u8 = 1 << 1;
    /// `SOCK_BINDADDR_LOCK`: bind() gave an address. At the kernel's place in `sk_userlocks`
    /// (`include/net/sock.h`), like the two that follow.
    pub const BINDADDR_LOCK: u8 = 1 << 2;
    /// `SOCK_BINDPORT_LOCK`: bind() asked for this very port.
    pub const BINDPORT_LOCK: u8 = 1 << 3;
    /// `SOCK_CONNECT_BIND` (6.18): connect() chose the port.
    pub const CONNECT_BIND: u8 = 1 << 4;
    /// The bits of `sk_userlocks` that a fact carries.
    pub const USERLOCKS: u8 = BINDADDR_LOCK | BINDPORT_LOCK | CONNECT_BIND;
}

/// The bits of [`Fact::event`] that hold the [state](Fact::state). The other four belong to the
/// kind: see [`closed`], [`bound`], [`bind_failed`], [`time_wait_start`] and [`time_wait_cancel`].
pub const STATE_MASK: u8 = 0x0f;

/// Flags of [`FactKind::Closed`] in [`Fact::event`].
pub mod closed {
    /// `RCV_SHUTDOWN` and `SEND_SHUTDOWN` are both set: close() was called, or both directions
    /// ended.
    pub const SHUTDOWN_BOTH: u8 = 1 << 4;
    /// The socket belongs to no file: the connection was never accepted, or its file is closed.
    pub const ORPHAN: u8 = 1 << 5;
    /// `TCP_LINGER2` is negative: FIN_WAIT2 ends with a reset instead of a TIME_WAIT. Only set if
    /// the old state is FIN_WAIT2 or CLOSING.
    pub const LINGER2_NEGATIVE: u8 = 1 << 6;
    /// The namespace has as many TIME_WAITs as `tcp_max_tw_buckets` allows. Only set if the old
    /// state is FIN_WAIT2 or CLOSING.
    pub const TIME_WAITS_FULL: u8 = 1 << 7;
}

/// Flags of [`FactKind::Bound`] in [`Fact::event`].
pub mod bound {
    /// bind() asked for port 0, that is for any port.
    pub const ANY_PORT: u8 = 1 << 4;
}

/// Flags of [`FactKind::BindFailed`] in [`Fact::event`].
pub mod bind_failed {
    /// The socket holds no port, perhaps because the kernel has just taken one back.
    pub const NO_PORT: u8 = 1 << 4;
}

/// Flags of [`FactKind::TimeWaitStart`] in [`Fact::event`].
pub mod time_wait_start {
    /// The TIME_WAIT certainly existed before and its timer is armed again. Without this flag it
    /// may be new or not.
    pub const REARMED: u8 = 1 << 4;
    /// The peer sent no timestamps.
    pub const NO_TIMESTAMPS: u8 = 1 << 5;
}

/// Flags of [`FactKind::TimeWaitCancel`] in [`Fact::event`].
pub mod time_wait_cancel {
    /// The timer was due when it was cancelled, which precedes its expiry.
    pub const TIMER_DUE: u8 = 1 << 4;
    /// The network namespace is being torn down.
    pub const NETNS_DYING: u8 = 1 << 5;
}

/// A record without an owner. The fields are in the order in which they fill 64 bytes without
/// padding; which of them mean something is said by [`FactKind`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fact {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The kernel's socket cookie; a TIME_WAIT inherits that of its socket. 0 if none has been
    /// assigned yet.
    pub cookie: u64,
    /// Local address.
    pub local_addr: Address,
    /// Peer address.
    pub peer_addr: Address,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port, host byte order; 0 if none is held.
    pub local_port: u16,
    /// Peer port, host byte order; 0 if there is no peer.
    pub peer_port: u16,
    /// A number whose meaning depends on the kind: use [`incarnation`](Self::incarnation),
    /// [`own_range`](Self::own_range), [`errno`](Self::errno) or [`fd`](Self::fd), and their
    /// setters.
    pub detail: u32,
    /// A [`FactKind`].
    pub kind: u8,
    /// The IP protocol: [`IPPROTO_TCP`].
    pub protocol: u8,
    /// A union of the bits of [`socket`].
    pub socket: u8,
    /// The [state](Self::state) and the flags of the kind.
    pub event: u8,
}

impl Fact {
    /// A fact with every field 0, which is of no kind.
    pub const ZERO: Self = Self {
        time_ns: 0,
        cookie: 0,
        local_addr: [0; 4],
        peer_addr: [0; 4],
        netns: 0,
        local_port: 0,
        peer_port: 0,
        detail: 0,
        kind: 0,
        protocol: 0,
        socket: 0,
        event: 0,
    };

    /// The low half of the namespace's cookie (`net.net_cookie`), by which to tell apart namespaces
    /// that had the same inode one after the other. 0 if the kernel assigns none.
    ///
    /// [`PortChosen`](FactKind::PortChosen), [`Established`](FactKind::Established),
    /// [`Listening`](FactKind::Listening) and [`Bound`](FactKind::Bound).
    #[inline(always)]
    #[must_use]
    pub const fn incarnation(&self) -> u32 {
        self.detail
    }

    /// Sets the [`incarnation`](Self::incarnation).
    #[inline(always)]
    pub const fn set_incarnation(&mut self, incarnation: u32) {
        self.detail = incarnation;
    }

    /// The lower and upper end of the socket's own range (`IP_LOCAL_PORT_RANGE`), each 0 if the
    /// socket has none of its own.
    ///
    /// [`ConnectStart`](FactKind::ConnectStart).
    #[inline(always)]
    #[must_use]
    pub const fn own_range(&self) -> (u16, u16) {
        (self.detail as u16, (self.detail >> 16) as u16)
    }

    /// Sets the [`own_range`](Self::own_range) from the kernel's word, which has the lower end in
    /// its lower half (`inet_sock.local_port_range`).
    #[inline(always)]
    pub const fn set_own_range(&mut self, local_port_range: u32) {
        self.detail = local_port_range;
    }

    /// The positive errno of a failed call, or `sk_err`; 0 for no error.
    ///
    /// [`Closed`](FactKind::Closed) and [`BindFailed`](FactKind::BindFailed).
    #[inline(always)]
    #[must_use]
    pub const fn errno(&self) -> i32 {
        self.detail.cast_signed()
    }

    /// Sets the [`errno`](Self::errno).
    #[inline(always)]
    pub const fn set_errno(&mut self, errno: i32) {
        self.detail = errno.cast_unsigned();
    }

    /// The number of the file descriptor in the owner's process.
    ///
    /// [`Held`](FactKind::Held) and [`NamespaceFile`](FactKind::NamespaceFile).
    #[inline(always)]
    #[must_use]
    pub const fn fd(&self) -> i32 {
        self.detail.cast_signed()
    }

    /// Sets the [`fd`](Self::fd).
    #[inline(always)]
    pub const fn set_fd(&mut self, fd: u32) {
        self.detail = fd;
    }

    /// The number of a [`TcpState`](crate::TcpState), or 0.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self) -> u8 {
        self.event & STATE_MASK
    }
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

/// A record with an owner.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OwnedFact {
    /// The fact, of a kind that [has an owner](FactKind::has_owner).
    pub fact: Fact,
    /// The process.
    pub owner: Owner,
}

const _: () = assert!(size_of::<Fact>() == 64);
const _: () = assert!(size_of::<Owner>() == 32);
const _: () = assert!(size_of::<OwnedFact>() == 96);
const _: () = assert!(core::mem::offset_of!(Owner, comm) % 8 == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_kinds_correspond() {
        for number in 0..=u8::MAX {
            match FactKind::from_u8(number) {
                Some(kind) => assert_eq!(kind as u8, number),
                None => assert!(!(1..=16).contains(&number)),
            }
        }
    }

    #[test]
    fn no_two_bits_of_a_byte_have_the_same_meaning() {
        let bytes: [&[u8]; 6] = [
            &[
                socket::IPV6,
                socket::V6ONLY,
                socket::BINDADDR_LOCK,
                socket::BINDPORT_LOCK,
                socket::CONNECT_BIND,
            ],
            &[
                STATE_MASK,
                closed::SHUTDOWN_BOTH,
                closed::ORPHAN,
                closed::LINGER2_NEGATIVE,
                closed::TIME_WAITS_FULL,
            ],
            &[STATE_MASK, bound::ANY_PORT],
            &[STATE_MASK, bind_failed::NO_PORT],
            &[STATE_MASK, time_wait_start::REARMED, time_wait_start::NO_TIMESTAMPS],
            &[STATE_MASK, time_wait_cancel::TIMER_DUE, time_wait_cancel::NETNS_DYING],
        ];
        for bits in bytes {
            let together = bits.iter().fold(0, |union, bit| {
                assert_eq!(union & bit, 0);
                union | bit
            });
            assert_ne!(together, 0);
        }
    }

    #[test]
    fn every_reading_of_the_detail_returns_what_was_set() {
        let mut fact = Fact::ZERO;
        fact.set_own_range(60_000 << 16 | 50_000);
        assert_eq!(fact.own_range(), (50_000, 60_000));
        fact.set_errno(98);
        assert_eq!(fact.errno(), 98);
        fact.set_incarnation(u32::MAX);
        assert_eq!(fact.incarnation(), u32::MAX);
        fact.set_fd(3);
        assert_eq!(fact.fd(), 3);
    }
}
