//! The attached hooks, and what the kernel counts of their programs.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    time::Duration,
};

use aya::Ebpf;

use crate::kernel::hooks::{
    status::{HookStatus, Outcome},
    table::{HookKind, HookSpec, Reports, WITHOUT_BACKUP},
};

/// What became of a hook.
#[derive(Debug)]
pub(crate) struct AttachedHook {
    pub(crate) spec: &'static HookSpec,
    pub(crate) outcome: Outcome,
    /// The outcome for the backup copy. `None` if this kernel needs none.
    pub(crate) backup: Option<Outcome>,
}

/// What a hook's programs cost while the kernel kept statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProgramCost {
    /// The hook, by the name in its [`HookStatus`].
    pub(crate) hook: &'static str,
    /// How often it ran.
    pub(crate) runs: u64,
    /// Nanoseconds of all runs, without what it takes to get there.
    pub(crate) ns: u64,
}

/// Every hook that was tried. Dropping this detaches the programs; so does the end of the process.
pub(crate) struct AttachedHooks {
    ebpf: Ebpf,
    hooks: Vec<AttachedHook>,
    iterators: Vec<HookStatus>,
    has_preemptible_tracepoints: bool,
}

impl AttachedHook {
    /// A hook at which all programs are attached.
    pub(crate) fn complete(spec: &'static HookSpec) -> Self {
        let attached = || Outcome::Attached(spec.kind.label());
        Self { spec, outcome: attached(), backup: spec.backup.program().map(|_| attached()) }
    }

    /// True if it is attached and reports this.
    pub(crate) fn reports(&self, what: Reports) -> bool {
        self.spec.reports == what && self.outcome.is_attached()
    }

    fn has_both_copies(&self) -> bool {
        self.outcome.is_attached() && self.backup.as_ref().is_some_and(Outcome::is_attached)
    }

    /// What to show of this hook, and the programs behind it. A backup copy at a tracepoint is
    /// shown as a hook of its own; one at a function is attached with the other program or not at
    /// all.
    fn listed(&self) -> Vec<(HookStatus, Vec<&'static str>)> {
        let Self { spec, outcome, backup } = self;
        let status = |name, without, outcome: &Outcome| HookStatus {
            name,
            without,
            outcome: outcome.clone(),
        };
        let main = status(spec.name, spec.without, outcome);
        match (spec.kind, spec.backup.program(), backup) {
            (HookKind::Tracepoint, Some(copy), Some(outcome)) => vec![
                (main, vec![spec.program]),
                (status(copy, WITHOUT_BACKUP, outcome), vec![copy]),
            ],
            (HookKind::Tracepoint, _, _) => vec![(main, vec![spec.program])],
            _ => vec![(main, spec.programs().collect())],
        }
    }
}

impl AttachedHooks {
    /// The hooks in the order in which they were tried, then the iterators.
    pub(crate) fn new(
        ebpf: Ebpf,
        hooks: Vec<AttachedHook>,
        iterators: Vec<HookStatus>,
        has_preemptible_tracepoints: bool,
    ) -> Self {
        Self { ebpf, hooks, iterators, has_preemptible_tracepoints }
    }

    /// What to show of each hook.
    pub(crate) fn statuses(&self) -> Vec<HookStatus> {
        let hooks = self.hooks.iter().flat_map(AttachedHook::listed).map(|(status, _)| status);
        hooks.chain(self.iterators.iter().cloned()).collect()
    }

    /// True if a hook that reports this is attached.
    pub(crate) fn reports(&self, what: Reports) -> bool {
        self.hooks.iter().any(|hook| hook.reports(what))
    }

    /// What the attached programs cost since the kernel began to keep statistics, which it does
    /// only on request.
    pub(crate) fn costs(&self) -> Vec<ProgramCost> {
        self.hooks
            .iter()
            .flat_map(AttachedHook::listed)
            .filter(|(status, _)| status.outcome.is_attached())
            .filter_map(|(status, programs)| {
                let infos =
                    programs.iter().filter_map(|program| self.ebpf.program(program)?.info().ok());
                // Both programs at a function run whenever the function does.
                let (runs, time) = infos.fold((0, Duration::ZERO), |(runs, time), info| {
                    (info.run_count().max(runs), time + info.run_time())
                });
                let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                (runs > 0).then_some(ProgramCost { hook: status.name, runs, ns })
            })
            .collect()
    }

    /// The number of times that a hook fired and no program ran. The kernel skips a program that
    /// would interrupt itself on its CPU (`recursion_misses`, since 5.12); where a backup copy is
    /// attached, one of the two runs.
    pub(crate) fn unseen_firings(&self) -> u64 {
        self.hooks
            .iter()
            // A program without facts loses none, and its map says at least how much there was.
            .filter(|hook| hook.spec.reports != Reports::ProbedPorts && !hook.has_both_copies())
            .flat_map(|hook| hook.spec.programs())
            .filter_map(|program| self.misses(program))
            .sum()
    }

    /// The greatest number of times that a hook with a backup copy can have fired while neither
    /// program ran: where another task can preempt both, a third finds both running. Each of these
    /// firings is among the misses of both programs.
    pub(crate) fn doubtful_firings(&self) -> u64 {
        self.hooks
            .iter()
            .filter(|hook| {
                hook.spec.kind != HookKind::Tracepoint || self.has_preemptible_tracepoints
            })
            .filter_map(|hook| {
                let backup = hook.spec.backup.program()?;
                Some(self.misses(hook.spec.program)?.min(self.misses(backup)?))
            })
            .sum()
    }

    /// `None` if the program is not loaded, or the kernel keeps no such count.
    fn misses(&self, program: &str) -> Option<u64> {
        recursion_misses(self.ebpf.program(program)?.fd().ok()?.as_fd())
    }
}

fn recursion_misses(program: BorrowedFd<'_>) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", program.as_raw_fd()));
    let info = info.ok()?;
    let misses = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
    misses.trim().parse().ok()
}
