//! How long a lease was in the phases of its life.

use crate::model::{Instant, Lease};

/// The durations of a lease that has ended, nanoseconds; `None` where the beginning was not seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Durations {
    /// From the port's acquisition to its release.
    pub(crate) held_ns: Option<u64>,
    /// From the handshake's end to the first FIN, or to the release if none was seen.
    pub(crate) established_ns: Option<u64>,
    /// In TIME_WAIT, FIN_WAIT2 minisockets included.
    pub(crate) time_wait_ns: Option<u64>,
}

impl Durations {
    /// The durations of a lease that was released at `end`.
    pub(crate) fn of(lease: &Lease, end: Instant) -> Self {
        let since = |begin: Option<Instant>, end: Instant| begin.map(|begin| end.since(begin));
        Self {
            held_ns: since(lease.acquired, end),
            established_ns: since(
                lease.established,
                lease.closing.or(lease.time_wait).unwrap_or(end),
            ),
            time_wait_ns: since(lease.time_wait, end),
        }
    }
}
