//! Who holds one port, in all network namespaces, at this moment.

use std::io;

use rustc_hash::FxHashMap;

use super::lookup::{self, Lookup, Place};
use crate::{
    capacity::{Occupancy, Occupant, PortView},
    kernel::{
        hooks::error::LoadError,
        lists::sock_diag::{self, Timed, Wanted},
        namespace::{scope::Scope, settings::SettingsFiles},
    },
    ledger::Ledger,
    model::{Cookie, Held, Holder, Netns, Phase, Port, Settings},
};

/// Looks for the holders of a port in all namespaces, or in those of the scope.
///
/// # Errors
/// If this kernel cannot list them, or does not let this process.
pub(crate) fn look_for(port: Port, scope: Scope) -> Result<PortView, LoadError> {
    let own = lookup::own_namespace();
    let is_shown = |netns| scope != Scope::default() || netns == own;
    let look_into = |place: &Place<'_>| Tables::read(place, port, is_shown(place.netns));
    let mut lookup = lookup::look(Some(port), scope, look_into)?;
    let tables = lookup.take_namespaces();
    let searched = tables.len();
    let namespaces = tables
        .into_iter()
        .filter_map(|(netns, tables)| Some(tables?.occupancy(port, netns, &lookup)))
        .filter(|view| is_shown(view.netns) || !view.occupants.is_empty())
        .collect();
    Ok(PortView { namespaces, searched, problems: lookup.problems })
}

/// What the lists of a namespace show.
struct Tables {
    timed: Vec<Timed>,
    /// Connected sockets, listeners and TIME_WAITs with their buckets.
    hashed: Vec<Holder>,
    settings: Option<Settings>,
}

impl Tables {
    /// Reads the lists of the calling thread's namespace. `None` if nothing there holds the port and
    /// the namespace need not be shown.
    fn read(place: &Place<'_>, port: Port, is_shown: bool) -> io::Result<Option<Self>> {
        let Place { netns, owned, all_are_owned, lists } = *place;
        let timed = if all_are_owned {
            Vec::new()
        } else {
            sock_diag::list_timed(netns, Wanted::LocalPort(port))?
        };
        let is_held = !timed.is_empty() || owned.iter().any(|held| held.local_port == port);
        if !is_held && !is_shown {
            return Ok(None);
        }
        let hashed = if is_held {
            // Without it the answer lacks what only the buckets know.
            lists.hashed_of_this_thread().unwrap_or_default()
        } else {
            Vec::new()
        };
        let settings = SettingsFiles::open().and_then(|files| files.read()).ok();
        Ok(Some(Self { timed, hashed, settings }))
    }

    fn occupancy<T>(self, port: Port, netns: Netns, lookup: &Lookup<T>) -> Occupancy {
        let Self { timed, hashed, settings } = self;
        let idle = lookup.idle.iter().filter(|(of, _)| *of == netns).map(|(_, holder)| *holder);
        let holders = idle.chain(hashed).filter(|holder| holder.local_port == port);
        let buckets: FxHashMap<Cookie, Holder> =
            holders.map(|holder| (holder.cookie, holder)).collect();
        let owned = lookup.owned(netns).iter().filter(|held| held.local_port == port);
        let mut held: Vec<Held> = owned.copied().collect();
        held.extend(timed.iter().map(|timed| timed.held));
        // The ledger makes one lease of several entries about a socket, and knows how it began.
        let mut ledger = Ledger::new(lookup.visibility);
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
