//! How fast ports are acquired and released, as exponentially decaying averages.

use crate::model::{Instant, Rates, seconds};

/// The counts behind [`Rates`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RateCounter {
    /// Time of the first acquisition. `None` before that.
    since: Option<Instant>,
    taken: DecayingSum,
    released: DecayingSum,
    /// Number of holds of known length, and the sum of their lengths in seconds.
    holds: DecayingSum,
    held_s: DecayingSum,
}

impl RateCounter {
    /// Counts a port that was acquired.
    pub(super) fn take(&mut self, at: Instant) {
        self.since.get_or_insert(at);
        self.taken.add(at, 1.0);
    }

    /// Counts a port that was released.
    pub(super) fn release(&mut self, at: Instant) {
        self.released.add(at, 1.0);
    }

    /// Adds the length of a hold, in seconds: one that has ended, or one whose TIME_WAIT has begun,
    /// because the end of that is known in advance.
    pub(super) fn add_hold(&mut self, at: Instant, held_s: f64) {
        self.holds.add(at, 1.0);
        self.held_s.add(at, held_s);
    }

    /// The rates at this time.
    pub(super) fn rates(&self, now: Instant) -> Rates {
        let Some(since) = self.since else { return Rates::default() };
        let observed_s = seconds(now.since(since)).max(Self::MIN_OBSERVED_S);
        // A decaying sum is too low until it has run for a while.
        let weight_s = DecayingSum::TIME_S * (1.0 - (-observed_s / DecayingSum::TIME_S).exp());
        let holds = self.holds.at(now);
        Rates {
            taken_per_s: self.taken.at(now) / weight_s,
            released_per_s: self.released.at(now) / weight_s,
            hold_s: (holds > 1e-6).then(|| self.held_s.at(now) / holds),
        }
    }

    /// Shorter observations are treated as this long: otherwise the first connection would count as
    /// a million a second.
    const MIN_OBSERVED_S: f64 = 1.0;
}

/// A sum in which an event that is [`TIME_S`](Self::TIME_S) old has weight 1/e.
#[derive(Clone, Copy, Debug, Default)]
struct DecayingSum {
    sum: f64,
    at: Instant,
}

impl DecayingSum {
    const TIME_S: f64 = 10.0;

    fn at(self, now: Instant) -> f64 {
        self.sum * (-seconds(now.since(self.at)) / Self::TIME_S).exp()
    }

    fn add(&mut self, at: Instant, value: f64) {
        if at >= self.at {
            (self.sum, self.at) = (self.at(at) + value, at);
        } else {
            // The event was decided late. It has decayed since it happened.
            self.sum += Self { sum: value, at }.at(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let mut counter = RateCounter::default();
        // A hundred a second for twenty seconds, each held for a second.
        for tick in 0..2000_u64 {
            let at = Instant::from_ns(tick * 10_000_000);
            counter.take(at);
            if tick >= 100 {
                counter.release(at);
                counter.add_hold(at, 1.0);
            }
        }
        let rates = counter.rates(Instant::from_ns(2000 * 10_000_000));
        assert!((rates.taken_per_s - 100.0).abs() < 2.0, "{rates:?}");
        assert!((rates.released_per_s - 100.0).abs() < 20.0, "{rates:?}");
        assert!((rates.hold_s.expect("some holds have ended") - 1.0).abs() < 0.01, "{rates:?}");
    }

    #[test]
    fn the_first_connection_is_no_flood() {
        let mut counter = RateCounter::default();
        counter.take(Instant::from_ns(5));
        assert!(counter.rates(Instant::from_ns(6)).taken_per_s < 1.1);
    }
}
