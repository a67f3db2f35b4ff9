//! Facts that did not arrive: how many, where, and when the ledger is right again.

use std::time::{Duration, Instant};

use crate::record::{Loss, LostAt};

/// Comparisons that may find a difference, or a further loss, before a loss is reported as not
/// healed.
const HEALING_ROUNDS: u32 = 8;
/// How soon a comparison that only a doubt asks for may follow another.
const DOUBT_INTERVAL: Duration = Duration::from_secs(10);

/// Facts that did not arrive, by where they were lost.
#[derive(Default)]
pub struct Losses {
    ring: Lost,
    recursion: Lost,
    /// Differences between ledger and kernel that nothing else explains.
    unseen: Lost,
    /// Differences that firings explain which no program saw and none counted; part of
    /// `recursion`.
    doubted: u64,
    doubts: Doubts,
    /// Comparisons since the oldest loss that is not healed.
    rounds: u32,
}

#[derive(Default)]
struct Lost {
    now: u64,
    reported: u64,
}

/// Firings that perhaps no program saw. A comparison shows it.
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

/// What the programs say of themselves.
pub struct ProgramLosses {
    /// Facts for which the ring had no room.
    pub ring_full: u64,
    /// Firings that no program saw.
    pub unseen_firings: u64,
    /// At most so many more.
    pub doubtful_firings: u64,
}

/// What to do after a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What differed is explained and mended; the next comparison is the one to report.
    CompareAgain,
    /// Report the losses and whether they are healed, then the comparison.
    Report {
        /// The ledger equals the kernel, and nothing was lost meanwhile.
        healed: bool,
    },
}

impl Losses {
    /// Takes in what the programs say. What could not be read now is what it was.
    pub fn count(&mut self, counted: &ProgramLosses) {
        let ProgramLosses { ring_full, unseen_firings, doubtful_firings } = *counted;
        self.ring.now = self.ring.now.max(ring_full);
        self.recursion.now = self.recursion.now.max(unseen_firings + self.doubted);
        self.doubts.now = self.doubts.now.max(doubtful_firings);
    }

    /// Takes in differences that nothing explains. The next comparison shows whether the ledger is
    /// healed.
    pub fn count_unseen(&mut self, differences: u64) {
        self.unseen.now += differences;
    }

    /// All facts that did not arrive.
    pub fn total(&self) -> u64 {
        self.ring.now + self.recursion.now + self.unseen.now
    }

    /// Those that are not yet reported.
    pub fn unhealed(&self) -> u64 {
        let Self { ring, recursion, unseen, doubted: _, doubts: _, rounds: _ } = self;
        self.total() - ring.reported - recursion.reported - unseen.reported
    }

    /// True if more may have been lost than is known. A comparison will show it.
    pub fn are_in_doubt(&self) -> bool {
        self.doubts.now > self.doubts.compared
    }

    /// True if that comparison is due.
    pub fn is_comparison_due(&self, now: Instant) -> bool {
        let rests = self.doubts.last.is_some_and(|last| now.duration_since(last) < DOUBT_INTERVAL);
        self.are_in_doubt() && !rests
    }

    /// Notes that a comparison begins.
    pub fn begin_comparison(&mut self) {
        self.doubts.comparing = self.doubts.now;
    }

    /// Judges a comparison that found so many differences. `lost` is the [`total`](Self::total)
    /// when it began.
    pub fn judge(&mut self, now: Instant, differences: u64, lost: u64) -> Verdict {
        if self.are_in_doubt() {
            self.doubted += differences;
            self.recursion.now += differences;
        }
        let doubts = &mut self.doubts;
        doubts.compared = doubts.comparing;
        doubts.last = Some(now);
        let healed = differences == 0 && self.total() == lost;
        if self.unhealed() > 0 {
            self.rounds += 1;
            if !healed && self.rounds < HEALING_ROUNDS {
                return Verdict::CompareAgain;
            }
        }
        Verdict::Report { healed }
    }

    /// Tells what was lost since this was told last.
    pub fn report(&mut self, healed: bool, mut tell: impl FnMut(&Loss)) {
        let Self { ring, recursion, unseen, doubted: _, doubts: _, rounds } = self;
        *rounds = 0;
        let places =
            [(ring, LostAt::Ring), (recursion, LostAt::Recursion), (unseen, LostAt::Unseen)];
        for (lost, lost_at) in places {
            let count = lost.now - lost.reported;
            if count > 0 {
                tell(&Loss { count, lost_at, healed });
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

    /// What is told, as `(count, lost_at, healed)`.
    fn told(losses: &mut Losses, healed: bool) -> Vec<(u64, LostAt, bool)> {
        let mut told = Vec::new();
        losses.report(healed, |loss| told.push((loss.count, loss.lost_at, loss.healed)));
        told
    }

    /// A comparison that finds so many differences.
    fn compare(losses: &mut Losses, differences: u64) -> Verdict {
        let lost = losses.total();
        losses.begin_comparison();
        losses.judge(Instant::now(), differences, lost)
    }

    #[test]
    fn a_loss_is_healed_once_a_comparison_finds_nothing() {
        let mut losses = Losses::default();
        losses.count(&counted(7, 2, 0));
        assert_eq!(losses.unhealed(), 9);
        assert_eq!(compare(&mut losses, 3), Verdict::CompareAgain);
        assert_eq!(compare(&mut losses, 0), Verdict::Report { healed: true });
        let expected = [(7, LostAt::Ring, true), (2, LostAt::Recursion, true)];
        assert_eq!(told(&mut losses, true), expected);
        assert_eq!(losses.unhealed(), 0);
        // What is told is not told again, and what cannot be read is not taken back.
        losses.count(&counted(0, 0, 0));
        assert_eq!(told(&mut losses, true), []);
        assert_eq!(losses.total(), 9);
    }

    #[test]
    fn a_ledger_that_is_never_right_ends_as_not_healed() {
        let mut losses = Losses::default();
        losses.count(&counted(1, 0, 0));
        for _ in 1..HEALING_ROUNDS {
            assert_eq!(compare(&mut losses, 1), Verdict::CompareAgain);
        }
        assert_eq!(compare(&mut losses, 1), Verdict::Report { healed: false });
    }

    #[test]
    fn a_loss_during_a_comparison_is_not_healed_by_it() {
        let mut losses = Losses::default();
        losses.count(&counted(1, 0, 0));
        let lost = losses.total();
        losses.begin_comparison();
        losses.count(&counted(2, 0, 0));
        assert_eq!(losses.judge(Instant::now(), 0, lost), Verdict::CompareAgain);
    }

    #[test]
    fn what_a_doubt_explains_is_lost_to_recursion() {
        let mut losses = Losses::default();
        losses.count(&counted(0, 4, 1));
        assert_eq!(told(&mut losses, true), [(4, LostAt::Recursion, true)]);
        assert!(losses.is_comparison_due(Instant::now()));
        assert_eq!(compare(&mut losses, 5), Verdict::CompareAgain);
        assert_eq!(compare(&mut losses, 0), Verdict::Report { healed: true });
        assert_eq!(told(&mut losses, true), [(5, LostAt::Recursion, true)]);
        // Both counts go on from there.
        losses.count(&counted(0, 6, 1));
        assert_eq!(told(&mut losses, true), [(2, LostAt::Recursion, true)]);
        // A difference without a doubt is another matter.
        assert!(!losses.is_comparison_due(Instant::now()));
        assert_eq!(compare(&mut losses, 1), Verdict::Report { healed: false });
        assert_eq!(losses.unhealed(), 0);
    }

    #[test]
    fn doubts_ask_for_one_comparison_in_ten_seconds() {
        let mut losses = Losses::default();
        losses.count(&counted(0, 0, 1));
        assert_eq!(compare(&mut losses, 0), Verdict::Report { healed: true });
        assert!(!losses.is_comparison_due(Instant::now()));
        losses.count(&counted(0, 0, 2));
        assert!(!losses.is_comparison_due(Instant::now()));
        assert!(losses.is_comparison_due(Instant::now() + DOUBT_INTERVAL));
    }
}
