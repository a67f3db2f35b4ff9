//! Capacity: how many ports are left, why none is left, and when none will be. All of these numbers
//! are computed here and nowhere else.
//!
//! There are two inputs with the same rules: the ledger counts leases as they come and go
//! (`usage`), and `headroom` evaluates a listing of the kernel's bind buckets.
//!
//! Invariant: pure. No I/O, no clock, no aya. Settings, holders and time are passed in.

mod cause;
mod destination;
mod forecast;
mod headroom;
mod level;
mod occupancy;
mod rates;
mod reuse;
mod search;
mod usage;
mod verdict;

pub use cause::{
    Advice, advice_on, advice_on_bind_lock, cause_of, free_in_s, is_another_range, shortage_of,
};
pub use destination::{
    DestinationInNamespace, DestinationView, Locker, Remedy, RemedySetting, SourcePorts, SourceView,
};
pub use forecast::{Forecast, ceiling_per_s};
pub use headroom::{BindAny, BindView, Connect, ConnectView, Headroom, KernelTime, NamespaceState};
pub use occupancy::{BindAnswer, ConnectAnswer, Occupancy, Occupant, PortView};
pub use reuse::ReuseRule;
pub use search::{KernelRules, SocketRangeRule};
pub(crate) use usage::{DestinationIndex, Usage};
pub use verdict::{Grade, Verdict, judge};
