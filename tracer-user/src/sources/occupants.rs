//! Who holds one port, in all network namespaces, at this moment.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use aya::programs::ProgramError;
use tracer_ebpf::TcpState;

use crate::{
    capacity::{Occupancy, Occupant, PortView},
    kernel::{
        hooks::{
            error::LoadError,
            iterators::{HolderIterators, IteratorObject, IteratorPrograms},
        },
        host::parallel::in_parallel,
        lists::{
            holders::HolderLists,
            snapshot::{self, Found},
            sock_diag::{self, Timed},
        },
        namespace::{
            netns::{self, Namespaces},
            scope::Scope,
            settings::SettingsFiles,
        },
    },
    ledger::Ledger,
    model::{Held, HeldBy, Holder, Instant, Netns, Phase, Port, Settings, Sight},
};

/// Looks for the holders of a port in all namespaces, or in those of the scope. Nothing is
/// attached for it.
///
/// # Errors
/// If this kernel cannot list them, or does not let this process.
pub fn look_for(port: Port, scope: Scope) -> Result<PortView, LoadError> {
    let mut object = IteratorObject::load(Some(port))?;
    let (features, marks_connect) = (object.features, object.marks_connect);
    let IteratorPrograms { open_files, tcp_holders, idle_holders } = object.programs();
    let (mut owned, mut found) = (Vec::new(), Found::default());
    // Each goes through a table of the whole host, and the verifier takes its time over each
    // program.
    let (files, tables) = in_parallel(
        || {
            let open_files = open_files.load()?;
            Ok::<_, ProgramError>(snapshot::read_files(&open_files, scope, &mut owned, &mut found))
        },
        || {
            let iterators = HolderIterators { tcp: tcp_holders.load()?, idle: None, features };
            let lists = HolderLists::new(iterators);
            let tables = look_into(&lists, port, &Found::default().namespaces(scope));
            Ok::<_, ProgramError>((lists, tables))
        },
    );
    let mut problems = Vec::new();
    if let Err(error) = files? {
        problems.push(format!("the files that processes have open cannot be listed: {error}"));
    }
    let (lists, mut tables) = tables?;
    // The files lead to namespaces in which no process lives.
    let mut others = found.namespaces(scope);
    others.retain(|inode| !tables.contains_key(&inode));
    tables.extend(look_into(&lists, port, &others));
    owned.retain(|held| held.local_port == port);
    // Only these sockets are worth one more walk through all open files.
    let is_idle = |held: &Held| held.by == HeldBy::Socket(TcpState::Close);
    let idle = if owned.iter().any(is_idle) {
        let iterator = idle_holders.load().map_err(io::Error::other);
        iterator.and_then(|iterator| lists.idle_of(&iterator)).unwrap_or_default()
    } else {
        Vec::new()
    };
    let own = File::open("/proc/thread-self/ns/net")
        .and_then(|own| netns::inode_of(&own))
        .map_or(Netns(0), Netns);
    let mut views = Vec::new();
    for (inode, tables) in tables {
        let netns = Netns(inode);
        match tables {
            Ok(tables) => {
                let owned = owned.iter().filter(|held| held.netns == netns);
                let idle = idle.iter().filter(|(of, _)| *of == netns).map(|(_, holder)| holder);
                views.push(tables.occupancy(port, netns, marks_connect, owned, idle));
            }
            Err(error) => {
                problems.push(format!("network namespace {inode} cannot be looked into: {error}"));
            }
        }
    }
    let searched = views.len();
    let is_asked = scope != Scope::default();
    let mut namespaces: Vec<_> = views
        .into_iter()
        .filter(|view| is_asked || view.netns == own || !view.occupants.is_empty())
        .collect();
    namespaces.sort_by_key(|view| (view.netns != own, view.netns));
    Ok(PortView { namespaces, searched, problems })
}

/// What a namespace tells by itself.
struct Tables {
    timed: Vec<Timed>,
    /// Connected sockets, listeners and TIME_WAITs with their buckets.
    hashed: Vec<Holder>,
    settings: Option<Settings>,
}

/// Looks into each of the namespaces, by inode.
fn look_into(
    lists: &HolderLists,
    port: Port,
    namespaces: &Namespaces,
) -> BTreeMap<u32, io::Result<Tables>> {
    let all: Vec<_> = namespaces.iter().collect();
    let next = AtomicUsize::new(0);
    // For each the kernel goes through the whole host's table. A thread that entered a namespace
    // is not used for anything else.
    let look = || {
        let mut found = Vec::new();
        while let Some((inode, handle)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((*inode, Tables::of(lists, port, Netns(*inode), handle)));
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

impl Tables {
    /// Moves the calling thread into the namespace.
    fn of(lists: &HolderLists, port: Port, netns: Netns, handle: &File) -> io::Result<Self> {
        netns::enter(handle)?;
        let timed = sock_diag::list_port(netns, port)?;
        let hashed = if timed.is_empty() {
            Vec::new()
        } else {
            // Without it the answer lacks what only the buckets know.
            lists.hashed_of_this_thread().unwrap_or_default()
        };
        let settings = SettingsFiles::open().and_then(|files| files.read()).ok();
        Ok(Self { timed, hashed, settings })
    }

    fn occupancy<'a>(
        self,
        port: Port,
        netns: Netns,
        marks_connect: bool,
        owned: impl Iterator<Item = &'a Held>,
        idle: impl Iterator<Item = &'a Holder>,
    ) -> Occupancy {
        let Self { timed, hashed, settings } = self;
        let buckets: Vec<Holder> = idle.copied().chain(hashed).collect();
        let mut held: Vec<Held> = owned.copied().collect();
        held.extend(timed.iter().map(|timed| timed.held));
        // The ledger makes of several sights of a socket one lease, and knows how it began.
        let sight = Sight {
            ports_chosen: false,
            accepts: false,
            marks_connect,
            bound_idle: true,
            since: Instant::BOOT,
        };
        let mut ledger = Ledger::new(sight);
        ledger.adopt_all(&held);
        let mut occupants: Vec<_> = ledger
            .leases_on(netns, port)
            .map(|lease| Occupant {
                lease: lease.clone(),
                time_wait_left_ms: timed
                    .iter()
                    .filter(|_| matches!(lease.phase, Phase::TimeWait(_)))
                    .filter(|timed| is_of(timed, lease.cookie.0, lease.peer.get().is_some()))
                    .find_map(|timed| timed.time_wait_left_ms),
                bucket: buckets
                    .iter()
                    .find(|holder| holder.local_port == port && holder.cookie == lease.cookie)
                    .copied(),
            })
            .collect();
        occupants.sort_by_key(|occupant| (rank(occupant.lease.phase), occupant.lease.cookie));
        Occupancy { netns, settings, occupants }
    }
}

fn is_of(timed: &Timed, cookie: u64, is_connected: bool) -> bool {
    timed.held.cookie.0 == cookie && timed.held.peer.is_some() == is_connected
}

/// Who stands in the way most comes first.
fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Listen => 0,
        Phase::Bound => 1,
        Phase::Connecting | Phase::Established | Phase::Closing => 2,
        Phase::TimeWait(_) => 3,
    }
}
