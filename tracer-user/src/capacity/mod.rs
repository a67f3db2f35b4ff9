//! Capacity: how many ports are left, why there is none, and when there will be none. The only
//! place that computes it.
//!
//! Invariant: pure. No I/O, no clock, no aya. The settings of a namespace, its holders and the time
//! are what callers say they are.

pub mod cause;
pub mod forecast;
pub mod headroom;
pub mod occupancy;
pub mod search;
pub mod usage;
pub mod verdict;

pub use cause::{Advice, advice_on, cause_of, free_in_s, is_another_range};
pub use forecast::Forecast;
pub use headroom::{BindAny, BindView, Connect, ConnectView, Headroom, KernelTime, Moment};
pub use occupancy::{BindAnswer, ConnectAnswer, Occupancy, Occupant, PortView};
pub use search::{KernelRules, ReuseRule, SocketRangeRule};
pub use verdict::{Grade, Verdict, judge};
