//! The stream of records, one file for each form.

pub mod json;
pub mod text;
