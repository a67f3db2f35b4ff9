//! Who holds the ports of a range at one moment. Surveyed when a call fails, because the holders may
//! be gone later.

use std::collections::BTreeMap;

use super::owners::{OwnerId, Owners};
use crate::{
    ledger::{Ledger, destination_of},
    model::{Destination, Instant, Kind, Lease, Netns, Phase},
};

/// The holders of a namespace's range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// When the survey was made. `None` if there was none.
    pub(super) at: Option<Instant>,
    /// Ports of the range that are not reserved. `None` if the settings are not known.
    pub(super) capacity: Option<u32>,
    /// The ports in use for the requested destination, and their main owner.
    pub(super) to_destination: Share,
    /// How many of these are in TIME_WAIT, or in FIN_WAIT2 without a process.
    pub(super) time_wait: u32,
    /// All ports of the range that are held, and their main owner.
    pub(super) held: Share,
    /// The ports that are bound, which connect() does not choose, and their main owner.
    pub(super) bound: Share,
    /// How many of the main owner's ports it bound by asking for port 0.
    pub(super) bound_auto: u32,
    /// How many of the main owner's bound ports belong to its listeners.
    pub(super) bound_listening: u32,
    /// How many of the main owner's bound ports are shared by connections of others.
    pub(super) bound_shared: u32,
}

/// A number of ports, and the owner of most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// The number of ports.
    pub(super) ports: u32,
    /// The owner of most of them. `None` if it is not known.
    pub(super) owner: Option<OwnerId>,
    /// How many belong to that owner.
    pub(super) of_owner: u32,
}

#[derive(Default)]
struct BoundPorts {
    ports: u32,
    auto: u32,
    listening: u32,
    shared: u32,
}

impl Survey {
    /// Surveys the ledger. Visits every lease.
    pub(super) fn of(
        at: Instant,
        ledger: &Ledger,
        owners: &mut Owners,
        netns: Netns,
        destination: Option<Destination>,
    ) -> Self {
        let settings = ledger.settings(netns);
        let is_choosable =
            |lease: &Lease| settings.is_none_or(|settings| settings.may_choose(lease.local_port));
        let mut to_destination: BTreeMap<Option<OwnerId>, u32> = BTreeMap::new();
        let mut held: BTreeMap<Option<OwnerId>, u32> = BTreeMap::new();
        let mut bound: BTreeMap<Option<OwnerId>, BoundPorts> = BTreeMap::new();
        let mut time_wait = 0;
        let here = ledger.leases().filter(|lease| lease.netns == netns && is_choosable(lease));
        // Accepted connections share their listener's port.
        for lease in here.filter(|lease| lease.kind != Kind::Accept) {
            let owner = lease.owner.as_ref().map(|owner| owners.id_of(at, owner, None));
            *held.entry(owner).or_default() += 1;
            if destination.is_some() && destination_of(lease) == destination {
                *to_destination.entry(owner).or_default() += 1;
                // A FIN_WAIT2 can become a TIME_WAIT without an event, so both count.
                time_wait += u32::from(matches!(lease.phase, Phase::TimeWait(_)));
            }
            if lease.kind != Kind::Connect {
                let is_listener = lease.phase == Phase::Listen;
                let is_shared = || {
                    ledger
                        .leases_on(netns, lease.local_port)
                        .any(|other| other.kind == Kind::Connect)
                };
                let bound = bound.entry(owner).or_default();
                bound.ports += 1;
                bound.auto += u32::from(lease.kind == Kind::BindAuto && !is_listener);
                bound.listening += u32::from(is_listener);
                bound.shared += u32::from(is_shared());
            }
        }
        let ports = bound.iter().map(|(owner, bound)| (*owner, bound.ports)).collect();
        let share = Share::of(&ports);
        let first = bound.get(&share.owner).filter(|_| share.ports > 0);
        Self {
            at: Some(at),
            capacity: settings.map(crate::model::Settings::capacity),
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
