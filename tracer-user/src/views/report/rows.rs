//! The rows of a report's tables, from the tally and the ledger.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use rustc_hash::FxHashMap;

use super::{
    model::{
        Caller, DestinationRow, FailureRow, HolderRow, JumpRow, Kinds, LeakRow, LeakState,
        ListenerRow, NamespaceRow, OwnerRow, ScanRow, SettingsRow,
    },
    owners::OwnerId,
    services::Services,
    survey::{Share, Survey},
    tally::{FailureKey, Failures, Tally},
};
use crate::{
    capacity::Forecast,
    foreign::Foreign,
    ledger::{Ledger, destination_of},
    model::{
        Cause, Destination, Instant, Kind, Lease, Netns, Phase, PortClass, RangeUse, Rates, Scan,
        Settings, Side, Substate, seconds,
    },
    record::{filter::Filter, names},
    views::{
        owner_name::OwnerName,
        phases::{Phases, is_close_wait},
    },
};

/// A lease that is held at the end, and what the report needs to know about it.
pub(super) struct Held<'a> {
    lease: &'a Lease,
    owner: Option<OwnerId>,
    destination: Option<Destination>,
    /// True if connect() may choose its port, or if the range is not known.
    is_choosable: bool,
}

/// The leases that are held and pass the filter.
pub(super) fn held<'a>(tally: &mut Tally, ledger: &'a Ledger, filter: &Filter) -> Vec<Held<'a>> {
    let at = tally.last;
    let mut held = Vec::new();
    for lease in ledger.leases() {
        let owner = lease.owner.as_ref().map(|owner| tally.owners.id_of(at, owner, None));
        let cgroup = owner.and_then(|id| tally.owners.get(id)?.cgroup.as_ref());
        if !filter.admits_held(lease, cgroup) {
            continue;
        }
        let settings = settings_of(tally, lease.netns);
        held.push(Held {
            lease,
            owner,
            destination: destination_of(lease),
            is_choosable: settings.is_none_or(|settings| settings.may_choose(lease.local_port)),
        });
    }
    // The ledger has no order of its own.
    held.sort_by_key(|held| held.lease.id);
    held
}

/// The latest settings of a namespace. `None` if they are not known.
pub(super) fn settings_of(tally: &Tally, netns: Netns) -> Option<&Settings> {
    tally.namespaces.get(&netns)?.settings.as_ref()
}

/// Namespaces in which ports are or were held.
pub(super) fn namespaces(tally: &Tally, ledger: &Ledger, held: &[Held<'_>]) -> Vec<NamespaceRow> {
    let mut rows: BTreeMap<Netns, (u32, Phases)> = BTreeMap::new();
    for held in held {
        let (leases, phases) = rows.entry(held.lease.netns).or_default();
        *leases += 1;
        phases.count(held.lease);
    }
    let known = tally.namespaces.keys().chain(rows.keys()).copied().collect::<BTreeSet<_>>();
    let shown = known.into_iter().map(|netns| {
        let (leases, phases) = rows.get(&netns).copied().unwrap_or_default();
        let namespace = tally.namespaces.get(&netns).cloned().unwrap_or_default();
        NamespaceRow {
            netns: netns.0,
            settings: namespace.settings.as_ref().map(settings_row),
            settings_changes: namespace.changes,
            leases,
            phases,
            held_in_range: ledger.range(netns).map_or_else(
                || {
                    // If the settings are not known, every port counts.
                    let here = held.iter().filter(|held| held.lease.netns == netns);
                    let ports: BTreeSet<_> = here.map(|held| held.lease.local_port).collect();
                    u32::try_from(ports.len()).unwrap_or(u32::MAX)
                },
                |range| range.used,
            ),
            bind_locked: u32::try_from(ledger.locked_ports(netns).count()).unwrap_or(u32::MAX),
            taken: namespace.taken,
            client_port_low: namespace.client_ports.map(|(low, _)| low.0),
            client_port_high: namespace.client_ports.map(|(_, high)| high.0),
        }
    });
    let mut shown: Vec<_> = shown.collect();
    shown.sort_by_key(|row| (Reverse(row.leases), row.netns));
    shown
}

fn settings_row(settings: &Settings) -> SettingsRow {
    SettingsRow {
        range_low: settings.range.low().0,
        range_high: settings.range.high().0,
        reserved: settings.reserved.to_string(),
        reserved_in_range: settings.reserved.count_within(settings.range),
        capacity: settings.capacity(),
        tw_reuse: settings.time_wait_reuse.number(),
        tw_reuse_delay_ms: settings.time_wait_reuse_delay_ms,
        timestamps: settings.timestamps,
        max_tw_buckets: settings.max_time_waits,
        fin_timeout_s: settings.fin_timeout_s,
        somaxconn: settings.max_listen_backlog,
    }
}

/// True if the connection waits for the peer's FIN.
fn is_fin_wait(lease: &Lease) -> bool {
    lease.phase == Phase::TimeWait(Substate::FinWait2)
        || (lease.phase == Phase::Closing && lease.closed_by == Some(Side::Local))
}

impl Kinds {
    fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Connect => &mut self.connect,
            Kind::BindAuto => &mut self.bind_auto,
            Kind::Bind => &mut self.bind,
            Kind::Listen => &mut self.listen,
            Kind::Accept => &mut self.accept,
        } += 1;
    }
}

/// The connections to a destination at the end of the observation.
#[derive(Default)]
struct Connections {
    used: u32,
    time_wait: u32,
    /// TIME_WAITs of connections whose peer sent no timestamps.
    without_timestamps: u32,
    owners: BTreeMap<Option<OwnerId>, u32>,
}

/// Destinations of clients, fullest first.
pub(super) fn destinations(
    tally: &Tally,
    ledger: &Ledger,
    held: &[Held<'_>],
) -> Vec<DestinationRow> {
    let mut live: FxHashMap<Destination, Connections> = FxHashMap::default();
    for held in held {
        let Some(destination) = held.destination else { continue };
        let connections = live.entry(destination).or_default();
        if held.is_choosable {
            connections.used += 1;
            *connections.owners.entry(held.owner).or_default() += 1;
            if let Phase::TimeWait(_) = held.lease.phase {
                connections.time_wait += 1;
                connections.without_timestamps +=
                    u32::from(held.lease.has_timestamps == Some(false));
            }
        }
    }
    for destination in tally.destinations.keys() {
        live.entry(*destination).or_default();
    }
    let mut rows: Vec<_> = live
        .iter()
        .map(|(destination, connections)| destination_row(tally, ledger, destination, connections))
        .collect();
    rows.sort_by(|one, other| {
        let key = |row: &DestinationRow| (row.failed, row.used, row.taken);
        let fill = |row: &DestinationRow| row.fill().unwrap_or(0.0);
        let ends =
            |row: &DestinationRow| (row.netns, row.source_addr, row.peer_addr, row.peer_port);
        fill(other)
            .total_cmp(&fill(one))
            .then_with(|| key(other).cmp(&key(one)))
            .then_with(|| ends(one).cmp(&ends(other)))
    });
    rows
}

fn destination_row(
    tally: &Tally,
    ledger: &Ledger,
    destination: &Destination,
    connections: &Connections,
) -> DestinationRow {
    let Destination { netns, source, peer: (addr, port) } = *destination;
    // The ledger drops the counts of a namespace that has ended; the tally has its settings.
    let range = ledger.range_for(destination).or_else(|| {
        settings_of(tally, netns).map(|settings| RangeUse {
            capacity: settings.capacity(),
            reserved: settings.range.len() - settings.capacity(),
            used: connections.used,
            ..RangeUse::default()
        })
    });
    let rates = ledger.rates_for(destination).unwrap_or_default();
    let forecast = range.map(|range| Forecast::of(&range, &rates)).unwrap_or_default();
    let Rates { taken_per_s, released_per_s, hold_s } = rates;
    let traffic = tally.destinations.get(destination);
    let used = range.map_or(connections.used, |range| range.used);
    let owner = connections.owners.iter().max_by_key(|(_, ports)| **ports);
    DestinationRow {
        netns: netns.0,
        source_addr: source.ip(),
        peer_addr: addr.ip(),
        peer_port: port.0,
        used,
        peak: traffic.map_or(0, |traffic| traffic.peak).max(used),
        capacity: range.map(|range| range.capacity),
        bind_locked: range.map_or(0, |range| range.bind_locked),
        time_wait: connections.time_wait,
        without_timestamps: connections.without_timestamps,
        reusable: range.map_or(0, |range| range.reusable),
        headroom: range.map(|range| range.headroom()),
        rate_per_s: significant(taken_per_s),
        release_per_s: significant(released_per_s),
        mean_hold_s: hold_s.map(significant),
        is_hold_estimated: connections.time_wait > 0,
        ceiling_per_s: forecast.ceiling_per_s.map(significant),
        eta_s: forecast.eta_s.map(significant),
        taken: traffic.map_or(0, |traffic| traffic.taken),
        failed: traffic.map_or(0, |traffic| traffic.failed),
        owner: owner.and_then(|(id, _)| tally.owners.name(*id)),
        owner_ports: owner.map_or(0, |(_, ports)| *ports),
        search: traffic.map(|traffic| traffic.searches.clone()).unwrap_or_default(),
    }
}

/// A number rounded to six significant digits; the others are noise.
fn significant(number: f64) -> f64 {
    format!("{number:.5e}").parse().unwrap_or(number)
}

/// Owners, by number of leases.
pub(super) fn owners(tally: &Tally, held: &[Held<'_>]) -> Vec<OwnerRow> {
    let mut holds: FxHashMap<Option<OwnerId>, (u32, Kinds, Phases)> = FxHashMap::default();
    for held in held {
        let (leases, kinds, phases) = holds.entry(held.owner).or_default();
        *leases += 1;
        kinds.count(held.lease.kind);
        phases.count(held.lease);
    }
    let known = tally.owners.iter().map(|(id, owner)| (Some(id), Some(owner)));
    let mut rows: Vec<_> = known
        .chain([(None, None)])
        .filter_map(|(id, owner)| {
            let (leases, kinds, phases) = holds.get(&id).copied().unwrap_or_default();
            let (taken, failed) = owner.map_or((0, 0), |owner| (owner.taken, owner.failed));
            let cgroup = owner.and_then(|owner| owner.cgroup.as_ref());
            (leases > 0 || taken > 0 || failed > 0).then(|| OwnerRow {
                owner: tally.owners.name(id),
                uid: owner.map(|owner| owner.uid),
                cgroup: cgroup.map(|cgroup| cgroup.path.clone()),
                leases,
                kinds,
                phases,
                taken,
                failed,
            })
        })
        .collect();
    rows.sort_by(|one, other| {
        let key = |row: &OwnerRow| (row.leases, row.failed, row.taken);
        key(other).cmp(&key(one)).then_with(|| one.owner.cmp(&other.owner))
    });
    rows
}

/// The two hundred most frequent kinds of failures, most frequent first.
pub(super) fn failures(tally: &mut Tally, ledger: &Ledger) -> Vec<FailureRow> {
    const MAX: usize = 200;
    let mut all: Vec<_> = tally.failures.clone().into_iter().collect();
    all.sort_by_key(|(_, failures)| Reverse(failures.count));
    all.truncate(MAX);
    all.iter().map(|(key, failures)| failure_row(tally, ledger, key, failures)).collect()
}

fn failure_row(
    tally: &mut Tally,
    ledger: &Ledger,
    key: &FailureKey,
    failures: &Failures,
) -> FailureRow {
    let first = tally.first.unwrap_or(Instant::BOOT);
    let mut callers: Vec<_> = failures
        .callers
        .iter()
        .map(|(id, count)| Caller { owner: tally.owners.name(*id), count: *count })
        .collect();
    callers.sort_by_key(|caller| Reverse(caller.count));
    // If the holders were not surveyed when the call failed, use the present ones.
    let survey = if failures.survey.at.is_some() {
        failures.survey.clone()
    } else {
        let destination = key.peer.map(|(addr, port)| Destination {
            netns: key.netns,
            source: key.addr.into(),
            peer: (addr.into(), crate::model::Port(port)),
        });
        Survey::of(tally.last, ledger, &mut tally.owners, key.netns, destination)
    };
    let share = match key.cause {
        Some(Cause::RangeBindLocked) => survey.bound,
        Some(Cause::RangeFull) if key.peer.is_some() => survey.to_destination,
        Some(Cause::RangeFull) => survey.held,
        _ => Share::default(),
    };
    FailureRow {
        held_by: tally.owners.name(share.owner),
        held_ports: share.of_owner,
        local_range: failures.local_range,
        survey,
        netns: key.netns.0,
        op: key.operation,
        error: key.error.clone(),
        cause: key.cause,
        local_addr: key.addr,
        requested_port: key.port,
        peer_addr: key.peer.map(|(addr, _)| addr),
        peer_port: key.peer.map(|(_, port)| port),
        count: failures.count,
        first_s: seconds(failures.first.since(first)),
        last_s: seconds(failures.last.since(first)),
        callers,
        holder: failures.holder.as_ref().map(|holder| HolderRow {
            owner: tally.owners.name(holder.owner),
            kind: names::kind(holder.kind),
            state: names::ss_state(holder.phase, None),
            local_addr: holder.addr,
            local_port: Some(holder.port.0),
            peer_addr: holder.peer.map(|(addr, _)| addr),
            peer_port: holder.peer.map(|(_, port)| port),
        }),
        used: failures.used,
        bind_locked: failures.bind_locked,
    }
}

/// How long an unused port must be held before it is listed as a leak.
const LEAK_AGE_S: f64 = 2.0;

/// Ports that are held but not used, by owner.
pub(super) fn leaks(tally: &Tally, held: &[Held<'_>]) -> Vec<LeakRow> {
    #[derive(Default)]
    struct Found {
        count: u32,
        oldest_s: f64,
        youngest_s: f64,
        peers: BTreeMap<IpAddr, u32>,
        ports: BTreeSet<u16>,
    }
    let first = tally.first.unwrap_or(Instant::BOOT);
    let mut found: BTreeMap<(Netns, LeakState, Option<OwnerId>), Found> = BTreeMap::new();
    for Held { lease, owner, .. } in held {
        let (state, since) = match lease.phase {
            Phase::Bound => (LeakState::BoundIdle, lease.acquired),
            _ if is_close_wait(lease) => (LeakState::CloseWait, lease.closing),
            _ if is_fin_wait(lease) => (LeakState::FinWait2, lease.time_wait.or(lease.closing)),
            _ => continue,
        };
        // What was there at the start is at least as old as the observation.
        let age_s = seconds(tally.last.since(since.unwrap_or(first)));
        if age_s < LEAK_AGE_S {
            continue;
        }
        let entry = found.entry((lease.netns, state, *owner)).or_default();
        entry.youngest_s = if entry.count == 0 { age_s } else { entry.youngest_s.min(age_s) };
        entry.oldest_s = entry.oldest_s.max(age_s);
        entry.count += 1;
        entry.ports.insert(lease.local_port.0);
        if let Some((addr, _)) = lease.peer.get() {
            *entry.peers.entry(addr.ip()).or_default() += 1;
        }
    }
    let rows = found.into_iter().map(|((netns, state, owner), found)| {
        let closed_after_peer =
            owner.and_then(|id| tally.owners.get(id)).map_or(0, |owner| owner.closed_after_peer);
        LeakRow {
            netns: netns.0,
            state,
            owner: tally.owners.name(owner),
            count: found.count,
            oldest_s: found.oldest_s,
            youngest_s: found.youngest_s,
            peer_addr: found.peers.iter().max_by_key(|(_, count)| **count).map(|(addr, _)| *addr),
            local_port: match (found.ports.first(), found.ports.len()) {
                (Some(port), 1) => Some(*port),
                _ => None,
            },
            closed_otherwise: if state == LeakState::CloseWait { closed_after_peer } else { 0 },
        }
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|row| (Reverse(row.count), row.netns, row.state));
    rows
}

/// Listeners, by namespace and port.
pub(super) fn listeners(tally: &Tally, held: &[Held<'_>], services: &Services) -> Vec<ListenerRow> {
    let listening = held.iter().filter(|held| held.lease.phase == Phase::Listen);
    let mut rows: Vec<_> = listening
        .map(|Held { lease, owner, .. }| {
            let port = lease.local_port;
            let namespace = tally.namespaces.get(&lease.netns);
            let settings = settings_of(tally, lease.netns);
            ListenerRow {
                netns: lease.netns.0,
                local_addr: lease.local_addr.ip(),
                local_port: port.0,
                class: names::port_class(PortClass::of(port)),
                service: services.name(port.0).map(Foreign::into_owned),
                is_wildcard: lease.local_addr.is_unspecified(),
                owner: tally.owners.name(*owner),
                accepted: namespace
                    .and_then(|namespace| namespace.accepted.get(&port).copied())
                    .unwrap_or(0),
                is_in_range: settings.is_some_and(|settings| settings.may_choose(port)),
            }
        })
        .collect();
    rows.sort_by_key(|row| (row.netns, row.local_port, row.local_addr, row.owner.clone()));
    rows
}

/// Processes that began to acquire ports far faster than before.
pub(super) fn jumps(tally: &Tally) -> Vec<JumpRow> {
    let first = tally.first.unwrap_or(Instant::BOOT);
    let jumps = tally.owners.iter().filter_map(|(_, owner)| {
        let jump = owner.rate_history.jump(first)?;
        #[expect(clippy::cast_precision_loss, reason = "no run lasts 2^53 seconds")]
        let at_s = jump.at_s as f64;
        let owner: OwnerName = owner.name.clone();
        Some(JumpRow { owner, at_s, per_s: jump.per_s, before_per_s: jump.before_per_s })
    });
    let mut rows: Vec<_> = jumps.collect();
    rows.sort_by_key(|row| Reverse(row.per_s));
    rows
}

/// Sources that tried many closed ports, by number of attempts.
pub(super) fn scans(tally: &Tally) -> Vec<ScanRow> {
    let mut rows: Vec<_> = tally
        .scans
        .values()
        .map(|scan| {
            let Scan { netns, source, ports, port_low, port_high, tries, first, last } = *scan;
            ScanRow {
                netns: netns.0,
                source_addr: source.ip(),
                ports,
                port_low: port_low.0,
                port_high: port_high.0,
                tries,
                rate_per_s: scan.rate_per_s(),
                duration_s: seconds(last.since(first)),
            }
        })
        .collect();
    rows.sort_by_key(|row| Reverse(row.tries));
    rows
}
