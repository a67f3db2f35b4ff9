//! The kernel's monotonic clock, which stamps facts, and its relation to the time of day.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` gives them.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic) as u64
}

/// What to add to a monotonic time to get nanoseconds since the Unix epoch.
#[must_use]
pub fn realtime_offset_ns() -> i128 {
    nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> i128 {
    let time = clock_gettime(clock);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}
