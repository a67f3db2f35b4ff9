//! Looks into the network namespaces of the host at this moment. Nothing is attached for it.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use aya::programs::ProgramError;
use rustc_hash::FxHashMap;
use tracer_ebpf::TcpState;

use crate::{
    capacity::KernelRules,
    kernel::{
        hooks::{
            error::LoadError,
            iterators::{HolderIterators, IteratorObject, IteratorPrograms},
        },
        host::parallel::in_parallel,
        lists::{
            holders::HolderLists,
            snapshot::{self, Found},
            sock_diag::Timed,
        },
        namespace::{
            netns::{self, Namespaces},
            scope::Scope,
        },
    },
    model::{Addr, Cookie, Held, HeldBy, Holder, Instant, Lease, Netns, Phase, Port, Visibility},
};

/// What was found.
pub(super) struct Lookup<T> {
    /// What was found in each namespace, or why it could not be looked into.
    pub(super) namespaces: BTreeMap<Netns, io::Result<T>>,
    /// The wanted holds of sockets that processes have open, with their owners.
    pub(super) owned: Vec<Held>,
    /// Sockets of all namespaces that are bound but idle, with their buckets. Empty if no wanted
    /// socket is.
    pub(super) idle: Vec<(Netns, Holder)>,
    /// How the running kernel searches for ports.
    pub(super) rules: KernelRules,
    /// What a ledger can learn from these lists.
    pub(super) visibility: Visibility,
    /// This process's own namespace.
    pub(super) own: Netns,
    /// What could not be read, in sentences.
    pub(super) problems: Vec<String>,
}

/// Looks into the namespaces of the scope, in all of them at once. `look_into` runs in a thread
/// that has entered the namespace. Only holders of `port` are listed if there is one; `is_wanted`
/// chooses among the sockets that processes have open.
///
/// # Errors
/// If this kernel has no such lists, or does not let this process read them.
pub(super) fn look<T: Send>(
    port: Option<Port>,
    scope: Scope,
    is_wanted: impl Fn(&Held) -> bool,
    look_into: impl Fn(&HolderLists, Netns) -> io::Result<T> + Sync,
) -> Result<Lookup<T>, LoadError> {
    let mut object = IteratorObject::load(port)?;
    let (features, marks_connect) = (object.features, object.marks_connect);
    let IteratorPrograms { open_files, tcp_holders, idle_holders } = object.programs();
    let (mut owned, mut found) = (Vec::new(), Found::default());
    // Each goes through a table of the whole host, and the verifier takes its time over each
    // program.
    let (files, listed) = in_parallel(
        || {
            let open_files = open_files.load()?;
            Ok::<_, ProgramError>(snapshot::read_files(&open_files, scope, &mut owned, &mut found))
        },
        || {
            let iterators = HolderIterators { tcp: tcp_holders.load()?, idle: None, features };
            let lists = HolderLists::new(iterators);
            let namespaces = enter_each(&lists, &Found::default().namespaces(scope), &look_into);
            Ok::<_, ProgramError>((lists, namespaces))
        },
    );
    let mut problems = Vec::new();
    if let Err(error) = files? {
        problems.push(format!("the files that processes have open cannot be listed: {error}"));
    }
    let (lists, mut namespaces) = listed?;
    // The files lead to namespaces in which no process lives.
    let mut others = found.namespaces(scope);
    others.retain(|inode| !namespaces.contains_key(&Netns(inode)));
    namespaces.extend(enter_each(&lists, &others, &look_into));
    owned.retain(is_wanted);
    // Only these sockets are worth one more walk through all open files.
    let is_idle = |held: &Held| held.by == HeldBy::Socket(TcpState::Close);
    let idle = if owned.iter().any(is_idle) {
        let iterator = idle_holders.load().map_err(io::Error::other);
        iterator.and_then(|iterator| lists.idle_of(&iterator)).unwrap_or_default()
    } else {
        Vec::new()
    };
    let visibility = Visibility {
        ports_chosen: false,
        accepts: false,
        marks_connect,
        bound_idle: true,
        since: Instant::BOOT,
    };
    let rules = lists.rules();
    Ok(Lookup { namespaces, owned, idle, rules, visibility, own: own_namespace(), problems })
}

impl<T> Lookup<T> {
    /// What was found in each namespace, this process's own first. What could not be looked into
    /// becomes a problem.
    pub(super) fn take_namespaces(&mut self) -> Vec<(Netns, T)> {
        let mut found = Vec::new();
        for (netns, looked) in std::mem::take(&mut self.namespaces) {
            match looked {
                Ok(looked) => found.push((netns, looked)),
                Err(error) => self
                    .problems
                    .push(format!("network namespace {} cannot be read: {error}", netns.0)),
            }
        }
        found.sort_by_key(|(netns, _)| (*netns != self.own, *netns));
        found
    }
}

/// Milliseconds that are left on the timers of TIME_WAITs. A socket that connects twice from the
/// port that it is bound to leaves two with the same cookie.
pub(super) type Timers = FxHashMap<(Cookie, Port, (Addr, Port)), u32>;

/// The timers of a list.
pub(super) fn timers(timed: &[Timed]) -> Timers {
    let timer = |timed: &Timed| {
        let Held { cookie, local_port, peer, .. } = timed.held;
        Some(((cookie, local_port, peer?), timed.time_wait_left_ms?))
    };
    timed.iter().filter_map(timer).collect()
}

/// Milliseconds that are left on the timer of a lease that is a TIME_WAIT. `None` for others.
pub(super) fn time_wait_left_ms(lease: &Lease, timers: &Timers) -> Option<u32> {
    if !matches!(lease.phase, Phase::TimeWait(_)) {
        return None;
    }
    timers.get(&(lease.cookie, lease.local_port, lease.peer.get()?)).copied()
}

/// The namespace of the calling thread. Inode 0 if it cannot be read.
pub(super) fn own_namespace() -> Netns {
    File::open("/proc/thread-self/ns/net")
        .and_then(|own| netns::inode_of(&own))
        .map_or(Netns(0), Netns)
}

fn enter_each<T: Send>(
    lists: &HolderLists,
    namespaces: &Namespaces,
    look_into: &(impl Fn(&HolderLists, Netns) -> io::Result<T> + Sync),
) -> BTreeMap<Netns, io::Result<T>> {
    let all: Vec<_> = namespaces.iter().collect();
    let next = AtomicUsize::new(0);
    // For each the kernel goes through the whole host's table. A thread that entered a namespace
    // is not used for anything else.
    let look = || {
        let mut found = Vec::new();
        while let Some((inode, handle)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let netns = Netns(*inode);
            found.push((netns, netns::enter(handle).and_then(|()| look_into(lists, netns))));
        }
        found
    };
    let parallel = thread::available_parallelism().map_or(1, usize::from).min(all.len());
    thread::scope(|threads| {
        let lookers: Vec<_> = (0..parallel).map(|_| threads.spawn(look)).collect();
        lookers
            .into_iter()
            .flat_map(|looker| {
                looker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}
