//! The stream of records, one file for each form.

pub mod csv;
pub mod json;
pub mod text;
