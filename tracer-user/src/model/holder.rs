//! The owners of bind buckets, as the kernel lists them. Headroom is computed from them.

use tracer_ebpf::{HolderRecord, TcpState, holder_flags};

use super::{Addr, BucketClass, Cookie, Family, Netns, Port, Substate};

/// A socket or TIME_WAIT that holds a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The socket's cookie; 0 if the kernel has not assigned one yet.
    pub cookie: Cookie,
    /// The network namespace.
    pub netns: Netns,
    /// The socket's family.
    pub family: Family,
    /// True for an IPv6 socket that accepts no IPv4 (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// Local address.
    pub local_addr: Addr,
    /// The held port.
    pub local_port: Port,
    /// Index of the interface that it is bound to (`SO_BINDTODEVICE`), or 0.
    pub device: u32,
    /// Index of the VRF that its bucket belongs to, or 0.
    pub l3mdev: u32,
    /// The class of its bucket.
    pub class: BucketClass,
    /// True if connect() chose the port (`SOCK_CONNECT_BIND`); always false before 6.18.
    pub is_connect_bind: bool,
    /// `SO_REUSEADDR`.
    pub reuse_addr: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// The kind of holder.
    pub by: HolderBy,
}

/// The kind of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderBy {
    /// A bound socket that is neither connected nor a listener.
    Idle,
    /// A listener.
    Listener,
    /// A connection in any state.
    Connection {
        /// The peer.
        peer: (Addr, Port),
    },
    /// A TIME_WAIT.
    TimeWait {
        /// The peer.
        peer: (Addr, Port),
        /// What the TIME_WAIT waits for.
        substate: Substate,
        /// When it began, in milliseconds of `CLOCK_MONOTONIC`, the low 32 bits (`tw_entry_stamp`).
        /// `None` on kernels that do not keep it.
        entry_stamp_ms: Option<u32>,
        /// When the peer's last timestamp arrived, in seconds of `CLOCK_MONOTONIC`, the low 32 bits
        /// (`tw_ts_recent_stamp`). 0 if the connection had no timestamps.
        ts_recent_stamp_s: u32,
    },
}

impl Holder {
    /// Decodes a record of an iterator. `has_entry_stamp` is true if the kernel keeps
    /// `tw_entry_stamp`. `None` for a socket that is not, or not yet, in a bucket.
    #[must_use]
    pub fn from_record(record: &HolderRecord, has_entry_stamp: bool) -> Option<Self> {
        const CONNECT_BIND: u8 = 16;
        let has = |flag: u8| record.flags & flag != 0;
        let port = |number: u16| (number != 0).then_some(Port(number));
        if !has(holder_flags::BUCKET) {
            return None;
        }
        let peer = port(record.peer_port).map(|port| (Addr(record.peer_addr), port));
        let by = match TcpState::from_u8(record.state)? {
            TcpState::Close | TcpState::BoundInactive => HolderBy::Idle,
            TcpState::Listen => HolderBy::Listener,
            TcpState::TimeWait => HolderBy::TimeWait {
                peer: peer?,
                substate: if record.substate == TcpState::FinWait2 as u8 {
                    Substate::FinWait2
                } else {
                    Substate::TimeWait
                },
                entry_stamp_ms: has_entry_stamp.then_some(record.entry_stamp_ms),
                ts_recent_stamp_s: record.ts_recent_stamp_s,
            },
            _ => HolderBy::Connection { peer: peer? },
        };
        Some(Self {
            cookie: Cookie(record.cookie),
            netns: Netns(record.netns),
            family: if has(holder_flags::IPV6) { Family::Ipv6 } else { Family::Ipv4 },
            v6_only: has(holder_flags::V6ONLY),
            local_addr: Addr(record.local_addr),
            local_port: port(record.local_port)?,
            device: record.device,
            l3mdev: record.l3mdev,
            class: if record.fastreuse == -1 && record.fastreuseport == -1 {
                BucketClass::Connect
            } else {
                BucketClass::Bind
            },
            is_connect_bind: record.userlocks & CONNECT_BIND != 0,
            reuse_addr: has(holder_flags::REUSEADDR),
            reuse_port: has(holder_flags::REUSEPORT),
            by,
        })
    }

    /// The peer of a connection or TIME_WAIT. `None` for other holders.
    #[must_use]
    pub fn peer(&self) -> Option<(Addr, Port)> {
        match self.by {
            HolderBy::Idle | HolderBy::Listener => None,
            HolderBy::Connection { peer } | HolderBy::TimeWait { peer, .. } => Some(peer),
        }
    }
}
