//! Which ports one destination leaves, in all network namespaces, at this moment.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use rustc_hash::{FxHashMap, FxHashSet};

use super::lookup::{self, Lookup, Place, Timers};
use crate::{
    capacity::{
        Connect, DestinationInNamespace, DestinationView, KernelTime, NamespaceState, Occupant,
        SourcePorts, SourceView,
    },
    kernel::{
        hooks::error::LoadError,
        host::clock,
        lists::sock_diag::{self, Timed, Wanted},
        namespace::{scope::Scope, settings::SettingsFiles},
    },
    ledger::Ledger,
    model::{Addr, BucketClass, Cookie, Held, Holder, Kind, Netns, Port, Settings},
};

/// Looks for connections to a destination in all namespaces, or in those of the scope, and for the
/// ports that it leaves.
///
/// # Errors
/// If this kernel cannot list them, or does not let this process.
pub(crate) fn look_for(peer: (Addr, Port), scope: Scope) -> Result<DestinationView, LoadError> {
    let own = lookup::own_namespace();
    let is_asked = scope != Scope::default();
    let look_into = |place: &Place<'_>| {
        let Place { netns, owned, all_are_owned, lists: _ } = *place;
        let is_one = |held: &Held| held.peer == Some(peer);
        let mut is_connected = owned.iter().any(is_one);
        if !is_connected && !all_are_owned {
            // The ports of other namespaces do not matter, and their lists can be long.
            let timed = sock_diag::list_timed(netns, Wanted::PeerPort(peer.1))?;
            is_connected = timed.iter().any(|timed| is_one(&timed.held));
        }
        if is_connected || is_asked || netns == own {
            Tables::read(place, peer).map(Some)
        } else {
            Ok(None)
        }
    };
    // Bound ports count, whoever holds them.
    let mut lookup = lookup::look(None, scope, look_into)?;
    let tables = lookup.take_namespaces();
    let searched = tables.len();
    let mut namespaces: Vec<_> = tables
        .into_iter()
        .filter_map(|(netns, tables)| tables.map(|tables| tables.view(peer, netns, &lookup)))
        .collect();
    namespaces.sort_by_key(|namespace: &DestinationInNamespace| {
        namespace.sources.first().map_or(u32::MAX, SourceView::headroom)
    });
    if !is_asked && namespaces.iter().any(DestinationInNamespace::is_connected) {
        namespaces.retain(DestinationInNamespace::is_connected);
    }
    Ok(DestinationView { peer, namespaces, searched, own, problems: lookup.problems })
}

/// What the lists of a namespace show.
struct Tables {
    timed: Vec<Timed>,
    /// Connected sockets, listeners and TIME_WAITs with their buckets. `None` if the kernel does not
    /// list them.
    hashed: Option<Vec<Holder>>,
    settings: Option<Settings>,
    route_source: Option<Addr>,
    /// When the lists were complete.
    at: KernelTime,
}

impl Tables {
    /// Reads the lists of the calling thread's namespace.
    fn read(place: &Place<'_>, peer: (Addr, Port)) -> io::Result<Self> {
        let Place { netns, owned: _, all_are_owned, lists } = *place;
        // The first of these gives every TIME_WAIT a cookie, which the second shows.
        let timed =
            if all_are_owned { Vec::new() } else { sock_diag::list_timed(netns, Wanted::All)? };
        let hashed = lists.hashed_of_this_thread().ok();
        let at = KernelTime::from_ns(clock::monotonic_ns());
        let settings = SettingsFiles::open().and_then(|files| files.read()).ok();
        let route_source = route_source(peer).ok();
        Ok(Self { timed, hashed, settings, route_source, at })
    }

    fn view<T>(
        self,
        peer: (Addr, Port),
        netns: Netns,
        lookup: &Lookup<T>,
    ) -> DestinationInNamespace {
        let Self { timed, hashed, settings, route_source, at } = self;
        let Lookup { idle, rules, visibility, .. } = lookup;
        let idle = idle.iter().filter(|(of, _)| *of == netns).map(|(_, holder)| *holder);
        let holders: Option<Vec<Holder>> = hashed.map(|hashed| idle.chain(hashed).collect());
        let listed = holders.as_deref().unwrap_or_default();
        let bound = listed.iter().filter(|holder| holder.class == BucketClass::Bind);
        let bound: BTreeSet<Port> = bound.map(|holder| holder.local_port).collect();
        // The ledger makes one lease of several entries about a socket, and knows how it began.
        let mut ledger = Ledger::new(*visibility);
        let owned = lookup.owned(netns).iter().copied();
        let held: Vec<Held> = owned
            .chain(timed.iter().map(|timed| timed.held))
            .filter(|held| held.peer == Some(peer) || bound.contains(&held.local_port))
            .collect();
        ledger.adopt_all(&held);
        let timers = lookup::timers(&timed);
        let mut connections = connections(&ledger, peer, listed, &timers);
        let state = settings.as_ref().zip(holders.as_ref()).map(|(settings, holders)| {
            NamespaceState { settings, rules: *rules, holders, now: at }
        });
        let left_ms = |holder: &Holder| {
            timers.get(&(holder.cookie, holder.local_port, holder.peer()?)).copied()
        };
        let locker = |port| {
            // A bind() locks a port, not the connections that share it.
            ledger.leases_on(netns, port).min_by_key(|lease| lease.kind == Kind::Connect)
        };
        let routed = route_source.map(|addr| (addr, 0));
        let known: FxHashSet<(Addr, u32)> = connections.keys().copied().chain(routed).collect();
        let mut sources: Vec<SourceView> = known
            .into_iter()
            .map(|(addr, device)| {
                let query = Connect { source: addr, destination: peer, device, own_range: None };
                SourceView {
                    addr,
                    device,
                    connections: connections.remove(&(addr, device)).unwrap_or_default(),
                    ports: state
                        .as_ref()
                        .map(|state| SourcePorts::of(state, &query, left_ms, locker)),
                }
            })
            .collect();
        sources.sort_by_key(|source| {
            let SourceView { addr, device, connections, .. } = source;
            (source.headroom(), Reverse(connections.len()), addr.ip(), *device)
        });
        DestinationInNamespace { netns, settings, route_source, sources }
    }
}

/// The connections to a destination by source address and interface.
fn connections(
    ledger: &Ledger,
    peer: (Addr, Port),
    holders: &[Holder],
    timers: &Timers,
) -> FxHashMap<(Addr, u32), Vec<Occupant>> {
    let buckets: FxHashMap<(Cookie, Port), &Holder> =
        holders.iter().map(|holder| ((holder.cookie, holder.local_port), holder)).collect();
    let mut connections: FxHashMap<_, Vec<_>> = FxHashMap::default();
    for lease in ledger.leases().filter(|lease| lease.peer.get() == Some(peer)) {
        let bucket = buckets.get(&(lease.cookie, lease.local_port)).map(|holder| **holder);
        let device = bucket.map_or(0, |bucket| bucket.device);
        connections.entry((lease.local_addr, device)).or_default().push(Occupant {
            lease: lease.clone(),
            time_wait_left_ms: lookup::time_wait_left_ms(lease, timers),
            bucket,
        });
    }
    connections
}

/// The source address that the routing table of the calling thread's namespace chooses. Connecting
/// a datagram socket sends nothing.
fn route_source(peer: (Addr, Port)) -> io::Result<Addr> {
    let addr = peer.0.ip();
    let any = match addr {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(SocketAddr::new(addr, peer.1.0))?;
    Ok(socket.local_addr()?.ip().into())
}
