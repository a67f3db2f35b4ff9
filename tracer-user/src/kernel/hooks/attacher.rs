//! Attaches the hooks of the table, each by trying it.
//!
//! No kernel version is asked for: a hook that the kernel refuses is reported with the kernel's
//! reason and with what is lost, and the others go on.

use std::io;

use aya::{
    Btf as AyaBtf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, FEntry, FExit, ProgramError,
        SockOps,
    },
};

use crate::kernel::{
    hooks::{
        attached::AttachedHook,
        error::LoadError,
        programs::{Programs, reason},
        status::Outcome,
        support::KernelSupport,
        table::{Backup, Choice, HOOKS, HookFamily, HookKind, HookSpec},
    },
    host::cgroup::CgroupRoot,
};

/// Links take no flags, and always allow other programs beside theirs (`cgroup_bpf_link_attach`,
/// kernel/bpf/cgroup.c).
const ATTACH_MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// Attaches everything that this kernel permits. Returns what became of each hook, in the order in
/// which they were tried.
///
/// # Errors
/// If function hooks were asked for and the kernel refuses them.
pub(crate) fn attach_all(
    programs: Programs<'_>,
    btf: &AyaBtf,
    cgroups: &io::Result<CgroupRoot>,
    support: &KernelSupport,
    family: HookFamily,
) -> Result<Vec<AttachedHook>, LoadError> {
    let mut attacher = Attacher { programs, btf, cgroups: cgroups.as_ref().ok(), support };
    let mut hooks = Vec::new();
    let mut with_functions = Vec::new();
    for group in HOOKS.chunk_by(is_one_group) {
        let applicable: Vec<&'static HookSpec> =
            group.iter().filter(|spec| support.fulfils(spec.condition)).collect();
        match group.first().map(|spec| spec.choice) {
            Some(Choice::Preferred(subject)) if family != HookFamily::Tracepoints => {
                match attacher.attach_together(&applicable) {
                    Ok(()) => {
                        with_functions.push(subject);
                        hooks.extend(applicable.into_iter().map(AttachedHook::complete));
                    }
                    Err(reason) if family == HookFamily::Functions => {
                        return Err(LoadError::NoFunctions(reason));
                    }
                    Err(reason) => {
                        hooks.extend(applicable.into_iter().map(|spec| AttachedHook {
                            spec,
                            outcome: Outcome::Replaced { reason: reason.clone() },
                            backup: None,
                        }));
                    }
                }
            }
            Some(Choice::Fallback(subject)) if !with_functions.contains(&subject) => {
                hooks.extend(applicable.into_iter().filter_map(|spec| attacher.attach(spec)));
            }
            Some(Choice::Only) => {
                hooks.extend(applicable.into_iter().filter_map(|spec| attacher.attach(spec)));
            }
            Some(Choice::Preferred(_) | Choice::Fallback(_)) | None => {}
        }
    }
    Ok(hooks)
}

/// True for hooks that are attached all together or not at all.
fn is_one_group(one: &HookSpec, next: &HookSpec) -> bool {
    matches!(one.choice, Choice::Preferred(_)) && one.choice == next.choice
}

struct Attacher<'a> {
    programs: Programs<'a>,
    btf: &'a AyaBtf,
    cgroups: Option<&'a CgroupRoot>,
    support: &'a KernelSupport,
}

impl Attacher<'_> {
    /// Attaches a hook's program and its backup copy. `None` if there is nothing to say about it.
    fn attach(&mut self, spec: &'static HookSpec) -> Option<AttachedHook> {
        let supported = self.support.check(spec.needs);
        if supported.is_err() && spec.completes.is_some() {
            return None;
        }
        let backup = match spec.backup {
            Backup::Always(program) => Some(program),
            Backup::IfPreemptible(program) => {
                self.support.has_preemptible_tracepoints().then_some(program)
            }
            Backup::None => None,
        };
        let mut attach = |program: &'static str| {
            let attached = supported
                .clone()
                .and_then(|()| self.try_attach(spec, program).map_err(|error| reason(&error)));
            Outcome::of(attached, spec.kind.label())
        };
        let outcome = attach(spec.program);
        Some(AttachedHook { spec, outcome, backup: backup.map(attach) })
    }

    /// Attaches all of these hooks with their backup copies, or none.
    ///
    /// # Errors
    /// The reason why one of them cannot be attached.
    fn attach_together(&mut self, specs: &[&'static HookSpec]) -> Result<(), String> {
        specs.iter().try_for_each(|spec| self.support.check(spec.needs))?;
        for (index, spec) in specs.iter().enumerate() {
            for program in spec.programs() {
                if let Err(error) = self.try_attach(spec, program) {
                    for spec in specs.iter().take(index + 1) {
                        self.detach(spec);
                    }
                    return Err(reason(&error));
                }
            }
        }
        Ok(())
    }

    fn try_attach(&mut self, spec: &HookSpec, program: &'static str) -> Result<(), ProgramError> {
        let Self { programs, btf, cgroups, support: _ } = self;
        let cgroup_root = || cgroups.ok_or(ProgramError::NotLoaded);
        match spec.kind {
            HookKind::Tracepoint => {
                let program: &mut BtfTracePoint = programs.get(program)?;
                program.load(spec.name, btf)?;
                program.attach().map(drop)
            }
            HookKind::FunctionEntry { former_name } => {
                let mut attach = |function: &str| {
                    let program: &mut FEntry = programs.get(program)?;
                    program.load(function, btf)?;
                    program.attach().map(drop)
                };
                match (attach(spec.name), former_name) {
                    (Err(_), Some(former_name)) => attach(former_name),
                    (attached, _) => attached,
                }
            }
            HookKind::FunctionExit => {
                let program: &mut FExit = programs.get(program)?;
                program.load(spec.name, btf)?;
                program.attach().map(drop)
            }
            HookKind::SockOps => {
                let program: &mut SockOps = programs.get(program)?;
                program.load()?;
                program.attach(cgroup_root()?, ATTACH_MODE).map(drop)
            }
            HookKind::CgroupSock => {
                let program: &mut CgroupSock = programs.get(program)?;
                program.load()?;
                program.attach(cgroup_root()?, ATTACH_MODE).map(drop)
            }
            HookKind::CgroupSockAddr => {
                let program: &mut CgroupSockAddr = programs.get(program)?;
                program.load()?;
                program.attach(cgroup_root()?, ATTACH_MODE).map(drop)
            }
        }
    }

    /// Detaches the programs of a function hook, as far as they are attached.
    fn detach(&mut self, spec: &HookSpec) {
        for program in spec.programs() {
            let unloaded = match spec.kind {
                HookKind::FunctionEntry { .. } => {
                    self.programs.get::<FEntry>(program).and_then(FEntry::unload)
                }
                HookKind::FunctionExit => {
                    self.programs.get::<FExit>(program).and_then(FExit::unload)
                }
                HookKind::Tracepoint
                | HookKind::SockOps
                | HookKind::CgroupSock
                | HookKind::CgroupSockAddr => Ok(()),
            };
            // If the kernel keeps one attached until the agent ends, its facts come twice, which
            // the ledger tolerates.
            drop(unloaded);
        }
    }
}
