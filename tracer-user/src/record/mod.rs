//! Records: what the stream, recordings and views consist of.

pub(crate) mod digits;
pub(crate) mod durations;
pub mod filter;
pub(crate) mod json;
mod named;
pub mod names;
mod notice;
mod owned;
mod record_type;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod time_of_day;
mod types;

pub(crate) use notice::comm;
pub use notice::{Cgroup, HookReport, Loss, LostAt, Start, Summary, Verify};
pub(crate) use owned::OwnedRecord;
pub use record_type::{RecordType, Totals};
pub use types::{Body, Record};
