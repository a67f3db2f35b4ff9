//! Lost facts: how many, where, and whether the ledger has been corrected since.

use std::time::{Duration, Instant};

use crate::record::{Loss, LostAt};

/// After this many comparisons with a difference or a further loss, a loss is reported as not
/// healed.
const HEALING_ROUNDS: u32 = 8;
/// The minimum interval between comparisons that are made only because of a doubt.
const DOUBT_INTERVAL: Duration = Duration::from_secs(10);

/// Lost facts, by where they were lost.
#[derive(Default)]
pub struct Losses {
    ring: Lost,
    recursion: Lost,
    /// Differences between ledger and kernel without another explanation.
    unseen: Lost,
    /// The part of `recursion` that comparisons showed and the kernel did not count.
    doubted: u64,
    doubts: Doubts,
    /// Number of comparisons since the oldest loss that is not healed.
    rounds: u32,
}

#[derive(Default)]
struct Lost {
    now: u64,
    reported: u64,
}

/// Firings of hooks for which perhaps no program ran. A comparison shows whether that was so.
#[derive(Default)]
struct Doubts {
    now: u64,
    /// Those before the present comparison.
    comparing: u64,
    /// Those before the last comparison.
    compared: u64,
    /// When that ended.
    last: Option<Instant>,
}

/// The counters of the programs.
pub struct ProgramLosses {
    /// Facts for which the ring had no space.
    pub ring_full: u64,
    /// Firings of hooks for which no program ran.
    pub unseen_firings: u64,
    /// Upper bound of further such firings.
    pub doubtful_firings: u64,
}

/// How much of the host a comparison covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Every network namespace that can hold a port.
    Completely,
    /// Some could not be listed.
    Partly,
}

/// What to do after a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// The differences are explained and corrected. Report the next comparison instead.
    CompareAgain,
    /// Report the losses and whether they are healed, then the comparison.
    Report {
        /// The ledger equals the kernel, and nothing was lost during the comparison.
        healed: bool,
    },
}

impl Losses {
    /// Updates the counts from the programs' counters. A counter that could not be read keeps its
    /// value.
    pub fn count(&mut self, counted: &ProgramLosses) {
        let ProgramLosses { ring_full, unseen_firings, doubtful_firings } = *counted;
        self.ring.now = self.ring.now.max(ring_full);
        self.recursion.now = self.recursion.now.max(unseen_firings + self.doubted);
        self.doubts.now = self.doubts.now.max(doubtful_firings);
    }

    /// Adds differences without another explanation. The next comparison shows whether the ledger
    /// is healed.
    pub fn count_unseen(&mut self, differences: u64) {
        self.unseen.now += differences;
    }

    /// Number of lost facts.
    pub fn total(&self) -> u64 {
        self.ring.now + self.recursion.now + self.unseen.now
    }

    /// Number of lost facts that are not yet reported.
    pub fn unhealed(&self) -> u64 {
        let Self { ring, recursion, unseen, doubted: _, doubts: _, rounds: _ } = self;
        self.total() - ring.reported - recursion.reported - unseen.reported
    }

    /// True if more may have been lost than is known. A comparison will show whether that is so.
    pub fn are_in_doubt(&self) -> bool {
        self.doubts.now > self.doubts.compared
    }

    /// True if that comparison is due.
    pub fn is_comparison_due(&self, now: Instant) -> bool {
        let rests = self.doubts.last.is_some_and(|last| now.duration_since(last) < DOUBT_INTERVAL);
        self.are_in_doubt() && !rests
    }

    /// Records that a comparison begins.
    pub fn begin_comparison(&mut self) {
        self.doubts.comparing = self.doubts.now;
    }

    /// Evaluates a comparison that found this number of differences. `lost` is the
    /// [`total`](Self::total) when it began. One that could not list all namespaces heals nothing.
    pub fn evaluate(
        &mut self,
        now: Instant,
        differences: u64,
        lost: u64,
        coverage: Listed,
    ) -> NextStep {
        if self.are_in_doubt() {
            self.doubted += differences;
            self.recursion.now += differences;
        }
        let doubts = &mut self.doubts;
        doubts.compared = doubts.comparing;
        doubts.last = Some(now);
        let healed = differences == 0 && self.total() == lost && coverage == Listed::Completely;
        if self.unhealed() > 0 {
            self.rounds += 1;
            if !healed && self.rounds < HEALING_ROUNDS {
                return NextStep::CompareAgain;
            }
        }
        NextStep::Report { healed }
    }

    /// Passes the losses since the last report to `emit`.
    pub fn report(&mut self, healed: bool, mut emit: impl FnMut(&Loss)) {
        let Self { ring, recursion, unseen, doubted: _, doubts: _, rounds } = self;
        *rounds = 0;
        let places =
            [(ring, LostAt::Ring), (recursion, LostAt::Recursion), (unseen, LostAt::Unseen)];
        for (lost, lost_at) in places {
            let count = lost.now - lost.reported;
            if count > 0 {
                emit(&Loss { count, lost_at, healed });
                lost.reported = lost.now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(ring_full: u64, unseen_firings: u64, doubtful_firings: u64) -> ProgramLosses {
        ProgramLosses { ring_full, unseen_firings, doubtful_firings }
    }

    /// The losses that are reported, as `(count, lost_at, healed)`.
    fn reported(losses: &mut Losses, healed: bool) -> Vec<(u64, LostAt, bool)> {
        let mut reported = Vec::new();
        losses.report(healed, |loss| reported.push((loss.count, loss.lost_at, loss.healed)));
        reported
    }

    /// A comparison that finds this number of differences.
    fn compare(losses: &mut Losses, differences: u64) -> NextStep {
        let lost = losses.total();
        losses.begin_comparison();
        losses.evaluate(Instant::now(), differences, lost, Listed::Completely)
    }

    #[test]
    fn a_loss_is_healed_once_a_comparison_finds_nothing() {
        let mut losses = Losses::default();
        losses.count(&counted(7, 2, 0));
        assert_eq!(losses.unhealed(), 9);
        assert_eq!(compare(&mut losses, 3), NextStep::CompareAgain);
        assert_eq!(compare(&mut losses, 0), NextStep::Report { healed: true });
        let expected = [(7, LostAt::Ring, true), (2, LostAt::Recursion, true)];
        assert_eq!(reported(&mut losses, true), expected);
        assert_eq!(losses.unhealed(), 0);
        // A loss is reported once, and a counter that cannot be read does not change the count.
        losses.count(&counted(0, 0, 0));
        assert_eq!(reported(&mut losses, true), []);
        assert_eq!(losses.total(), 9);
    }

    #[test]
    fn a_comparison_that_could_not_list_everything_heals_nothing() {
        let mut losses = Losses::default();
        losses.count(&counted(3, 0, 0));
        for _ in 1..HEALING_ROUNDS {
            let next = losses.evaluate(Instant::now(), 0, losses.total(), Listed::Partly);
            assert_eq!(next, NextStep::CompareAgain);
        }
        let next = losses.evaluate(Instant::now(), 0, losses.total(), Listed::Partly);
        assert_eq!(next, NextStep::Report { healed: false });
    }

    #[test]
    fn a_ledger_that_is_never_right_ends_as_not_healed() {
        let mut losses = Losses::default();
        losses.count(&counted(1, 0, 0));
        for _ in 1..HEALING_ROUNDS {
            assert_eq!(compare(&mut losses, 1), NextStep::CompareAgain);
        }
        assert_eq!(compare(&mut losses, 1), NextStep::Report { healed: false });
    }

    #[test]
    fn a_loss_during_a_comparison_is_not_healed_by_it() {
        let mut losses = Losses::default();
        losses.count(&counted(1, 0, 0));
        let lost = losses.total();
        losses.begin_comparison();
        losses.count(&counted(2, 0, 0));
        assert_eq!(
            losses.evaluate(Instant::now(), 0, lost, Listed::Completely),
            NextStep::CompareAgain
        );
    }

    #[test]
    fn what_a_doubt_explains_is_lost_to_recursion() {
        let mut losses = Losses::default();
        losses.count(&counted(0, 4, 1));
        assert_eq!(reported(&mut losses, true), [(4, LostAt::Recursion, true)]);
        assert!(losses.is_comparison_due(Instant::now()));
        assert_eq!(compare(&mut losses, 5), NextStep::CompareAgain);
        assert_eq!(compare(&mut losses, 0), NextStep::Report { healed: true });
        assert_eq!(reported(&mut losses, true), [(5, LostAt::Recursion, true)]);
        // Both counts go on from there.
        losses.count(&counted(0, 6, 1));
        assert_eq!(reported(&mut losses, true), [(2, LostAt::Recursion, true)]);
        // A difference without a doubt is counted as unexplained.
        assert!(!losses.is_comparison_due(Instant::now()));
        assert_eq!(compare(&mut losses, 1), NextStep::Report { healed: false });
        assert_eq!(losses.unhealed(), 0);
    }

    #[test]
    fn doubts_ask_for_one_comparison_in_ten_seconds() {
        let mut losses = Losses::default();
        losses.count(&counted(0, 0, 1));
        assert_eq!(compare(&mut losses, 0), NextStep::Report { healed: true });
        assert!(!losses.is_comparison_due(Instant::now()));
        losses.count(&counted(0, 0, 2));
        assert!(!losses.is_comparison_due(Instant::now()));
        assert!(losses.is_comparison_due(Instant::now() + DOUBT_INTERVAL));
    }
}
