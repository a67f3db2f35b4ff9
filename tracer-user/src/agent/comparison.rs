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
    model::Unknown,
};

/// How often the ledger is compared with the kernel where the user does not say: there are kernels
/// that run no program in some places and count no miss, and a port that is shown as held for ever
/// would be worse than one that is released late.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

/// The comparisons of a session.
pub(crate) struct Comparisons {
    /// What the programs report, and snapshots must show.
    scope: Scope,
    /// Each comparison by the clock is reported.
    pub are_reported: bool,
    /// How often there is one by the clock; `None` for never.
    interval: Option<Duration>,
    next: Deadline,
    under_way: Option<UnderWay>,
}

/// A comparison under way.
struct UnderWay {
    snapshot: JoinHandle<Snapshot>,
    /// What the first snapshot found, which this second one confirms or does not.
    earlier: Option<Differences>,
    /// Facts lost when it began.
    lost: u64,
}

/// A snapshot that was taken for a comparison.
pub(crate) struct Taken {
    snapshot: Snapshot,
    earlier: Option<Differences>,
    lost: u64,
}

/// What a comparison found.
pub(crate) struct Found {
    /// The differences that both snapshots show.
    pub differences: Differences,
    /// Facts lost when the comparison began.
    pub lost: u64,
}

impl Comparisons {
    /// With `verify`, one so often, each of which is reported. Without a first snapshot the ledger
    /// does not have what was there before it, and only a `verify` asks for comparisons.
    pub fn new(scope: Scope, verify: Option<Duration>, has_snapshot: bool) -> Self {
        let interval = verify.or(has_snapshot.then_some(DEFAULT_INTERVAL));
        Self {
            scope,
            are_reported: verify.is_some(),
            interval,
            next: Deadline::now() + interval.unwrap_or_default(),
            under_way: None,
        }
    }

    /// True if the session may sleep until the ring wakes it.
    pub fn are_idle(&self, losses: &Losses) -> bool {
        self.under_way.is_none()
            && losses.unhealed() == 0
            && !(self.interval.is_some() && losses.are_in_doubt())
    }

    /// When the session must be awake for the next one. `None` if only events make one necessary:
    /// where nothing happens there is nothing to compare, unless the user asked for it.
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

    /// The snapshot of the comparison under way, once it was taken.
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

    /// Compares, given that every observation from the time of the snapshot was applied. `None` if
    /// a second snapshot must confirm what was found.
    pub fn compare(
        &mut self,
        taken: Taken,
        probes: &mut Probes,
        ledger: &mut Ledger,
        losses: &Losses,
    ) -> Option<Found> {
        let Taken { snapshot: Snapshot { held, coverage, classes, problems: _ }, earlier, lost } =
            taken;
        let unknown = if losses.unhealed() > 0 { Unknown::Gone } else { Unknown::Believed };
        let mut differences = ledger.compare(&held, &coverage, unknown);
        ledger.compare_classes(&classes, &mut differences);
        ledger.end_snapshot();
        match earlier {
            None if !differences.is_empty() => {
                self.take(probes, ledger, losses.total(), Some(differences));
                None
            }
            None => Some(Found { differences, lost }),
            Some(earlier) => {
                differences.retain_confirmed(&earlier);
                Some(Found { differences, lost })
            }
        }
    }

    /// Notes that a comparison was concluded. True if it was one by the clock.
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
        let (open_files, scope) = (probes.open_files.clone(), self.scope);
        let holders = probes.holders.clone().map(HolderLists::new);
        ledger.begin_snapshot();
        let snapshot =
            spawn_blocking(move || snapshot::take(open_files.as_ref(), holders.as_ref(), scope));
        self.under_way = Some(UnderWay { snapshot, earlier, lost });
    }
}
