//! All holds on ports at this moment, in all network namespaces, with their owners.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Instant,
};

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::{OwnedFact, TcpState};
use zerocopy::IntoBytes as _;

use crate::{
    kernel::{
        hooks::iterators::LoadedIterator,
        lists::{census::Census, holders::HolderLists, sock_diag},
        namespace::{
            netns::{NamespaceFile, Namespaces, SocketFile},
            scope::Scope,
            visit::{self, Visited},
        },
        wire::{OpenFile, OpenFileContent, decode_open_file},
    },
    model::{BucketClass, Cookie, Coverage, Held, HeldBy, Holder, HolderBy, Netns, Port},
};

/// What a snapshot found, and what it could not look at.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Holds: first those that processes have open, with their owners, then those that the kernel
    /// lists, which include the former once more.
    pub(crate) held: Vec<Held>,
    /// Which parts of the host were covered.
    pub(crate) coverage: Coverage,
    /// The class of each bind bucket that holds more than sockets which are bound but idle.
    pub(crate) classes: BTreeMap<Netns, BTreeMap<Port, BucketClass>>,
    /// What is missing, in sentences.
    pub(crate) problems: Vec<String>,
    /// The first namespace that was not reached in time; the next snapshot should begin with it.
    pub(crate) unreached: Option<Netns>,
}

/// Takes a snapshot of the namespaces in `scope`, beginning with `first`. Without the iterator over
/// `open_files`, bound sockets are missing, and the others have no owner.
///
/// Sockets that processes hold come from the iterator, with their owners, whatever their
/// namespace, and even if they are bound but idle; orphans and TIME_WAITs come from sock_diag.
#[must_use]
pub(crate) fn take(
    open_files: Option<&LoadedIterator>,
    lists: Option<&HolderLists>,
    scope: Scope,
    first: Option<Netns>,
) -> Snapshot {
    let deadline = Instant::now() + visit::PATIENCE;
    let mut snapshot = Snapshot::default();
    let mut found = Found::default();
    let read =
        open_files.map(|files| read_files(files, scope, deadline, &mut snapshot.held, &mut found));
    if let Some(Err(error)) = read {
        snapshot.coverage.lacks_files = true;
        snapshot.problems.push(format!("open files cannot be listed: {error}"));
    }
    let namespaces = found.namespaces(scope);
    let reached: BTreeSet<u32> = namespaces.iter().map(|(inode, _)| inode).collect();
    snapshot.coverage.unlisted =
        found.sockets.keys().filter(|inode| !reached.contains(inode)).copied().map(Netns).collect();
    for (inode, error) in namespaces.unopened() {
        snapshot.coverage.unlisted.insert(Netns(inode));
        let problem = format!("network namespace {inode} cannot be opened: {error}");
        snapshot.problems.push(problem);
    }
    let census = Census::of(&snapshot.held);
    let connected = connected(&snapshot.held);
    let visited = visit::visit(&namespaces, first.unwrap_or(Netns(0)), deadline, |netns| {
        Tables::read(lists, netns, census.is_complete(netns), connected.contains(&netns))
    });
    snapshot.add(visited);
    snapshot
}

impl Snapshot {
    /// Adds what was found in the namespaces. The classes of buckets of listeners need no list: to
    /// listen() on a port makes its bucket one of the class [`BucketClass::Bind`]
    /// (`inet_csk_get_port`, net/ipv4/inet_connection_sock.c).
    fn add(&mut self, visited: Visited<Tables>) {
        self.problems.extend(visited.problem());
        let Visited { found, unreached } = visited;
        self.unreached = unreached.first().copied();
        self.coverage.unlisted.extend(unreached);
        for held in &self.held {
            if held.by == HeldBy::Socket(TcpState::Listen) {
                let classes = self.classes.entry(held.netns).or_default();
                classes.insert(held.local_port, BucketClass::Bind);
            }
        }
        for (netns, tables) in found {
            match tables {
                Ok(Tables { held, classes }) => {
                    self.coverage.listed.insert(netns);
                    self.held.extend(held);
                    self.classes.entry(netns).or_default().extend(classes);
                }
                Err(error) => {
                    self.coverage.unlisted.insert(netns);
                    self.problems.push(format!(
                        "orphans and TIME_WAITs of network namespace {} are not listed: {error}",
                        netns.0
                    ));
                }
            }
        }
    }
}

/// The namespaces in which processes have connections.
fn connected(held: &[Held]) -> FxHashSet<Netns> {
    held.iter().filter(|held| held.peer.is_some()).map(|held| held.netns).collect()
}

/// What the lists of a namespace show.
struct Tables {
    /// Every holder that sock_diag lists. Empty if all of them are known from the open files.
    held: Vec<Held>,
    classes: BTreeMap<Port, BucketClass>,
}

impl Tables {
    /// Reads the lists of the calling thread's namespace, those that can show anything new.
    fn read(
        lists: Option<&HolderLists>,
        netns: Netns,
        all_are_known: bool,
        is_connected: bool,
    ) -> io::Result<Self> {
        let mut held = Vec::new();
        if !all_are_known {
            sock_diag::list(netns, &mut held)?;
        }
        let mut classes = BTreeMap::new();
        if (is_connected || !held.is_empty())
            && let Some(Ok(holders)) = lists.map(HolderLists::hashed_of_this_thread)
        {
            classes = classes_of(&holders);
            fill_in_timestamps(&mut held, &holders);
        }
        Ok(Self { held, classes })
    }
}

/// Whatever bucket a socket that is bound but idle is in is of the class [`BucketClass::Bind`].
fn classes_of(holders: &[Holder]) -> BTreeMap<Port, BucketClass> {
    // A VRF has buckets of its own, which the ledger does not distinguish from the others.
    let holders = holders.iter().filter(|holder| holder.l3mdev == 0);
    holders.map(|holder| (holder.local_port, holder.class)).collect()
}

/// sock_diag, which has given every TIME_WAIT a cookie, does not say which had timestamps.
fn fill_in_timestamps(held: &mut [Held], holders: &[Holder]) {
    let stamps: FxHashMap<Cookie, u32> = holders
        .iter()
        .filter_map(|holder| match holder.by {
            HolderBy::TimeWait { ts_recent_stamp_s, .. } => {
                Some((holder.cookie, ts_recent_stamp_s))
            }
            HolderBy::Idle | HolderBy::Listener | HolderBy::Connection { .. } => None,
        })
        .collect();
    for held in held.iter_mut().filter(|held| matches!(held.by, HeldBy::TimeWait(_))) {
        held.has_timestamps = stamps.get(&held.cookie).map(|stamp_s| *stamp_s != 0);
    }
}

/// How namespaces can be reached, according to the open files.
#[derive(Default)]
pub(crate) struct Found {
    files: Vec<NamespaceFile>,
    /// A socket of each namespace that has one.
    sockets: BTreeMap<u32, SocketFile>,
}

impl Found {
    /// Every namespace of the scope that can be reached.
    pub(crate) fn namespaces(&self, scope: Scope) -> Namespaces {
        let mut namespaces = Namespaces::discover(&self.files);
        namespaces.add_of_sockets(&self.sockets);
        namespaces.retain(|inode| scope.contains(Netns(inode)));
        namespaces
    }
}

/// Reads the list of open files to its end.
///
/// # Errors
/// If the kernel refuses, or it takes until `deadline`.
pub(crate) fn read_files(
    open_files: &LoadedIterator,
    scope: Scope,
    deadline: Instant,
    held: &mut Vec<Held>,
    found: &mut Found,
) -> io::Result<()> {
    /// Number of records between two looks at the clock.
    const STEP: u32 = 1024;
    let mut records = 0_u32;
    open_files.for_each_record(|record: &OwnedFact| {
        records = records.wrapping_add(1);
        if records.is_multiple_of(STEP) && Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let OpenFile { owner, fd, netns, content } =
            decode_open_file(record.as_bytes()).map_err(io::Error::other)?;
        let (pid, inode) = (owner.pid, netns.0);
        match content {
            OpenFileContent::Namespace => found.files.push(NamespaceFile { pid, fd, inode }),
            OpenFileContent::Socket(hold) if scope.contains(netns) => {
                found.sockets.entry(inode).or_insert(SocketFile { pid, fd });
                held.extend(hold);
            }
            OpenFileContent::Socket(_) => {}
        }
        Ok(())
    })
}
