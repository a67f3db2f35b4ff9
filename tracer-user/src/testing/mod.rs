//! What tests need of this machine.

pub mod witness;
