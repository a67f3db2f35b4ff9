//! Everything that touches the kernel: its types, the programs, the ring, snapshots, namespaces.
//!
//! Invariant: `unsafe` code and the names of hooks are nowhere else in the agent.
#![expect(
    unsafe_code,
    reason = "system calls without a safe wrapper; each use says why it is sound"
)]
#![cfg_attr(
    not(feature = "programs"),
    expect(dead_code, reason = "what needs no programs is only a part of what they need")
)]

#[cfg(feature = "programs")]
pub mod hooks;
pub mod host;
pub mod lists;
pub mod namespace;
#[cfg(feature = "programs")]
pub mod types;
pub mod wire;
