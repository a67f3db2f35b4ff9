//! Loads the eBPF object and attaches each program by trying it.
//!
//! No kernel version is asked for: a hook that the kernel refuses is reported with the kernel's
//! reason and with what is lost, and the others go on.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    time::Duration,
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, Map, MapError, PerCpuArray, RingBuf},
    programs::ProgramError,
};
use zerocopy::IntoBytes;

use crate::{
    kernel::{
        hooks::{
            attacher::{
                ACCEPT, AGAIN, Attacher, FUNCTIONS_TWICE, Function, Needs, RESET, programs_of,
            },
            error::LoadError,
            iterators::{HolderIterators, IteratorPrograms, LoadedIterator},
            kallsyms,
            object::Object,
            privileges,
            programs::{Programs, reason},
            ring::Ring,
            status::{HookFamily, HookStatus, Outcome},
            tries::TriedPorts,
        },
        host::{capability::Capability, cgroup::CgroupRoot, clock, memory, parallel::in_parallel},
        namespace::scope::Scope,
        types::{
            btf::{self, Btf, BtfError},
            layout,
        },
    },
    model::{Instant, Sight},
};

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
    /// Lists the files that processes have open, if this kernel can.
    pub(crate) open_files: Option<LoadedIterator>,
    /// Lists who is in which bind bucket, if this kernel can.
    pub(crate) holders: Option<HolderIterators>,
    /// Who tried closed ports, if this kernel tells of it.
    pub tried_ports: Option<TriedPorts>,
    /// Sockets whose port connect() chose are marked by this kernel.
    marks_connect: bool,
    /// A tracepoint's program can lose its CPU to another task.
    has_preemptible_tracepoints: bool,
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

/// Loads and attaches everything that this kernel permits.
///
/// # Errors
/// If nothing can be traced at all: see [`LoadError`].
pub fn load(options: &LoadOptions) -> Result<Probes, LoadError> {
    let capabilities = privileges::check()?;
    let warnings = capabilities
        .missing(&Capability::OPTIONAL)
        .into_iter()
        .map(|capability| format!("without {}, {}", capability.name(), capability.loss()))
        .collect();
    let types = btf::read().map_err(LoadError::Btf)?;
    // Three slow lookups that need not wait for each other.
    let ((resolved, aya_btf), handler) = in_parallel(
        || {
            in_parallel(
                || Btf::parse(&types).map(|btf| layout::resolve(&btf)),
                || AyaBtf::parse(&types, Endianness::default()),
            )
        },
        || kallsyms::address_of("tw_timer_handler"),
    );
    drop(types);
    let resolved = resolved.map_err(LoadError::Btf)?;
    let layout::Resolved {
        layout,
        sock,
        time_wait,
        task,
        files,
        syscall,
        segment,
        bind_buckets,
        has_cookie_helper,
        marks_connect,
        has_preemptible_tracepoints,
        kfuncs,
        accept_parameters,
    } = resolved;
    sock.map_err(LoadError::Layout)?;
    let aya_btf = aya_btf.map_err(|error| LoadError::Object(error.into()))?;

    let holder_layout = bind_buckets.as_ref().map(|(layout, _)| *layout).unwrap_or_default();
    let cgroups = CgroupRoot::open();
    let object = Object::for_kernel(kfuncs, has_preemptible_tracepoints);
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
        .load(object.bytes())
        .map_err(|error| LoadError::Object(error.into()))?;
    let ring = take_ring(&mut ebpf)?;

    // What each hook needs, as the sentence that says why it is not there.
    let sentence = |need: Result<(), BtfError>| need.map_err(|error| error.to_string());
    let (task, time_wait) = (sentence(task), sentence(time_wait));
    let files = task.clone().and(sentence(files));
    let needs = Needs {
        timers: time_wait.clone().and(handler.map(|_| ()).map_err(|error| error.to_string())),
        syscall: files.clone().and(sentence(syscall)),
        segment: sentence(segment),
        task,
        time_wait: time_wait.clone(),
        files: files.clone(),
        accept_parameters,
        has_cookie_helper,
        has_preemptible_tracepoints,
    };
    let features = bind_buckets.map(|(_, features)| features).map_err(|error| error.to_string());
    let features = files.clone().and(time_wait).and(features);
    let mut programs = Programs::of(&mut ebpf);
    let IteratorPrograms { open_files, tcp_holders, idle_holders } =
        IteratorPrograms::take(&mut programs, &aya_btf);
    let mut attacher = Attacher::new(programs, &aya_btf, options.hooks);
    // The verifier takes its time over the lists, too.
    let (attached, (open_files, holders)) = in_parallel(
        || attacher.attach(&needs, &cgroups),
        || {
            let refused = |error: ProgramError| reason(&error);
            let open_files = files.and_then(|()| open_files.load().map_err(refused));
            let holders = features.and_then(|features| {
                HolderIterators::load(tcp_holders, idle_holders, features).map_err(refused)
            });
            (open_files, holders)
        },
    );
    attached?;
    let mut hooks = attacher.into_hooks();
    let mut list = |name, without, outcome: Result<(), String>| {
        hooks.push(HookStatus { name, without, outcome: Outcome::of(outcome, "iter") });
    };
    list(
        "task_file",
        "sockets that are bound but idle are not in the snapshot",
        open_files.as_ref().map(|_| ()).map_err(Clone::clone),
    );
    list(
        "tcp_holders",
        "that somebody bound a port is known only if that was seen, and TIME_WAITs from before are \
         believed to have had timestamps",
        holders.as_ref().map(|_| ()).map_err(Clone::clone),
    );
    if let Some(HookStatus { outcome: Outcome::Missing { reason, .. }, .. }) =
        hooks.iter().find(|hook| hook.name == "inet_sock_set_state")
    {
        return Err(LoadError::Refused(reason.clone()));
    }
    let is_attached = |name: &str| hooks.iter().any(|hook| hook.name == name && hook.is_attached());
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
        cgroups: cgroups.ok(),
        warnings,
        ebpf,
        open_files: open_files.ok(),
        holders: holders.ok(),
        tried_ports,
        marks_connect,
        has_preemptible_tracepoints,
        attached: Instant::from_ns(clock::monotonic_ns()),
    })
}

impl Probes {
    /// What the ledger can rely on, by the hooks that are attached.
    #[must_use]
    pub fn sight(&self) -> Sight {
        Sight {
            ports_chosen: self.is_attached("sockops"),
            accepts: self.is_attached("sys_exit") || self.is_attached(ACCEPT.name),
            marks_connect: self.marks_connect,
            bound_idle: self.open_files.is_some(),
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
                let infos = programs_of(hook.name)
                    .filter_map(|program| self.ebpf.program(program)?.info().ok());
                // Of two at a function, either runs whenever the function does.
                let (runs, time) = infos.fold((0, Duration::ZERO), |(runs, time), info| {
                    (info.run_count().max(runs), time + info.run_time())
                });
                let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                (runs > 0).then_some(ProgramCost { hook: hook.name, runs, ns })
            })
            .collect()
    }

    fn is_attached(&self, name: &str) -> bool {
        self.hooks.iter().any(|hook| hook.name == name && hook.is_attached())
    }

    /// True for either copy of a program of which two are attached.
    fn has_both_copies(&self, program: &str) -> bool {
        FUNCTIONS_TWICE.iter().any(|function| {
            function.programs().any(|of_function| of_function == program)
                && self.is_attached(function.name)
        }) || AGAIN.iter().any(|(first, again)| {
            (*first == program || *again == program)
                && self.is_attached(first)
                && self.is_attached(again)
        })
    }

    /// Firings of hooks that no program saw: the kernel skips a program that would interrupt
    /// itself on its CPU (`recursion_misses`, since 5.12). Where a second copy is attached one of
    /// the two sees every firing.
    #[must_use]
    pub fn unseen_firings(&self) -> u64 {
        self.ebpf
            .programs()
            // This one reports no facts, and says at least how much there was.
            .filter(|(name, _)| *name != RESET && !self.has_both_copies(name))
            .filter_map(|(_, program)| recursion_misses(program.fd().ok()?.as_fd()))
            .sum()
    }

    /// At most so many firings of hooks at which two programs are attached were seen by neither:
    /// where another task can take the CPU from both, a third finds both running. Only so many as
    /// each of them missed can be those that both missed.
    #[must_use]
    pub fn doubtful_firings(&self) -> u64 {
        let at_tracepoints = AGAIN.iter().copied().filter(|_| self.has_preemptible_tracepoints);
        let at_functions = FUNCTIONS_TWICE.iter().filter_map(Function::both_programs);
        let misses = |name| recursion_misses(self.ebpf.program(name)?.fd().ok()?.as_fd());
        at_tracepoints
            .chain(at_functions)
            .filter_map(|(first, again)| Some(misses(first)?.min(misses(again)?)))
            .sum()
    }
}

fn recursion_misses(program: BorrowedFd<'_>) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", program.as_raw_fd()));
    let info = info.ok()?;
    let misses = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
    misses.trim().parse().ok()
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
