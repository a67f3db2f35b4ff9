//! When connect() may take over a port from a TIME_WAIT (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c),
//! and how long a TIME_WAIT holds a port otherwise. These rules are here and nowhere else.

use crate::model::{Addr, Destination, Settings, Substate, TIME_WAIT_S, TimeWaitReuse};

/// How the running kernel decides that a TIME_WAIT is old enough. Determined from the kernel's
/// features, not from its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReuseRule {
    /// From the second after the peer's last timestamp, in either substate (5.10).
    NextSecond,
    /// The same, but not in FIN_WAIT2 (6.1, 6.12).
    NextSecondNotFinWait2,
    /// `tcp_tw_reuse_delay` after it began, but not in FIN_WAIT2 (6.14).
    Delay,
}

impl ReuseRule {
    /// True if a TIME_WAIT in this substate can be taken over.
    pub(super) fn admits(self, substate: Substate) -> bool {
        self == Self::NextSecond || substate == Substate::TimeWait
    }
}

/// True if `tcp_tw_reuse` permits the takeover between these addresses, provided that the connection
/// had TCP timestamps. With the value 2, the default, only over loopback.
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

/// True if the namespace's settings permit the takeover for this destination, provided that the
/// connection had TCP timestamps.
pub(crate) fn is_permitted(settings: &Settings, destination: &Destination) -> bool {
    is_permitted_between(settings.time_wait_reuse, destination.source, destination.peer.0, false)
}

/// The age from which a TIME_WAIT can be taken over, in nanoseconds. Kernels without
/// `tcp_tw_reuse_delay` wait for the second after the peer's last timestamp, which is no longer.
pub(crate) fn delay_ns(settings: &Settings) -> u64 {
    u64::from(delay_ms(settings)) * 1_000_000
}

/// The age from which a TIME_WAIT can be taken over, in milliseconds.
pub(crate) fn delay_ms(settings: &Settings) -> u32 {
    settings.time_wait_reuse_delay_ms.unwrap_or(DEFAULT_DELAY_MS)
}

/// How long a TIME_WAIT keeps its port from a connect() to the same destination, in seconds. If it is
/// not known whether the peer sent timestamps, this side's setting is assumed for both.
pub(super) fn time_wait_s(
    settings: &Settings,
    destination: &Destination,
    substate: Substate,
    has_timestamps: Option<bool>,
) -> f64 {
    let can_be_taken_over =
        has_timestamps.unwrap_or(settings.timestamps) && is_permitted(settings, destination);
    match substate {
        Substate::FinWait2 => f64::from(settings.fin_timeout_s),
        Substate::TimeWait if can_be_taken_over => f64::from(delay_ms(settings)) / 1e3,
        Substate::TimeWait => f64::from(TIME_WAIT_S),
    }
}

/// The default of `tcp_tw_reuse_delay`.
const DEFAULT_DELAY_MS: u32 = 1000;
