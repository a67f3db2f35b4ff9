//! What is so of a lease, a bit each.

/// A set of [`Mark`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks(u8);

/// Something that is so of a lease, or not.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// The socket holds the port.
    HeldBySocket,
    /// A TIME_WAIT does.
    HeldByTimeWait,
    /// The present connect() or listen() has not been confirmed yet.
    Unconfirmed,
    /// The `accept` record waits for the accepting process.
    Unannounced,
    /// The TIME_WAIT's timer was cancelled.
    Cancelled,
    /// The connection is counted as a TIME_WAIT where it is counted.
    CountedTimeWait,
    /// The last comparison that knew the lease had the socket's hold.
    SeenSocket,
    /// It had the TIME_WAIT's.
    SeenTimeWait,
}

impl Marks {
    /// True if it is so.
    pub fn has(self, mark: Mark) -> bool {
        self.0 & mark.bit() != 0
    }

    /// Makes it so, or not.
    pub fn set(&mut self, mark: Mark, is_so: bool) {
        self.replace(mark, is_so);
    }

    /// Makes it not so. True if it was.
    pub fn take(&mut self, mark: Mark) -> bool {
        self.replace(mark, false)
    }

    /// Makes it so, or not. True if it was.
    pub fn replace(&mut self, mark: Mark, is_so: bool) -> bool {
        let before = self.has(mark);
        self.0 = if is_so { self.0 | mark.bit() } else { self.0 & !mark.bit() };
        before
    }
}

impl Mark {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}
