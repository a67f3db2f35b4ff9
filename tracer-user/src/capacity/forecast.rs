//! When there will be no port left.

use crate::model::{Rates, Room};

/// What becomes of a destination or a range if things go on as they do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// In how many seconds the last port is taken: 0 if it is; `None` if that does not happen, or
    /// if nothing is known of how fast ports go.
    pub eta_s: Option<f64>,
    /// How many ports will be in use at once in the end: those taken a second, times the seconds
    /// that each is held (Little's law). `None` while none has been let go.
    pub plateau: Option<f64>,
}

impl Forecast {
    /// From the ports as they are and how fast they go.
    #[must_use]
    pub fn of(room: &Room, rates: &Rates) -> Self {
        let Rates { taken_per_s, released_per_s, hold_s } = *rates;
        let plateau = hold_s.map(|hold_s| taken_per_s * hold_s);
        let headroom = f64::from(room.headroom());
        let growth = taken_per_s - released_per_s;
        let levels_off = plateau.is_some_and(|plateau| {
            // What is let go early says little of what is still held.
            plateau >= f64::from(room.used)
                && plateau < f64::from(room.capacity - room.bind_locked.min(room.capacity))
        });
        let eta_s = if room.headroom() == 0 {
            Some(0.0)
        } else if growth > f64::EPSILON && !levels_off {
            Some(headroom / growth)
        } else {
            None
        };
        Self { eta_s, plateau }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eta(used: u32, taken_per_s: f64, released_per_s: f64, hold_s: Option<f64>) -> Option<f64> {
        let room = Room { capacity: 100, used, ..Room::default() };
        Forecast::of(&room, &Rates { taken_per_s, released_per_s, hold_s }).eta_s
    }

    #[test]
    fn what_grows_ends() {
        assert_eq!(eta(60, 10.0, 0.0, None), Some(4.0));
        assert_eq!(eta(60, 10.0, 6.0, None), Some(10.0));
        assert_eq!(eta(100, 10.0, 10.0, Some(60.0)), Some(0.0));
        // 600 at once is more than there are.
        assert_eq!(eta(60, 10.0, 6.0, Some(60.0)), Some(10.0));
    }

    #[test]
    fn what_levels_off_or_shrinks_does_not() {
        assert_eq!(eta(60, 10.0, 10.0, Some(6.0)), None);
        assert_eq!(eta(60, 5.0, 10.0, None), None);
        assert_eq!(eta(60, 0.0, 0.0, None), None);
        // 80 at once in the end.
        assert_eq!(eta(60, 10.0, 6.0, Some(8.0)), None);
    }
}
