//! The place of a lease in the tables.

use std::num::NonZeroU32;

/// Where a lease is in the table of leases: valid until the lease is removed, and another lease's
/// afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::ledger) struct LeaseIndex(NonZeroU32);

impl LeaseIndex {
    /// The largest value of [`to_bits`](Self::to_bits), so that one bit of a word is left for
    /// others.
    pub const MAX_BITS: u32 = u32::MAX >> 1;

    /// The index of an entry of the slab.
    ///
    /// # Panics
    /// Beyond two billion leases, for which no host has the memory.
    pub fn from_slot(slot: usize) -> Self {
        u32::try_from(slot)
            .ok()
            .and_then(|slot| Self::from_bits(slot + 1))
            .expect("a host has fewer than two billion leases")
    }

    /// The entry of the slab.
    pub fn slot(self) -> usize {
        self.0.get() as usize - 1
    }

    /// The index from [`to_bits`](Self::to_bits). `None` for 0 and above
    /// [`MAX_BITS`](Self::MAX_BITS).
    pub fn from_bits(bits: u32) -> Option<Self> {
        NonZeroU32::new(bits).filter(|bits| bits.get() <= Self::MAX_BITS).map(Self)
    }

    /// A number from 1 to [`MAX_BITS`](Self::MAX_BITS).
    pub fn to_bits(self) -> u32 {
        self.0.get()
    }
}
