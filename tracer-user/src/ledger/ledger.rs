//! The ledger's state.

use std::{collections::VecDeque, sync::Arc};

use super::{
    calls::Calls,
    culprits::Culprits,
    snapshot::SnapshotWindow,
    tables::{BucketRule, Owners, PortTable},
    timers::{CancelledTimers, DueLease},
};
use crate::model::{BucketClass, Lease, Netns, Port, Settings, Visibility};

/// The ledger. See the [module](super).
#[derive(Debug)]
pub struct Ledger {
    pub(super) visibility: Visibility,
    pub(super) table: PortTable,
    pub(super) owners: Owners,
    pub(super) calls: Calls,
    pub(super) timers: CancelledTimers,
    /// New connections of listeners, whose `accept` record waits for the accepting process, oldest
    /// first.
    pub(super) unaccepted: VecDeque<DueLease>,
    /// Sockets that were shut down and kept their port, oldest first, until later observations show
    /// whether they are being closed.
    pub(super) shut_down: VecDeque<DueLease>,
    pub(super) window: SnapshotWindow,
    pub(super) culprits: Culprits,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(visibility: Visibility) -> Self {
        let buckets =
            if visibility.marks_connect { BucketRule::Recovers } else { BucketRule::StaysBound };
        Self {
            visibility,
            // Levels that a snapshot shows as crossed are crossed now, not when the kernel booted.
            table: PortTable::new(buckets, visibility.since),
            owners: Owners::default(),
            calls: Calls::default(),
            timers: CancelledTimers::default(),
            unaccepted: VecDeque::new(),
            shut_down: VecDeque::new(),
            window: SnapshotWindow::default(),
            culprits: Culprits::default(),
        }
    }

    /// True if a bind bucket recovers once only owners that connect() put there are left (6.18).
    #[cfg(feature = "programs")]
    pub(crate) fn do_buckets_recover(&self) -> bool {
        self.visibility.marks_connect
    }

    /// Number of live leases.
    #[must_use]
    pub fn lease_count(&self) -> usize {
        self.table.leases().len()
    }

    /// All live leases, in no particular order.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.table.leases().iter().map(|(_, entry)| &entry.lease)
    }

    /// The leases on one port.
    pub fn leases_on(&self, netns: Netns, port: Port) -> impl Iterator<Item = &Lease> {
        self.table.leases().on_port(netns, port).map(|(_, entry)| &entry.lease)
    }

    /// The class of a port's bucket; `None` if no lease is on the port.
    #[must_use]
    pub fn bucket_class(&self, netns: Netns, port: Port) -> Option<BucketClass> {
        self.table.bucket_class(netns, port)
    }

    /// Counts the ports of a namespace by these settings from now on.
    pub fn set_settings(&mut self, netns: Netns, settings: Arc<Settings>) {
        self.table.set_settings(netns, settings);
    }

    /// Forgets the settings of a namespace that has ended.
    pub fn forget_settings(&mut self, netns: Netns) {
        self.table.forget_settings(netns);
    }

    /// True if [`settle`](Self::settle) will have something to decide.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        !(self.timers.is_empty() && self.unaccepted.is_empty() && self.shut_down.is_empty())
    }
}
