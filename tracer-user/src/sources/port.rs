//! Who holds one port, in all network namespaces, at this moment.

use std::io;

use rustc_hash::FxHashMap;

use super::lookup::{self, Lookup};
use crate::{
    capacity::{Occupancy, Occupant, PortView},
    kernel::{
        hooks::error::LoadError,
        lists::{
            holders::HolderLists,
            sock_diag::{self, Timed, Wanted},
        },
        namespace::{scope::Scope, settings::SettingsFiles},
    },
    ledger::Ledger,
    model::{Cookie, Held, Holder, Netns, Phase, Port, Settings, Visibility},
};

/// Looks for the holders of a port in all namespaces, or in those of the scope.
///
/// # Errors
/// If this kernel cannot list them, or does not let this process.
pub(crate) fn look_for(port: Port, scope: Scope) -> Result<PortView, LoadError> {
    let look_into = |lists: &HolderLists, netns: Netns| Tables::read(lists, port, netns);
    let mut lookup = lookup::look(Some(port), scope, |held| held.local_port == port, look_into)?;
    let tables = lookup.take_namespaces();
    let searched = tables.len();
    let Lookup { owned, idle, visibility, own, problems, .. } = lookup;
    let is_asked = scope != Scope::default();
    let namespaces = tables
        .into_iter()
        .map(|(netns, tables)| {
            let owned = owned.iter().filter(|held| held.netns == netns);
            let idle = idle.iter().filter(|(of, _)| *of == netns).map(|(_, holder)| holder);
            tables.occupancy(port, netns, visibility, owned, idle)
        })
        .filter(|view| is_asked || view.netns == own || !view.occupants.is_empty())
        .collect();
    Ok(PortView { namespaces, searched, problems })
}

/// What the lists of a namespace show.
struct Tables {
    timed: Vec<Timed>,
    /// Connected sockets, listeners and TIME_WAITs with their buckets.
    hashed: Vec<Holder>,
    settings: Option<Settings>,
}

impl Tables {
    /// Reads the lists of the calling thread's namespace.
    fn read(lists: &HolderLists, port: Port, netns: Netns) -> io::Result<Self> {
        let timed = sock_diag::list_timed(netns, Wanted::LocalPort(port))?;
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
        visibility: Visibility,
        owned: impl Iterator<Item = &'a Held>,
        idle: impl Iterator<Item = &'a Holder>,
    ) -> Occupancy {
        let Self { timed, hashed, settings } = self;
        let holders = idle.copied().chain(hashed).filter(|holder| holder.local_port == port);
        let buckets: FxHashMap<Cookie, Holder> =
            holders.map(|holder| (holder.cookie, holder)).collect();
        let mut held: Vec<Held> = owned.copied().collect();
        held.extend(timed.iter().map(|timed| timed.held));
        // The ledger makes one lease of several entries about a socket, and knows how it began.
        let mut ledger = Ledger::new(visibility);
        ledger.adopt_all(&held);
        let timers = lookup::timers(&timed);
        let mut occupants: Vec<_> = ledger
            .leases_on(netns, port)
            .map(|lease| Occupant {
                lease: lease.clone(),
                time_wait_left_ms: lookup::time_wait_left_ms(lease, &timers),
                bucket: buckets.get(&lease.cookie).copied(),
            })
            .collect();
        occupants.sort_by_key(|occupant| (rank(occupant.lease.phase), occupant.lease.cookie));
        Occupancy { netns, settings, occupants }
    }
}

/// Those that block the port most come first.
fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Listen => 0,
        Phase::Bound => 1,
        Phase::Connecting | Phase::Established | Phase::Closing => 2,
        Phase::TimeWait(_) => 3,
    }
}
