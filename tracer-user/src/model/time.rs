//! Instants and durations.

use std::num::NonZeroU64;

/// A time of `CLOCK_MONOTONIC`, in nanoseconds. It is never 0, so that `Option<Instant>` takes no
/// more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instant(NonZeroU64);

impl Instant {
    /// The earliest instant: one nanosecond after the clock started.
    pub const BOOT: Self = Self(NonZeroU64::MIN);

    /// The instant this number of nanoseconds after the clock started. 0 becomes [`BOOT`](Self::BOOT).
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        match NonZeroU64::new(ns) {
            Some(ns) => Self(ns),
            None => Self::BOOT,
        }
    }

    /// Nanoseconds since the clock started.
    #[must_use]
    pub const fn ns(self) -> u64 {
        self.0.get()
    }

    /// Nanoseconds from `earlier` to this instant; 0 if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.ns().saturating_sub(earlier.ns())
    }
}

impl Default for Instant {
    fn default() -> Self {
        Self::BOOT
    }
}

/// Converts nanoseconds to seconds.
#[expect(clippy::cast_precision_loss, reason = "nanosecond precision is lost after 104 days")]
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Converts nanoseconds to microseconds.
#[expect(clippy::cast_precision_loss, reason = "the precision suffices for a duration")]
pub(crate) fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}
