//! Who holds the ports of a range at one moment: looked at when a call fails, because later they
//! may have let go.

use std::collections::BTreeMap;

use crate::{
    model::{Kind, Netns, Phase},
    views::report::aggregate::{Aggregate, Destination, OwnerId},
};

/// The holders of a namespace's range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// When.
    pub at_ns: u64,
    /// Ports that can be chosen; `None` while the range is not known.
    pub capacity: Option<u32>,
    /// For the destination that was asked for.
    pub to_destination: Share,
    /// Those of them in TIME_WAIT, or in FIN_WAIT2 without a process.
    pub time_wait: u32,
    /// Of all ports that are held, by whatever call.
    pub held: Share,
    /// Ports that were bound, and so are lost to connect().
    pub bound: Share,
    /// Of those of the first binder: bound by number 0, belonging to its listeners, and shared with
    /// connections that did not bind.
    pub bound_auto: u32,
    #[expect(missing_docs, reason = "see bound_auto")]
    pub bound_listening: u32,
    #[expect(missing_docs, reason = "see bound_auto")]
    pub bound_shared: u32,
}

/// Ports, and who has most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// All.
    pub ports: u32,
    /// Whoever has most.
    pub owner: Option<OwnerId>,
    /// How many that one has.
    pub of_owner: u32,
}

#[derive(Default)]
struct Bound {
    ports: u32,
    auto: u32,
    listening: u32,
    shared: u32,
}

impl Crowd {
    /// Looks at every lease.
    #[must_use]
    pub fn of(aggregate: &Aggregate, netns: Netns, destination: Option<Destination>) -> Self {
        let Some(namespace) = aggregate.namespaces.get(&netns) else { return Self::default() };
        let mut to_destination: BTreeMap<Option<OwnerId>, u32> = BTreeMap::new();
        let mut held: BTreeMap<Option<OwnerId>, u32> = BTreeMap::new();
        let mut bound: BTreeMap<Option<OwnerId>, Bound> = BTreeMap::new();
        let mut time_wait = 0;
        let leases = aggregate.leases.values();
        for lease in leases.filter(|lease| lease.netns == netns && namespace.may_choose(lease.port))
        {
            // Accepted connections are on their listener's port.
            if lease.kind == Kind::Accept {
                continue;
            }
            *held.entry(lease.owner).or_default() += 1;
            if destination.is_some() && lease.destination() == destination {
                *to_destination.entry(lease.owner).or_default() += 1;
                // A FIN_WAIT2 may have become a TIME_WAIT without an event.
                time_wait += u32::from(matches!(lease.phase, Phase::TimeWait(_)));
            }
            if lease.kind != Kind::Connect {
                let on_port = namespace.ports.get(&lease.port).copied().unwrap_or_default();
                let is_listener = lease.phase == Phase::Listen;
                let bound = bound.entry(lease.owner).or_default();
                bound.ports += 1;
                bound.auto += u32::from(lease.kind == Kind::BindAuto && !is_listener);
                bound.listening += u32::from(is_listener);
                bound.shared += u32::from(on_port.holders > on_port.binders);
            }
        }
        let ports = bound.iter().map(|(owner, bound)| (*owner, bound.ports)).collect();
        let share = Share::of(&ports);
        let first = bound.get(&share.owner).filter(|_| share.ports > 0);
        Self {
            at_ns: aggregate.last_ns,
            capacity: namespace.capacity(),
            to_destination: Share::of(&to_destination),
            time_wait,
            held: Share::of(&held),
            bound: share,
            bound_auto: first.map_or(0, |bound| bound.auto),
            bound_listening: first.map_or(0, |bound| bound.listening),
            bound_shared: first.map_or(0, |bound| bound.shared),
        }
    }
}

impl Share {
    fn of(ports: &BTreeMap<Option<OwnerId>, u32>) -> Self {
        let most = ports.iter().max_by_key(|(_, ports)| **ports);
        Self {
            ports: ports.values().sum(),
            owner: most.and_then(|(owner, _)| *owner),
            of_owner: most.map_or(0, |(_, ports)| *ports),
        }
    }
}
