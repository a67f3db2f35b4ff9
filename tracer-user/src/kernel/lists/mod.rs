//! Lists that the kernel makes of what is held now.

#[cfg(feature = "programs")]
pub(crate) mod census;
#[cfg(feature = "programs")]
pub mod holders;
#[cfg(feature = "programs")]
pub(crate) mod snapshot;
pub mod sock_diag;
