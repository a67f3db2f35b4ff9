//! What the running kernel's types say: where its fields are, and what it can do.

#[cfg(feature = "programs")]
pub(crate) mod bind_buckets;
pub mod btf;
#[cfg(feature = "programs")]
pub(crate) mod fields;
#[cfg(feature = "programs")]
pub(crate) mod kfuncs;
#[cfg(feature = "programs")]
pub(crate) mod layout;
