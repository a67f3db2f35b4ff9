//! Records: what the user is told, and its names.

pub mod filter;
pub mod names;
mod notice;
pub mod read;
mod record_type;

pub use notice::{Cgroup, HookReport, Loss, Place, Start, Summary};
pub use record_type::{RecordType, Totals};
