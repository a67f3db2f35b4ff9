//! Bit sets of ports.

use super::Port;

/// A set of ports, one bit each.
#[derive(Clone, Debug)]
pub(crate) struct PortBits(Box<[u64; 1024]>);

impl Default for PortBits {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl PortBits {
    pub(crate) fn get(&self, port: Port) -> bool {
        let (word, bit) = Self::word_and_bit(port);
        self.0[word] & bit != 0
    }

    /// Adds the port to the set, or removes it. Returns true if that changes the set.
    pub(crate) fn set(&mut self, port: Port, is_in: bool) -> bool {
        let (word, bit) = Self::word_and_bit(port);
        // The index is below 1024: the upper ten of a port's sixteen bits.
        let word = &mut self.0[word];
        let before = *word;
        *word = if is_in { before | bit } else { before & !bit };
        *word != before
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = Port> {
        (0..=u16::MAX).step_by(64).zip(self.0.iter()).flat_map(|(first, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = u16::try_from(rest.trailing_zeros()).ok().filter(|bit| *bit < 64)?;
                rest &= rest - 1;
                Some(Port(first + bit))
            })
        })
    }

    fn word_and_bit(port: Port) -> (usize, u64) {
        (usize::from(port.0 >> 6), 1 << (port.0 & 63))
    }
}
