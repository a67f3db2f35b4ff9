//! The agent: brings kernel, ledger and views together.

mod comparison;
mod intake;
mod losses;
mod namespaces;
mod outlet;
mod reporter;
pub mod self_test;
mod session;
mod signals;
mod stdout;

pub use session::{AgentError, Options, trace};
