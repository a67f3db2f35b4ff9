//! All that touches the kernel: types, programs, the ring, snapshots, namespaces, processes.
//!
//! Invariant: `unsafe` and the names of hooks live in here and nowhere else in the agent.
#![expect(
    unsafe_code,
    reason = "system calls without a safe wrapper; each use says why it is sound"
)]

#[cfg(feature = "programs")]
mod attacher;
pub mod btf;
pub mod capability;
pub mod cgroup;
pub mod clock;
#[cfg(all(feature = "programs", feature = "debug-log"))]
pub mod debug_log;
#[cfg(feature = "programs")]
pub mod holders;
pub mod kallsyms;
#[cfg(feature = "programs")]
pub mod layout;
#[cfg(feature = "programs")]
pub mod loader;
pub mod memory;
pub mod netns;
#[cfg(feature = "programs")]
mod object;
#[cfg(feature = "programs")]
pub mod occupants;
#[cfg(feature = "programs")]
mod programs;
#[cfg(feature = "programs")]
pub mod ring;
pub mod sandbox;
pub mod scope;
#[cfg(feature = "programs")]
pub mod self_test;
pub mod settings;
#[cfg(feature = "programs")]
pub mod snapshot;
pub mod sock_diag;
#[cfg(feature = "programs")]
pub mod tries;
pub mod witness;
