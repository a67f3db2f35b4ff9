//! The holders of ports and their bind buckets, as the iterators of `probes/holders.rs` list them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, BitField};

/// One socket or TIME_WAIT that holds a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HolderRecord {
    /// The kernel's socket cookie; 0 if none has been assigned yet.
    pub cookie: u64,
    /// Local address.
    pub local_addr: Address,
    /// Peer address.
    pub peer_addr: Address,
    /// Inode of the network namespace.
    pub netns: u32,
    /// The held port, host byte order.
    pub local_port: u16,
    /// Peer port, host byte order; 0 if not connected.
    pub peer_port: u16,
    /// `skc_bound_dev_if`: index of the interface that the socket is bound to; 0 for none.
    pub device: u32,
    /// `inet_bind_bucket.l3mdev`: index of the VRF that the bucket belongs to; 0 for none.
    pub l3mdev: u32,
    /// When the TIME_WAIT began: the low 32 bits of `CLOCK_MONOTONIC` in milliseconds. 0 for a
    /// socket, and if [`HolderLayout::tw_entry_stamp`] is absent.
    pub entry_stamp_ms: u32,
    /// When the TIME_WAIT's connection last received a timestamp: the low 32 bits of
    /// `CLOCK_MONOTONIC` in seconds. 0 for a socket, and if the peer sent no timestamps.
    pub ts_recent_stamp_s: u32,
    /// A [`TcpState`](crate::TcpState).
    pub state: u8,
    /// The substate of a TIME_WAIT, a [`TcpState`](crate::TcpState); 0 for a socket.
    pub substate: u8,
    /// A union of [`holder_flags`].
    pub flags: u8,
    /// `inet_bind_bucket.fastreuse`: -1 if connect() chose the port for every holder in the bucket.
    pub fastreuse: i8,
    /// `inet_bind_bucket.fastreuseport`: -1 in the same case.
    pub fastreuseport: i8,
    /// `sk_userlocks`. For a TIME_WAIT only `SOCK_CONNECT_BIND`, if its socket had it.
    pub userlocks: u8,
    /// Fills the record; always 0.
    pub pad: [u8; 2],
}

/// Bits of [`HolderRecord::flags`].
pub mod holder_flags {
    /// The socket's family is `AF_INET6`.
    pub const IPV6: u8 = 1 << 0;
    /// The socket is IPv6 only (`IPV6_V6ONLY`).
    pub const V6ONLY: u8 = 1 << 1;
    /// `SO_REUSEADDR`.
    pub const REUSEADDR: u8 = 1 << 2;
    /// `SO_REUSEPORT`.
    pub const REUSEPORT: u8 = 1 << 3;
    /// It is in a bind bucket: `fastreuse`, `fastreuseport` and `l3mdev` are valid.
    pub const BUCKET: u8 = 1 << 4;
}

const _: () = assert!(size_of::<HolderRecord>() == 72);

/// Byte offsets of the kernel fields that only the iterators over holders need, in addition to
/// [`Layout`](crate::Layout).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Immutable, IntoBytes)]
pub struct HolderLayout {
    /// `sock.__sk_common.skc_reuse`, also at the same place in a timewait socket.
    pub sk_reuse: BitField,
    /// `sock.__sk_common.skc_reuseport`, also at the same place in a timewait socket.
    pub sk_reuseport: BitField,
    /// `sock.__sk_common.skc_bound_dev_if`, also at the same place in a timewait socket.
    pub sk_bound_dev_if: u32,
    /// `tcp_sock.inet_conn.icsk_bind_hash`.
    pub sk_bind_hash: u32,
    /// `inet_timewait_sock.tw_tb`.
    pub tw_tb: u32,
    /// `inet_timewait_sock.tw_entry_stamp` (6.14), or absent.
    pub tw_entry_stamp: u32,
    /// `inet_timewait_sock.tw_connect_bind` (6.18); its mask is 0 if it is absent.
    pub tw_connect_bind: BitField,
    /// `inet_bind_bucket.fastreuse`.
    pub tb_fastreuse: u32,
    /// `inet_bind_bucket.fastreuseport`.
    pub tb_fastreuseport: u32,
    /// `inet_bind_bucket.l3mdev`.
    pub tb_l3mdev: u32,
}
