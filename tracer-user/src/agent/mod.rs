//! The agent: brings kernel, ledger and views together.

mod losses;
mod namespaces;
mod reporter;
pub mod self_test;
mod session;

pub use session::{AgentError, Options, trace};
