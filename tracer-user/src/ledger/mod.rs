//! The ledger: who holds which port. A pure state machine: observations in, lease events out.
//!
//! A lease is one holder's hold on one local port. Its holder is a socket, then perhaps the
//! TIME_WAIT minisocket that the socket leaves behind, and for a socket that was bound to an
//! explicit port and is still open, both at once. The lease ends when the last of them releases the
//! port.
//!
//! Invariant: no I/O, no clock, no aya. Time is what observations and callers say it is.

mod apply;
mod calls;
mod culprits;
mod holds;
#[expect(
    clippy::module_inception,
    reason = "the ledger's struct is what the module is named after"
)]
mod ledger;
mod replay;
mod sink;
mod snapshot;
mod tables;
mod tcp;
mod timers;
mod view;

#[cfg(test)]
mod tests;

pub use ledger::Ledger;
pub(crate) use replay::Replay;
pub use sink::Sink;
pub use snapshot::Differences;
pub(crate) use tables::destination_of;
