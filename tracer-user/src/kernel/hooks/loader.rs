//! Loads the eBPF object for the running kernel and attaches its programs.

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, Map, MapError, PerCpuArray, RingBuf},
};
use tracer_ebpf::HolderLayout;
use zerocopy::IntoBytes;

use crate::{
    kernel::{
        hooks::{
            attached::AttachedHooks,
            attacher,
            error::LoadError,
            iterators::{HolderIterators, IteratorPrograms, LoadedIterator},
            kallsyms,
            object::Object,
            privileges,
            probers::ProberMap,
            probes::Probes,
            programs::{Programs, reason},
            ring::Ring,
            status::{HookStatus, Outcome},
            support::KernelSupport,
            table::{
                HookFamily, IteratorSpec, OPEN_FILES, Reports, TCP_HOLDERS, TIME_WAIT_TIMER_HANDLER,
            },
        },
        host::{capability::Capability, cgroup::CgroupRoot, clock, memory, parallel::in_parallel},
        namespace::scope::Scope,
        types::{
            btf::{self, Btf},
            layout::{self, Resolved},
        },
    },
    model::Instant,
};

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
pub(crate) fn load(options: &LoadOptions) -> Result<Probes, LoadError> {
    let LoadOptions { ring_bytes, hooks: family, scope } = *options;
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
        || kallsyms::address_of(TIME_WAIT_TIMER_HANDLER),
    );
    drop(types);
    let Resolved { layout, sock, groups, bind_buckets, kfuncs, features } =
        resolved.map_err(LoadError::Btf)?;
    sock.map_err(LoadError::Layout)?;
    let aya_btf = aya_btf.map_err(|error| LoadError::Object(error.into()))?;
    let (holder_layout, bucket_features) = match bind_buckets {
        Ok((layout, features)) => (layout, Ok(features)),
        Err(error) => (HolderLayout::default(), Err(error)),
    };

    let cgroups = CgroupRoot::open();
    let object = Object::for_kernel(kfuncs, features.has_preemptible_tracepoints);
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&aya_btf))
        .override_global("LAYOUT", layout.as_bytes(), true)
        .override_global("HOLDER_LAYOUT", holder_layout.as_bytes(), true)
        .override_global("COOKIE_HELPER", &u32::from(features.has_cookie_helper), true)
        .override_global("TW_TIMER_HANDLER", handler.as_ref().unwrap_or(&0), true)
        .override_global("WAKE_BYTES", &u64::from(ring_bytes / 4), true)
        .override_global("NETNS_WANTED", &scope.inodes(), true)
        .override_global("NR_BIND", &(libc::SYS_bind as u64), true)
        .override_global("NR_ACCEPT", &(libc::SYS_accept as u64), true)
        .override_global("NR_ACCEPT4", &(libc::SYS_accept4 as u64), true)
        // Off unless asked for: without this the level would be "everything".
        .override_global(
            "AYA_LOG_LEVEL",
            &u8::from(cfg!(feature = "debug-log")).wrapping_mul(5),
            false,
        )
        .map_max_entries("EVENTS", ring_bytes)
        .load(object.bytes())
        .map_err(|error| LoadError::Object(error.into()))?;
    let ring = take_ring(&mut ebpf)?;

    let handler = handler.map(|_| ());
    let support = KernelSupport::new(groups, bucket_features, features, handler, &cgroups);
    let mut programs = Programs::of(&mut ebpf);
    let iterators = IteratorPrograms::take(&mut programs, &aya_btf);
    // The verifier takes its time over the iterators, too.
    let (hooks, iterators) = in_parallel(
        || attacher::attach_all(programs, &aya_btf, &cgroups, &support, family),
        || load_iterators(iterators, &support),
    );
    let hooks = hooks?;
    if let Some(hook) = hooks.iter().find(|hook| hook.spec.reports == Reports::SocketStates)
        && let Outcome::Missing { reason } = &hook.outcome
    {
        return Err(LoadError::Refused { hook: hook.spec.name, reason: reason.clone() });
    }
    let probers = if hooks.iter().any(|hook| hook.reports(Reports::ProbedPorts)) {
        Some(ProberMap::new(take_map(&mut ebpf, "TRIES")?))
    } else {
        None
    };
    drop(aya_btf);
    memory::trim();
    #[cfg(feature = "debug-log")]
    let log = super::debug_log::start(&mut ebpf);
    let Iterators { open_files, holders, statuses } = iterators;
    Ok(Probes {
        #[cfg(feature = "debug-log")]
        log,
        ring,
        hooks: AttachedHooks::new(ebpf, hooks, statuses, features.has_preemptible_tracepoints),
        cgroups: cgroups.ok(),
        warnings,
        open_files,
        holders,
        probers,
        marks_connect: features.marks_connect,
        attached_at: Instant::from_ns(clock::monotonic_ns()),
    })
}

/// The iterators that could be loaded, and what became of each.
struct Iterators {
    open_files: Option<LoadedIterator>,
    holders: Option<HolderIterators>,
    statuses: Vec<HookStatus>,
}

fn load_iterators(programs: IteratorPrograms<'_>, support: &KernelSupport) -> Iterators {
    let IteratorPrograms { open_files, tcp_holders, idle_holders } = programs;
    let open_files = support
        .check(OPEN_FILES.needs)
        .and_then(|()| open_files.load().map_err(|error| reason(&error)));
    let holders = support.check(TCP_HOLDERS.needs).and_then(|()| {
        HolderIterators::load(tcp_holders, idle_holders, support.bucket_features()?)
            .map_err(|error| reason(&error))
    });
    let status = |spec: IteratorSpec, loaded: Result<(), String>| HookStatus {
        name: spec.program,
        without: spec.without,
        outcome: Outcome::of(loaded, IteratorSpec::LABEL),
    };
    Iterators {
        statuses: vec![
            status(OPEN_FILES, open_files.as_ref().map(drop).map_err(Clone::clone)),
            status(TCP_HOLDERS, holders.as_ref().map(drop).map_err(Clone::clone)),
        ],
        open_files: open_files.ok(),
        holders: holders.ok(),
    }
}

fn take_ring(ebpf: &mut Ebpf) -> Result<Ring, LoadError> {
    let events = take_map::<RingBuf<_>>(ebpf, "EVENTS")?;
    let asleep = take_map::<Array<_, _>>(ebpf, "ASLEEP")?;
    let counters = take_map::<PerCpuArray<_, _>>(ebpf, "COUNTERS")?;
    Ring::new(events, asleep, counters).map_err(LoadError::Ring)
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
