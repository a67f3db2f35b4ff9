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
}

impl SnapshotWindow {
    /// From now on a snapshot is being taken.
    pub fn open(&mut self) {
        self.ended = Some(FxHashSet::default());
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
        if let Some(ended) = &mut self.ended {
            ended.extend(hold());
        }
    }

    /// True if the hold has ended since the snapshot was begun.
    pub fn has_ended(&self, hold: &Hold) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.contains(hold))
    }
}
