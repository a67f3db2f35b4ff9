//! Where ledger and kernel differ.

use rustc_hash::FxHashMap;
use tracer_ebpf::Owner;

use crate::{
    ledger::tables::{Hold, LeaseIndex},
    model::{BucketClass, Held, Lease, LeaseId, Netns, Port},
};

/// The differences that a comparison found.
#[derive(Debug, Default)]
pub struct Differences {
    /// Leases in the ledger.
    pub leases: usize,
    /// Leases that the kernel's holds make.
    pub kernel: usize,
    /// Holds of the kernel that the ledger lacks, or has otherwise.
    pub(super) missing: FxHashMap<Hold, Held>,
    /// Holds of the ledger that the kernel lacks, or has otherwise.
    pub(super) extra: FxHashMap<Hold, Lease>,
    /// Leases of which the owner is not among the processes that have the socket open, with one of
    /// these. Not a difference: no event shows that a socket is handed on.
    pub(super) owners: Vec<((LeaseIndex, LeaseId), Owner)>,
    /// Buckets whose class the ledger has otherwise, with the kernel's.
    pub(super) classes: FxHashMap<(Netns, Port), BucketClass>,
}

impl Differences {
    /// Number of holds that only the kernel has.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Number of holds that only the ledger has.
    #[must_use]
    pub fn extra(&self) -> usize {
        self.extra.len()
    }

    /// Number of bind buckets whose class the ledger has otherwise than the kernel.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// True if both agree.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.classes.is_empty()
    }

    /// Keeps what an earlier comparison has found as well.
    pub fn retain_confirmed(&mut self, earlier: &Self) {
        self.missing.retain(|hold, held| {
            earlier.missing.get(hold).is_some_and(|before| before.by == held.by)
        });
        self.extra.retain(|hold, lease| {
            earlier.extra.get(hold).is_some_and(|before| before.id == lease.id)
        });
        self.classes.retain(|bucket, class| earlier.classes.get(bucket) == Some(class));
    }

    /// Each difference in a sentence.
    pub fn descriptions(&self) -> impl Iterator<Item = String> {
        let missing = self.missing.values().map(|held| {
            format!(
                "missing in the ledger: socket {}, {}:{} in {}, {:?}",
                held.cookie.0, held.local_addr, held.local_port.0, held.netns.0, held.by
            )
        });
        let extra = self.extra.values().map(|lease| {
            format!(
                "missing in the kernel: socket {}, {}:{} in {}, {:?} of lease {}",
                lease.cookie.0,
                lease.local_addr,
                lease.local_port.0,
                lease.netns.0,
                lease.phase,
                lease.id.0
            )
        });
        let classes = self.classes.iter().map(|((netns, port), class)| {
            format!("the bucket of port {} in {} is of the class {class:?}", port.0, netns.0)
        });
        missing.chain(extra).chain(classes)
    }
}
