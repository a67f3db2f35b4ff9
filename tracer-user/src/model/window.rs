//! The ports of a namespace from which the kernel chooses.

use super::Port;

/// The ports of a namespace from which connect() and bind() to port 0 choose.
#[derive(Clone, Debug)]
pub struct Window {
    pub(crate) low: Port,
    pub(crate) high: Port,
    pub(crate) ports: Bits,
    pub(crate) capacity: u32,
    pub(crate) reserved: u32,
    pub(crate) take_over: TakeOver,
    pub(crate) take_over_delay_ns: u64,
}

impl Window {
    /// The ports from `low` to `high` that are not reserved, of which connect() takes those over
    /// whose TIME_WAIT has lasted for a while.
    #[must_use]
    pub fn new(
        low: Port,
        high: Port,
        is_reserved: impl Fn(Port) -> bool,
        take_over: TakeOver,
        take_over_delay_ns: u64,
    ) -> Self {
        let mut window = Self {
            low,
            high,
            ports: Bits::default(),
            capacity: 0,
            reserved: 0,
            take_over,
            take_over_delay_ns,
        };
        for port in (low.0..=high.0).map(Port) {
            if is_reserved(port) {
                window.reserved += 1;
            } else {
                window.ports.set(port, true);
                window.capacity += 1;
            }
        }
        window
    }
}

/// Which TIME_WAITs give their ports to a connect() to the same destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeOver {
    /// None.
    Never,
    /// All.
    Always,
    /// Those of connections over the loopback network.
    Loopback,
}

/// A set of ports, one bit each.
#[derive(Clone, Debug)]
pub(crate) struct Bits(Box<[u64; 1024]>);

impl Default for Bits {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl Bits {
    pub(crate) fn get(&self, port: Port) -> bool {
        let (word, bit) = Self::place(port);
        self.0[word] & bit != 0
    }

    /// True if that is a change.
    pub(crate) fn set(&mut self, port: Port, is_in: bool) -> bool {
        let (word, bit) = Self::place(port);
        // The index has ten bits, by its type's sixteen.
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

    fn place(port: Port) -> (usize, u64) {
        (usize::from(port.0 >> 6), 1 << (port.0 & 63))
    }
}
