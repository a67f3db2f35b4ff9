//! Who holds one port, in all network namespaces, at this moment.

use std::{fs::File, io, os::fd::AsFd as _, thread};

use tracer_ebpf::TcpState;

use super::{
    holders::{
        HolderLists, IDLE_HOLDERS, IteratorProgram, Iterators, TASK_FILE, TCP_HOLDERS, at_once,
        open_iterator, refused,
    },
    loader::LoadError,
    netns::{self, Namespaces},
    scope::Scope,
    settings::SettingsFiles,
    snapshot::{self, Found},
    sock_diag::{self, Timed},
};
use crate::{
    exhaustion::{Holder, Occupancy, Occupant, PortView},
    ledger::{Held, HeldBy, Instant, Ledger, Netns, Phase, Port, Sight},
};

/// Looks for the holders of a port in all namespaces, or in those of the scope. Nothing is
/// attached for it.
///
/// # Errors
/// If this kernel cannot list them, or does not let this process.
pub fn look_for(port: Port, scope: Scope) -> Result<PortView, LoadError> {
    let Iterators { mut ebpf, btf, features, marks_connect } = Iterators::prepare(Some(port))?;
    let mut owned = Vec::new();
    let mut found = Found::default();
    let [task_file, tcp, idle] =
        IteratorProgram::find(&mut ebpf, [TASK_FILE, TCP_HOLDERS, IDLE_HOLDERS]);
    // The verifier takes tens of milliseconds for a program, and so do the open files of a host.
    let (files, holders) = at_once(
        || {
            let files = task_file.load(&btf)?;
            Ok(open_iterator(files.as_fd())
                .and_then(|files| snapshot::read_files(files, scope, &mut owned, &mut found)))
        },
        || Ok(HolderLists::of_programs(tcp.load(&btf)?, idle.load(&btf).ok(), features)),
    );
    let mut problems = Vec::new();
    if let Err(error) = files.map_err(|error| refused(&error))? {
        problems.push(format!("the files that processes have open cannot be listed: {error}"));
    }
    let holders = holders.map_err(|error| refused(&error))?;
    Ok(Looker { port, holders, marks_connect }.look(
        owned,
        &found.namespaces(scope),
        scope,
        problems,
    ))
}

struct Looker {
    port: Port,
    holders: HolderLists,
    marks_connect: bool,
}

impl Looker {
    fn look(
        &self,
        mut owned: Vec<Held>,
        namespaces: &Namespaces,
        scope: Scope,
        mut problems: Vec<String>,
    ) -> PortView {
        owned.retain(|held| held.local_port == self.port);
        // This goes through all open files once more.
        let is_idle = |held: &Held| held.by == HeldBy::Socket(TcpState::Close);
        let idle = if owned.iter().any(is_idle) {
            self.holders.idle().unwrap_or_default()
        } else {
            Vec::new()
        };
        let own = File::open("/proc/thread-self/ns/net")
            .and_then(|own| netns::inode_of(&own))
            .map_or(Netns(0), Netns);
        // A thread that entered a namespace is not used for anything else.
        let views = thread::scope(|threads| {
            let looker = threads.spawn(|| {
                namespaces
                    .iter()
                    .filter_map(|(inode, handle)| {
                        let owned = owned.iter().filter(|held| held.netns == Netns(inode));
                        let idle = idle.iter().filter(|(netns, _)| *netns == Netns(inode));
                        let idle = idle.map(|(_, holder)| holder);
                        let view = self.look_into(handle, Netns(inode), owned, idle);
                        view.map_err(|error| {
                            problems.push(format!(
                                "network namespace {inode} cannot be looked into: {error}"
                            ));
                        })
                        .ok()
                    })
                    .collect::<Vec<_>>()
            });
            looker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let searched = views.len();
        let is_asked = scope != Scope::default();
        let mut namespaces: Vec<_> = views
            .into_iter()
            .filter(|view| is_asked || view.netns == own || !view.occupants.is_empty())
            .collect();
        namespaces.sort_by_key(|view| (view.netns != own, view.netns));
        PortView { namespaces, searched, problems }
    }

    /// Moves the calling thread into the namespace.
    fn look_into<'a>(
        &self,
        handle: &File,
        netns: Netns,
        owned: impl Iterator<Item = &'a Held>,
        idle: impl Iterator<Item = &'a Holder>,
    ) -> io::Result<Occupancy> {
        netns::enter(handle)?;
        let port = self.port;
        // Each of the two goes through the host's whole table.
        let (timed, hashed) = if sock_diag::holds_nothing() {
            (Vec::new(), Vec::new())
        } else {
            let (timed, hashed) = at_once(
                || sock_diag::list_port(netns, port),
                || {
                    netns::enter(handle)?;
                    self.holders.hashed_of_this_thread()
                },
            );
            // Without it the answer lacks what only the buckets know.
            (timed?, hashed.unwrap_or_default())
        };
        let buckets: Vec<Holder> = idle.copied().chain(hashed).collect();
        let mut held: Vec<Held> = owned.copied().collect();
        held.extend(timed.iter().map(|timed| timed.held));
        // The ledger makes of several sights of a socket one lease, and knows how it began.
        let sight = Sight {
            ports_chosen: false,
            accepts: false,
            marks_connect: self.marks_connect,
            bound_idle: true,
            since: Instant(0),
        };
        let mut ledger = Ledger::new(sight);
        ledger.adopt_all(&held);
        let mut occupants: Vec<_> = ledger
            .leases_on(netns, port)
            .map(|lease| Occupant {
                lease: *lease,
                time_wait_left_ms: timed
                    .iter()
                    .filter(|_| matches!(lease.phase, Phase::TimeWait(_)))
                    .filter(|timed| is_of(timed, lease.cookie.0, lease.peer.is_some()))
                    .find_map(|timed| timed.time_wait_left_ms),
                bucket: buckets
                    .iter()
                    .find(|holder| holder.local_port == port && holder.cookie == lease.cookie)
                    .copied(),
            })
            .collect();
        occupants.sort_by_key(|occupant| (rank(occupant.lease.phase), occupant.lease.cookie));
        let settings = SettingsFiles::open().and_then(|files| files.read()).ok();
        Ok(Occupancy { netns, settings, occupants })
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
