//! Holders: who is in which bind bucket, as the kernel itself has it. What the iterators of
//! `probes/holders.rs` write, and where they find it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, BitField};

/// One socket or TIME_WAIT that holds a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HolderRecord {
    /// The kernel's socket cookie; 0 if nobody has asked for it yet.
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
    /// `skc_bound_dev_if`: index of the interface that the socket is bound to, or 0.
    pub device: u32,
    /// `inet_bind_bucket.l3mdev`: index of the VRF that the bucket belongs to, or 0.
    pub l3mdev: u32,
    /// Of a TIME_WAIT: when it began, milliseconds of `CLOCK_MONOTONIC`, the low 32 bits. Only
    /// where [`HolderLayout::tw_entry_stamp`] is present.
    pub entry_stamp_ms: u32,
    /// Of a TIME_WAIT: when the peer's last timestamp came, seconds of `CLOCK_MONOTONIC`, the low
    /// 32 bits; 0 if the connection had no timestamps.
    pub ts_recent_stamp_s: u32,
    /// A [`TcpState`](crate::TcpState).
    pub state: u8,
    /// Of a TIME_WAIT: its substate.
    pub substate: u8,
    /// A union of [`holder_flags`].
    pub flags: u8,
    /// `inet_bind_bucket.fastreuse`: -1 if every owner of the bucket got it from connect().
    pub fastreuse: i8,
    /// `inet_bind_bucket.fastreuseport`: -1 likewise.
    pub fastreuseport: i8,
    /// `sk_userlocks`. Of a TIME_WAIT: `SOCK_CONNECT_BIND` (16) if its socket had it.
    pub userlocks: u8,
    /// No meaning.
    pub pad: [u8; 2],
}

/// Bits of [`HolderRecord::flags`].
pub mod holder_flags {
    /// The socket's family is `AF_INET6`.
    pub const IPV6: u8 = 1 << 0;
    /// It is IPv6 only.
    pub const V6ONLY: u8 = 1 << 1;
    /// `SO_REUSEADDR`.
    pub const REUSEADDR: u8 = 1 << 2;
    /// `SO_REUSEPORT`.
    pub const REUSEPORT: u8 = 1 << 3;
    /// It is in a bind bucket, so that `fastreuse` and `fastreuseport` mean something.
    pub const BUCKET: u8 = 1 << 4;
}

const _: () = assert!(size_of::<HolderRecord>() == 72);

/// Byte offsets of the kernel fields that only holders need, beside [`Layout`](crate::Layout).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Immutable, IntoBytes)]
pub struct HolderLayout {
    /// `sock.__sk_common.skc_reuse`, also of a TIME_WAIT.
    pub sk_reuse: BitField,
    /// `sock.__sk_common.skc_reuseport`, also of a TIME_WAIT.
    pub sk_reuseport: BitField,
    /// `sock.__sk_common.skc_bound_dev_if`, also of a TIME_WAIT.
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
