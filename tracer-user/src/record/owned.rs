//! Records that own what they say.

use super::{Body, Cgroup, Loss, Record, Start, Summary, Verify};
use crate::model::{Change, Failure, Instant, Lease, LeaseEvent, Netns, Pressure, Scan, Settings};

/// A record that borrows nothing.
#[derive(Clone, Debug)]
pub(crate) struct OwnedRecord {
    /// See [`Record::at`].
    pub(crate) at: Instant,
    /// See [`Record::body`].
    pub(crate) body: OwnedBody,
}

/// A [`Body`] that borrows nothing.
#[derive(Clone, Debug)]
pub(crate) enum OwnedBody {
    /// See [`Body::Start`].
    Start(Start),
    /// See [`Body::Namespace`].
    Namespace { netns: Netns, settings: Box<Settings>, is_new: bool },
    /// See [`Body::Lease`].
    Lease { lease: Box<Lease>, change: Change, cgroup: Option<Cgroup> },
    /// See [`Body::Fail`].
    Fail(Box<OwnedFailure>),
    /// See [`Body::Pressure`].
    Pressure(Pressure),
    /// See [`Body::Scan`].
    Scan(Scan),
    /// See [`Body::Loss`].
    Loss(Loss),
    /// See [`Body::Verify`].
    Verify(Verify),
    /// See [`Body::Summary`].
    Summary(Summary),
}

/// A failure with the lease in its way.
#[derive(Clone, Debug)]
pub(crate) struct OwnedFailure {
    /// The call; its `holder` is `None`.
    pub(crate) failure: Failure<'static>,
    /// The caller's cgroup.
    pub(crate) cgroup: Option<Cgroup>,
    /// The lease in the way.
    pub(crate) holder: Option<Lease>,
    /// The cgroup of that lease's owner.
    pub(crate) holder_cgroup: Option<Cgroup>,
}

impl OwnedRecord {
    /// Calls `f` with the record in the form that views take.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&Record<'_>) -> R) -> R {
        let at = self.at;
        let body = match &self.body {
            OwnedBody::Start(start) => Body::Start(start),
            OwnedBody::Namespace { netns, settings, is_new } => {
                Body::Namespace { netns: *netns, settings, is_new: *is_new }
            }
            OwnedBody::Lease { lease, change, cgroup } => Body::Lease {
                event: LeaseEvent { at, lease, change: *change },
                cgroup: cgroup.as_ref(),
            },
            OwnedBody::Fail(owned) => {
                let OwnedFailure { failure, cgroup, holder, holder_cgroup } = &**owned;
                let failure = Failure { holder: holder.as_ref(), ..*failure };
                let (cgroup, holder_cgroup) = (cgroup.as_ref(), holder_cgroup.as_ref());
                let body = Body::Fail { failure: &failure, cgroup, holder_cgroup };
                return f(&Record { at, body });
            }
            OwnedBody::Pressure(pressure) => Body::Pressure(pressure),
            OwnedBody::Scan(scan) => Body::Scan(scan),
            OwnedBody::Loss(loss) => Body::Loss(loss),
            OwnedBody::Verify(verify) => Body::Verify(verify),
            OwnedBody::Summary(summary) => Body::Summary(summary),
        };
        f(&Record { at, body })
    }
}
