//! A lease as the ledger keeps it.

use std::sync::Arc;

use tracer_ebpf::Owner;

use super::LeaseIndex;
use crate::{
    capacity::DestinationIndex,
    model::{
        Addr, BucketClass, Cookie, Family, Instant, Kind, Lease, Netns, Peer, Phase, Port, Reason,
        observation::{LocalEnd, SocketId},
    },
};

/// A lease, and what only the ledger needs to know about it.
#[derive(Debug)]
pub(in crate::ledger) struct Entry {
    pub lease: Lease,
    pub holders: Holders,
    /// What the next observations are expected to show.
    pub awaited: Option<Awaited>,
    /// Why the socket went to CLOSE while it kept its port, or released the port while the
    /// TIME_WAIT held on.
    pub close_reason: Option<Reason>,
    /// When the socket released the port while the TIME_WAIT held on.
    pub socket_end: Option<Instant>,
    /// The state of this lease's address in the bucket of its port.
    pub address_class: BucketClass,
    /// Where the connection is counted; `None` if it is not.
    pub destination: Option<DestinationIndex>,
    /// True if the connection is counted as a TIME_WAIT that connect() may reuse.
    pub is_counted_reusable: bool,
    /// The snapshot during or after which holder or phase changed last.
    pub changed: SnapshotNumber,
    pub(super) next_of_cookie: Option<LeaseIndex>,
    pub(super) next_of_port: Option<LeaseIndex>,
    pub(super) previous_of_port: Option<LeaseIndex>,
}

// A host may have a million of them.
const _: () = assert!(size_of::<Entry>() <= 144);

/// Numbers the snapshots. It begins anew after 65,536 of them, which at worst leaves a lease out of
/// one comparison.
pub(in crate::ledger) type SnapshotNumber = u16;

/// What holds a port on behalf of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ledger) enum Holders {
    /// The socket.
    Socket,
    /// The TIME_WAIT that the socket left behind.
    TimeWait,
    /// Both: the socket was bound to an explicit port, and is still open.
    Both,
}

impl Holders {
    pub fn has_socket(self) -> bool {
        matches!(self, Self::Socket | Self::Both)
    }

    pub fn has_time_wait(self) -> bool {
        matches!(self, Self::TimeWait | Self::Both)
    }

    /// With the TIME_WAIT as well.
    pub fn and_time_wait(self) -> Self {
        if self.has_socket() { Self::Both } else { Self::TimeWait }
    }
}

/// What the next observations of a lease are expected to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ledger) enum Awaited {
    /// The socket, which is bound, has called connect() or listen(): whether that succeeds.
    CallResult,
    /// A listener has a new connection: the process that accepts it. Its `accept` record waits.
    AcceptingProcess,
    /// The timer of the TIME_WAIT was cancelled: whether it is armed again, expires, or is gone.
    TimerOutcome,
}

/// What a lease begins with.
pub(in crate::ledger) struct NewLease {
    pub cookie: Cookie,
    pub netns: Netns,
    pub family: Family,
    pub v6_only: bool,
    pub local_addr: Addr,
    pub local_port: Port,
    pub peer: Peer,
    pub kind: Kind,
    pub phase: Phase,
    pub owner: Option<Arc<Owner>>,
    pub acquired: Option<Instant>,
    pub has_timestamps: Option<bool>,
}

impl NewLease {
    /// From an observation of a socket. `None` if the socket holds no port.
    pub fn observed(
        socket: SocketId,
        local: LocalEnd,
        peer: Peer,
        kind: Kind,
        phase: Phase,
    ) -> Option<Self> {
        let SocketId { cookie, netns } = socket;
        let LocalEnd { family, v6_only, addr, port } = local;
        Some(Self {
            cookie,
            netns,
            family,
            v6_only,
            local_addr: addr,
            local_port: port?,
            peer,
            kind,
            phase,
            owner: None,
            acquired: None,
            has_timestamps: None,
        })
    }
}

impl NewLease {
    /// A lease that begins at this time for the socket of another lease, on the same port and
    /// without a peer.
    pub fn of_socket_of(lease: Lease, acquired: Instant) -> Self {
        let Lease { cookie, netns, family, v6_only, local_addr, local_port, kind, owner, .. } =
            lease;
        Self {
            cookie,
            netns,
            family,
            v6_only,
            local_addr,
            local_port,
            peer: Peer::NONE,
            kind,
            phase: Phase::Bound,
            owner,
            acquired: Some(acquired),
            has_timestamps: None,
        }
    }
}
