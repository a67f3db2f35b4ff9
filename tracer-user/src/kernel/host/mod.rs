//! The host: clocks, capabilities, cgroups, memory.

#[cfg(feature = "programs")]
pub mod capability;
#[cfg(feature = "programs")]
pub(crate) mod cgroup;
pub mod clock;
#[cfg(feature = "programs")]
pub(crate) mod memory;
#[cfg(feature = "programs")]
pub(crate) mod parallel;
