//! All holds on ports at this moment, in all network namespaces, with their owners.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, thread,
};

use rustc_hash::FxHashMap;
use tracer_ebpf::OwnedFact;
use zerocopy::IntoBytes as _;

use crate::{
    kernel::{
        hooks::iterators::LoadedIterator,
        lists::{holders::HolderLists, sock_diag},
        namespace::{
            netns::{self, NamespaceFile, Namespaces, SocketFile},
            scope::Scope,
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
}

/// Takes a snapshot of the namespaces in `scope`. Without the iterator over `open_files`, bound
/// sockets are missing, and the others have no owner.
///
/// Sockets that processes hold come from the iterator, with their owners, whatever their
/// namespace, and even if they are bound but idle; orphans and TIME_WAITs come from sock_diag.
#[must_use]
pub(crate) fn take(
    open_files: Option<&LoadedIterator>,
    lists: Option<&HolderLists>,
    scope: Scope,
) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut found = Found::default();
    let read = open_files.map(|files| read_files(files, scope, &mut snapshot.held, &mut found));
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
    // A thread that entered a namespace is not used for anything else.
    thread::scope(|scope| {
        let lister = scope.spawn(|| list_all(&namespaces, lists, &mut snapshot));
        if let Err(panic) = lister.join() {
            std::panic::resume_unwind(panic);
        }
    });
    snapshot
}

fn list_all(namespaces: &Namespaces, lists: Option<&HolderLists>, snapshot: &mut Snapshot) {
    let Snapshot { held, coverage, classes, problems } = snapshot;
    for (inode, handle) in namespaces.iter() {
        let netns = Netns(inode);
        let before = held.len();
        let result = netns::enter(handle).and_then(|()| sock_diag::list(netns, held));
        if let Err(error) = result {
            coverage.unlisted.insert(netns);
            problems.push(format!(
                "orphans and TIME_WAITs of network namespace {inode} are not listed: {error}"
            ));
            continue;
        }
        coverage.listed.insert(netns);
        // The kernel goes through the whole host's table for this, too.
        let lists = lists.filter(|_| held.len() > before);
        if let Some(Ok(holders)) = lists.map(HolderLists::hashed_of_this_thread) {
            classes.insert(netns, classes_of(&holders));
            fill_in_timestamps(&mut held[before..], &holders);
        }
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
pub(crate) fn read_files(
    open_files: &LoadedIterator,
    scope: Scope,
    held: &mut Vec<Held>,
    found: &mut Found,
) -> io::Result<()> {
    open_files.for_each_record(|record: &OwnedFact| {
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
