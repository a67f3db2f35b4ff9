//! How far the ports of a range are used up, and how fast.

use super::{Addr, Instant, Netns, Port};

/// In what connect() runs out of ports: from one source to one address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Where.
    pub netns: Netns,
    /// The local address.
    pub source: Addr,
    /// The peer.
    pub peer: (Addr, Port),
}

/// What became of the ports of a range, as one destination sees it, or as a bind() to port 0 and
/// the wildcard address does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeUse {
    /// Ports of the range that are not reserved.
    pub capacity: u32,
    /// Ports of the range that are.
    pub reserved: u32,
    /// In use for the destination; for a bind(), held by anybody.
    pub used: u32,
    /// Not in use for the destination, but in a bucket that somebody bound. Part of `used` for a
    /// bind().
    pub bind_locked: u32,
    /// Of those in use: in a TIME_WAIT that a connect() may take over. Those that have become old
    /// enough (`tcp_tw_reuse_delay`) only lately may be missing. Those that were there before us
    /// count even if their peers sent no timestamps, where no iterator of the kernel tells.
    pub reusable: u32,
}

impl RangeUse {
    /// How many more connect()s, or bind()s, will find a port.
    #[must_use]
    pub fn headroom(&self) -> u32 {
        self.capacity.saturating_sub(self.unavailable())
    }

    pub(crate) fn unavailable(&self) -> u32 {
        (self.used + self.bind_locked).saturating_sub(self.reusable)
    }
}

/// How fast ports are taken and let go, over the last ten seconds or so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Ports taken a second.
    pub taken_per_s: f64,
    /// Ports let go a second.
    pub released_per_s: f64,
    /// How long those were held that were let go, seconds.
    pub hold_s: Option<f64>,
}

/// A destination or a whole range has crossed a level of use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// When.
    pub at: Instant,
    /// Where.
    pub netns: Netns,
    /// The destination; `None` for the whole range, as bind() to port 0 sees it.
    pub destination: Option<Destination>,
    /// The level that it is at now: 0, 70, 90 or 100 percent.
    pub level_percent: u8,
    /// It was at a lower level before.
    pub is_rising: bool,
    /// The ports.
    pub range: RangeUse,
    /// How fast they go.
    pub rates: Rates,
}
