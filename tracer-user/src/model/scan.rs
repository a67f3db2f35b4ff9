//! Port scans.

use super::{Addr, Instant, Netns, Port};

/// A source that tries the ports of a namespace. All numbers are counted from its first attempt, and
/// are lower bounds: CPUs that count at the same moment can overwrite each other's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The network namespace whose ports are tried.
    pub netns: Netns,
    /// The address that tries them.
    pub source: Addr,
    /// Number of different closed ports, at most 1,024.
    pub ports: u32,
    /// The lowest of these ports.
    pub port_low: Port,
    /// The highest of these ports.
    pub port_high: Port,
    /// Number of segments to closed ports.
    pub tries: u64,
    /// When the first segment arrived.
    pub first: Instant,
    /// When the last segment arrived.
    pub last: Instant,
}

impl Scan {
    /// Segments per second. `None` if all arrived within a millisecond.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "the precision suffices for a rate")]
    pub fn rate_per_s(&self) -> Option<f64> {
        let ns = self.last.since(self.first);
        (ns >= 1_000_000).then(|| self.tries as f64 * 1e9 / ns as f64)
    }
}
