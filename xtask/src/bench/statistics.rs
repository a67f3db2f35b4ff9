//! Medians and quartiles. Means would not do, because on a shared machine outliers all have the
//! same sign.

use std::fmt;

/// Repeated measurements of one quantity.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The measurements, in the order of the rounds.
    pub values: Vec<f64>,
    pub median: f64,
    /// Half of the interquartile range.
    pub spread: f64,
}

impl Sample {
    pub fn of(values: Vec<f64>) -> Self {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |numerator: usize, denominator: usize| {
            let last = sorted.len().saturating_sub(1);
            sorted.get(last * numerator / denominator).copied().unwrap_or(f64::NAN)
        };
        let (median, spread) = (at(1, 2), (at(3, 4) - at(1, 4)) / 2.0);
        Self { values, median, spread }
    }

    /// True if the median is not clearly above the spread, so that it means nothing.
    pub fn is_noise(&self) -> bool {
        self.median.is_nan() || self.median <= 2.0 * self.spread
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // So that width and alignment apply to the whole text.
        f.pad(&format!("{:.1} +-{:.1}", self.median, self.spread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_changes_neither_median_nor_spread() {
        let sample = Sample::of(vec![5.0, 4.0, 6.0, 5.0, 500.0]);
        assert!((sample.median - 5.0).abs() < f64::EPSILON);
        assert!((sample.spread - 0.5).abs() < f64::EPSILON);
        assert!(!sample.is_noise());
    }

    #[test]
    fn a_median_smaller_than_its_spread_is_noise() {
        assert!(Sample::of(vec![-4.0, 1.0, 5.0, 2.0, -3.0]).is_noise());
        assert!(Sample::of(Vec::new()).is_noise());
    }
}
