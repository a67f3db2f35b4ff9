//! The eBPF programs: loaded, attached, and read from.

#[cfg(feature = "programs")]
pub(crate) mod attacher;
#[cfg(all(feature = "programs", feature = "debug-log"))]
pub mod debug_log;
#[cfg(feature = "programs")]
pub mod error;
#[cfg(feature = "programs")]
pub(crate) mod iterators;
pub mod kallsyms;
#[cfg(feature = "programs")]
pub mod loader;
#[cfg(feature = "programs")]
pub(crate) mod object;
#[cfg(feature = "programs")]
pub(crate) mod privileges;
#[cfg(feature = "programs")]
pub(crate) mod programs;
#[cfg(feature = "programs")]
pub mod ring;
#[cfg(feature = "programs")]
pub mod status;
#[cfg(feature = "programs")]
pub mod tries;
