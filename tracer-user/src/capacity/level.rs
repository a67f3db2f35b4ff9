//! Levels of use: a crossing is reported as pressure.

use crate::model::RangeUse;

/// The highest level that use has reached and has not fallen clearly below since.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level(usize);

/// Levels of use, in percent.
const LEVELS: [u8; 4] = [0, 70, 90, 100];
/// How far below a level use must fall before it counts as below, in percent.
const HYSTERESIS_PERCENT: u64 = 5;

impl Level {
    /// Updates the level: `Some(true)` if it rose, `Some(false)` if it fell.
    pub(super) fn update(&mut self, range: &RangeUse) -> Option<bool> {
        let before = self.0;
        let of_capacity = |percent: u64| percent * u64::from(range.capacity);
        let used = u64::from(range.unavailable()) * 100;
        let reaches = |level: usize| {
            range.capacity > 0
                && LEVELS.get(level).is_some_and(|percent| used >= of_capacity(u64::from(*percent)))
        };
        while reaches(self.0 + 1) {
            self.0 += 1;
        }
        let is_below = |level: usize| {
            let least = LEVELS.get(level).map_or(0, |percent| u64::from(*percent));
            used < of_capacity(least.saturating_sub(HYSTERESIS_PERCENT)) || range.capacity == 0
        };
        while self.0 > 0 && is_below(self.0) {
            self.0 -= 1;
        }
        (self.0 != before).then_some(self.0 > before)
    }

    /// The level in percent: 0, 70, 90 or 100.
    pub(super) fn percent(self) -> u8 {
        LEVELS.get(self.0).copied().unwrap_or(100)
    }

    /// True if the level is above 0.
    pub(super) fn is_raised(self) -> bool {
        self.0 > 0
    }
}
