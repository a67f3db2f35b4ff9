//! Exact counters of what the load did.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Something that the load counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection was made and accepted.
    Connected,
    /// connect() chose a port, whether or not the connection was then established.
    Chosen,
    /// A connection was made, but the kernel aborted it before it was accepted (ECONNABORTED).
    Aborted,
    /// The peer refused a connection (ECONNREFUSED).
    Refused,
    /// bind() got a port, or listen() chose one.
    Bound,
    /// A socket started listening.
    Listened,
    /// connect() failed with EADDRNOTAVAIL.
    ConnectFailed,
    /// bind() failed with EADDRINUSE.
    BindFailed,
    /// listen() failed with EADDRINUSE.
    ListenFailed,
    /// A namespace was made.
    Namespace,
}

impl Event {
    /// Every event, with its description in the report.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Connected, "connections"),
        (Self::Chosen, "ports chosen by connect()"),
        (Self::Aborted, "connections aborted before accept()"),
        (Self::Refused, "connect() calls refused"),
        (Self::Bound, "ports bound"),
        (Self::Listened, "listeners"),
        (Self::ConnectFailed, "connect() calls without a port"),
        (Self::BindFailed, "bind() calls failed"),
        (Self::ListenFailed, "listen() calls failed"),
        (Self::Namespace, "namespaces"),
    ];
}

/// Counters that one thread increments and others read.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Event::ALL.len()]);

impl Counters {
    pub fn add(&self, event: Event) {
        self.0[event as usize].fetch_add(1, Relaxed);
    }

    pub fn counts(&self) -> Counts {
        Counts(array::from_fn(|index| self.0[index].load(Relaxed)))
    }
}

/// Values of the counters at some time, or sums over several threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Event::ALL.len()]);

impl Counts {
    pub fn get(&self, event: Event) -> u64 {
        self.0[event as usize]
    }

    /// The description and the count of each event.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Event::ALL.iter().map(|(event, name)| (*name, self.get(*event)))
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| {
            Self(array::from_fn(|index| sum.0[index] + next.0[index]))
        })
    }
}
