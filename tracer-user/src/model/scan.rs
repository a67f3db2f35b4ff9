//! Port scans.

use super::{Addr, Instant, Netns, Port};

/// A source that tries the ports of a namespace. All numbers are since its first try, and are at
/// least what happened: CPUs that count at the same moment can lose a count to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Whose ports are tried.
    pub netns: Netns,
    /// Who tries them.
    pub source: Addr,
    /// Different closed ports, at most 1,024.
    pub ports: u32,
    /// The lowest.
    pub port_low: Port,
    /// The highest.
    pub port_high: Port,
    /// Segments.
    pub tries: u64,
    /// When the first came.
    pub first: Instant,
    /// When the last came.
    pub last: Instant,
}

impl Scan {
    /// Tries a second; `None` if they came within a millisecond.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn rate_per_s(&self) -> Option<f64> {
        let ns = self.last.since(self.first);
        (ns >= 1_000_000).then(|| self.tries as f64 * 1e9 / ns as f64)
    }
}
