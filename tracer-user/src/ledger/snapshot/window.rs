//! What changes while a snapshot is taken.

use rustc_hash::FxHashSet;

use crate::ledger::tables::{Hold, SnapshotNumber};

/// A snapshot is not an instant. What ended while it was taken may still be in it, and what began or
/// changed may be missing or outdated.
#[derive(Debug, Default)]
pub(in crate::ledger) struct SnapshotWindow {
    number: SnapshotNumber,
    /// The holds that ended since the snapshot was begun; `None` if none is being taken.
    ended: Option<FxHashSet<Hold>>,
    /// More holds ended than are kept.
    has_overflowed: bool,
}

impl SnapshotWindow {
    /// Maximum number of holds that are kept, some 60 bytes each. A snapshot during which more end
    /// says nothing about what is missing.
    const MAX_ENDED: usize = 1_000_000;

    /// From now on a snapshot is being taken.
    pub fn open(&mut self) {
        self.ended = Some(FxHashSet::default());
        self.has_overflowed = false;
        self.number = self.number.wrapping_add(1);
    }

    /// Every observation from the time of the snapshot was applied, and the snapshot was used.
    pub fn close(&mut self) {
        self.ended = None;
    }

    /// The number of the present snapshot, or of the latest one.
    pub fn number(&self) -> SnapshotNumber {
        self.number
    }

    /// A hold has ended.
    pub fn end(&mut self, hold: impl FnOnce() -> Option<Hold>) {
        let Some(ended) = &mut self.ended else { return };
        if ended.len() >= Self::MAX_ENDED {
            self.has_overflowed = true;
        } else {
            ended.extend(hold());
        }
    }

    /// True if the hold has ended since the snapshot was begun, or may have.
    pub fn has_ended(&self, hold: &Hold) -> bool {
        self.has_overflowed || self.ended.as_ref().is_some_and(|ended| ended.contains(hold))
    }

    /// True if more holds ended during the present snapshot, or the latest one, than are kept.
    pub fn has_overflowed(&self) -> bool {
        self.has_overflowed
    }
}
