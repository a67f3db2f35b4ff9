//! What one destination leaves of the ports of a namespace, given who holds them.

use super::{
    cause,
    headroom::{Connect, Headroom, NamespaceState},
    occupancy::Occupant,
    reuse,
};
use crate::model::{
    Addr, Cause, Holder, HolderBy, Lease, LocalRange, Netns, Operation, Port, RangeUse, Settings,
    TimeWaitReuse,
};

/// One destination in all network namespaces.
#[derive(Debug)]
pub struct DestinationView {
    /// The destination's address and port.
    pub peer: (Addr, Port),
    /// The namespaces that have connections to it, the one with the least headroom first. This
    /// process's namespace if none has.
    pub namespaces: Vec<DestinationInNamespace>,
    /// Number of namespaces that were searched.
    pub searched: usize,
    /// This process's namespace.
    pub own: Netns,
    /// What could not be read, in sentences.
    pub problems: Vec<String>,
}

/// One destination as seen from one network namespace.
#[derive(Debug)]
pub struct DestinationInNamespace {
    /// The network namespace.
    pub netns: Netns,
    /// The namespace's settings. `None` if they cannot be read.
    pub settings: Option<Settings>,
    /// The source address that the routing table chooses for it. `None` if there is no route.
    pub route_source: Option<Addr>,
    /// Every source address that is or would be used, the one with the least headroom first. Each
    /// has the whole range for itself.
    pub sources: Vec<SourceView>,
}

/// A source address and a destination: the unit in which connect() runs out of ports.
#[derive(Debug)]
pub struct SourceView {
    /// The source address.
    pub addr: Addr,
    /// Index of the interface that the sockets are bound to (`SO_BINDTODEVICE`), or 0.
    pub device: u32,
    /// The connections, including those whose ports lie outside the range.
    pub connections: Vec<Occupant>,
    /// The ports that are left. `None` if the settings or the bind buckets cannot be read.
    pub ports: Option<SourcePorts>,
}

/// The ports that connect() finds for one destination, from one source address.
#[derive(Debug)]
pub struct SourcePorts {
    /// The use of the range.
    pub range: RangeUse,
    /// How many more connect()s will get a port.
    pub headroom: Headroom,
    /// Why connect() finds no port. `None` if it finds one.
    pub cause: Option<Cause>,
    /// Milliseconds until the first of the used ports can be chosen, 0 if there is headroom. `None`
    /// if sockets hold all of them.
    pub next_free_in_ms: Option<u32>,
    /// Milliseconds until all used ports can be chosen, if nothing takes them again. `None` if a
    /// socket holds one of them, or if none is used.
    pub all_free_in_ms: Option<u32>,
    /// TIME_WAITs whose peer sent no timestamps: no setting frees their ports early.
    pub without_timestamps: u32,
    /// The owner of most of the bind-locked ports. `None` if there are none.
    pub locker: Option<Locker>,
    /// Settings that give more headroom, those that give most first. Empty unless 70 % of the ports
    /// are unavailable.
    pub remedies: Vec<Remedy>,
}

/// Who keeps ports from connect() by having bound them.
#[derive(Debug)]
pub struct Locker {
    /// One of the leases.
    pub lease: Lease,
    /// Number of bind-locked ports that the same process holds.
    pub ports: u32,
}

/// A setting that gives more headroom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The setting.
    pub setting: RemedySetting,
    /// How many connect()s get a port with it.
    pub headroom: u32,
}

/// A setting to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemedySetting {
    /// `tcp_tw_reuse=1`, as soon as the TIME_WAITs of this moment are old enough.
    ReuseTimeWaits {
        /// The age at which they are, in milliseconds.
        after_ms: u32,
    },
    /// `ip_local_port_range` from 1024 to 65535.
    WidestRange,
}

impl DestinationView {
    /// The leases that the answer shows.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        let sources = self.namespaces.iter().flat_map(|namespace| &namespace.sources);
        sources.flat_map(|source| {
            let lockers = source.ports.iter().filter_map(|ports| ports.locker.as_ref());
            let connections = source.connections.iter().map(|connection| &connection.lease);
            connections.chain(lockers.map(|locker| &locker.lease))
        })
    }
}

impl DestinationInNamespace {
    /// True if there are connections to the destination.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.sources.iter().any(|source| !source.connections.is_empty())
    }
}

impl SourceView {
    /// At most this many connect()s succeed, as far as is known.
    #[must_use]
    pub fn headroom(&self) -> u32 {
        self.ports.as_ref().map_or(u32::MAX, |ports| ports.headroom.max)
    }
}

impl SourcePorts {
    /// Evaluates the state of a namespace for one connect(). `left_ms` is the time that is left on
    /// the timer of a TIME_WAIT, and `holder_of` the lease that keeps a bind-locked port.
    #[must_use]
    pub fn of<'a>(
        state: &NamespaceState<'_>,
        query: &Connect,
        left_ms: impl Fn(&Holder) -> Option<u32>,
        holder_of: impl Fn(Port) -> Option<&'a Lease>,
    ) -> Self {
        let view = state.connect(query);
        let (range, headroom) = (view.range, view.headroom);
        let free_in_ms = state.used_ports_free_in_ms(query, left_ms);
        let is_available = headroom.max > 0;
        Self {
            range,
            headroom,
            cause: (!is_available).then(|| cause::shortage_of(Operation::Connect, &range)),
            next_free_in_ms: if is_available {
                Some(0)
            } else {
                free_in_ms.iter().copied().flatten().min()
            },
            all_free_in_ms: free_in_ms
                .iter()
                .copied()
                .reduce(|one, other| one.zip(other).map(|(one, other)| one.max(other)))
                .flatten(),
            without_timestamps: without_timestamps(state, query),
            locker: locker(state.bind_locked_ports(query), holder_of),
            remedies: remedies(state, query, &range, headroom),
        }
    }
}

fn without_timestamps(state: &NamespaceState<'_>, query: &Connect) -> u32 {
    let of_the_connect = state.holders.iter().filter(|holder| {
        holder.local_addr == query.source
            && holder.device == query.device
            && state.settings.may_choose(holder.local_port)
    });
    let lacks_timestamps = |holder: &&Holder| {
        matches!(holder.by, HolderBy::TimeWait { peer, ts_recent_stamp_s: 0, .. }
            if peer == query.destination)
    };
    u32::try_from(of_the_connect.filter(lacks_timestamps).count()).unwrap_or(u32::MAX)
}

/// The process that holds most of these ports.
fn locker<'a>(ports: Vec<Port>, holder_of: impl Fn(Port) -> Option<&'a Lease>) -> Option<Locker> {
    let mut lockers: Vec<(&Lease, u32)> = Vec::new();
    for lease in ports.into_iter().filter_map(holder_of) {
        let pid = |lease: &Lease| lease.owner.as_ref().map(|owner| owner.pid);
        match lockers.iter_mut().find(|(known, _)| pid(known) == pid(lease)) {
            Some((_, ports)) => *ports += 1,
            None => lockers.push((lease, 1)),
        }
    }
    let (lease, ports) = lockers.into_iter().max_by_key(|(_, ports)| *ports)?;
    Some(Locker { lease: lease.clone(), ports })
}

fn remedies(
    state: &NamespaceState<'_>,
    query: &Connect,
    range: &RangeUse,
    headroom: Headroom,
) -> Vec<Remedy> {
    const WIDEST: (Port, Port) = (Port(1024), Port(65_535));
    if u64::from(range.unavailable()) * 10 < u64::from(range.capacity) * 7 {
        return Vec::new();
    }
    let reuse = Settings { time_wait_reuse: TimeWaitReuse::Always, ..state.settings.clone() };
    let after_ms = reuse::delay_ms(&reuse);
    let widest = LocalRange::new(WIDEST.0, WIDEST.1)
        .map(|range| Settings { range, ..state.settings.clone() });
    let changed = [
        Some((RemedySetting::ReuseTimeWaits { after_ms }, reuse, state.now.later(after_ms))),
        widest.map(|settings| (RemedySetting::WidestRange, settings, state.now)),
    ];
    let mut remedies: Vec<_> = changed
        .into_iter()
        .flatten()
        .map(|(setting, settings, now)| {
            let state = NamespaceState { settings: &settings, now, ..*state };
            Remedy { setting, headroom: state.connect(query).headroom.min }
        })
        .filter(|remedy| remedy.headroom > headroom.max)
        .collect();
    remedies.sort_by_key(|remedy| std::cmp::Reverse(remedy.headroom));
    remedies
}
