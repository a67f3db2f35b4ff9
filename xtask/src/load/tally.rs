//! What the load has done, counted exactly.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Something that the load does. The names are those of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A connection was made, and accepted.
    Connected,
    /// connect() chose a port, whatever came of it.
    Chosen,
    /// A connection was made, and ended by the kernel before it was accepted (ECONNABORTED).
    Aborted,
    /// connect() was refused by the peer.
    Refused,
    /// bind() got a port, or listen() chose one.
    Bound,
    /// A socket began to listen.
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

impl Deed {
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Connected, "connections"),
        (Self::Chosen, "ports chosen by connect()"),
        (Self::Aborted, "connections that ended unaccepted"),
        (Self::Refused, "connects refused"),
        (Self::Bound, "ports bound"),
        (Self::Listened, "listeners"),
        (Self::ConnectFailed, "connects without a port"),
        (Self::BindFailed, "binds that failed"),
        (Self::ListenFailed, "listens that failed"),
        (Self::Namespace, "namespaces"),
    ];
}

/// Counters that one thread adds to and others read.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; Deed::ALL.len()]);

impl Tally {
    pub fn add(&self, deed: Deed) {
        self.0[deed as usize].fetch_add(1, Relaxed);
    }

    pub fn counts(&self) -> Counts {
        Counts(array::from_fn(|index| self.0[index].load(Relaxed)))
    }
}

/// The counters at some time, perhaps of several threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Deed::ALL.len()]);

impl Counts {
    pub fn get(&self, deed: Deed) -> u64 {
        self.0[deed as usize]
    }

    /// Each deed in words, and how often it was done.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Deed::ALL.iter().map(|(deed, name)| (*name, self.get(*deed)))
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| {
            Self(array::from_fn(|index| sum.0[index] + next.0[index]))
        })
    }
}
