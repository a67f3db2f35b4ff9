//! Capacity: how many ports are left, why there is none, and when there will be none. The only
//! place that computes it.
//!
//! Two feeds lead to the same numbers by the same rules: the ledger counts leases as they come and
//! go ([`usage`]), and [`headroom`] looks at the bind buckets that the kernel lists at one moment.
//!
//! Invariant: pure. No I/O, no clock, no aya. The settings of a namespace, its holders and the time
//! are what callers say they are.

mod cause;
mod forecast;
mod headroom;
mod level;
mod occupancy;
mod rates;
mod reuse;
mod search;
mod usage;
mod verdict;

pub use cause::{Advice, advice_on, cause_of, free_in_s, is_another_range};
pub use forecast::Forecast;
pub use headroom::{BindAny, BindView, Connect, ConnectView, Headroom, KernelTime, Moment};
pub use occupancy::{BindAnswer, ConnectAnswer, Occupancy, Occupant, PortView};
pub use reuse::ReuseRule;
pub use search::{KernelRules, SocketRangeRule};
pub(crate) use usage::{DestinationIndex, Usage};
pub use verdict::{Grade, Verdict, judge};
