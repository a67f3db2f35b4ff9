//! Records: what the stream, recordings and views consist of, and the names in them.

pub mod filter;
pub mod names;
mod notice;
pub(crate) mod read;
mod record_type;
mod types;

pub(crate) use notice::comm;
pub use notice::{Cgroup, HookReport, Loss, Place, Start, Summary, Verify};
pub use record_type::{RecordType, Totals};
pub use types::{Body, Record};
