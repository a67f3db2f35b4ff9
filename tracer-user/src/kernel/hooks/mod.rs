//! The eBPF programs: what they are attached to, and what they report.

pub(crate) mod attached;
mod attacher;
#[cfg(feature = "debug-log")]
mod debug_log;
pub mod error;
pub(crate) mod iterators;
mod kallsyms;
pub mod loader;
mod object;
mod privileges;
mod probers;
pub(crate) mod probes;
mod programs;
mod ring;
pub(crate) mod status;
mod support;
pub mod table;
