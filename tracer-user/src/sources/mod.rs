//! Where observations come from.

#[cfg(feature = "programs")]
pub(crate) mod cgroup;
#[cfg(feature = "programs")]
pub(crate) mod destination;
#[cfg(feature = "programs")]
mod lookup;
#[cfg(feature = "programs")]
pub(crate) mod port;
pub mod replay;
pub mod scan;
