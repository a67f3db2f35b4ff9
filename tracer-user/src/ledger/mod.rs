//! The ledger: who holds which port. A pure state machine, facts in, lease events out.
//!
//! A lease is one holder's hold on one local port. Its holder is a socket, then perhaps the
//! TIME_WAIT minisocket that the socket leaves behind, and for a socket that was bound to an
//! explicit port and is still open, both at once. The lease ends when the last of them lets go.
//!
//! Invariant: no I/O, no clock, no aya. Time is what facts and callers say it is.

mod cookies;
mod held;
mod marks;
mod owners;
mod ports;
mod state;
mod types;
mod usage;

#[cfg(test)]
mod tests;

pub use held::{Coverage, Held, HeldBy, Unknown};
pub use state::{Differences, Ledger, Sight};
pub use types::{
    Addr, BucketClass, Cause, Change, Cookie, Failure, Family, Instant, Kind, Lease, LeaseEvent,
    LeaseId, Netns, Operation, Peer, Phase, Port, Reason, Reuse, Side, Sink, Substate,
};
pub use usage::{Destination, Pressure, Rates, Room, TakeOver, Window};
