//! Records about the run itself: its start, its losses, its end.

use std::{borrow::Cow, collections::BTreeMap};

use crate::model::Instant;

/// A hook, for the reader: how it is attached, or why it is not.
#[derive(Clone, Debug)]
pub struct HookReport {
    /// The kernel's name of it.
    pub name: Cow<'static, str>,
    /// How it is attached, or a sentence that says why it is not.
    pub outcome: Result<Cow<'static, str>, String>,
    /// What is not reported without the hook.
    pub loss: Option<&'static str>,
}

/// The first record: what happens after it is seen.
#[derive(Clone, Debug)]
pub struct Start {
    /// When.
    pub at: Instant,
    /// The kernel's release.
    pub kernel: String,
    /// Every hook.
    pub hooks: Vec<HookReport>,
    /// Number of `held` records that follow.
    pub held: usize,
    /// What else is not seen, in sentences.
    pub warnings: Vec<String>,
}

/// The last record.
#[derive(Clone, Debug)]
pub struct Summary {
    /// When.
    pub at: Instant,
    /// Number of records of each type that were shown.
    pub totals: BTreeMap<&'static str, u64>,
    /// Facts that the hooks had to report.
    pub facts_seen: u64,
    /// Those of them that the programs dropped because the filter excludes their namespace.
    pub facts_filtered: u64,
    /// Facts that arrived.
    pub facts_received: u64,
    /// Facts that were lost.
    pub lost: u64,
    /// Records that were not shown because the reader of stdout was too slow.
    pub dropped: u64,
    /// Since the start.
    pub duration_s: f64,
}

/// Facts that did not arrive, or records that were not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub count: u64,
    /// Where.
    pub place: Place,
    /// The ledger agrees with the kernel again.
    pub healed: bool,
}

/// Where facts or records can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The ring buffer had no room.
    Ring,
    /// The kernel skipped a program that had interrupted itself.
    Recursion,
    /// Nobody knows: ledger and kernel differed, and no miss was counted.
    Unseen,
    /// Records, because the reader of stdout was too slow. The ledger has everything; what the
    /// reader has seen lacks them.
    Reader,
}

/// A cgroup by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Path from the root of the v2 hierarchy.
    pub path: String,
    /// The container that it belongs to, if it is a container runtime's.
    pub container: Option<String>,
}

impl Start {
    /// Everything that is not seen, and why, in sentences.
    pub fn shortcomings(&self) -> impl Iterator<Item = String> {
        let hooks = self.hooks.iter().filter_map(|hook| {
            let (reason, loss) = (hook.outcome.as_ref().err()?, hook.loss?);
            Some(format!("the hook {} is not attached ({reason}): {loss}", hook.name))
        });
        self.warnings.iter().cloned().chain(hooks)
    }
}

/// A comparison of the ledger with the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Leases in the ledger.
    pub leases: u64,
    /// Leases that the kernel's holds make.
    pub kernel: u64,
    /// Holds that only the kernel has.
    pub missing: u64,
    /// Holds that only the ledger has.
    pub extra: u64,
    /// Bind buckets whose class the ledger has otherwise than the kernel.
    pub classes: u64,
    /// Each difference in a sentence.
    pub differences: Vec<String>,
}

/// The name of a process, without its padding.
pub(crate) fn comm(bytes: &[u8; 16]) -> Cow<'_, str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}
