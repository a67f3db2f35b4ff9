//! All that touches the kernel: types, programs, the ring, snapshots, namespaces, processes.
//!
//! Invariant: `unsafe` and the names of hooks live in here and nowhere else in the agent.
#![expect(
    unsafe_code,
    reason = "system calls without a safe wrapper; each use says why it is sound"
)]

pub mod hooks;
pub mod host;
pub mod lists;
pub mod namespace;
pub mod types;
pub mod wire;
