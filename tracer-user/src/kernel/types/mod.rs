//! The types of the running kernel.

pub mod btf;
#[cfg(feature = "programs")]
pub mod layout;
