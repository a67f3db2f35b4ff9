//! Who holds one port, in all network namespaces, at this moment.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use super::{
    holders::{HolderLists, Iterators, load_iterator, open_iterator, refused},
    loader::LoadError,
    memory, netns,
    scope::Scope,
    settings::SettingsFiles,
    snapshot::{self, Found},
    sock_diag::{self, Timed},
};
use crate::{
    exhaustion::{Holder, Occupancy, Occupant, PortView},
    ledger::{Held, Instant, Ledger, Netns, Phase, Port, Sight},
};

/// The lists that tell who holds a port. Nothing is attached, and nothing runs in between.
#[derive(Debug)]
pub struct PortLists {
    owned: OwnedFd,
    holders: HolderLists,
    marks_connect: bool,
}

impl PortLists {
    /// Loads the lists.
    ///
    /// # Errors
    /// If this kernel has no such lists, or does not let this process load them.
    pub fn load() -> Result<Self, LoadError> {
        let Iterators { mut ebpf, btf, features, marks_connect } = Iterators::prepare()?;
        let lists = load_iterator(&mut ebpf, &btf, "task_file", "task_file").and_then(|owned| {
            let holders = HolderLists::take(&mut ebpf, &btf, features)?;
            Ok(Self { owned, holders, marks_connect })
        });
        drop((ebpf, btf));
        memory::trim();
        lists.map_err(|error| refused(&error))
    }

    /// Looks for the holders of a port in all namespaces, or in those of the scope.
    #[must_use]
    pub fn of(&self, port: Port, scope: Scope) -> PortView {
        let mut problems = Vec::new();
        let mut owned = Vec::new();
        let mut found = Found::default();
        let files = open_iterator(self.owned.as_fd());
        if let Err(error) =
            files.and_then(|files| snapshot::read_files(files, scope, &mut owned, &mut found))
        {
            problems.push(format!("the files that processes have open cannot be listed: {error}"));
        }
        owned.retain(|held| held.local_port == port);
        let namespaces = found.namespaces(scope);
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
                        let view = self.look_into(handle, Netns(inode), port, owned);
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
        port: Port,
        owned: impl Iterator<Item = &'a Held>,
    ) -> std::io::Result<Occupancy> {
        netns::enter(handle)?;
        let timed = sock_diag::list_port(netns, port)?;
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
        let buckets: Vec<Holder> = if ledger.is_empty() {
            Vec::new()
        } else {
            // Without it the answer lacks what only the buckets know.
            let view = self.holders.of_this_thread();
            view.map(|view| view.holders).unwrap_or_default()
        };
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
