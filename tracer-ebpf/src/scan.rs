//! Who tries closed ports. Counted in the kernel, because a scan can be faster than any reader of
//! the ring.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address;

/// Sources that are told apart at a time; of more, the ones that try least often are forgotten.
pub const PROBERS_MOST: u32 = 1024;

/// A source that tries the ports of a namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Prober {
    /// Inode of the network namespace whose ports are tried.
    pub netns: u32,
    /// Where the segments come from.
    pub addr: Address,
}

/// What a source has tried. CPUs that count at the same moment can lose a count to each other:
/// every number is a lower bound.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Tries {
    /// `CLOCK_MONOTONIC` of the first, nanoseconds.
    pub first_ns: u64,
    /// Of the last.
    pub last_ns: u64,
    /// Segments that asked for a connection, or belonged to none, and were reset.
    pub count: u64,
    /// The lowest port of them, host byte order.
    pub port_low: u32,
    /// The highest.
    pub port_high: u32,
    /// A bit for each port, by its low ten bits.
    pub ports: [u64; 16],
}

impl Tries {
    /// Adds a try of this port.
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

    /// Different ports that were tried: at least so many, and no more than 1,024.
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
