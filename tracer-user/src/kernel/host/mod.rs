//! The host: clocks, capabilities, cgroups, memory.

pub mod capability;
pub mod cgroup;
pub mod clock;
pub mod memory;
#[cfg(feature = "programs")]
pub(crate) mod parallel;
