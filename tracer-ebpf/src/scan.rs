//! Counts of segments for closed ports, by their source. The kernel side counts, because a scan can
//! be faster than any reader of the ring.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address;

/// Maximum number of sources that are counted. Beyond it the least recently active are dropped.
pub const MAX_PROBERS: u32 = 1024;

/// A source of segments for closed ports of a namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Prober {
    /// Inode of the network namespace that received the segments.
    pub netns: u32,
    /// Source address of the segments.
    pub addr: Address,
}

/// What a source has tried. CPUs that count at the same time can overwrite each other's update, so
/// every number is a lower bound.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Tries {
    /// When the first segment came: nanoseconds of `CLOCK_MONOTONIC`.
    pub first_ns: u64,
    /// When the last segment came: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_ns: u64,
    /// Number of segments without ACK that were answered by a reset.
    pub count: u64,
    /// The lowest port that was tried, host byte order.
    pub port_low: u32,
    /// The highest port that was tried, host byte order.
    pub port_high: u32,
    /// A bit for each port that was tried, at the index of the port's low ten bits.
    pub ports: [u64; 16],
}

impl Tries {
    /// Counts a segment for this port.
    #[inline(always)]
    pub fn add(&mut self, port: u16, time_ns: u64) {
        let port = u32::from(port);
        if self.count == 0 {
            (self.first_ns, self.port_low, self.port_high) = (time_ns, port, port);
        }
        self.last_ns = time_ns;
        self.count += 1;
        self.port_low = self.port_low.min(port);
        self.port_high = self.port_high.max(port);
        self.ports[(port >> 6 & 15) as usize] |= 1 << (port & 63);
    }

    /// A lower bound of the number of different ports that were tried, at most 1,024.
    #[must_use]
    pub fn ports(&self) -> u32 {
        self.ports.iter().map(|word| word.count_ones()).sum()
    }
}

const _: () = assert!(size_of::<Prober>() == 20);
const _: () = assert!(size_of::<Tries>() == 160);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_once_each() {
        let mut tries = Tries::default();
        for (time_ns, port) in [(5, 80), (6, 22), (7, 80), (8, 65_535)] {
            tries.add(port, time_ns);
        }
        let Tries { first_ns, last_ns, count, port_low, port_high, ports: _ } = tries;
        assert_eq!((first_ns, last_ns, count, port_low, port_high), (5, 8, 4, 22, 65_535));
        assert_eq!(tries.ports(), 3);
    }
}
