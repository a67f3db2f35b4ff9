//! The eBPF programs: what they are attached to, and what they report.

#[cfg(feature = "programs")]
pub(crate) mod attached;
#[cfg(feature = "programs")]
mod attacher;
#[cfg(all(feature = "programs", feature = "debug-log"))]
mod debug_log;
#[cfg(feature = "programs")]
pub mod error;
#[cfg(feature = "programs")]
pub(crate) mod iterators;
#[cfg(feature = "programs")]
mod kallsyms;
#[cfg(feature = "programs")]
pub mod loader;
#[cfg(feature = "programs")]
mod object;
#[cfg(feature = "programs")]
mod privileges;
#[cfg(feature = "programs")]
mod probers;
#[cfg(feature = "programs")]
pub(crate) mod probes;
#[cfg(feature = "programs")]
mod programs;
#[cfg(feature = "programs")]
mod ring;
#[cfg(feature = "programs")]
pub(crate) mod status;
#[cfg(feature = "programs")]
mod support;
#[cfg(feature = "programs")]
pub mod table;
