//! The record: one typed enum for the stream, for JSON both ways, for filters and for every view.

use super::{Cgroup, Loss, RecordType, Start, Summary, Verify};
use crate::model::{Failure, Instant, LeaseEvent, Netns, Pressure, Scan, Settings};

/// One report to the user: a line of the stream.
///
/// It borrows what it is about, from the ledger while tracing and from the line that was read when
/// a recording is replayed. A view cannot distinguish the two.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The instant of the event, which may be earlier than that of the record before: some events
    /// are reported only when a later one has shown what they mean.
    pub at: Instant,
    /// What the record reports.
    pub body: Body<'a>,
}

/// The content of a record, by type. Views match it exhaustively, so that each must decide what to
/// do with a new type.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// The first record of a run: every event after it is seen.
    Start(&'a Start),
    /// The settings of a namespace, before its first record and after each change.
    Namespace {
        /// The namespace.
        netns: Netns,
        /// Its settings from now on.
        settings: &'a Settings,
        /// True if its ports are counted anew from here: in the first record about it, and when it
        /// is another namespace with the same inode.
        is_new: bool,
    },
    /// A lease was found or changed.
    Lease {
        /// The change, and the lease after it.
        event: LeaseEvent<'a>,
        /// The cgroup of the owner; `None` if there is no owner or its cgroup has no name.
        cgroup: Option<&'a Cgroup>,
    },
    /// A call got no port.
    Fail {
        /// The call.
        failure: &'a Failure<'a>,
        /// The cgroup of the caller; `None` as in [`Body::Lease`].
        cgroup: Option<&'a Cgroup>,
        /// The cgroup of the owner of the lease in the way; `None` also if there is no such lease.
        holder_cgroup: Option<&'a Cgroup>,
    },
    /// A destination or a range crossed a level of use.
    Pressure(&'a Pressure),
    /// A source tries closed ports.
    Scan(&'a Scan),
    /// Facts were lost.
    Loss(&'a Loss),
    /// The ledger was compared with the kernel.
    Verify(&'a Verify),
    /// The last record of a run.
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

    /// The namespace whose settings must be shown before this record; `None` for a record that
    /// makes sense without them.
    #[must_use]
    pub fn netns(&self) -> Option<Netns> {
        match self.body {
            Body::Lease { event, .. } => Some(event.lease.netns),
            Body::Fail { failure, .. } => Some(failure.netns),
            _ => None,
        }
    }
}
