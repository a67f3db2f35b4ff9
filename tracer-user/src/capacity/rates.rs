//! How fast ports are taken and released, with what is older counting less.

use crate::model::{Instant, Rates, seconds};

/// Counts that add up to [`Rates`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RateCounter {
    /// The first port taken. `None` before that.
    since: Option<Instant>,
    taken: DecayingSum,
    released: DecayingSum,
    /// Holds whose length is known, and the sum of their lengths in seconds.
    holds: DecayingSum,
    held_s: DecayingSum,
}

impl RateCounter {
    /// A port was taken.
    pub(super) fn take(&mut self, at: Instant) {
        self.since.get_or_insert(at);
        self.taken.add(at, 1.0);
    }

    /// A port was released.
    pub(super) fn release(&mut self, at: Instant) {
        self.released.add(at, 1.0);
    }

    /// The length of a hold is known: it has ended, or its TIME_WAIT has begun, whose end is known
    /// in advance.
    pub(super) fn hold(&mut self, at: Instant, held_s: f64) {
        self.holds.add(at, 1.0);
        self.held_s.add(at, held_s);
    }

    /// The rates at this time.
    pub(super) fn rates(&self, now: Instant) -> Rates {
        let Some(since) = self.since else { return Rates::default() };
        let observed_s = seconds(now.since(since)).max(Self::LEAST_OBSERVED_S);
        // A decaying sum falls short of its final value until it has been fed for a while.
        let weight_s = DecayingSum::TIME_S * (1.0 - (-observed_s / DecayingSum::TIME_S).exp());
        let holds = self.holds.at(now);
        Rates {
            taken_per_s: self.taken.at(now) / weight_s,
            released_per_s: self.released.at(now) / weight_s,
            hold_s: (holds > 1e-6).then(|| self.held_s.at(now) / holds),
        }
    }

    /// A shorter observation says nothing about a rate: the first connection of all would count as
    /// a million a second.
    const LEAST_OBSERVED_S: f64 = 1.0;
}

/// A sum in which an event of [`TIME_S`](Self::TIME_S) ago counts 1/e.
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
            // It was decided late, and counts as if it had come in time.
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
                counter.hold(at, 1.0);
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
