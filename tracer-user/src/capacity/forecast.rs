//! When no port will be left, and how many connections a second the ports allow.

use crate::model::{RangeUse, Rates};

/// The forecast for a destination or a range at constant rates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Seconds until no port is left: 0 if none is left, `None` if that is not foreseeable or the
    /// rates are not known.
    pub eta_s: Option<f64>,
    /// Connections a second that the ports allow in the long run: ports over mean hold time
    /// (Little's law). `None` until the length of a hold is known.
    pub ceiling_per_s: Option<f64>,
}

/// Connections a second that this number of ports allows in the long run, if each is held for
/// `hold_s` seconds (Little's law). A hold is taken for a millisecond at least, the shortest
/// `tcp_tw_reuse_delay` that is not zero.
#[must_use]
pub fn ceiling_per_s(ports: u32, hold_s: f64) -> f64 {
    f64::from(ports) / hold_s.max(0.001)
}

/// Slower growth is not extrapolated: rates cover only about ten seconds.
const MIN_GROWTH_PER_S: f64 = 0.5;

impl Forecast {
    /// The forecast for this use of the range at these rates.
    #[must_use]
    pub fn of(range: &RangeUse, rates: &Rates) -> Self {
        let Rates { taken_per_s, released_per_s, hold_s } = *rates;
        let available = range.capacity.saturating_sub(range.bind_locked);
        let ceiling_per_s =
            hold_s.filter(|hold_s| *hold_s > 0.0).map(|hold_s| ceiling_per_s(available, hold_s));
        // In the long run, as many ports are in use as are acquired during one hold. An estimate
        // below the present use comes from short holds that have ended, and says little about
        // those that last.
        let levels_off = hold_s.is_some_and(|hold_s| {
            let plateau = taken_per_s * hold_s;
            f64::from(range.used) <= plateau && plateau < f64::from(available)
        });
        let growth_per_s = taken_per_s - released_per_s;
        let headroom = range.headroom();
        let eta_s = if headroom == 0 {
            Some(0.0)
        } else if growth_per_s >= MIN_GROWTH_PER_S && !levels_off {
            Some(f64::from(headroom) / growth_per_s)
        } else {
            None
        };
        Self { eta_s, ceiling_per_s }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(used: u32, taken: f64, released: f64, hold_s: Option<f64>) -> Forecast {
        let range = RangeUse { capacity: 100, used, ..RangeUse::default() };
        Forecast::of(&range, &Rates { taken_per_s: taken, released_per_s: released, hold_s })
    }

    fn eta(used: u32, taken: f64, released: f64, hold_s: Option<f64>) -> Option<f64> {
        forecast(used, taken, released, hold_s).eta_s
    }

    #[test]
    fn growing_use_exhausts_the_ports() {
        assert_eq!(eta(60, 10.0, 0.0, None), Some(4.0));
        assert_eq!(eta(60, 10.0, 6.0, None), Some(10.0));
        assert_eq!(eta(100, 10.0, 10.0, Some(60.0)), Some(0.0));
        // 600 at once is more than there are.
        assert_eq!(eta(60, 10.0, 6.0, Some(60.0)), Some(10.0));
    }

    #[test]
    fn use_that_levels_off_or_shrinks_does_not() {
        assert_eq!(eta(60, 10.0, 10.0, Some(6.0)), None);
        assert_eq!(eta(60, 5.0, 10.0, None), None);
        assert_eq!(eta(60, 0.0, 0.0, None), None);
        assert_eq!(eta(60, 0.4, 0.0, None), None, "a trickle");
        // 80 at once in the end.
        assert_eq!(eta(60, 10.0, 6.0, Some(8.0)), None);
    }

    #[test]
    fn the_ceiling_is_ports_over_hold() {
        assert_eq!(forecast(60, 10.0, 6.0, Some(50.0)).ceiling_per_s, Some(2.0));
        assert_eq!(forecast(60, 10.0, 6.0, None).ceiling_per_s, None);
    }
}
