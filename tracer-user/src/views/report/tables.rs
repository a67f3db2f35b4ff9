//! The rows of a report's tables, from what the records add up to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use crate::{
    model::{Kind, Netns, Phase, Port, PortClass, Settings, Substate},
    record::{
        names,
        read::{Cause, Scan},
    },
    views::report::{
        aggregate::{
            Aggregate, Destination, FailureKey, Failures, Lease, OwnerId, Traffic, seconds,
        },
        crowd::{Crowd, Share},
        model::{
            Caller, DestinationRow, FailureRow, HolderRow, JumpRow, Kinds, LeakRow, LeakState,
            ListenerRow, NamespaceRow, OwnerName, OwnerRow, Phases, ScanRow, SettingsRow,
        },
        services::Services,
    },
};

/// How long a TIME_WAIT lasts (`TCP_TIMEWAIT_LEN`, include/net/tcp.h); no setting changes it.
pub const TIME_WAIT_S: f64 = crate::model::TIME_WAIT_S as f64;

/// The name of an owner.
#[must_use]
pub fn name(aggregate: &Aggregate, id: Option<OwnerId>) -> Option<OwnerName> {
    let owner = aggregate.owner(id?)?;
    Some(OwnerName { pid: owner.pid, comm: owner.comm.clone(), container: owner.container.clone() })
}

/// Namespaces in which something is held or was taken.
#[must_use]
pub fn namespaces(aggregate: &Aggregate) -> Vec<NamespaceRow> {
    let mut rows: BTreeMap<Netns, (u32, Phases)> = BTreeMap::new();
    for lease in aggregate.leases.values() {
        let (leases, phases) = rows.entry(lease.netns).or_default();
        *leases += 1;
        phases.count(lease);
    }
    let shown = aggregate.namespaces.iter().map(|(netns, namespace)| {
        let (leases, phases) = rows.get(netns).copied().unwrap_or_default();
        NamespaceRow {
            netns: netns.0,
            settings: namespace.settings.as_ref().map(settings_row),
            settings_changes: namespace.changes,
            leases,
            phases,
            held_in_range: namespace.held_in_range(),
            bind_locked: namespace.bind_locked,
            taken: namespace.taken,
            client_port_low: namespace.client_ports.map(|(low, _)| low),
            client_port_high: namespace.client_ports.map(|(_, high)| high),
        }
    });
    let mut shown: Vec<_> = shown.collect();
    shown.sort_by_key(|row| (std::cmp::Reverse(row.leases), row.netns));
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

impl Phases {
    fn count(&mut self, lease: &Lease) {
        *match lease.phase {
            Phase::Bound => &mut self.bound,
            Phase::Listen => &mut self.listen,
            Phase::Connecting => &mut self.connecting,
            Phase::Established => &mut self.established,
            Phase::Closing if lease.is_close_wait() => &mut self.close_wait,
            Phase::Closing => &mut self.closing,
            Phase::TimeWait(Substate::FinWait2) => &mut self.fin_wait2,
            Phase::TimeWait(Substate::TimeWait) => &mut self.time_wait,
        } += 1;
    }
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

/// What the live connections to a destination are.
#[derive(Default)]
struct Live {
    time_wait: u32,
    /// Of those in TIME_WAIT.
    without_timestamps: u32,
    reusable: u32,
    /// Of those in use, on ports that are also bound.
    bind_locked: u32,
    /// Holds of TIME_WAITs to their foreseeable ends: number and sum.
    foreseen: u32,
    foreseen_s: f64,
    owners: BTreeMap<Option<OwnerId>, u32>,
}

/// Destinations of clients, the fullest first.
#[must_use]
pub fn destinations(aggregate: &Aggregate) -> Vec<DestinationRow> {
    let mut live: HashMap<Destination, Live> = HashMap::new();
    for lease in aggregate.leases.values() {
        if let Some(destination) = lease.destination() {
            live.entry(destination).or_default().count(aggregate, lease, destination);
        }
    }
    let nobody = Live::default();
    let mut rows: Vec<_> = aggregate
        .destinations
        .iter()
        .map(|(destination, traffic)| {
            let live = live.get(destination).unwrap_or(&nobody);
            destination_row(aggregate, *destination, traffic, live)
        })
        .collect();
    rows.sort_by(|one, other| {
        let key = |row: &DestinationRow| (row.failed, row.used, row.taken);
        let fill = |row: &DestinationRow| row.fill().unwrap_or(0.0);
        fill(other)
            .total_cmp(&fill(one))
            .then_with(|| key(other).cmp(&key(one)))
            .then_with(|| place(one).cmp(&place(other)))
    });
    rows
}

fn place(row: &DestinationRow) -> (u32, IpAddr, IpAddr, u16) {
    (row.netns, row.source_addr, row.peer_addr, row.peer_port)
}

impl Live {
    fn count(&mut self, aggregate: &Aggregate, lease: &Lease, destination: Destination) {
        let Some(namespace) = aggregate.namespaces.get(&lease.netns) else { return };
        let takes_over = namespace.takes_over(destination.source, destination.addr);
        let settings = namespace.settings.as_ref();
        let delay_s = settings
            .filter(|_| takes_over && !lease.lacks_timestamps)
            .map(|settings| f64::from(settings.time_wait_reuse_delay_ms.unwrap_or(1000)) / 1e3);
        let in_phase_s = lease.phase_age_s(aggregate.last_ns);
        let is_in_range = namespace.may_choose(lease.port);
        let held = namespace.ports.get(&lease.port);
        let is_locked = held.is_some_and(|held| held.binders > 0);
        if is_in_range {
            *self.owners.entry(lease.owner).or_default() += 1;
            self.bind_locked += u32::from(is_locked);
        }
        if let Phase::TimeWait(substate) = lease.phase {
            let is_settled = substate == Substate::TimeWait;
            if is_in_range {
                self.time_wait += 1;
                self.without_timestamps += u32::from(lease.lacks_timestamps);
                let is_old = delay_s.is_some_and(|delay_s| in_phase_s > delay_s);
                self.reusable += u32::from(is_old && is_settled && !is_locked);
            }
            if let Some(began_ns) = lease.began_ns {
                let fin_timeout_s = settings.map_or(TIME_WAIT_S, |s| f64::from(s.fin_timeout_s));
                let lasts_s = match substate {
                    Substate::FinWait2 => fin_timeout_s,
                    Substate::TimeWait => delay_s.unwrap_or(TIME_WAIT_S),
                };
                self.foreseen += 1;
                self.foreseen_s += seconds(began_ns, lease.phase_since_ns) + lasts_s;
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates need no more")]
fn destination_row(
    aggregate: &Aggregate,
    destination: Destination,
    traffic: &Traffic,
    live: &Live,
) -> DestinationRow {
    let Destination { netns, source, addr, port } = destination;
    let namespace = aggregate.namespaces.get(&netns);
    let capacity = namespace.and_then(super::aggregate::Namespace::capacity);
    let locked = namespace.map_or(0, |namespace| namespace.bind_locked);
    let bind_locked = locked.saturating_sub(live.bind_locked);
    let available = capacity.map(|capacity| capacity.saturating_sub(bind_locked));
    let headroom = available
        .map(|available| available.saturating_sub(traffic.used.saturating_sub(live.reusable)));
    let rate_per_s = traffic.recent_taken.rate(traffic.since_ns, aggregate.last_ns);
    let release_per_s = traffic.recent_released.rate(traffic.since_ns, aggregate.last_ns);
    let holds = traffic.held as f64 + f64::from(live.foreseen);
    let mean_hold_s = (holds > 0.0).then(|| (traffic.held_s + live.foreseen_s) / holds);
    let ceiling_per_s = mean_hold_s
        .filter(|mean_s| *mean_s > 0.0)
        .zip(available)
        .map(|(mean_s, available)| f64::from(available) / mean_s);
    let owner = live.owners.iter().max_by_key(|(_, ports)| **ports);
    DestinationRow {
        netns: netns.0,
        source_addr: source,
        peer_addr: addr,
        peer_port: port,
        used: traffic.used,
        peak: traffic.peak,
        capacity,
        bind_locked,
        time_wait: live.time_wait,
        without_timestamps: live.without_timestamps,
        reusable: live.reusable,
        headroom,
        rate_per_s,
        release_per_s,
        mean_hold_s,
        is_hold_estimated: live.foreseen > 0,
        ceiling_per_s,
        eta_s: eta_s(headroom, rate_per_s, release_per_s, ceiling_per_s),
        taken: traffic.taken,
        failed: traffic.failed,
        owner: owner.and_then(|(id, _)| name(aggregate, *id)),
        owner_ports: owner.map_or(0, |(_, ports)| *ports),
        search: traffic.searches.clone(),
    }
}

/// When there will be no port left if things go on as they do: ports are taken faster than they
/// are let go, and than they can be in the long run.
fn eta_s(
    headroom: Option<u32>,
    rate_per_s: f64,
    release_per_s: f64,
    ceiling_per_s: Option<f64>,
) -> Option<f64> {
    /// Slower than this it is not a flood but a trickle, of which ten seconds tell nothing.
    const LEAST_GROWTH_PER_S: f64 = 0.5;
    let headroom = headroom?;
    if headroom == 0 {
        return Some(0.0);
    }
    let growth = rate_per_s - release_per_s;
    let levels_off = ceiling_per_s.is_some_and(|ceiling| rate_per_s <= ceiling);
    (growth >= LEAST_GROWTH_PER_S && !levels_off).then(|| f64::from(headroom) / growth)
}

/// Owners, those that hold most first.
#[must_use]
pub fn owners(aggregate: &Aggregate) -> Vec<OwnerRow> {
    let mut held: HashMap<Option<OwnerId>, (u32, Kinds, Phases)> = HashMap::new();
    for lease in aggregate.leases.values() {
        let (leases, kinds, phases) = held.entry(lease.owner).or_default();
        *leases += 1;
        kinds.count(lease.kind);
        phases.count(lease);
    }
    let known = aggregate.owners().map(|(id, owner)| (Some(id), Some(owner)));
    let mut rows: Vec<_> = known
        .chain([(None, None)])
        .filter_map(|(id, owner)| {
            let (leases, kinds, phases) = held.get(&id).copied().unwrap_or_default();
            let (taken, failed) = owner.map_or((0, 0), |owner| (owner.taken, owner.failed));
            (leases > 0 || taken > 0 || failed > 0).then(|| OwnerRow {
                owner: name(aggregate, id),
                uid: owner.map(|owner| owner.uid),
                cgroup: owner.and_then(|owner| owner.cgroup.clone()),
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

/// Failures, the most frequent first. What is rarer than so many others is nobody's first concern.
#[must_use]
pub fn failures(aggregate: &Aggregate) -> Vec<FailureRow> {
    const MOST: usize = 200;
    let mut all: Vec<_> = aggregate.failures.iter().collect();
    all.sort_by_key(|(_, failures)| std::cmp::Reverse(failures.count));
    all.truncate(MOST);
    all.into_iter().map(|(key, failures)| failure_row(aggregate, key, failures)).collect()
}

fn failure_row(aggregate: &Aggregate, key: &FailureKey, failures: &Failures) -> FailureRow {
    let first_ns = aggregate.first.as_ref().map_or(0, |(_, first_ns)| *first_ns);
    let mut callers: Vec<_> = failures
        .callers
        .iter()
        .map(|(id, count)| Caller { owner: name(aggregate, *id), count: *count })
        .collect();
    callers.sort_by_key(|caller| std::cmp::Reverse(caller.count));
    // If there was no time to look then, what is there now must do.
    let crowd = if failures.crowd.at_ns > 0 {
        failures.crowd.clone()
    } else {
        let destination = key.peer.map(|(addr, port)| Destination {
            netns: key.netns,
            source: key.addr,
            addr,
            port,
        });
        Crowd::of(aggregate, key.netns, destination)
    };
    let share = match key.cause {
        Some(Cause::RangeBindLocked) => crowd.bound,
        Some(Cause::RangeFull) if key.peer.is_some() => crowd.to_destination,
        Some(Cause::RangeFull) => crowd.held,
        _ => Share::default(),
    };
    FailureRow {
        held_by: name(aggregate, share.owner),
        held_ports: share.of_owner,
        local_range: failures.local_range,
        crowd,
        netns: key.netns.0,
        op: key.operation,
        error: key.error.clone(),
        cause: key.cause,
        local_addr: key.addr,
        requested_port: key.port,
        peer_addr: key.peer.map(|(addr, _)| addr),
        peer_port: key.peer.map(|(_, port)| port),
        count: failures.count,
        first_s: seconds(first_ns, failures.first_ns),
        last_s: seconds(first_ns, failures.last_ns),
        callers,
        holder: failures.holder.as_ref().map(|holder| HolderRow {
            owner: name(aggregate, holder.owner),
            kind: names::kind(holder.kind),
            state: names::ss_state(holder.phase, None),
            local_addr: holder.addr,
            local_port: holder.port,
            peer_addr: holder.peer.map(|(addr, _)| addr),
            peer_port: holder.peer.map(|(_, port)| port),
        }),
        used: failures.used,
        bind_locked: failures.bind_locked,
    }
}

/// What is held for so long before it is shown as held for nothing.
const LEAK_AGE_S: f64 = 2.0;

/// Ports that are held for nothing, by owner.
#[must_use]
pub fn leaks(aggregate: &Aggregate) -> Vec<LeakRow> {
    #[derive(Default)]
    struct Found {
        count: u32,
        oldest_s: f64,
        youngest_s: f64,
        peers: BTreeMap<IpAddr, u32>,
        ports: BTreeSet<u16>,
    }
    let mut found: BTreeMap<(Netns, LeakState, Option<OwnerId>), Found> = BTreeMap::new();
    for lease in aggregate.leases.values() {
        let state = match lease.phase {
            Phase::Bound => LeakState::BoundIdle,
            _ if lease.is_close_wait() => LeakState::CloseWait,
            _ if lease.is_fin_wait() => LeakState::FinWait2,
            _ => continue,
        };
        // What was there at the start is as old as the observation, at least.
        let in_phase_s = lease.phase_age_s(aggregate.last_ns);
        let age_s = match lease.phase {
            Phase::Bound => lease.age_s(aggregate.last_ns).unwrap_or(in_phase_s),
            _ => in_phase_s,
        };
        if age_s < LEAK_AGE_S {
            continue;
        }
        let entry = found.entry((lease.netns, state, lease.owner)).or_default();
        entry.youngest_s = if entry.count == 0 { age_s } else { entry.youngest_s.min(age_s) };
        entry.oldest_s = entry.oldest_s.max(age_s);
        entry.count += 1;
        entry.ports.insert(lease.port);
        if let Some((addr, _)) = lease.peer {
            *entry.peers.entry(addr).or_default() += 1;
        }
    }
    let rows = found.into_iter().map(|((netns, state, owner), found)| {
        let then_closed =
            owner.and_then(|id| aggregate.owner(id)).map_or(0, |owner| owner.then_closed);
        LeakRow {
            netns: netns.0,
            state,
            owner: name(aggregate, owner),
            count: found.count,
            oldest_s: found.oldest_s,
            youngest_s: found.youngest_s,
            peer_addr: found.peers.iter().max_by_key(|(_, count)| **count).map(|(addr, _)| *addr),
            local_port: match (found.ports.first(), found.ports.len()) {
                (Some(port), 1) => Some(*port),
                _ => None,
            },
            closed_otherwise: if state == LeakState::CloseWait { then_closed } else { 0 },
        }
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.count), row.netns, row.state));
    rows
}

/// Who listens, by namespace and port.
#[must_use]
pub fn listeners(aggregate: &Aggregate, services: &Services) -> Vec<ListenerRow> {
    let listening = aggregate.leases.values().filter(|lease| lease.phase == Phase::Listen);
    let mut rows: Vec<_> = listening
        .map(|lease| {
            let namespace = aggregate.namespaces.get(&lease.netns);
            let settings = namespace.and_then(|namespace| namespace.settings.as_ref());
            ListenerRow {
                netns: lease.netns.0,
                local_addr: lease.addr,
                local_port: lease.port,
                class: match PortClass::of(Port(lease.port)) {
                    PortClass::WellKnown => "well-known",
                    PortClass::Registered => "registered",
                    PortClass::Dynamic => "dynamic",
                },
                service: services.name(lease.port).map(std::borrow::Cow::into_owned),
                is_wildcard: lease.addr.is_unspecified(),
                owner: name(aggregate, lease.owner),
                accepted: namespace
                    .and_then(|namespace| namespace.accepted.get(&lease.port).copied())
                    .unwrap_or(0),
                is_in_range: settings.is_some_and(|settings| settings.may_choose(Port(lease.port))),
            }
        })
        .collect();
    rows.sort_by_key(|row| (row.netns, row.local_port, row.local_addr, row.owner.clone()));
    rows
}

/// Processes that take ports far faster than they did.
#[must_use]
pub fn jumps(aggregate: &Aggregate) -> Vec<JumpRow> {
    let first_ns = aggregate.first.as_ref().map_or(0, |(_, first_ns)| *first_ns);
    let jumps = aggregate.owners().filter_map(|(id, owner)| {
        let jump = owner.pace.jump(first_ns)?;
        Some(JumpRow {
            owner: name(aggregate, Some(id))?,
            at_s: seconds(first_ns, jump.at_ns),
            per_s: jump.per_s,
            before_per_s: jump.before_per_s,
        })
    });
    let mut rows: Vec<_> = jumps.collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.per_s));
    rows
}

/// Sources that tried many closed ports, those that tried most first.
#[must_use]
pub fn scans(aggregate: &Aggregate) -> Vec<ScanRow> {
    let mut rows: Vec<_> = aggregate
        .scans
        .iter()
        .map(|((netns, _), scan)| {
            let Scan { source_addr, ports, port_low, port_high, tries, rate_per_s, duration_s } =
                *scan;
            let netns = netns.0;
            ScanRow {
                netns,
                source_addr,
                ports,
                port_low,
                port_high,
                tries,
                rate_per_s,
                duration_s,
            }
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.tries));
    rows
}
