//! The ledger: who holds which port. A pure state machine, facts in, lease events out.
//!
//! A lease is one holder's hold on one local port. Its holder is a socket, then perhaps the
//! TIME_WAIT minisocket that the socket leaves behind, and for a socket that was bound to an
//! explicit port and is still open, both at once. The lease ends when the last of them lets go.
//!
//! Invariant: no I/O, no clock, no aya. Time is what facts and callers say it is.

mod cookies;
mod marks;
mod owners;
mod ports;
mod sink;
mod state;
mod view;

#[cfg(test)]
mod tests;

pub use sink::Sink;
pub use state::{Differences, Ledger};
pub(crate) use state::{Replay, destination_of};
pub use view::DestinationView;
