//! Who holds the ports of a range at one moment: looked at when a call fails, because later the
//! holders may be gone.

use std::collections::BTreeMap;

use super::owners::{OwnerId, Owners};
use crate::{
    ledger::{Ledger, destination_of},
    model::{Destination, Instant, Kind, Lease, Netns, Phase},
};

/// The holders of a namespace's range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// When it was made; `None` if it was not.
    pub(super) at: Option<Instant>,
    /// Ports that can be chosen; `None` if the settings are not known.
    pub(super) capacity: Option<u32>,
    /// Of the ports in use for the destination that was asked for.
    pub(super) to_destination: Share,
    /// Those of them in TIME_WAIT, or in FIN_WAIT2 without a process.
    pub(super) time_wait: u32,
    /// Of all ports that are held, whatever the call was.
    pub(super) held: Share,
    /// Of the ports that somebody bound, which are lost to connect().
    pub(super) bound: Share,
    /// Ports of the first binder that it bound by asking for port 0.
    pub(super) bound_auto: u32,
    /// Ports of the first binder that belong to its listeners.
    pub(super) bound_listening: u32,
    /// Ports of the first binder that connections of others share.
    pub(super) bound_shared: u32,
}

/// A number of ports, and who has most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// All.
    pub(super) ports: u32,
    /// The owner that has most; `None` if that one is not known.
    pub(super) owner: Option<OwnerId>,
    /// How many that one has.
    pub(super) of_owner: u32,
}

#[derive(Default)]
struct Bound {
    ports: u32,
    auto: u32,
    listening: u32,
    shared: u32,
}

impl Survey {
    /// Looks at every lease.
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
        let mut bound: BTreeMap<Option<OwnerId>, Bound> = BTreeMap::new();
        let mut time_wait = 0;
        let here = ledger.leases().filter(|lease| lease.netns == netns && is_choosable(lease));
        // Accepted connections are on their listener's port.
        for lease in here.filter(|lease| lease.kind != Kind::Accept) {
            let owner = lease.owner.as_ref().map(|owner| owners.place(at, owner, None));
            *held.entry(owner).or_default() += 1;
            if destination.is_some() && destination_of(lease) == destination {
                *to_destination.entry(owner).or_default() += 1;
                // A FIN_WAIT2 may have become a TIME_WAIT without an event.
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
