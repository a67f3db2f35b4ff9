//! What one port of a namespace is good for, given who holds it.

use crate::model::{
    BucketClass, Holder, Kind, Lease, Netns, Phase, Port, Settings, Substate, TIME_WAIT_S,
};

/// A holder of the port.
#[derive(Clone, Debug)]
pub struct Occupant {
    /// Who, and since when as far as can be seen.
    pub lease: Lease,
    /// Of a TIME_WAIT: milliseconds until its timer is due.
    pub time_wait_left_ms: Option<u32>,
    /// What its bind bucket says, where the kernel lets us read it.
    pub bucket: Option<Holder>,
}

/// A port of a namespace.
#[derive(Clone, Debug)]
pub struct Occupancy {
    /// Where.
    pub netns: Netns,
    /// The namespace's settings, if they can be read.
    pub settings: Option<Settings>,
    /// Who holds the port: first who stands in the way most.
    pub occupants: Vec<Occupant>,
}

/// Where a port is held.
#[derive(Debug)]
pub struct PortView {
    /// The namespace of this process first, then those in which the port is held.
    pub namespaces: Vec<Occupancy>,
    /// Namespaces that were looked into.
    pub searched: usize,
    /// What could not be looked at, in sentences.
    pub problems: Vec<String>,
}

/// What a bind() of the port on all addresses would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAnswer {
    /// It succeeds.
    Free,
    /// It fails with EADDRINUSE.
    Taken {
        /// `SO_REUSEADDR` on the new socket would make it succeed: the holders have it, too, and
        /// none of them listens (`inet_csk_bind_conflict`, net/ipv4/inet_connection_sock.c).
        /// `None` if the holders' options cannot be read.
        reuse_addr_helps: Option<bool>,
        /// Milliseconds until the last holder's timer is due, if only TIME_WAITs hold the port.
        free_in_ms: Option<u32>,
    },
}

/// Whether a connect() that chooses its port can choose this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectAnswer {
    /// Never: it lies outside `ip_local_port_range`.
    OutsideRange,
    /// Never: `ip_local_reserved_ports` contains it.
    Reserved,
    /// Nobody holds it.
    Free,
    /// For other destinations than those of its holders.
    PerDestination,
    /// For no destination: somebody bound it (bucket class B).
    Locked {
        /// None of the present holders did: who did is gone, and the lock outlived it.
        by_nobody: bool,
    },
    /// The settings or the bucket cannot be read.
    Unknown,
}

impl Occupancy {
    /// Milliseconds since a TIME_WAIT's timer was armed, which is when it came to be what it is or
    /// when the old connection's last segment arrived. Of sockets the kernel keeps no such time.
    #[must_use]
    pub fn age_ms(&self, occupant: &Occupant) -> Option<u32> {
        let whole_ms = match occupant.lease.phase {
            Phase::TimeWait(Substate::TimeWait) => TIME_WAIT_S * 1000,
            Phase::TimeWait(Substate::FinWait2) => {
                self.settings.as_ref()?.fin_timeout_s.saturating_mul(1000)
            }
            _ => return None,
        };
        // More is left where the setting has changed.
        whole_ms.checked_sub(occupant.time_wait_left_ms?)
    }

    /// The answer to bind().
    #[must_use]
    pub fn bind(&self) -> BindAnswer {
        if self.occupants.is_empty() {
            return BindAnswer::Free;
        }
        let helps = |occupant: &Occupant| {
            let bucket = occupant.bucket?;
            Some(bucket.reuse_addr && occupant.lease.phase != Phase::Listen)
        };
        let free_in_ms = self
            .occupants
            .iter()
            .map(|occupant| occupant.time_wait_left_ms)
            .try_fold(0, |longest: u32, left| Some(longest.max(left?)));
        BindAnswer::Taken {
            reuse_addr_helps: self
                .occupants
                .iter()
                .map(helps)
                .try_fold(true, |all, one| Some(all && one?)),
            free_in_ms,
        }
    }

    /// The answer to connect().
    #[must_use]
    pub fn connect(&self, port: Port) -> ConnectAnswer {
        let Some(settings) = &self.settings else { return ConnectAnswer::Unknown };
        if !settings.range.contains(port) {
            return ConnectAnswer::OutsideRange;
        }
        if settings.reserved.contains(port) {
            return ConnectAnswer::Reserved;
        }
        if self.occupants.is_empty() {
            return ConnectAnswer::Free;
        }
        let classes = || self.occupants.iter().map(|occupant| occupant.bucket);
        if classes().any(|bucket| bucket.is_none()) {
            return ConnectAnswer::Unknown;
        }
        if classes().flatten().any(|bucket| bucket.class == BucketClass::Bind) {
            let by_nobody =
                self.occupants.iter().all(|occupant| occupant.lease.kind == Kind::Connect);
            return ConnectAnswer::Locked { by_nobody };
        }
        ConnectAnswer::PerDestination
    }

    /// True if a server's port is at the mercy of connect(): the kernel may give it to any client
    /// while the server is down.
    #[must_use]
    pub fn is_listener_unprotected(&self, port: Port) -> bool {
        let listens = self.occupants.iter().any(|occupant| occupant.lease.phase == Phase::Listen);
        listens && self.settings.as_ref().is_some_and(|settings| settings.may_choose(port))
    }

    /// True if a port that connect() or bind() to port 0 chose keeps servers from it.
    #[must_use]
    pub fn is_taken_by_chance(&self) -> bool {
        let is_chance =
            |occupant: &Occupant| matches!(occupant.lease.kind, Kind::Connect | Kind::BindAuto);
        !self.occupants.is_empty() && self.occupants.iter().all(is_chance)
    }
}
