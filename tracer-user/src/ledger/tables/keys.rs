//! What leases are found by.

use crate::model::{
    Addr, Cookie, Held, HeldBy, Lease, Netns, Port,
    observation::{Endpoints, LocalEnd, TimeWaitId},
};

/// A connection: the key under which the kernel keeps an established socket or a TIME_WAIT
/// (`inet_ehashfn`, net/ipv4/inet_hashtables.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::ledger) struct ConnectionKey {
    pub netns: Netns,
    pub local: (Addr, Port),
    pub peer: (Addr, Port),
}

impl ConnectionKey {
    /// `None` if the socket is not connected, or holds no port.
    pub fn of_endpoints(netns: Netns, endpoints: Endpoints) -> Option<Self> {
        let Endpoints { local: LocalEnd { addr, port, .. }, peer } = endpoints;
        Some(Self { netns, local: (addr, port?), peer: peer.get()? })
    }

    /// `None` if the lease's socket is not connected.
    pub fn of_lease(lease: &Lease) -> Option<Self> {
        let local = (lease.local_addr, lease.local_port);
        Some(Self { netns: lease.netns, local, peer: lease.peer.get()? })
    }

    fn of_held(held: &Held) -> Option<Self> {
        let local = (held.local_addr, held.local_port);
        Some(Self { netns: held.netns, local, peer: held.peer? })
    }
}

/// One of the two ways to hold a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::ledger) enum Hold {
    /// By the socket with this cookie.
    Socket(Cookie),
    /// By the TIME_WAIT that the socket with this cookie left behind.
    TimeWait(Cookie, ConnectionKey),
}

impl Hold {
    /// The hold that a snapshot found. `None` for a TIME_WAIT without a peer, which does not exist.
    pub fn of_held(held: &Held) -> Option<Self> {
        Some(match held.by {
            HeldBy::Socket(_) => Self::Socket(held.cookie),
            HeldBy::TimeWait(_) => Self::TimeWait(held.cookie, ConnectionKey::of_held(held)?),
        })
    }

    /// The hold of an observed TIME_WAIT. `None` for one without a cookie: it began before the
    /// programs were attached, when its socket had been assigned none. It is assigned one when a
    /// snapshot lists it, and later observations have that.
    pub fn of_time_wait(time_wait: &TimeWaitId) -> Option<(Cookie, ConnectionKey)> {
        let TimeWaitId { cookie, netns, endpoints } = *time_wait;
        Some((cookie?, ConnectionKey::of_endpoints(netns, endpoints)?))
    }
}

/// The addresses that a socket takes on its port.
#[derive(Clone, Copy, Debug)]
pub(in crate::ledger) struct Claim {
    pub addr: Addr,
    /// Of an IPv6 socket: IPv4 is left to others (`IPV6_V6ONLY`).
    pub v6_only: bool,
}

impl Claim {
    /// What a lease's socket takes.
    pub fn of_lease(lease: &Lease) -> Self {
        Self { addr: lease.local_addr, v6_only: lease.v6_only }
    }

    /// True if two sockets of one port cannot both have what they claim, options aside
    /// (`inet_rcv_saddr_equal`, net/ipv4/inet_connection_sock.c).
    pub fn overlaps(self, other: Self) -> bool {
        let takes_all_of_the_other = |claim: Self| claim.addr.is_unspecified() && !claim.v6_only;
        match (self.addr.is_ipv4(), other.addr.is_ipv4()) {
            (true, false) => takes_all_of_the_other(other),
            (false, true) => takes_all_of_the_other(self),
            _ => {
                self.addr == other.addr || self.addr.is_unspecified() || other.addr.is_unspecified()
            }
        }
    }
}
