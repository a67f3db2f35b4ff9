//! When connect() takes a port over from a TIME_WAIT (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c), and
//! for how long a TIME_WAIT keeps a port otherwise. The only place that knows.

use crate::model::{Addr, Destination, Settings, Substate, TIME_WAIT_S, TimeWaitReuse};

/// How the running kernel decides that a TIME_WAIT is old enough. Found out from the kernel's
/// features, not from its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReuseRule {
    /// In the second after the peer's last timestamp, whatever the substate (5.10).
    NextSecond,
    /// Likewise, but not from a FIN_WAIT2 (6.1, 6.12).
    NextSecondNotFinWait2,
    /// `tcp_tw_reuse_delay` after it began, but not from a FIN_WAIT2 (6.14).
    Delay,
}

impl ReuseRule {
    /// True if a TIME_WAIT in this substate can be taken over at all.
    pub(super) fn admits(self, substate: Substate) -> bool {
        self == Self::NextSecond || substate == Substate::TimeWait
    }
}

/// True if `tcp_tw_reuse` permits it for connections between these addresses, given TCP timestamps.
/// With the value 2, the default, only connections over loopback give way.
pub(super) fn is_permitted_between(
    setting: TimeWaitReuse,
    source: Addr,
    peer: Addr,
    is_loopback_device: bool,
) -> bool {
    match setting {
        TimeWaitReuse::Never => false,
        TimeWaitReuse::Always => true,
        TimeWaitReuse::Loopback => {
            is_loopback_device || source.ip().is_loopback() || peer.ip().is_loopback()
        }
    }
}

/// True if the namespace's settings permit it for this destination, given TCP timestamps.
pub(crate) fn is_permitted(settings: &Settings, destination: &Destination) -> bool {
    is_permitted_between(settings.time_wait_reuse, destination.source, destination.peer.0, false)
}

/// How old a TIME_WAIT must be, nanoseconds. Kernels without `tcp_tw_reuse_delay` wait for the next
/// second after the peer's last timestamp, which is no more than that.
pub(crate) fn delay_ns(settings: &Settings) -> u64 {
    u64::from(delay_ms(settings)) * 1_000_000
}

/// The same in milliseconds.
pub(crate) fn delay_ms(settings: &Settings) -> u32 {
    settings.time_wait_reuse_delay_ms.unwrap_or(DEFAULT_DELAY_MS)
}

/// For how long a TIME_WAIT keeps its port from a connect() to the same destination, seconds.
/// Where it is not known whether the peer sent timestamps, it is believed if this side does.
pub(super) fn time_wait_s(
    settings: &Settings,
    destination: &Destination,
    substate: Substate,
    has_timestamps: Option<bool>,
) -> f64 {
    let gives_way =
        has_timestamps.unwrap_or(settings.timestamps) && is_permitted(settings, destination);
    match substate {
        Substate::FinWait2 => f64::from(settings.fin_timeout_s),
        Substate::TimeWait if gives_way => f64::from(delay_ms(settings)) / 1e3,
        Substate::TimeWait => f64::from(TIME_WAIT_S),
    }
}

/// `tcp_tw_reuse_delay` unless somebody set it.
const DEFAULT_DELAY_MS: u32 = 1000;
