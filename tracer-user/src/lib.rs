//! portlife: who holds which local TCP port, since when, until when, and why is there none left?
//!
//! Data flows one way: [`kernel`] (facts) to [`ledger`] (leases) to [`exhaustion`] (why there is no
//! port left) to [`output`] (records). The [`agent`] moves it along.

#![cfg_attr(not(test), deny(clippy::print_stderr, clippy::print_stdout))]

/// Writes a line to stderr. One that nobody reads, or that is full, is no reason to end.
macro_rules! tell {
    ($($argument:tt)*) => {
        // What cannot be said cannot be helped either.
        drop(std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{}\n", format_args!($($argument)*)),
        ))
    };
}
pub(crate) use tell;

#[cfg(feature = "programs")]
pub mod agent;
pub mod capacity;
#[cfg(feature = "programs")]
pub mod cli;
pub mod kernel;
pub mod ledger;
pub mod model;
pub mod record;
pub mod sources;
pub mod testing;
pub mod views;
