//! How many ports of a range are in use, and how fast they are acquired and released.

use super::{Addr, Instant, Netns, Port};

/// The unit in which connect() runs out of ports: one source address, and one address and port of
/// the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The network namespace.
    pub netns: Netns,
    /// The local address.
    pub source: Addr,
    /// The peer's address and port.
    pub peer: (Addr, Port),
}

/// The use of a range, as seen by a connect() to one destination, or by a bind() to port 0 of the
/// wildcard address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeUse {
    /// Ports of the range that are not reserved.
    pub capacity: u32,
    /// Ports of the range that are reserved.
    pub reserved: u32,
    /// Ports in use for the destination. For a bind(): all held ports.
    pub used: u32,
    /// Ports that are not in use for the destination, but whose bucket is of class B. For a bind()
    /// they are part of `used`, and this is 0.
    pub bind_locked: u32,
    /// How many of the used ports are in a TIME_WAIT that a connect() may take over. Those that
    /// became old enough (`tcp_tw_reuse_delay`) only recently may be missing. Those from before the
    /// start count even if their peers sent no timestamps, if the kernel has no iterator that shows
    /// it.
    pub reusable: u32,
}

impl RangeUse {
    /// How many more connect()s, or bind()s, will get a port.
    #[must_use]
    pub fn headroom(&self) -> u32 {
        self.capacity.saturating_sub(self.unavailable())
    }

    pub(crate) fn unavailable(&self) -> u32 {
        (self.used + self.bind_locked).saturating_sub(self.reusable)
    }
}

/// How fast ports are acquired and released, averaged over about ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Ports acquired per second.
    pub taken_per_s: f64,
    /// Ports released per second.
    pub released_per_s: f64,
    /// Mean hold time of the released ports, in seconds. `None` until one is known.
    pub hold_s: Option<f64>,
}

/// A destination or a whole range has crossed a level of use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// When the level was crossed.
    pub at: Instant,
    /// The network namespace.
    pub netns: Netns,
    /// The destination; `None` for the whole range, as bind() to port 0 sees it.
    pub destination: Option<Destination>,
    /// The new level: 0, 70, 90 or 100 percent.
    pub level_percent: u8,
    /// True if the previous level was lower.
    pub is_rising: bool,
    /// The use of the range.
    pub range: RangeUse,
    /// How fast its ports are acquired and released.
    pub rates: Rates,
}
