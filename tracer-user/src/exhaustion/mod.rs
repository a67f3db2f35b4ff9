//! Exhaustion: why there is no port left, how many are left, and when there will be none.
//!
//! Invariant: pure. No I/O, no clock, no aya. The settings of a namespace, its holds and the time
//! are what callers say they are; the [`kernel`](crate::kernel) is asked elsewhere.

pub mod capacity;
pub mod cause;
pub mod forecast;
pub mod headroom;
pub mod holder;
pub mod occupancy;
pub mod settings;
pub mod verdicts;

pub use capacity::{KernelRules, ReuseRule, SocketRangeRule};
pub use cause::{Advice, advice_on, cause_of, free_in_s, is_another_range};
pub use forecast::Forecast;
pub use headroom::{BindAny, BindView, Connect, ConnectView, Headroom, KernelTime, Moment};
pub use holder::{Holder, HolderBy};
pub use occupancy::{BindAnswer, ConnectAnswer, Occupancy, Occupant, PortView};
pub use settings::{LocalRange, PortClass, PortSet, Settings, TimeWaitReuse};
pub use verdicts::{Grade, Verdict, judge};
