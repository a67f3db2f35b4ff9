//! Histograms of durations, from microseconds to days.

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

/// A histogram of durations. Bucket edges are 1, 2 and 5 times each power of ten, so quantiles are
/// exact to a factor of 2.5; minimum, maximum and mean are exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum_s: f64,
    min_s: f64,
    max_s: f64,
}

/// From below 1 us to above 100,000 s.
const BUCKETS: usize = 35;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], count: 0, sum_s: 0.0, min_s: 0.0, max_s: 0.0 }
    }
}

impl Histogram {
    /// Adds a duration in seconds. Negative and non-finite values are ignored.
    pub fn add(&mut self, seconds: f64) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        let bucket = (0..BUCKETS - 1).find(|bucket| seconds < edge_s(*bucket));
        if let Some(count) = self.counts.get_mut(bucket.unwrap_or(BUCKETS - 1)) {
            *count += 1;
        }
        self.min_s = if self.count == 0 { seconds } else { self.min_s.min(seconds) };
        self.max_s = self.max_s.max(seconds);
        self.sum_s += seconds;
        self.count += 1;
    }

    /// The number of samples.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean in seconds. `None` if there are no samples.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "the precision suffices for a mean")]
    pub fn mean_s(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum_s / self.count as f64)
    }

    /// The maximum in seconds. `None` if there are no samples.
    #[must_use]
    pub fn max_s(&self) -> Option<f64> {
        (self.count > 0).then_some(self.max_s)
    }

    /// The quantile for `part` (0 to 1), in seconds: the upper edge of its bucket. `None` if there
    /// are no samples.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank between 0 and the count"
    )]
    pub fn quantile_s(&self, part: f64) -> Option<f64> {
        let rank = ((self.count as f64 * part).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        self.counts.iter().enumerate().find_map(|(bucket, count)| {
            below += count;
            let edge_s = if bucket == BUCKETS - 1 { self.max_s } else { edge_s(bucket) };
            (below >= rank && *count > 0).then(|| edge_s.clamp(self.min_s, self.max_s))
        })
    }

    /// The number of samples in buckets whose lower edge is at least `seconds`.
    #[must_use]
    pub fn count_from(&self, seconds: f64) -> u64 {
        self.buckets().filter(|(low, _, _)| *low >= seconds).map(|(_, _, count)| count).sum()
    }

    /// Lower edge, upper edge and count of the buckets from the first to the last non-empty one. The
    /// upper edge of the overflow bucket is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, f64, u64)> {
        let first = self.counts.iter().position(|count| *count > 0).unwrap_or(BUCKETS);
        let last = self.counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        (first..=last).filter_map(|bucket| {
            let low = bucket.checked_sub(1).map_or(0.0, edge_s);
            let high = if bucket == BUCKETS - 1 { f64::INFINITY } else { edge_s(bucket) };
            Some((low, high, *self.counts.get(bucket)?))
        })
    }
}

/// Upper edge of a bucket: 1 us, 2 us, 5 us, 10 us ...
fn edge_s(bucket: usize) -> f64 {
    let edge = [1.0, 2.0, 5.0].get(bucket % 3).copied().unwrap_or(1.0);
    let decade_us = 10_f64.powi(i32::try_from(bucket / 3).unwrap_or(0));
    // Dividing whole microseconds gives the double nearest to the edge. Multiplying by 1e-6, which
    // has no exact representation, can give its neighbour: 4.9999999999999996e-6.
    edge * decade_us / 1e6
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Bucket {
            /// Upper edge, exclusive; `None` for the overflow bucket.
            below_s: Option<f64>,
            count: u64,
        }
        let buckets: Vec<_> = self
            .buckets()
            .map(|(_, high, count)| Bucket { below_s: high.is_finite().then_some(high), count })
            .collect();
        let mut fields = serializer.serialize_struct("Histogram", 7)?;
        fields.serialize_field("count", &self.count)?;
        fields.serialize_field("mean_s", &self.mean_s())?;
        fields.serialize_field("min_s", &(self.count > 0).then_some(self.min_s))?;
        fields.serialize_field("p50_s", &self.quantile_s(0.5))?;
        fields.serialize_field("p99_s", &self.quantile_s(0.99))?;
        fields.serialize_field("max_s", &self.max_s())?;
        fields.serialize_field("buckets", &buckets)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_histogram_has_no_statistics() {
        let histogram = Histogram::default();
        assert_eq!(histogram.buckets().count(), 0);
        assert_eq!((histogram.mean_s(), histogram.quantile_s(0.5)), (None, None));
    }

    #[test]
    fn edges_are_decimal_numbers() {
        for bucket in 0..BUCKETS - 1 {
            let exact = format!("{}e{}", [1, 2, 5][bucket % 3], bucket as i32 / 3 - 6);
            assert_eq!(exact.parse(), Ok(edge_s(bucket)));
        }
    }

    proptest! {
        #[test]
        fn every_time_is_in_its_bucket(times in prop::collection::vec(0.0..1e6_f64, 1..50)) {
            let mut histogram = Histogram::default();
            for time in &times {
                histogram.add(*time);
            }
            let total: u64 = histogram.buckets().map(|(_, _, count)| count).sum();
            prop_assert_eq!(total, times.len() as u64);
            for (low, high, count) in histogram.buckets() {
                let within = times.iter().filter(|time| low <= **time && **time < high).count();
                prop_assert_eq!(within as u64, count, "from {} to {}", low, high);
            }
            let mut sorted = times.clone();
            sorted.sort_by(f64::total_cmp);
            let median = sorted[(sorted.len() - 1) / 2];
            let shown = histogram.quantile_s(0.5).unwrap();
            prop_assert!(shown >= median && shown <= histogram.max_s().unwrap());
        }
    }
}
