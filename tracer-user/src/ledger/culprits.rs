//! Who holds most of the bind-locked ports.

use rustc_hash::FxHashMap;

use super::tables::{LeaseIndex, PortTable};
use crate::model::{Destination, Instant, Kind, Lease, LeaseId, Netns, Phase, Port, RangeUse};

/// How long an answer stays valid: finding it takes a walk through the range, and a full range
/// causes the question at every failure.
const CULPRIT_LASTS_NS: u64 = 500_000_000;
/// The same for a socket's own range.
const OWN_RANGE_LASTS_NS: u64 = 20_000_000;
/// Maximum number of leases on one port that are examined.
const MAX_LEASES_PER_PORT: usize = 256;

/// One of the leases that lock the ports of a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Culprit {
    pub index: LeaseIndex,
    id: LeaseId,
    /// Number of ports of the range that its process locks.
    pub ports: u32,
}

impl Culprit {
    /// `None` once the lease has ended.
    fn still_live(self, table: &PortTable) -> Option<Self> {
        table.leases().live(self.index, self.id).map(|_| self)
    }
}

/// The latest answers.
#[derive(Debug, Default)]
pub(super) struct Culprits {
    by_netns: FxHashMap<Netns, (Instant, Culprit)>,
    own_range: Option<OwnRangeUse>,
}

/// The answer for a socket with a range of its own.
#[derive(Clone, Copy, Debug)]
struct OwnRangeUse {
    found: Instant,
    destination: Destination,
    range: (Port, Port),
    range_use: RangeUse,
    culprit: Option<Culprit>,
}

impl Culprits {
    /// The culprit of a namespace's range. A process that bound before it connected is named before
    /// a listener, which holds its port for a purpose.
    pub fn of_range(&mut self, table: &PortTable, netns: Netns, now: Instant) -> Option<Culprit> {
        if let Some((found, culprit)) = self.by_netns.get(&netns)
            && now.since(*found) < CULPRIT_LASTS_NS
            && let Some(culprit) = culprit.still_live(table)
        {
            return Some(culprit);
        }
        let culprit = culprit_among(table, netns, table.usage().locked_ports(netns))?;
        self.by_netns.insert(netns, (now, culprit));
        Some(culprit)
    }

    /// The ports of a socket's own range as a connect() of that socket sees them, and the culprit.
    pub fn of_own_range(
        &mut self,
        table: &PortTable,
        destination: &Destination,
        range: (Port, Port),
        now: Instant,
    ) -> (RangeUse, Option<Culprit>) {
        let found = self
            .own_range
            .filter(|known| {
                known.destination == *destination
                    && known.range == range
                    && now.since(known.found) < OWN_RANGE_LASTS_NS
            })
            .unwrap_or_else(|| look_within(table, destination, range, now));
        self.own_range = Some(found);
        (found.range_use, found.culprit.and_then(|culprit| culprit.still_live(table)))
    }
}

fn look_within(
    table: &PortTable,
    destination: &Destination,
    range: (Port, Port),
    found: Instant,
) -> OwnRangeUse {
    let netns = destination.netns;
    let usage = table.usage();
    let counted = usage.index(destination);
    let mut range_use = RangeUse::default();
    let mut locked = Vec::new();
    for port in (range.0.0..=range.1.0).map(Port) {
        if !usage.is_choosable(netns, port) {
            range_use.reserved += 1;
            continue;
        }
        range_use.capacity += 1;
        let is_used = table
            .leases()
            .on_port(netns, port)
            .take(MAX_LEASES_PER_PORT)
            .any(|(_, entry)| counted.is_some() && entry.destination == counted);
        if is_used {
            range_use.used += 1;
        } else if usage.is_locked(netns, port) {
            range_use.bind_locked += 1;
            locked.push(port);
        }
    }
    let culprit = culprit_among(table, netns, locked);
    OwnRangeUse { found, destination: *destination, range, range_use, culprit }
}

fn culprit_among(
    table: &PortTable,
    netns: Netns,
    locked: impl IntoIterator<Item = Port>,
) -> Option<Culprit> {
    let mut ports_of: FxHashMap<(Purpose, u32), (u32, LeaseIndex)> = FxHashMap::default();
    for port in locked {
        if let Some((index, purpose)) = binder(table, netns, port) {
            let pid = table[index].lease.owner.as_ref().map_or(0, |owner| owner.pid);
            ports_of.entry((purpose, pid)).or_insert((0, index)).0 += 1;
        }
    }
    let (_, (ports, index)) =
        ports_of.into_iter().max_by_key(|((purpose, pid), (ports, _))| (*purpose, *ports, *pid))?;
    Some(Culprit { index, id: table[index].lease.id, ports })
}

/// The purpose of a bound port, the more avoidable last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Purpose {
    /// A listener, and the connections that it accepted.
    Serving,
    /// Connections that could have got their port from connect().
    Connecting,
}

/// The lease of the socket that bound this port, and its purpose. If that socket is gone and the
/// bucket has not recovered, a lease that keeps the bucket.
fn binder(table: &PortTable, netns: Netns, port: Port) -> Option<(LeaseIndex, Purpose)> {
    let purpose = |lease: &Lease| {
        if lease.phase == Phase::Listen || matches!(lease.kind, Kind::Listen | Kind::Accept) {
            Purpose::Serving
        } else {
            Purpose::Connecting
        }
    };
    let rank = |lease: &Lease| match lease.kind {
        Kind::Bind | Kind::BindAuto if purpose(lease) == Purpose::Connecting => 0,
        Kind::Bind | Kind::BindAuto | Kind::Listen => 1,
        Kind::Accept => 2,
        Kind::Connect => 3,
    };
    table
        .leases()
        .on_port(netns, port)
        .take(MAX_LEASES_PER_PORT)
        .min_by_key(|(_, entry)| rank(&entry.lease))
        .map(|(index, entry)| (index, purpose(&entry.lease)))
}
