//! Network namespaces: how to find, enter and make them, and their settings.

pub(crate) mod netns;
pub mod sandbox;
pub mod scope;
pub mod settings;
#[cfg(feature = "programs")]
pub(crate) mod visit;
