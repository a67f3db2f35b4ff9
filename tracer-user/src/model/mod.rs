//! The vocabulary: what ports, leases, failures and settings are. No I/O, no clock, no aya.
//!
//! Every other module may use this one; it uses none of them.

mod bucket;
mod failure;
mod held;
mod holder;
mod ids;
mod lease;
pub mod observation;
mod port_bits;
mod pressure;
mod scan;
mod settings;
mod time;
mod visibility;

pub use bucket::BucketClass;
pub use failure::{Cause, Failure, Operation};
pub use held::{Coverage, Held, HeldBy, UnreachedNamespaces};
pub use holder::{Holder, HolderBy};
pub(crate) use ids::port;
pub use ids::{Addr, Cookie, Family, Incarnation, LeaseId, Netns, Port};
pub use lease::{
    Change, Kind, Lease, LeaseEvent, Peer, Phase, Reason, Reuse, Side, Substate, TIME_WAIT_S,
};
pub use observation::Observation;
pub(crate) use port_bits::PortBits;
pub use pressure::{Destination, Pressure, RangeUse, Rates};
pub use scan::Scan;
pub use settings::{LocalRange, PortClass, PortSet, Settings, TimeWaitReuse};
pub use time::Instant;
pub(crate) use time::{microseconds, seconds};
pub use visibility::Visibility;
