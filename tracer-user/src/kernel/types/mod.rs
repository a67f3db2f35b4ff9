//! What the running kernel's types say: where its fields are, and what it can do.

pub(crate) mod bind_buckets;
pub mod btf;
pub(crate) mod fields;
pub(crate) mod kfuncs;
pub(crate) mod layout;
