//! One typed record for the stream, for JSON both ways, for filters and for every view.

use super::{Cgroup, Loss, RecordType, Start, Summary, Verify};
use crate::model::{Failure, Instant, LeaseEvent, Netns, Pressure, Scan, Settings};

/// What the user is told: one line of the stream.
///
/// Live records borrow from the ledger, records that are read back borrow from an
/// owned one. Views cannot tell the difference.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When it happened. A record that had to wait for a decision is older than its predecessor.
    pub at: Instant,
    /// What happened.
    pub body: Body<'a>,
}

/// What a record says. A new kind must be visited by every view.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// The first record: what happens after it is seen.
    Start(&'a Start),
    /// The settings of a namespace, before its first record and when they change.
    Namespace {
        /// The namespace.
        netns: Netns,
        /// Its settings from now on.
        settings: &'a Settings,
    },
    /// A lease was found, or changed.
    Lease {
        /// The lease after the change, and the change.
        event: LeaseEvent<'a>,
        /// The owner's cgroup, if it has a name.
        cgroup: Option<&'a Cgroup>,
    },
    /// A call got no port.
    Fail {
        /// The call.
        failure: &'a Failure<'a>,
        /// The caller's cgroup.
        cgroup: Option<&'a Cgroup>,
        /// The cgroup of the lease in the way.
        holder_cgroup: Option<&'a Cgroup>,
    },
    /// A destination or a range crossed a level of use.
    Pressure(&'a Pressure),
    /// A source tries closed ports.
    Scan(&'a Scan),
    /// Facts or records were lost.
    Loss(&'a Loss),
    /// The ledger was compared with the kernel.
    Verify(&'a Verify),
    /// The last record.
    Summary(&'a Summary),
}

impl Record<'_> {
    /// The record's type.
    #[must_use]
    pub fn record_type(&self) -> RecordType {
        match self.body {
            Body::Start(_) => RecordType::Start,
            Body::Namespace { .. } => RecordType::Namespace,
            Body::Lease { event, .. } => RecordType::of(&event.change),
            Body::Fail { .. } => RecordType::Fail,
            Body::Pressure(_) => RecordType::Pressure,
            Body::Scan(_) => RecordType::Scan,
            Body::Loss(_) => RecordType::Loss,
            Body::Verify(_) => RecordType::Verify,
            Body::Summary(_) => RecordType::Summary,
        }
    }

    /// The namespace whose settings a reader must know by then; `None` for records that say
    /// everything themselves.
    #[must_use]
    pub fn netns(&self) -> Option<Netns> {
        match self.body {
            Body::Lease { event, .. } => Some(event.lease.netns),
            Body::Fail { failure, .. } => Some(failure.netns),
            _ => None,
        }
    }
}
