//! Records about the run itself: its start, its losses, its end.

use std::collections::BTreeMap;

use crate::foreign::Foreign;

/// Whether a hook is attached.
#[derive(Clone, Debug)]
pub struct HookReport {
    /// The kernel's name of the tracepoint, function or operation.
    pub name: Foreign<'static>,
    /// How the hook is attached, or the reason why it is not.
    pub outcome: Result<Foreign<'static>, Foreign<'static>>,
    /// The events that are not reported without this hook; `None` if it is attached or another one
    /// replaces it, and for a hook of a recording.
    pub loss: Option<&'static str>,
}

impl HookReport {
    /// What is not seen without the hook, in a sentence. `None` if nothing is lost.
    #[cfg(feature = "programs")]
    pub(crate) fn warning(&self) -> Option<String> {
        let (reason, loss) = (self.outcome.as_ref().err()?, self.loss?);
        Some(format!("the hook {} is not attached ({reason}): {loss}", self.name))
    }
}

/// The first record of a run.
#[derive(Clone, Debug)]
pub struct Start {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: Foreign<'static>,
    /// Every hook.
    pub hooks: Vec<HookReport>,
    /// True if connect() may choose a bind-locked port again as soon as only ports that connect()
    /// chose are left in its bucket (Linux 6.18), false if it must wait for the last owner.
    pub buckets_recover: bool,
    /// Number of `held` records that follow.
    pub held: usize,
    /// Events that are not seen, because a hook or a privilege is missing, one sentence each.
    pub warnings: Vec<Foreign<'static>>,
}

/// The last record of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Number of records that were shown, by type.
    pub totals: BTreeMap<&'static str, u64>,
    /// Facts that the programs had to report.
    pub facts_seen: u64,
    /// Those of them that the programs dropped because the filter excludes their namespace.
    pub facts_filtered: u64,
    /// Facts that the agent received.
    pub facts_received: u64,
    /// Facts that were lost between the programs and the agent.
    pub lost: u64,
    /// Records that were not shown because the reader of stdout was too slow.
    pub dropped: u64,
    /// Seconds from the first record to this one.
    pub duration_s: f64,
}

/// Facts that did not reach the agent, or records that were not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Number of facts, at least, or of records.
    pub count: u64,
    /// Where they were lost.
    pub lost_at: LostAt,
    /// The ledger has been compared with the kernel since, and agrees with it.
    pub healed: bool,
}

/// Where facts or records can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostAt {
    /// The ring buffer was full.
    Ring,
    /// The kernel skipped a program that had interrupted itself.
    Recursion,
    /// Unknown: ledger and kernel differed although no loss was counted.
    Unseen,
    /// Records, because the reader of stdout was too slow. The ledger has everything; what the
    /// reader has seen lacks them.
    Reader,
}

/// A cgroup by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Path from the root of the v2 hierarchy.
    pub path: Foreign<'static>,
    /// The id of the container whose cgroup it is; `None` if no container runtime made it.
    pub container: Option<Foreign<'static>>,
}

/// The result of a comparison of the ledger with the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Leases in the ledger.
    pub leases: u64,
    /// Leases in the kernel.
    pub kernel: u64,
    /// Holders that only the kernel has.
    pub missing: u64,
    /// Holders that only the ledger has.
    pub extra: u64,
    /// Bind buckets of which the ledger and the kernel disagree whether connect() may share them.
    pub classes: u64,
    /// Network namespaces that were not compared completely, because they could not be listed.
    pub unlisted: u64,
    /// A sentence for each difference. Not part of the JSON.
    pub differences: Vec<String>,
}

/// The name of a process (`comm` in `task_struct`), without the zeros after it; bytes that are not
/// UTF-8 are replaced.
pub(crate) fn comm(bytes: &[u8; 16]) -> Foreign<'_> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into()
}
