//! The stream of records, as text and as JSON.

mod digits;
pub mod json;
mod line;
#[cfg(test)]
mod samples;
pub mod text;
pub mod writer;
