//! Where observations come from.

#[cfg(feature = "programs")]
pub mod occupants;
pub mod replay;
pub mod scan;
