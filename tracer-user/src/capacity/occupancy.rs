//! Who can use one port of a namespace, given who holds it.

use crate::model::{
    BucketClass, Holder, Kind, Lease, Netns, Phase, Port, Settings, Substate, TIME_WAIT_S,
};

/// A holder of the port.
#[derive(Clone, Debug)]
pub struct Occupant {
    /// The lease.
    pub lease: Lease,
    /// Milliseconds until the timer of a TIME_WAIT is due. `None` for sockets.
    pub time_wait_left_ms: Option<u32>,
    /// Its entry in the bind bucket. `None` if the kernel does not allow reading it.
    pub bucket: Option<Holder>,
}

/// One port in one network namespace.
#[derive(Clone, Debug)]
pub struct Occupancy {
    /// The network namespace.
    pub netns: Netns,
    /// The namespace's settings. `None` if they cannot be read.
    pub settings: Option<Settings>,
    /// The holders of the port, those that block it most first.
    pub occupants: Vec<Occupant>,
}

/// One port in all network namespaces.
#[derive(Debug)]
pub struct PortView {
    /// This process's namespace, then the others in which the port is held.
    pub namespaces: Vec<Occupancy>,
    /// Number of namespaces that were searched.
    pub searched: usize,
    /// What could not be read, in sentences.
    pub problems: Vec<String>,
}

impl PortView {
    /// The leases of all holders.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        let occupants = self.namespaces.iter().flat_map(|namespace| &namespace.occupants);
        occupants.map(|occupant| &occupant.lease)
    }
}

/// The result of a bind() to the port on all addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAnswer {
    /// It succeeds.
    Free,
    /// It fails with EADDRINUSE.
    Taken {
        /// True if it would succeed with `SO_REUSEADDR` on the new socket: the holders have it as
        /// well, and none of them listens (`inet_csk_bind_conflict`, net/ipv4/inet_connection_sock.c).
        /// `None` if the holders' options cannot be read.
        reuse_addr_helps: Option<bool>,
        /// Milliseconds until the last holder's timer is due. `None` unless all holders are
        /// TIME_WAITs.
        free_in_ms: Option<u32>,
    },
}

/// Whether connect() can choose this port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectAnswer {
    /// Never: it lies outside `ip_local_port_range`.
    OutsideRange,
    /// Never: `ip_local_reserved_ports` contains it.
    Reserved,
    /// For every destination: the port is free.
    Free,
    /// For destinations other than those of its holders.
    PerDestination,
    /// For no destination: its bucket is of class B.
    Locked {
        /// True if none of the present holders bound the port: the one that did is gone, but the
        /// bucket's class has remained.
        binder_is_gone: bool,
    },
    /// The settings or the bucket cannot be read.
    Unknown,
}

impl Occupancy {
    /// Milliseconds since the timer of a TIME_WAIT was armed: when it entered its substate, or when
    /// the old connection's last segment arrived. `None` for sockets, for which the kernel keeps no
    /// such time.
    #[must_use]
    pub fn age_ms(&self, occupant: &Occupant) -> Option<u32> {
        let whole_ms = match occupant.lease.phase {
            Phase::TimeWait(Substate::TimeWait) => TIME_WAIT_S * 1000,
            Phase::TimeWait(Substate::FinWait2) => {
                self.settings.as_ref()?.fin_timeout_s.saturating_mul(1000)
            }
            _ => return None,
        };
        // More time can be left if the setting has changed.
        whole_ms.checked_sub(occupant.time_wait_left_ms?)
    }

    /// The result of a bind().
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

    /// Whether connect() can choose the port.
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
            let binder_is_gone =
                self.occupants.iter().all(|occupant| occupant.lease.kind == Kind::Connect);
            return ConnectAnswer::Locked { binder_is_gone };
        }
        ConnectAnswer::PerDestination
    }

    /// True if a listener's port is in the range and not reserved, so connect() may choose it while
    /// the server is down.
    #[must_use]
    pub fn is_listener_unprotected(&self, port: Port) -> bool {
        let listens = self.occupants.iter().any(|occupant| occupant.lease.phase == Phase::Listen);
        listens && self.settings.as_ref().is_some_and(|settings| settings.may_choose(port))
    }

    /// True if the kernel chose the port for all of its holders, in connect() or bind() to port 0.
    #[must_use]
    pub fn is_chosen_by_kernel(&self) -> bool {
        let is_kernel_choice =
            |occupant: &Occupant| matches!(occupant.lease.kind, Kind::Connect | Kind::BindAuto);
        !self.occupants.is_empty() && self.occupants.iter().all(is_kernel_choice)
    }
}
