//! All holds on ports at this moment, in all network namespaces, with their owners.

use std::{
    fs::File,
    io::{self, Read as _},
    thread,
};

use tracer_ebpf::{FactKind, OwnedFact, decode};

use super::{
    netns::{self, NamespaceFile, Namespaces},
    sock_diag,
};
use crate::ledger::{Held, Netns};

/// What a snapshot found, and what it could not look at.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Holds; first those that processes have open, with their owners, then those that the
    /// kernel lists, among which the former stand once more.
    pub held: Vec<Held>,
    /// The namespaces that were looked into.
    pub namespaces: Vec<Netns>,
    /// What is missing, in sentences.
    pub problems: Vec<String>,
}

/// Takes a snapshot. `files` is the iterator over all open files, where the kernel has one.
///
/// Sockets that processes hold come from the iterator, with their owners, whatever their
/// namespace, and even if they are bound but idle; orphans and TIME_WAITs come from sock_diag.
#[must_use]
pub fn take(files: Option<File>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut namespace_files = Vec::new();
    if let Some(files) = files
        && let Err(error) = read_files(files, &mut snapshot, &mut namespace_files)
    {
        snapshot.problems.push(format!("the list of open files ended early: {error}"));
    }
    let namespaces = Namespaces::discover(&namespace_files);
    // A thread that entered a namespace is not used for anything else.
    thread::scope(|scope| {
        let lister = scope.spawn(|| list_all(&namespaces, &mut snapshot));
        if let Err(panic) = lister.join() {
            std::panic::resume_unwind(panic);
        }
    });
    snapshot
}

fn list_all(namespaces: &Namespaces, snapshot: &mut Snapshot) {
    let Snapshot { held, namespaces: seen, problems } = snapshot;
    for (inode, handle) in namespaces.iter() {
        let netns = Netns(inode);
        let result = netns::enter(handle).and_then(|()| sock_diag::list(netns, held));
        match result {
            Ok(()) => seen.push(netns),
            Err(error) => problems.push(format!(
                "orphans and TIME_WAITs of network namespace {inode} are not listed: {error}"
            )),
        }
    }
}

fn read_files(
    mut files: File,
    snapshot: &mut Snapshot,
    namespace_files: &mut Vec<NamespaceFile>,
) -> io::Result<()> {
    const RECORD: usize = size_of::<OwnedFact>();
    let mut buffer = vec![0; RECORD * 512];
    let mut filled = 0;
    loop {
        let read = match files.read(&mut buffer[filled..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        filled += read;
        let whole = filled - filled % RECORD;
        for record in buffer[..whole].chunks_exact(RECORD) {
            let (kind, fact, owner) = decode(record).map_err(io::Error::other)?;
            match kind {
                FactKind::NamespaceFile => namespace_files.extend(owner.map(|owner| {
                    NamespaceFile { pid: owner.pid, fd: fact.detail, inode: fact.netns }
                })),
                _ => snapshot.held.extend(Held::from_fact(&fact, owner)),
            }
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
        if read == 0 {
            return Ok(());
        }
    }
}
