//! Every lease, by socket, by port and by bind bucket, with the counts of
//! [`capacity`](crate::capacity) kept in step.
//!
//! Nothing in here emits an event: what the tables hold, and what is reported of it, are two things.

mod buckets;
mod cookies;
mod counts;
mod entry;
mod index;
mod keys;
mod leases;
mod owners;
mod port_table;
mod ports;

pub(crate) use counts::destination_of;
pub(super) use entry::{Awaited, Entry, Holders, NewLease, SnapshotNumber};
pub(super) use index::LeaseIndex;
pub(super) use keys::{Claim, ConnectionKey, Hold};
pub(super) use owners::Owners;
pub(super) use port_table::{BucketRule, PortTable};
