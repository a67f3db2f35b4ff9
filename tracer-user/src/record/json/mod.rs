//! Records as JSON, an object a line, written and read.
//!
//! The names of values are those of [`names`](super::names), and the writer can write no field that
//! the reader does not know.

mod append;
mod fields;
mod holder;
mod lease_fields;
mod owners;
mod read;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod tests;
mod text;
mod write;

pub(crate) use holder::{Holder, Process};
pub(crate) use read::Line;
pub(crate) use text::append as append_json;
pub(crate) use write::Writer;
