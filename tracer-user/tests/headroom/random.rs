//! Reproducible random numbers: SplitMix64 (Steele, Lea and Flood, 2014).

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `limit`, which must not be 0.
    pub fn below(&mut self, limit: u16) -> u16 {
        u16::try_from(self.next() % u64::from(limit)).expect("it is less than a u16")
    }

    /// True with a probability of `times` in `of`.
    pub fn chance(&mut self, times: u16, of: u16) -> bool {
        self.below(of) < times
    }

    /// Picks one of these.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        let index = self.below(u16::try_from(of.len()).expect("there are few"));
        of[usize::from(index)]
    }
}
