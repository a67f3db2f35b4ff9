//! portlife: who holds which local TCP port, since when, until when, and why is there none left?
//!
//! Data flows one way: [`kernel`] (facts) to [`ledger`] (leases) to [`exhaustion`] (why there is no
//! port left) to [`output`] (records). The [`agent`] moves it along.

#[cfg(feature = "programs")]
pub mod agent;
#[cfg(feature = "programs")]
pub mod cli;
pub mod exhaustion;
pub mod filter;
pub mod kernel;
pub mod ledger;
pub mod output;
pub mod report;
pub mod scans;
