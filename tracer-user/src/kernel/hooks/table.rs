//! The one table of hooks: which program runs at which hook of the kernel, what it needs, what can
//! replace it, and what is lost without it. Loading, attaching, the list that `check` shows and the
//! `start` record's hooks all follow from it.

/// Every hook, in the order in which they are attached: what ends a lease comes before what begins
/// one, so that no beginning is seen whose end would be missed.
pub(crate) const HOOKS: &[HookSpec] = &[
    // The life of a TIME_WAIT. Whatever reports why it ends comes before what reports that it does.
    HookSpec {
        name: "tw_timer_handler",
        kind: HookKind::FunctionEntry { former_name: None },
        program: "time_wait_due",
        ..TIME_WAIT_FUNCTION
    },
    HookSpec {
        name: "inet_twsk_kill",
        kind: HookKind::FunctionEntry { former_name: None },
        program: "time_wait_kill",
        ..TIME_WAIT_FUNCTION
    },
    HookSpec {
        name: "inet_twsk_hashdance_schedule",
        kind: HookKind::FunctionEntry { former_name: Some("inet_twsk_hashdance") },
        program: "time_wait_hash",
        ..TIME_WAIT_FUNCTION
    },
    HookSpec {
        name: "__inet_twsk_schedule",
        kind: HookKind::FunctionEntry { former_name: None },
        program: "time_wait_schedule",
        ..TIME_WAIT_FUNCTION
    },
    HookSpec { name: "timer_expire_entry", program: "timer_expire_entry", ..TIMER },
    HookSpec { name: "timer_cancel", program: "timer_cancel", ..TIMER },
    HookSpec { name: "timer_start", program: "timer_start", ..TIMER },
    // Sockets.
    HookSpec {
        name: "tcp_destroy_sock",
        program: "tcp_destroy_sock",
        backup: Backup::Always("tcp_destroy_sock_backup"),
        without: "the release of bound sockets that never connected is not seen",
        ..TRACEPOINT
    },
    HookSpec {
        name: "inet_sock_set_state",
        program: "inet_sock_set_state",
        backup: Backup::Always("inet_sock_set_state_backup"),
        needs: &[Need::Task],
        reports: Reports::SocketStates,
        without: "nothing can be traced",
        ..TRACEPOINT
    },
    HookSpec {
        name: "sock_create",
        kind: HookKind::CgroupSock,
        program: "sock_create",
        condition: Condition::NoCookieHelper,
        completes: Some("sockops"),
        without: "sockets are told apart only once the kernel has given them a cookie",
        ..CGROUP
    },
    HookSpec {
        name: "sockops",
        kind: HookKind::SockOps,
        program: "sock_ops",
        reports: Reports::ChosenPorts,
        without: "a port that connect() or listen() chose is learned only from the next event of \
                  its socket",
        ..CGROUP
    },
    HookSpec { name: "bind4", program: "bind4", completes: Some("post_bind4"), ..BIND },
    HookSpec { name: "bind6", program: "bind6", completes: Some("post_bind6"), ..BIND },
    HookSpec { name: "post_bind4", program: "post_bind4", ..POST_BIND },
    HookSpec { name: "post_bind6", program: "post_bind6", ..POST_BIND },
    // Ends of system calls.
    HookSpec {
        name: "inet_bind",
        program: "bind4_exit",
        backup: Backup::Always("bind4_exit_backup"),
        ..CALL_FUNCTION
    },
    HookSpec {
        name: "inet6_bind",
        program: "bind6_exit",
        backup: Backup::Always("bind6_exit_backup"),
        ..CALL_FUNCTION
    },
    HookSpec {
        name: "inet_csk_accept",
        program: "accept_exit",
        backup: Backup::Always("accept_exit_backup"),
        condition: Condition::AcceptTakesTwo,
        ..ACCEPT
    },
    HookSpec {
        name: "inet_csk_accept",
        program: "accept_exit_of_four",
        backup: Backup::Always("accept_exit_of_four_backup"),
        condition: Condition::AcceptTakesFour,
        ..ACCEPT
    },
    HookSpec {
        name: "sys_exit",
        program: "sys_exit",
        // System calls of one task do not interrupt each other; those of two tasks do where one
        // can preempt the program of the other.
        backup: Backup::IfPreemptible("sys_exit_backup"),
        needs: &[Need::Task, Need::Files, Need::SyscallRegisters],
        choice: Choice::Fallback(Subject::Calls),
        reports: Reports::Accepts,
        without: "failed bind()s are not seen, and accepted connections are shown with their \
                  listener's owner",
        ..TRACEPOINT
    },
    // Segments for closed ports.
    HookSpec {
        name: "tcp_send_reset",
        program: "tcp_send_reset",
        needs: &[Need::Segment],
        reports: Reports::ProbedPorts,
        without: "port scans are not seen",
        ..TRACEPOINT
    },
];

/// Lists the files that processes have open.
pub(crate) const OPEN_FILES: IteratorSpec = IteratorSpec {
    program: "task_file",
    target: "task_file",
    needs: &[Need::Task, Need::Files],
    without: "sockets that are bound but idle are not in the snapshot",
};
/// Lists connected sockets, listeners and TIME_WAITs with their bind buckets.
pub(crate) const TCP_HOLDERS: IteratorSpec = IteratorSpec {
    program: "tcp_holders",
    target: "tcp",
    needs: &[Need::Task, Need::Files, Need::TimeWait, Need::BindBuckets],
    without: "a port counts as bound by bind() only if portlife saw that, and TIME_WAITs from \
              before the start are assumed to have had timestamps",
};
/// Lists sockets that are bound but idle with their bind buckets. It completes [`TCP_HOLDERS`],
/// and is not reported as a hook of its own.
pub(crate) const IDLE_HOLDERS: IteratorSpec =
    IteratorSpec { program: "idle_holders", target: "task_file", ..TCP_HOLDERS };

/// The function that the kernel calls when a TIME_WAIT's timer expires: by its address, the
/// programs at the tracepoints of timers recognise those of TIME_WAITs.
pub(crate) const TIME_WAIT_TIMER_HANDLER: &str = "tw_timer_handler";

/// What is lost without the backup copy of a program.
pub(crate) const WITHOUT_BACKUP: &str =
    "an event that interrupts the report of another of its kind is lost, though counted";

/// A hook and its program.
#[derive(Debug)]
pub(crate) struct HookSpec {
    /// The kernel's present name of it, which `start` and `check` show.
    pub(crate) name: &'static str,
    pub(crate) kind: HookKind,
    /// The program in the eBPF object.
    pub(crate) program: &'static str,
    pub(crate) backup: Backup,
    /// What the program cannot do without.
    pub(crate) needs: &'static [Need],
    pub(crate) condition: Condition,
    pub(crate) choice: Choice,
    /// The hook whose reports this one completes. If the needs of such a hook are not met, nothing
    /// is said about it: what is said about the other one covers it.
    pub(crate) completes: Option<&'static str>,
    pub(crate) reports: Reports,
    /// What is lost without this hook, or which others are used instead: the end of a sentence.
    pub(crate) without: &'static str,
}

/// An iterator program. Iterators are not attached; the kernel runs them when their list is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IteratorSpec {
    /// The program in the eBPF object, and the name that `start` and `check` show.
    pub(crate) program: &'static str,
    /// The kernel's iterator that runs it.
    pub(crate) target: &'static str,
    /// What the program cannot do without.
    pub(crate) needs: &'static [Need],
    /// What is lost without it: the end of a sentence.
    pub(crate) without: &'static str,
}

/// The kind of a hook, and of the program that runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HookKind {
    /// A tracepoint, with its arguments as BTF describes them.
    Tracepoint,
    /// The entry of a kernel function.
    FunctionEntry {
        /// Its name on older kernels.
        former_name: Option<&'static str>,
    },
    /// The return of a kernel function.
    FunctionExit,
    /// The socket events of the cgroup v2 root.
    SockOps,
    /// The creation of a socket, or the end of its bind(), in the cgroup v2 root.
    CgroupSock,
    /// The start of a bind() in the cgroup v2 root.
    CgroupSockAddr,
}

/// A second copy of a program. The kernel skips a program that would interrupt itself on its CPU;
/// the copy then runs in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backup {
    /// No copy: the program cannot be interrupted by itself.
    None,
    /// This copy is always attached, too.
    Always(&'static str),
    /// This copy is attached where programs at tracepoints can be preempted.
    IfPreemptible(&'static str),
}

/// Something that a program needs of the kernel or of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The fields of the current task that name an owner: `task_struct`, `cred`, `css_set`.
    Task,
    /// The fields of file descriptors and their sockets: `files_struct`, `file`, `socket`.
    Files,
    /// The fields of TIME_WAITs and their timers: `inet_timewait_sock`, `timer_list`.
    TimeWait,
    /// The address of [`TIME_WAIT_TIMER_HANDLER`], which only `CAP_SYSLOG` may read.
    TimerHandlerAddress,
    /// The fields of bind buckets: `inet_bind_bucket`.
    BindBuckets,
    /// The registers of a system call: `pt_regs`.
    SyscallRegisters,
    /// The fields of a segment that is answered by a reset, and the tracepoint's third argument
    /// (6.10): `sk_buff`, `net_device`.
    Segment,
    /// The kernel function in which accept() ends, `inet_csk_accept`.
    AcceptFunction,
    /// The root of the cgroup v2 hierarchy. Opening it takes `CAP_SYS_ADMIN`, attaching to it
    /// `CAP_NET_ADMIN`.
    CgroupRoot,
}

/// On which kernels a hook is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// On all of them.
    Always,
    /// Where tracing programs cannot give a socket its cookie (before 5.12).
    NoCookieHelper,
    /// Where `inet_csk_accept` takes two parameters (since 6.10). Its result follows them.
    AcceptTakesTwo,
    /// Where it takes four.
    AcceptTakesFour,
}

/// Whether there is a choice between this hook and others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// There is none.
    Only,
    /// The hooks that are preferred for this subject are attached all together or not at all.
    Preferred(Subject),
    /// Attached only where the hooks that are preferred for this subject are not.
    Fallback(Subject),
}

/// What two groups of hooks can report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Where TIME_WAITs begin and end.
    TimeWaits,
    /// Where bind() and accept() end.
    Calls,
}

/// What a hook reports, as far as something else depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reports {
    /// Every change of a socket's state, without which nothing can be traced.
    SocketStates,
    /// Every port that connect() or listen() chose.
    ChosenPorts,
    /// Who accepted a connection.
    Accepts,
    /// Attempts to connect to closed ports. These are counted in a map and yield no facts.
    ProbedPorts,
    /// Something that nothing else depends on.
    Other,
}

/// Which hooks to use where there is a choice.
///
/// Function hooks run only where something happens to a port. The tracepoints that replace them
/// cost more: they fire for every timer or every system call of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HookFamily {
    /// Function hooks where the kernel permits them, else tracepoints.
    #[default]
    Auto,
    /// Tracepoints, even where function hooks would do.
    Tracepoints,
    /// Function hooks, or nothing.
    Functions,
}

impl HookSpec {
    /// The program, and its backup copy if there is one.
    pub(crate) fn programs(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.program).chain(self.backup.program())
    }
}

impl HookKind {
    /// The name of this kind of program, which `start` and `check` show.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Tracepoint => "tp_btf",
            Self::FunctionEntry { .. } => "fentry",
            Self::FunctionExit => "fexit",
            Self::SockOps | Self::CgroupSock | Self::CgroupSockAddr => "cgroup",
        }
    }
}

impl IteratorSpec {
    /// The name of this kind of program, which `start` and `check` show.
    pub(crate) const LABEL: &str = "iter";
}

impl Backup {
    /// The copy, whether or not it is attached on this kernel.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Always(program) | Self::IfPreemptible(program) => Some(program),
        }
    }
}

// What groups of hooks have in common. Name and program are always the hook's own.
const TRACEPOINT: HookSpec = HookSpec {
    name: "",
    kind: HookKind::Tracepoint,
    program: "",
    backup: Backup::None,
    needs: &[],
    condition: Condition::Always,
    choice: Choice::Only,
    completes: None,
    reports: Reports::Other,
    without: "",
};
const TIME_WAIT_FUNCTION: HookSpec = HookSpec {
    needs: &[Need::TimeWait],
    choice: Choice::Preferred(Subject::TimeWaits),
    without: "timer_start, timer_cancel and timer_expire_entry are used instead, which fire for \
              every timer",
    ..TRACEPOINT
};
const TIMER: HookSpec = HookSpec {
    needs: &[Need::TimeWait, Need::TimerHandlerAddress],
    choice: Choice::Fallback(Subject::TimeWaits),
    without: "the end of a TIME_WAIT is not seen",
    ..TRACEPOINT
};
const CGROUP: HookSpec = HookSpec { needs: &[Need::CgroupRoot], ..TRACEPOINT };
const BIND: HookSpec = HookSpec {
    kind: HookKind::CgroupSockAddr,
    without: "whether a bind() asked for port 0 is known only from the next event of its socket",
    ..CGROUP
};
const POST_BIND: HookSpec = HookSpec {
    kind: HookKind::CgroupSock,
    needs: &[Need::CgroupRoot, Need::Task],
    without: "a bound socket is seen only when it connects or listens",
    ..CGROUP
};
const CALL_FUNCTION: HookSpec = HookSpec {
    kind: HookKind::FunctionExit,
    needs: &[Need::Task, Need::Files],
    choice: Choice::Preferred(Subject::Calls),
    without: "sys_exit is used instead, which fires for every system call",
    ..TRACEPOINT
};
const ACCEPT: HookSpec = HookSpec {
    needs: &[Need::Task, Need::Files, Need::AcceptFunction],
    reports: Reports::Accepts,
    ..CALL_FUNCTION
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

    use super::*;
    use crate::kernel::hooks::object::OBJECT;

    #[test]
    fn the_table_has_every_program_of_the_object_once() {
        let iterators = [OPEN_FILES, TCP_HOLDERS, IDLE_HOLDERS].map(|spec| spec.program);
        let listed: Vec<_> = HOOKS.iter().flat_map(HookSpec::programs).chain(iterators).collect();
        let distinct: BTreeSet<_> = listed.iter().copied().collect();
        assert_eq!(listed.len(), distinct.len());
        let elf = object::File::parse(OBJECT).unwrap();
        // Programs have sections of their own; functions that they call are in `.text`.
        let called = elf.section_by_name(".text").map(|section| section.index());
        let programs: BTreeSet<_> = elf
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global())
            .filter(|symbol| symbol.section_index() != called)
            .map(|symbol| symbol.name().unwrap())
            .collect();
        assert_eq!(distinct, programs);
    }

    #[test]
    fn every_hook_has_a_name_and_says_what_is_lost_without_it() {
        for spec in HOOKS {
            assert!(!spec.name.is_empty() && !spec.without.is_empty(), "{spec:?}");
        }
    }

    #[test]
    fn hooks_with_one_name_are_never_used_together() {
        for (index, one) in HOOKS.iter().enumerate() {
            for other in &HOOKS[index + 1..] {
                assert!(one.name != other.name || one.condition != other.condition, "{one:?}");
            }
        }
    }

    #[test]
    fn a_hook_that_another_completes_is_in_the_table() {
        for spec in HOOKS {
            if let Some(other) = spec.completes {
                assert!(HOOKS.iter().any(|spec| spec.name == other), "{spec:?}");
            }
        }
    }

    #[test]
    fn preferred_hooks_are_neighbours_and_come_before_their_fallbacks() {
        for subject in [Subject::TimeWaits, Subject::Calls] {
            let indices = |choice| {
                let chosen =
                    HOOKS.iter().enumerate().filter(move |(_, spec)| spec.choice == choice);
                chosen.map(|(index, _)| index).collect::<Vec<_>>()
            };
            let preferred = indices(Choice::Preferred(subject));
            let fallbacks = indices(Choice::Fallback(subject));
            assert!(preferred.windows(2).all(|pair| pair[1] == pair[0] + 1), "{preferred:?}");
            assert!(preferred.last() < fallbacks.first(), "{preferred:?} {fallbacks:?}");
        }
    }
}
