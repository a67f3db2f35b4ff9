//! Looks into the network namespaces of the host at this moment. Nothing is attached for it.

use std::{fs::File, io, time};

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
            census::Census,
            holders::HolderLists,
            snapshot::{self, Found},
            sock_diag::Timed,
        },
        namespace::{
            netns,
            scope::Scope,
            visit::{self, Visited},
        },
    },
    model::{Addr, Cookie, Held, HeldBy, Holder, Instant, Lease, Netns, Phase, Port, Visibility},
};

/// What was found.
pub(super) struct Lookup<T> {
    /// What was found in each namespace, or why it could not be looked into.
    namespaces: Vec<(Netns, io::Result<T>)>,
    /// The holds of sockets that processes have open, with their owners, by namespace.
    owned: Vec<Held>,
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

/// A namespace that is looked into.
pub(super) struct Place<'a> {
    pub(super) netns: Netns,
    /// The holds of sockets that processes have open, with their owners.
    pub(super) owned: &'a [Held],
    /// Every other socket of the namespace is bound but idle, and there are no TIME_WAITs.
    pub(super) all_are_owned: bool,
    pub(super) lists: &'a HolderLists,
}

/// Looks into the namespaces of the scope. `look_into` runs in a thread that has entered the
/// namespace. Only holders of `port` are listed if there is one.
///
/// # Errors
/// If this kernel has no such lists, or does not let this process read them.
pub(super) fn look<T: Send>(
    port: Option<Port>,
    scope: Scope,
    look_into: impl Fn(&Place<'_>) -> io::Result<T> + Sync,
) -> Result<Lookup<T>, LoadError> {
    let deadline = time::Instant::now() + visit::PATIENCE;
    let mut object = IteratorObject::load(port)?;
    let (features, marks_connect) = (object.features, object.marks_connect);
    let IteratorPrograms { open_files, tcp_holders, idle_holders } = object.programs();
    let (mut owned, mut found) = (Vec::new(), Found::default());
    // The verifier takes its time over each program.
    let (files, lists) = in_parallel(
        || {
            let open_files = open_files.load()?;
            let (owned, found) = (&mut owned, &mut found);
            let read = snapshot::read_files(&open_files, scope, deadline, owned, found);
            Ok::<_, ProgramError>(read)
        },
        || {
            let iterators = HolderIterators { tcp: tcp_holders.load()?, idle: None, features };
            Ok::<_, ProgramError>(HolderLists::new(iterators))
        },
    );
    let mut problems = Vec::new();
    if let Err(error) = files? {
        problems.push(format!("the files that processes have open cannot be listed: {error}"));
    }
    let lists = lists?;
    owned.sort_by_key(|held| held.netns);
    let census = Census::of(&owned);
    let own = own_namespace();
    let visited = visit::visit(&found.namespaces(scope), own, deadline, |netns| {
        look_into(&Place {
            netns,
            owned: of_namespace(&owned, netns),
            all_are_owned: census.is_complete(netns),
            lists: &lists,
        })
    });
    problems.extend(visited.problem());
    let Visited { found: namespaces, unreached: _ } = visited;
    // Only these sockets are worth one more walk through all open files.
    let is_idle = |held: &Held| {
        held.by == HeldBy::Socket(TcpState::Close)
            && port.is_none_or(|port| held.local_port == port)
    };
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
    Ok(Lookup { namespaces, owned, idle, rules, visibility, own, problems })
}

impl<T> Lookup<T> {
    /// The holds of a namespace's sockets that processes have open, with their owners.
    pub(super) fn owned(&self, netns: Netns) -> &[Held] {
        of_namespace(&self.owned, netns)
    }

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

/// The part of a list, sorted by namespace, that is about this one.
fn of_namespace(owned: &[Held], netns: Netns) -> &[Held] {
    let from = owned.partition_point(|held| held.netns < netns);
    let of = &owned[from..];
    &of[..of.partition_point(|held| held.netns == netns)]
}
