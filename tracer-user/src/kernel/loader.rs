//! Loads the eBPF object and attaches each program by trying it.
//!
//! No kernel version is asked for: a hook that the kernel refuses is reported with the kernel's
//! reason and with what is lost, and the others go on.

use std::{
    error::Error as StdError,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::Arc,
    thread,
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapError, PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, FEntry, FExit, Iter,
        ProgramError, SockOps,
    },
};
use zerocopy::IntoBytes;

use super::{
    btf::{Btf, BtfError},
    capability::{Capabilities, Capability},
    cgroup::CgroupRoot,
    clock,
    holders::{Features, HolderLists},
    kallsyms, layout, memory,
    ring::Ring,
    scope::Scope,
    tries::TriedPorts,
};
use crate::ledger::{Instant, Sight};

/// The object that `cargo xtask build-ebpf` made, embedded.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portlife.bpf.o"));

/// Why the tracer cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A privilege is missing without which no program can be loaded.
    #[error(
        "tracing needs {}, which this process does not have: run it as root (sudo portlife ...), \
         or in a container with these capabilities added",
        names(.0)
    )]
    Privilege(Vec<Capability>),
    /// The kernel tells nothing about its types.
    #[error(
        "this kernel has no usable type information: portlife needs Linux 5.10 or newer, built \
         with CONFIG_DEBUG_INFO_BTF (as the kernels of all large distributions are)"
    )]
    Btf(#[source] BtfError),
    /// The kernel's TCP is not one that the programs can read.
    #[error("this kernel's TCP sockets are not understood")]
    Layout(#[source] BtfError),
    /// The hook without which there is nothing to see.
    #[error(
        "the kernel refuses the tracepoint inet_sock_set_state, without which there is nothing to trace: {0}"
    )]
    Refused(String),
    /// Function hooks were asked for.
    #[error(
        "the kernel refuses the function hooks that --hooks functions asks for ({0}): without the \
         option, tracepoints do their work"
    )]
    NoFunctions(String),
    /// The object or a map.
    #[error("the kernel refuses the eBPF object")]
    Object(#[source] Box<dyn StdError + Send + Sync>),
    /// The ring cannot be waited for.
    #[error("the ring buffer cannot be polled")]
    Ring(#[source] io::Error),
}

/// One hook: how it is attached, or why it is not and what that costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookStatus {
    /// The kernel's name of the hook.
    pub name: &'static str,
    /// What cannot be told without this hook, or what tells it instead.
    pub without: &'static str,
    /// How it is attached, or why it is not.
    pub outcome: Outcome,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is attached, by this kind of program.
    Attached(&'static str),
    /// It is not, and others tell the same.
    Replaced {
        /// The reason, the kernel's where it gave one.
        reason: String,
    },
    /// It is not, and something goes untold.
    Missing {
        /// The reason, the kernel's where it gave one.
        reason: String,
    },
}

/// What a program cost while the kernel kept statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// The hook that it runs at.
    pub hook: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// Nanoseconds of all runs, without what it takes to get there.
    pub ns: u64,
}

impl HookStatus {
    /// True if the hook is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        matches!(self.outcome, Outcome::Attached(_))
    }
}

/// Attached programs. Dropping this detaches them all; so does the end of the process.
pub struct Probes {
    /// The ring that the programs write to.
    pub ring: Ring,
    /// Every hook, tried in this order.
    pub hooks: Vec<HookStatus>,
    /// The cgroup v2 root, if it can be opened.
    pub cgroups: Option<CgroupRoot>,
    /// What else is missing, in sentences.
    pub warnings: Vec<String>,
    /// What the programs log.
    #[cfg(feature = "debug-log")]
    pub log: Option<super::debug_log::ProgramLog>,
    /// Keeps the programs attached.
    ebpf: Ebpf,
    has_snapshot: bool,
    /// Lists who is in which bind bucket, if this kernel lets us.
    pub holders: Option<Arc<HolderLists>>,
    /// Who tried closed ports, if this kernel tells of it.
    pub tried_ports: Option<TriedPorts>,
    /// Sockets whose port connect() chose are marked by this kernel.
    marks_connect: bool,
    /// When the last hook was attached.
    attached: Instant,
}

/// What the user decides about loading.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Size of the ring, rounded up by the loader to a power of two of pages.
    pub ring_bytes: u32,
    /// Which hooks to use where there is a choice.
    pub hooks: HookFamily,
    /// The only namespaces to report.
    pub scope: Scope,
}

/// Where a function hook and a tracepoint tell the same, the tracepoint is the dearer one: it fires
/// for every timer or every system call of the host.
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

/// Loads and attaches everything that this kernel permits.
///
/// # Errors
/// If nothing can be traced at all: see [`LoadError`].
pub fn load(options: &LoadOptions) -> Result<Probes, LoadError> {
    let capabilities = check_privileges()?;
    let warnings = capabilities
        .missing(&Capability::OPTIONAL)
        .into_iter()
        .map(|capability| format!("without {}, {}", capability.name(), capability.loss()))
        .collect();
    // Three slow lookups that need not wait for each other.
    let (resolved, aya_btf, handler) = thread::scope(|scope| {
        let resolved = scope.spawn(|| Btf::of_running_kernel().map(|btf| layout::resolve(&btf)));
        let handler = scope.spawn(|| kallsyms::address_of("tw_timer_handler"));
        let aya_btf = AyaBtf::from_sys_fs();
        (join(resolved), aya_btf, join(handler))
    });
    let resolved = resolved.map_err(LoadError::Btf)?;
    let layout::Resolved {
        layout,
        sock,
        time_wait,
        task,
        files,
        syscall,
        segment,
        holders,
        has_cookie_helper,
        marks_connect,
        has_preemptible_tracepoints,
        accept_parameters,
    } = resolved;
    sock.map_err(LoadError::Layout)?;
    let aya_btf = aya_btf.map_err(|error| LoadError::Object(error.into()))?;

    let holder_layout = holders.as_ref().map(|(layout, _)| *layout).unwrap_or_default();
    let cgroups = CgroupRoot::open();
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&aya_btf))
        .override_global("LAYOUT", layout.as_bytes(), true)
        .override_global("HOLDER_LAYOUT", holder_layout.as_bytes(), true)
        .override_global("COOKIE_HELPER", &u32::from(has_cookie_helper), true)
        .override_global("TW_TIMER_HANDLER", handler.as_ref().unwrap_or(&0), true)
        .override_global("WAKE_BYTES", &u64::from(options.ring_bytes / 4), true)
        .override_global("NETNS_WANTED", &options.scope.inodes(), true)
        .override_global("NR_BIND", &(libc::SYS_bind as u64), true)
        .override_global("NR_ACCEPT", &(libc::SYS_accept as u64), true)
        .override_global("NR_ACCEPT4", &(libc::SYS_accept4 as u64), true)
        // Off unless asked for: without this the level would be "everything".
        .override_global(
            "AYA_LOG_LEVEL",
            &u8::from(cfg!(feature = "debug-log")).wrapping_mul(5),
            false,
        )
        .map_max_entries("EVENTS", options.ring_bytes)
        .load(OBJECT)
        .map_err(|error| LoadError::Object(error.into()))?;
    let ring = take_ring(&mut ebpf)?;

    // What each hook needs, as the sentence that says why it is not there.
    let task = task.map_err(|error| error.to_string());
    let time_wait = time_wait.map_err(|error| error.to_string());
    let timers = time_wait.clone().and(handler.map(|_| ()).map_err(|error| error.to_string()));
    let files = task.clone().and(files.map_err(|error| error.to_string()));
    let syscall = files.clone().and(syscall.map_err(|error| error.to_string()));

    let mut attacher = Attacher { ebpf: &mut ebpf, btf: &aya_btf, hooks: Vec::new() };
    // What ends a lease goes first, so that no birth is seen whose end would be missed.
    let has_time_wait_functions = attacher.functions(
        options.hooks,
        &TIME_WAIT_FUNCTIONS,
        &time_wait,
        "timer_start, timer_cancel and timer_expire_entry tell it, which fire for every timer",
    )?;
    if !has_time_wait_functions {
        attacher.tracepoint("timer_expire_entry", timers.clone(), TIME_WAIT_LOSS);
        attacher.tracepoint_twice("timer_cancel", &timers, TIME_WAIT_LOSS);
        attacher.tracepoint_twice("timer_start", &timers, TIME_WAIT_LOSS);
    }
    attacher.tracepoint_twice(
        "tcp_destroy_sock",
        &Ok(()),
        "the release of bound sockets that never connected is not seen",
    );
    attacher.tracepoint_twice("inet_sock_set_state", &task, "everything");
    let cgroups = match cgroups {
        Ok(root) => {
            if !has_cookie_helper {
                attacher.sock_create(&root);
            }
            attacher.sock_ops(&root);
            attacher.post_bind(&root, &task);
            Some(root)
        }
        Err(error) => {
            let reason = format!("the cgroup v2 root cannot be opened: {error}");
            attacher.refuse("sockops", reason.clone(), SOCK_OPS_LOSS);
            attacher.refuse("post_bind4", reason.clone(), POST_BIND_LOSS);
            attacher.refuse("post_bind6", reason, POST_BIND_LOSS);
            None
        }
    };
    let accept = if accept_parameters == Some(4) { ACCEPT_OF_FOUR } else { ACCEPT };
    let call_functions = [BIND4, BIND6, accept];
    let needs = files.clone().and(accept_parameters.map(|_| ()).ok_or_else(no_accept));
    const INSTEAD: &str = "sys_exit tells it, which fires for every system call";
    if !attacher.functions(options.hooks, &call_functions, &needs, INSTEAD)? {
        const LOSS: &str = "failed bind()s are not seen, and accepted connections are shown with \
                            their listener's owner";
        // A task's system calls do not interrupt each other; a copy is due where another's can.
        if has_preemptible_tracepoints {
            attacher.tracepoint_twice("sys_exit", &syscall, LOSS);
        } else {
            attacher.tracepoint("sys_exit", syscall, LOSS);
        }
    }
    attacher.tracepoint(
        RESET,
        segment.map_err(|error| error.to_string()),
        "port scans are not seen",
    );
    attacher.iterator(&files);
    let features = holders.map(|(_, features)| features).map_err(|error| error.to_string());
    let holders = attacher.holders(&files.and(time_wait).and(features));
    let hooks = attacher.hooks;
    if let Some(HookStatus { outcome: Outcome::Missing { reason, .. }, .. }) =
        hooks.iter().find(|hook| hook.name == "inet_sock_set_state")
    {
        return Err(LoadError::Refused(reason.clone()));
    }
    let is_attached = |name: &str| hooks.iter().any(|hook| hook.name == name && hook.is_attached());
    let has_snapshot = is_attached(ITERATOR);
    let tried_ports = if is_attached(RESET) { Some(take_tried_ports(&mut ebpf)?) } else { None };
    drop(aya_btf);
    memory::trim();
    #[cfg(feature = "debug-log")]
    let log = super::debug_log::start(&mut ebpf);
    Ok(Probes {
        #[cfg(feature = "debug-log")]
        log,
        ring,
        hooks,
        cgroups,
        warnings,
        ebpf,
        has_snapshot,
        holders,
        tried_ports,
        marks_connect,
        attached: Instant(clock::monotonic_ns()),
    })
}

impl Probes {
    /// Starts the iterator over all open files, if this kernel has one. Reading the file to its
    /// end yields the sockets held now, as records of the wire.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open_files(&mut self) -> Option<io::Result<File>> {
        self.has_snapshot.then(|| {
            let iterator: &mut Iter =
                program(&mut self.ebpf, ITERATOR).map_err(io::Error::other)?;
            let link = iterator.attach().map_err(io::Error::other)?;
            let link = iterator.take_link(link).map_err(io::Error::other)?;
            link.into_file().map_err(io::Error::other)
        })
    }
}

impl Probes {
    /// What the ledger can rely on, by the hooks that are attached.
    #[must_use]
    pub fn sight(&self) -> Sight {
        Sight {
            ports_chosen: self.is_attached("sockops"),
            accepts: self.is_attached("sys_exit") || self.is_attached(ACCEPT.name),
            marks_connect: self.marks_connect,
            bound_idle: self.has_snapshot,
            since: self.attached,
        }
    }

    /// What the attached programs cost since the kernel began to keep statistics, which it does
    /// while somebody asks it to.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramCost> {
        self.hooks
            .iter()
            .filter(|hook| hook.is_attached())
            .filter_map(|hook| {
                let info = programs_of(hook.name)
                    .find_map(|program| self.ebpf.program(program)?.info().ok())?;
                let (runs, time) = (info.run_count(), info.run_time());
                let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                (runs > 0).then_some(ProgramCost { hook: hook.name, runs, ns })
            })
            .collect()
    }

    fn is_attached(&self, name: &str) -> bool {
        self.hooks.iter().any(|hook| hook.name == name && hook.is_attached())
    }

    /// Firings of hooks that no program saw: the kernel skips a program that would interrupt
    /// itself on its CPU (`recursion_misses`, since 5.12). Where a second copy is attached one of
    /// the two sees every firing.
    #[must_use]
    pub fn unseen_firings(&self) -> u64 {
        let has_both = |name: &str| {
            let is_of_function = FUNCTIONS_TWICE.iter().any(|function| {
                function.programs().any(|program| program == name)
                    && self.is_attached(function.name)
            });
            is_of_function
                || AGAIN.iter().any(|(first, again)| {
                    (*first == name || *again == name)
                        && self.is_attached(first)
                        && self.is_attached(again)
                })
        };
        self.ebpf
            .programs()
            // This one reports no facts, and says at least how much there was.
            .filter(|(name, _)| *name != RESET && !has_both(name))
            .filter_map(|(_, program)| recursion_misses(program.fd().ok()?.as_fd()))
            .sum()
    }
}

fn recursion_misses(program: BorrowedFd<'_>) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", program.as_raw_fd()));
    let info = info.ok()?;
    let misses = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
    misses.trim().parse().ok()
}

/// Programs of which a second copy is attached behind the first.
const AGAIN: [(&str, &str); 5] = [
    ("sys_exit", "sys_exit_again"),
    ("timer_cancel", "timer_cancel_again"),
    ("timer_start", "timer_start_again"),
    ("tcp_destroy_sock", "tcp_destroy_sock_again"),
    ("inet_sock_set_state", "inet_sock_set_state_again"),
];
const ITERATOR: &str = "task_file";
const RESET: &str = "tcp_send_reset";
/// Links admit other programs beside ours by themselves (`cgroup_bpf_link_attach`), and no flags.
const ATTACH_MODE: CgroupAttachMode = CgroupAttachMode::Single;
const TIME_WAIT_LOSS: &str = "the end of a TIME_WAIT is not seen";
const SOCK_OPS_LOSS: &str =
    "a port that connect() or listen() chose is learned only from the next event of its socket";
const POST_BIND_LOSS: &str = "a bound socket is seen only when it connects or listens";

/// A program at the entry or exit of a kernel function.
#[derive(Clone, Copy)]
struct Function {
    /// What the user sees: the function's present name.
    name: &'static str,
    /// The program.
    program: &'static str,
    /// Its second copy, where another task can take the CPU from the first.
    again: Option<&'static str>,
    place: FunctionPlace,
    /// Its name in kernels of earlier times.
    formerly: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum FunctionPlace {
    Entry,
    Exit,
}

impl Function {
    const fn entry(name: &'static str, program: &'static str) -> Self {
        Self { name, program, again: None, place: FunctionPlace::Entry, formerly: None }
    }

    const fn exit(name: &'static str, program: &'static str, again: &'static str) -> Self {
        Self { name, program, again: Some(again), place: FunctionPlace::Exit, formerly: None }
    }

    fn programs(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.program).chain(self.again)
    }
}

/// The life of a TIME_WAIT. What ends it goes first.
const TIME_WAIT_FUNCTIONS: [Function; 3] = [
    Function::entry("inet_twsk_kill", "time_wait_kill"),
    Function {
        formerly: Some("inet_twsk_hashdance"),
        ..Function::entry("inet_twsk_hashdance_schedule", "time_wait_hash")
    },
    Function::entry("__inet_twsk_schedule", "time_wait_schedule"),
];
const BIND4: Function = Function::exit("inet_bind", "bind4_exit", "bind4_exit_again");
const BIND6: Function = Function::exit("inet6_bind", "bind6_exit", "bind6_exit_again");
const ACCEPT: Function = Function::exit("inet_csk_accept", "accept_exit", "accept_exit_again");
const ACCEPT_OF_FOUR: Function =
    Function::exit("inet_csk_accept", "accept_exit_of_four", "accept_exit_of_four_again");

/// Functions at which two programs are attached.
const FUNCTIONS_TWICE: [Function; 4] = [BIND4, BIND6, ACCEPT, ACCEPT_OF_FOUR];

struct Attacher<'a> {
    ebpf: &'a mut Ebpf,
    btf: &'a AyaBtf,
    hooks: Vec<HookStatus>,
}

impl Attacher<'_> {
    fn tracepoint(
        &mut self,
        name: &'static str,
        precondition: Result<(), String>,
        loss: &'static str,
    ) {
        let btf = self.btf;
        self.attempt(name, "tp_btf", loss, precondition, |ebpf| {
            let program: &mut BtfTracePoint = program(ebpf, name)?;
            program.load(name, btf)?;
            program.attach().map(|_| ())
        });
    }

    /// Attaches a program and its copy, which sees what the kernel skips of the first.
    fn tracepoint_twice(
        &mut self,
        name: &'static str,
        precondition: &Result<(), String>,
        loss: &'static str,
    ) {
        self.tracepoint(name, precondition.clone(), loss);
        let again = AGAIN.iter().find(|(first, _)| *first == name);
        if let Some((_, again)) = again {
            let btf = self.btf;
            let loss = "an event that interrupts the report of another of its kind is lost, though \
                        counted";
            self.attempt(again, "tp_btf", loss, precondition.clone(), |ebpf| {
                let program: &mut BtfTracePoint = program(ebpf, again)?;
                program.load(name, btf)?;
                program.attach().map(|_| ())
            });
        }
    }

    /// Attaches all of these or none, and says which.
    fn functions(
        &mut self,
        family: HookFamily,
        functions: &[Function],
        precondition: &Result<(), String>,
        without: &'static str,
    ) -> Result<bool, LoadError> {
        if family == HookFamily::Tracepoints {
            return Ok(false);
        }
        let mut refused = precondition.clone().err().map(|reason| (functions.len(), reason));
        for (index, function) in functions.iter().enumerate() {
            for program in function.programs() {
                if refused.is_none()
                    && let Err(error) = self.function(function, program)
                {
                    refused = Some((index + 1, reason(&error)));
                }
            }
        }
        let Some((failed, reason)) = refused else {
            self.hooks.extend(functions.iter().map(|function| {
                let outcome = Outcome::Attached(match function.place {
                    FunctionPlace::Entry => "fentry",
                    FunctionPlace::Exit => "fexit",
                });
                HookStatus { name: function.name, without, outcome }
            }));
            return Ok(true);
        };
        if family == HookFamily::Functions {
            return Err(LoadError::NoFunctions(reason));
        }
        for function in functions.iter().take(failed) {
            self.unload(function);
        }
        self.hooks.extend(functions.iter().map(|function| {
            let outcome = Outcome::Replaced { reason: reason.clone() };
            HookStatus { name: function.name, without, outcome }
        }));
        Ok(false)
    }

    fn function(
        &mut self,
        function: &Function,
        program_name: &'static str,
    ) -> Result<(), ProgramError> {
        let Self { ebpf, btf, .. } = self;
        let names = std::iter::once(function.name).chain(function.formerly);
        let mut outcome = Err(ProgramError::NotLoaded);
        for name in names {
            outcome = match function.place {
                FunctionPlace::Entry => {
                    let program: &mut FEntry = program(ebpf, program_name)?;
                    program.load(name, btf).and_then(|()| program.attach().map(|_| ()))
                }
                FunctionPlace::Exit => {
                    let program: &mut FExit = program(ebpf, program_name)?;
                    program.load(name, btf).and_then(|()| program.attach().map(|_| ()))
                }
            };
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Detaches a function's program. What the kernel did not detach, the end of the agent will.
    fn unload(&mut self, function: &Function) {
        for name in function.programs() {
            let unloaded = match function.place {
                FunctionPlace::Entry => program::<FEntry>(self.ebpf, name).and_then(FEntry::unload),
                FunctionPlace::Exit => program::<FExit>(self.ebpf, name).and_then(FExit::unload),
            };
            // Its facts would come twice, which the ledger bears.
            drop(unloaded);
        }
    }

    fn sock_ops(&mut self, root: &CgroupRoot) {
        self.attempt("sockops", "cgroup", SOCK_OPS_LOSS, Ok(()), |ebpf| {
            let program: &mut SockOps = program(ebpf, "sock_ops")?;
            program.load()?;
            program.attach(root, ATTACH_MODE).map(|_| ())
        });
    }

    /// For kernels whose tracing programs cannot give a socket its cookie.
    fn sock_create(&mut self, root: &CgroupRoot) {
        let loss = "sockets are told apart only once the kernel has given them a cookie";
        self.attempt("sock_create", "cgroup", loss, Ok(()), |ebpf| {
            let program: &mut CgroupSock = program(ebpf, "sock_create")?;
            program.load()?;
            program.attach(root, ATTACH_MODE).map(|_| ())
        });
    }

    fn post_bind(&mut self, root: &CgroupRoot, task: &Result<(), String>) {
        const REQUEST_LOSS: &str =
            "a bind() to port 0 is told from one to that port only at its socket's next event";
        for (name, loss) in [("bind4", REQUEST_LOSS), ("bind6", REQUEST_LOSS)] {
            self.attempt(name, "cgroup", loss, Ok(()), |ebpf| {
                let program: &mut CgroupSockAddr = program(ebpf, name)?;
                program.load()?;
                program.attach(root, ATTACH_MODE).map(|_| ())
            });
        }
        for name in ["post_bind4", "post_bind6"] {
            self.attempt(name, "cgroup", POST_BIND_LOSS, task.clone(), |ebpf| {
                let program: &mut CgroupSock = program(ebpf, name)?;
                program.load()?;
                program.attach(root, ATTACH_MODE).map(|_| ())
            });
        }
    }

    fn iterator(&mut self, precondition: &Result<(), String>) {
        let btf = self.btf;
        let loss = "sockets that are bound but idle are not in the snapshot";
        self.attempt(ITERATOR, "iter", loss, precondition.clone(), |ebpf| {
            let program: &mut Iter = program(ebpf, ITERATOR)?;
            program.load(ITERATOR, btf)
        });
    }

    fn holders(&mut self, features: &Result<Features, String>) -> Option<Arc<HolderLists>> {
        let btf = self.btf;
        let loss = "that somebody bound a port is known only if that was seen";
        let mut lists = None;
        let precondition = features.as_ref().map(|_| ()).map_err(Clone::clone);
        self.attempt("tcp_holders", "iter", loss, precondition, |ebpf| {
            if let Ok(features) = features {
                lists = Some(Arc::new(HolderLists::take(ebpf, btf, *features)?));
            }
            Ok(())
        });
        lists
    }

    fn attempt(
        &mut self,
        name: &'static str,
        how: &'static str,
        loss: &'static str,
        precondition: Result<(), String>,
        attach: impl FnOnce(&mut Ebpf) -> Result<(), ProgramError>,
    ) {
        let outcome = precondition
            .and_then(|()| attach(self.ebpf).map_err(|error| reason(&error)))
            .map_or_else(|reason| Outcome::Missing { reason }, |()| Outcome::Attached(how));
        self.hooks.push(HookStatus { name, without: loss, outcome });
    }

    fn refuse(&mut self, name: &'static str, reason: String, loss: &'static str) {
        self.hooks.push(HookStatus { name, without: loss, outcome: Outcome::Missing { reason } });
    }
}

/// The programs that may be attached to a hook; those that are not are not loaded.
fn programs_of(hook: &'static str) -> impl Iterator<Item = &'static str> {
    const SOCK_OPS: [(&str, &str); 1] = [("sockops", "sock_ops")];
    TIME_WAIT_FUNCTIONS
        .into_iter()
        .chain([BIND4, BIND6, ACCEPT, ACCEPT_OF_FOUR])
        .map(|function| (function.name, function.program))
        .chain(SOCK_OPS)
        .filter(move |(name, _)| *name == hook)
        .map(|(_, program)| program)
        .chain([hook])
}

fn no_accept() -> String {
    "this kernel has no inet_csk_accept".to_owned()
}

/// Checks that programs can be loaded at all, and lifts the limit that old kernels put on them.
pub(super) fn check_privileges() -> Result<Capabilities, LoadError> {
    let capabilities = Capabilities::of_this_process();
    let missing = capabilities.missing(&[Capability::Bpf, Capability::Perfmon]);
    if !missing.is_empty() {
        return Err(LoadError::Privilege(missing));
    }
    raise_memlock();
    Ok(capabilities)
}

fn take_ring(ebpf: &mut Ebpf) -> Result<Ring, LoadError> {
    let events = take_map::<RingBuf<_>>(ebpf, "EVENTS")?;
    let asleep = take_map::<Array<_, _>>(ebpf, "ASLEEP")?;
    let counters = take_map::<PerCpuArray<_, _>>(ebpf, "COUNTERS")?;
    Ring::new(events, asleep, counters).map_err(LoadError::Ring)
}

fn take_tried_ports(ebpf: &mut Ebpf) -> Result<TriedPorts, LoadError> {
    take_map::<HashMap<_, _, _>>(ebpf, "TRIES").map(TriedPorts::new)
}

fn take_map<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &str,
) -> Result<M, LoadError> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| LoadError::Object(format!("the object has no map {name}").into()))?;
    M::try_from(map).map_err(|error| LoadError::Object(error.into()))
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// The kernel's reason: the errno, and the verifier's last word if it had one.
pub(super) fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        // The last lines are statistics; the one before them is the verdict.
        let verdict = log.lines().rev().find(|line| {
            let line = line.trim();
            !line.is_empty()
                && !["verification time", "stack depth", "processed"]
                    .iter()
                    .any(|statistic| line.starts_with(statistic))
        });
        return match verdict {
            Some(verdict) => format!("{io_error}: {}", verdict.trim()),
            None => io_error.to_string(),
        };
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Before 5.11 maps count against this limit; later the call changes nothing that matters.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure is valid for the duration of the call. Failure is of no consequence
    // where the limit does not apply, and is reported by the map's creation where it does.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn names(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(|capability| capability.name()).collect();
    names.join(" and ")
}
