//! Snapshots of what the kernel holds: adopted at the start, compared with later, healed by.
//!
//! A snapshot is not an instant, and observations are under way while it is taken. What began or
//! ended since [`Ledger::begin_snapshot`](super::Ledger::begin_snapshot) is therefore not held
//! against either side, and what remains is only believed when a second snapshot shows the same.

mod adopt;
mod compare;
mod differences;
mod heal;
mod window;

pub use differences::Differences;
pub(super) use window::SnapshotWindow;
