//! Comparisons of the ledger with the kernel: when they are due, and the two snapshots of each.

use std::{io, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant as Deadline,
};

use super::losses::Losses;
use crate::{
    kernel::{
        hooks::probes::Probes,
        lists::{
            holders::HolderLists,
            snapshot::{self, Snapshot},
        },
        namespace::scope::Scope,
    },
    ledger::{Differences, Ledger},
    model::{Netns, UnreachedNamespaces},
};

/// The interval between comparisons unless the user sets one. Some kernels fail to run a program
/// without counting a miss, and a port that is shown as held for ever would be worse than one that
/// is released late.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

/// The problem with a snapshot during which more ports were released than the ledger remembers.
pub(super) const OUTDATED: &str = "too many ports were released while the kernel's lists were read";

/// The comparisons of a session.
pub(crate) struct Comparisons {
    /// The namespaces that the programs report. Snapshots cover the same ones.
    scope: Scope,
    /// True if each periodic comparison is reported.
    pub are_reported: bool,
    /// The interval of periodic comparisons. `None` if there are none.
    interval: Option<Duration>,
    next: Deadline,
    /// The namespace with which the next snapshot begins: the first one that the latest snapshot
    /// did not reach in time.
    first: Option<Netns>,
    under_way: Option<UnderWay>,
}

/// A comparison under way.
struct UnderWay {
    snapshot: JoinHandle<Snapshot>,
    /// The differences that the first snapshot showed, if this is the second one.
    earlier: Option<Differences>,
    /// Number of facts that were lost before it began.
    lost: u64,
}

/// A snapshot that was taken for a comparison.
pub(crate) struct Taken {
    snapshot: Snapshot,
    earlier: Option<Differences>,
    lost: u64,
}

/// The result of a comparison.
pub(crate) struct Found {
    /// The differences that both snapshots show.
    pub differences: Differences,
    /// Number of facts that were lost before it began.
    pub lost: u64,
    /// Number of namespaces that were not compared completely.
    pub unlisted: usize,
    /// What could not be read, in sentences.
    pub problems: Vec<String>,
}

impl Comparisons {
    /// With `verify`, compares at this interval and reports each comparison. Without a first
    /// snapshot the ledger lacks what was held before the start, so it is compared only if `verify`
    /// is set.
    ///
    /// `unreached` is the first namespace that the first snapshot did not reach in time. If there is
    /// one, the first comparison begins at once, with that namespace.
    pub fn new(
        scope: Scope,
        verify: Option<Duration>,
        has_snapshot: bool,
        unreached: Option<Netns>,
    ) -> Self {
        let interval = verify.or(has_snapshot.then_some(DEFAULT_INTERVAL));
        let soon = unreached.map(|_| Duration::ZERO);
        Self {
            scope,
            are_reported: verify.is_some(),
            interval,
            next: Deadline::now() + soon.or(interval).unwrap_or_default(),
            first: unreached,
            under_way: None,
        }
    }

    /// True if the session may sleep until the ring wakes it.
    pub fn are_idle(&self, losses: &Losses) -> bool {
        self.under_way.is_none()
            && losses.unhealed() == 0
            && !(self.interval.is_some() && losses.are_in_doubt())
    }

    /// When the session must wake up for the next one. `None` if only events make one necessary:
    /// while nothing happens there is nothing to compare, unless the user asked for it.
    pub fn wake_at(&self) -> Option<Deadline> {
        self.are_reported.then_some(self.next)
    }

    /// Begins a comparison if one is due.
    pub fn begin_if_due(&mut self, probes: &mut Probes, ledger: &mut Ledger, losses: &mut Losses) {
        let now = Deadline::now();
        let is_due =
            self.interval.is_some() && (now >= self.next || losses.is_comparison_due(now.into()));
        if self.under_way.is_none() && (is_due || losses.unhealed() > 0) {
            losses.begin_comparison();
            self.take(probes, ledger, losses.total(), None);
        }
    }

    /// The snapshot of the comparison under way, as soon as it is taken.
    ///
    /// # Errors
    /// If the thread that takes it has died.
    pub async fn taken(&mut self) -> io::Result<Option<Taken>> {
        let Some(under_way) = self.under_way.take_if(|under_way| under_way.snapshot.is_finished())
        else {
            return Ok(None);
        };
        let UnderWay { snapshot, earlier, lost } = under_way;
        Ok(Some(Taken { snapshot: snapshot.await.map_err(io::Error::other)?, earlier, lost }))
    }

    /// Compares. Every observation up to the time of the snapshot must have been applied. `None` if
    /// a second snapshot must confirm the differences.
    pub fn compare(
        &mut self,
        taken: Taken,
        probes: &mut Probes,
        ledger: &mut Ledger,
        losses: &Losses,
    ) -> Option<Found> {
        let Taken { snapshot, earlier, lost } = taken;
        let Snapshot { held, coverage, classes, mut problems, unreached: next } = snapshot;
        let mut unlisted = coverage.unlisted_count();
        let unreached = if losses.unhealed() > 0 {
            UnreachedNamespaces::AssumeEmpty
        } else {
            UnreachedNamespaces::KeepLeases
        };
        let mut differences = ledger.compare(&held, &coverage, unreached);
        ledger.compare_classes(&classes, &mut differences);
        ledger.end_snapshot();
        if ledger.is_snapshot_outdated() {
            unlisted = unlisted.max(1);
            problems.push(OUTDATED.to_owned());
        }
        match earlier {
            None if !differences.is_empty() => {
                self.take(probes, ledger, losses.total(), Some(differences));
                None
            }
            None => {
                self.first = next;
                Some(Found { differences, lost, unlisted, problems })
            }
            Some(earlier) => {
                self.first = next;
                differences.retain_confirmed(&earlier);
                Some(Found { differences, lost, unlisted, problems })
            }
        }
    }

    /// Records that a comparison is complete. True if it was a periodic one.
    pub fn conclude(&mut self) -> bool {
        let now = Deadline::now();
        let interval = self.interval.filter(|_| now >= self.next);
        if let Some(interval) = interval {
            self.next = now + interval;
        }
        interval.is_some()
    }

    fn take(
        &mut self,
        probes: &mut Probes,
        ledger: &mut Ledger,
        lost: u64,
        earlier: Option<Differences>,
    ) {
        let (open_files, scope, first) = (probes.open_files.clone(), self.scope, self.first);
        let holders = probes.holders.clone().map(HolderLists::new);
        ledger.begin_snapshot();
        let snapshot = spawn_blocking(move || {
            snapshot::take(open_files.as_ref(), holders.as_ref(), scope, first)
        });
        self.under_way = Some(UnderWay { snapshot, earlier, lost });
    }
}
