//! Adds records up: what is held, by whom, towards which destinations, and what failed.
//!
//! Invariant: pure, and the only consumer of records. What it makes of a live stream and of its
//! recording is the same.

use std::{collections::BTreeMap, net::IpAddr};

use rustc_hash::FxHashMap;

use crate::{
    capacity::is_another_range,
    model::{
        Kind, LocalRange, Netns, Operation, Phase, Port, Reason, Settings, Side, Substate,
        TimeWaitReuse,
    },
    record::read::{self as record, Body, Cause, Event, Fail, Record, Scan, Who},
    views::report::{crowd::Crowd, histogram::Histogram},
};

/// Owners told apart by process. Those of later processes are told apart by name only.
const MOST_PROCESSES: usize = 10_000;
/// Destinations remembered before those that nothing goes to any more are forgotten.
const MOST_DESTINATIONS: usize = 50_000;
/// Namespaces remembered before those in which nothing is held and nothing failed are forgotten.
const MOST_NAMESPACES: usize = 1000;
/// RangeUse for ports that an empty namespace keeps.
const FEW_PORTS: usize = 64;
/// Scans that are told apart.
const MOST_SCANS: usize = 1000;
/// Different failures that are told apart.
const MOST_FAILURES: usize = 10_000;

/// All that the records said.
#[derive(Debug, Default)]
pub struct Aggregate {
    /// Records taken.
    pub records: u64,
    /// Time of day and monotonic time of the first record.
    pub first: Option<(String, u64)>,
    /// Monotonic time of the last record.
    pub last_ns: u64,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// What the tracer did not see, in sentences.
    pub warnings: Vec<String>,
    /// There was a `start` record, and at the end a `summary`.
    pub is_begun: bool,
    #[expect(missing_docs, reason = "see is_begun")]
    pub is_ended: bool,
    /// Facts lost, and those of them after which ledger and kernel were not found to agree.
    pub lost: u64,
    #[expect(missing_docs, reason = "see lost")]
    pub lost_for_good: u64,
    /// By inode.
    pub namespaces: BTreeMap<Netns, Namespace>,
    /// Live leases.
    pub leases: FxHashMap<u64, Lease>,
    /// In the order in which they were seen.
    pub owners: Vec<Owner>,
    owner_ids: FxHashMap<OwnerKey, OwnerId>,
    /// Where connections go.
    pub destinations: FxHashMap<Destination, Traffic>,
    /// Failures of a kind.
    pub failures: BTreeMap<FailureKey, Failures>,
    /// What each source has tried, as it was told last.
    pub scans: BTreeMap<(Netns, IpAddr), Scan>,
    /// How long ports were held.
    pub lifetimes: Histogram,
    /// How long TIME_WAITs lasted.
    pub time_waits: Histogram,
    /// How long ports were free before they were used again.
    pub reuse_intervals: Histogram,
    /// How long connect() searched, of those that found a port.
    pub searches: Histogram,
    /// When all leases were looked at last.
    looked_ns: u64,
}

/// Place of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(usize);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct OwnerKey {
    pid: Option<u32>,
    comm: String,
}

/// A process that acquired ports.
#[derive(Clone, Debug)]
pub struct Owner {
    /// `None` for later processes of this name on a host that had very many.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: String,
    /// Its user.
    pub uid: u32,
    /// Its cgroup.
    pub cgroup: Option<String>,
    /// Its container.
    pub container: Option<String>,
    /// Ports acquired while observed.
    pub taken: u64,
    /// Calls that got no port.
    pub failed: u64,
    /// Connections that the peer closed first, and those of them that this owner closed then.
    pub closed_by_peer: u64,
    #[expect(missing_docs, reason = "see closed_by_peer")]
    pub then_closed: u64,
    /// How fast it takes ports.
    pub pace: Pace,
}

/// In what connect() runs out of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Where.
    pub netns: Netns,
    /// The local address.
    pub source: IpAddr,
    /// The peer's.
    pub addr: IpAddr,
    /// The peer's.
    pub port: u16,
}

/// What went to a destination.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Ports of the range in use now.
    pub used: u32,
    /// The most that were.
    pub peak: u32,
    /// Ports taken while observed, and let go.
    pub taken: u64,
    #[expect(missing_docs, reason = "see taken")]
    pub released: u64,
    /// How long those were held that were let go, seconds.
    pub held_s: f64,
    /// Number of those whose hold was known.
    pub held: u64,
    /// Calls that got no port.
    pub failed: u64,
    /// Over the last seconds.
    pub recent_taken: Decaying,
    #[expect(missing_docs, reason = "see recent_taken")]
    pub recent_released: Decaying,
    /// When the first connection was seen.
    pub since_ns: u64,
    /// How long connect() searched.
    pub searches: Histogram,
}

/// A network namespace.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// Its settings, the latest.
    pub settings: Option<Settings>,
    /// How often they changed.
    pub changes: u32,
    /// Who is on each port.
    pub ports: FxHashMap<u16, PortUse>,
    /// Ports of the range that somebody bound: lost to connect().
    pub bind_locked: u32,
    /// Lowest and highest port that was chosen for a client while observed.
    pub client_ports: Option<(u16, u16)>,
    /// Ports acquired while observed.
    pub taken: u64,
    /// Calls that got no port.
    pub failed: u64,
    /// Connections accepted while observed, by port.
    pub accepted: FxHashMap<u16, u64>,
    /// TIME_WAITs that `tcp_max_tw_buckets` did not allow.
    pub time_wait_overflows: u64,
}

/// The holders of a port.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortUse {
    /// All.
    pub holders: u32,
    /// Those that did not get the port from connect().
    pub binders: u32,
}

/// A live lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Where.
    pub netns: Netns,
    /// How it began.
    pub kind: Kind,
    /// Local address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// The peer.
    pub peer: Option<(IpAddr, u16)>,
    /// Whose.
    pub owner: Option<OwnerId>,
    /// What it does.
    pub phase: Phase,
    /// Who closed first.
    pub closed_by: Option<Side>,
    /// When it began; `None` if that was before the observation and is not known.
    pub began_ns: Option<u64>,
    /// When the present phase began, or was first seen.
    pub phase_since_ns: u64,
    /// Of a TIME_WAIT: the peer sent no timestamps, so that no connect() takes it over.
    pub lacks_timestamps: bool,
    /// It was taken while observed.
    pub is_new: bool,
}

/// What failures have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FailureKey {
    /// Where.
    pub netns: Netns,
    /// The call.
    pub operation: &'static str,
    /// The errno's symbol.
    pub error: String,
    /// Why.
    pub cause: Option<Cause>,
    /// Local address that was wanted.
    pub addr: IpAddr,
    /// Local port that was wanted; 0 for any.
    pub port: u16,
    /// Where connect() was to go.
    pub peer: Option<(IpAddr, u16)>,
}

/// Failures of a kind.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// When the first and the last happened.
    pub first_ns: u64,
    #[expect(missing_docs, reason = "see first_ns")]
    pub last_ns: u64,
    /// Who called, and how often.
    pub callers: BTreeMap<Option<OwnerId>, u64>,
    /// The last holder that was named as being in the way.
    pub holder: Option<HolderSeen>,
    /// Ports in use for the destination, and lost to it because they are bound, at the last.
    pub used: Option<u32>,
    #[expect(missing_docs, reason = "see used")]
    pub bind_locked: Option<u32>,
    /// The namespace's range at the last of them.
    pub local_range: Option<LocalRange>,
    /// How long they searched.
    pub searches: Histogram,
    /// Who held the ports, at the last of them that was looked at.
    pub crowd: Crowd,
}

/// A holder that was in the way.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of a lease")]
pub struct HolderSeen {
    pub owner: Option<OwnerId>,
    pub kind: Kind,
    pub phase: Phase,
    pub addr: IpAddr,
    pub port: Option<u16>,
    pub peer: Option<(IpAddr, u16)>,
}

impl Aggregate {
    /// Takes one record.
    pub fn take(&mut self, record: &Record<'_>) {
        let Record { time, mono_ns, netns, body } = record;
        let (now_ns, netns) = (*mono_ns, *netns);
        self.records += 1;
        self.first.get_or_insert_with(|| (time.to_string(), now_ns));
        self.last_ns = self.last_ns.max(now_ns);
        match body {
            Body::Start { kernel, warnings } => {
                // A second run in the same stream numbers its leases anew.
                self.leases.clear();
                for namespace in self.namespaces.values_mut() {
                    namespace.ports.clear();
                    namespace.bind_locked = 0;
                }
                for traffic in self.destinations.values_mut() {
                    traffic.used = 0;
                }
                self.kernel = Some(kernel.to_string());
                self.warnings.clone_from(warnings);
                (self.is_begun, self.is_ended) = (true, false);
            }
            Body::Namespace(settings) => self.set_settings(netns, settings),
            Body::Lease(lease) => self.lease(now_ns, netns, lease),
            Body::Fail(fail) => self.fail(now_ns, netns, fail),
            Body::Scan(scan) => {
                let probed = (netns, scan.source_addr);
                if self.scans.len() < MOST_SCANS || self.scans.contains_key(&probed) {
                    self.scans.insert(probed, *scan);
                }
            }
            Body::Loss { count, healed } => {
                self.lost += count;
                self.lost_for_good += if *healed { 0 } else { *count };
            }
            Body::Summary => self.is_ended = true,
            Body::Other => {}
        }
    }

    /// The owner of this place.
    #[must_use]
    pub fn owner(&self, id: OwnerId) -> Option<&Owner> {
        self.owners.get(id.0)
    }

    /// Every owner with its place.
    pub fn owners(&self) -> impl Iterator<Item = (OwnerId, &Owner)> {
        self.owners.iter().enumerate().map(|(place, owner)| (OwnerId(place), owner))
    }

    /// How long was observed, seconds.
    #[must_use]
    pub fn duration_s(&self) -> f64 {
        self.first.as_ref().map_or(0.0, |(_, first_ns)| seconds(*first_ns, self.last_ns))
    }

    fn set_settings(&mut self, netns: Netns, settings: &Settings) {
        self.forget_namespaces(netns);
        let namespace = self.namespaces.entry(netns).or_default();
        if namespace.settings.as_ref().is_some_and(|before| before != settings) {
            namespace.changes += 1;
        }
        namespace.settings = Some(settings.clone());
        let locked = namespace
            .ports
            .iter()
            .filter(|(port, held)| held.binders > 0 && settings.may_choose(Port(**port)))
            .count();
        namespace.bind_locked = u32::try_from(locked).unwrap_or(u32::MAX);
        // What counts as used depends on the range.
        for (destination, traffic) in &mut self.destinations {
            if destination.netns == netns {
                traffic.used = 0;
            }
        }
        let Self { leases, destinations, .. } = self;
        for lease in leases.values().filter(|lease| lease.netns == netns) {
            if let Some(destination) = lease.destination()
                && settings.may_choose(Port(lease.port))
                && let Some(traffic) = destinations.get_mut(&destination)
            {
                traffic.used += 1;
                traffic.peak = traffic.peak.max(traffic.used);
            }
        }
    }

    /// Containers come and go: makes room for a namespace that is not known yet.
    fn forget_namespaces(&mut self, new: Netns) {
        if self.namespaces.len() >= MOST_NAMESPACES && !self.namespaces.contains_key(&new) {
            self.namespaces
                .retain(|_, namespace| !namespace.ports.is_empty() || namespace.failed > 0);
        }
    }

    fn lease(&mut self, now_ns: u64, netns: Netns, record: &record::Lease<'_>) {
        let record::Lease { id, who, event } = record;
        if !self.leases.contains_key(id) {
            self.begin(now_ns, netns, *id, who, *event);
        }
        match *event {
            Event::Held { .. } => {}
            Event::Bind { reuse } => self.note_reuse(reuse),
            Event::Connect { search_us, reuse } => {
                self.note_reuse(reuse);
                if let Some(search_us) = search_us {
                    let search_s = search_us / 1e6;
                    self.searches.add(search_s);
                    let destination = self.leases.get(id).and_then(Lease::destination);
                    if let Some(destination) = destination
                        && let Some(traffic) = self.destinations.get_mut(&destination)
                    {
                        traffic.searches.add(search_s);
                    }
                }
            }
            Event::Accept => {}
            Event::Established => self.enter_phase(now_ns, *id, who, Phase::Established),
            Event::Listen => self.enter_phase(now_ns, *id, who, Phase::Listen),
            Event::Closing { by } => {
                self.enter_phase(now_ns, *id, who, Phase::Closing);
                let Some(lease) = self.leases.get_mut(id) else { return };
                lease.closed_by = Some(by);
                let owner = lease.owner;
                if by == Side::Peer
                    && let Some(owner) = self.owner_mut(owner)
                {
                    owner.closed_by_peer += 1;
                }
            }
            Event::TimeWait { substate, timestamps } => {
                self.enter_phase(now_ns, *id, who, Phase::TimeWait(substate));
                if let Some(lease) = self.leases.get_mut(id) {
                    lease.lacks_timestamps = timestamps == Some(false);
                }
            }
            Event::Release { reason, held_s, time_wait_s } => {
                if let Some(held_s) = held_s {
                    self.lifetimes.add(held_s);
                }
                if let Some(time_wait_s) = time_wait_s {
                    self.time_waits.add(time_wait_s);
                }
                self.end(now_ns, *id, reason, held_s);
            }
        }
    }

    /// A lease is seen for the first time: it begins, or it is older than the records.
    fn begin(&mut self, now_ns: u64, netns: Netns, id: u64, who: &Who<'_>, event: Event) {
        let is_new = matches!(event, Event::Bind { .. } | Event::Connect { .. } | Event::Accept);
        let (phase, closed_by, began_ns) = match event {
            Event::Held { phase, closed_by, age_s, .. } => {
                (phase, closed_by, age_s.map(|age_s| earlier(now_ns, age_s)))
            }
            Event::Bind { .. } => (Phase::Bound, None, Some(now_ns)),
            Event::Connect { .. } => (Phase::Connecting, None, Some(now_ns)),
            Event::Accept => (Phase::Established, None, Some(now_ns)),
            Event::Established => (Phase::Established, None, None),
            Event::Listen => (Phase::Listen, None, None),
            Event::Closing { by } => (Phase::Closing, Some(by), None),
            Event::TimeWait { substate, .. } => (Phase::TimeWait(substate), None, None),
            Event::Release { held_s, .. } => {
                (Phase::Closing, None, held_s.map(|held_s| earlier(now_ns, held_s)))
            }
        };
        let owner = self.owner_of(now_ns, who);
        let lease = Lease {
            netns,
            kind: who.kind,
            addr: who.local_addr,
            port: who.local_port.unwrap_or_default(),
            peer: who.peer,
            owner,
            phase,
            closed_by,
            began_ns,
            phase_since_ns: now_ns,
            lacks_timestamps: matches!(
                event,
                Event::Held { timestamps: Some(false), .. }
                    | Event::TimeWait { timestamps: Some(false), .. }
            ),
            is_new,
        };
        let first_ns = self.first.as_ref().map_or(now_ns, |(_, first_ns)| *first_ns);
        if is_new && let Some(owner) = self.owner_mut(owner) {
            owner.taken += 1;
            if lease.kind != Kind::Accept {
                owner.pace.tick(first_ns, now_ns);
            }
        }
        if let Event::Held { closed_by: Some(Side::Peer), .. } = event
            && let Some(owner) = self.owner_mut(owner)
        {
            owner.closed_by_peer += 1;
        }
        self.forget_namespaces(netns);
        let namespace = self.namespaces.entry(netns).or_default();
        namespace.taken += u64::from(is_new);
        if is_new && lease.kind == Kind::Accept {
            *namespace.accepted.entry(lease.port).or_default() += 1;
        }
        if is_new && matches!(lease.kind, Kind::Connect | Kind::BindAuto) {
            let (low, high) = namespace.client_ports.unwrap_or((lease.port, lease.port));
            namespace.client_ports = Some((low.min(lease.port), high.max(lease.port)));
        }
        let may_choose = namespace.may_choose(lease.port);
        let held = namespace.ports.entry(lease.port).or_default();
        held.holders += 1;
        if lease.kind != Kind::Connect {
            held.binders += 1;
            if held.binders == 1 && may_choose {
                namespace.bind_locked += 1;
            }
        }
        self.join_destination(now_ns, &lease, may_choose);
        self.leases.insert(id, lease);
    }

    fn join_destination(&mut self, now_ns: u64, lease: &Lease, may_choose: bool) {
        let Some(destination) = lease.destination() else { return };
        if self.destinations.len() >= MOST_DESTINATIONS
            && !self.destinations.contains_key(&destination)
        {
            self.destinations.retain(|_, traffic| traffic.used > 0 || traffic.failed > 0);
        }
        let traffic = self.destinations.entry(destination).or_default();
        if traffic.since_ns == 0 {
            traffic.since_ns = now_ns;
        }
        if lease.is_new {
            traffic.taken += 1;
            traffic.recent_taken.add(now_ns, 1.0);
        }
        if may_choose {
            traffic.used += 1;
            traffic.peak = traffic.peak.max(traffic.used);
        }
    }

    fn leave_destination(&mut self, now_ns: u64, lease: &Lease, held_s: Option<f64>) {
        let may_choose = self
            .namespaces
            .get(&lease.netns)
            .is_some_and(|namespace| namespace.may_choose(lease.port));
        let Some(destination) = lease.destination() else { return };
        let Some(traffic) = self.destinations.get_mut(&destination) else { return };
        traffic.released += 1;
        traffic.recent_released.add(now_ns, 1.0);
        if let Some(held_s) = held_s {
            traffic.held += 1;
            traffic.held_s += held_s;
        }
        if may_choose {
            traffic.used = traffic.used.saturating_sub(1);
        }
    }

    fn enter_phase(&mut self, now_ns: u64, id: u64, who: &Who<'_>, phase: Phase) {
        // Mostly whoever it was before, who need not be looked for.
        let known = self.leases.get(&id).and_then(|lease| self.owner(lease.owner?));
        let is_known = known.is_some_and(|owner| {
            who.process.as_ref().is_some_and(|process| owner.pid == Some(process.pid))
        });
        let owner = if is_known { None } else { self.owner_of(now_ns, who) };
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if lease.phase != phase {
            lease.phase = phase;
            lease.phase_since_ns = now_ns;
        }
        lease.owner = owner.or(lease.owner);
        // The peer is known once a bound socket connects, and its source address, too.
        let before = lease.destination();
        lease.peer = who.peer.or(lease.peer);
        lease.addr = who.local_addr;
        if lease.destination() != before {
            let lease = lease.clone();
            let may_choose = self
                .namespaces
                .get(&lease.netns)
                .is_some_and(|namespace| namespace.may_choose(lease.port));
            if let Some(before) = before
                && let Some(traffic) = self.destinations.get_mut(&before)
                && may_choose
            {
                traffic.used = traffic.used.saturating_sub(1);
            }
            self.join_destination(now_ns, &lease, may_choose);
        }
    }

    fn end(&mut self, now_ns: u64, id: u64, reason: Reason, held_s: Option<f64>) {
        let Some(lease) = self.leases.remove(&id) else { return };
        self.leave_destination(now_ns, &lease, held_s);
        if lease.closed_by == Some(Side::Peer)
            && let Some(owner) = self.owner_mut(lease.owner)
        {
            owner.then_closed += 1;
        }
        let Some(namespace) = self.namespaces.get_mut(&lease.netns) else { return };
        if reason == Reason::TimeWaitOverflow {
            namespace.time_wait_overflows += 1;
        }
        let may_choose = namespace.may_choose(lease.port);
        let Some(held) = namespace.ports.get_mut(&lease.port) else { return };
        held.holders = held.holders.saturating_sub(1);
        if lease.kind != Kind::Connect {
            held.binders = held.binders.saturating_sub(1);
            if held.binders == 0 && may_choose {
                namespace.bind_locked = namespace.bind_locked.saturating_sub(1);
            }
        }
        if held.holders == 0 {
            namespace.ports.remove(&lease.port);
            if namespace.ports.is_empty() {
                // Most likely it has ended, and the room of all its ports is not needed again.
                namespace.ports.shrink_to(FEW_PORTS);
            }
        }
    }

    fn fail(&mut self, now_ns: u64, netns: Netns, fail: &Fail<'_>) {
        let caller = self.owner_of(now_ns, &fail.who);
        if let Some(owner) = self.owner_mut(caller) {
            owner.failed += 1;
        }
        let destination = fail.who.peer.map(|(addr, port)| Destination {
            netns,
            source: fail.who.local_addr,
            addr,
            port,
        });
        let traffic = destination.map(|destination| {
            let traffic = self.destinations.entry(destination).or_default();
            traffic.failed += 1;
            traffic.used
        });
        let namespace = self.namespaces.entry(netns).or_default();
        namespace.failed += 1;
        let range = fail.range.or_else(|| namespace.range_as_seen_by(fail.operation, traffic));
        let cause = fail.cause.or_else(|| cause_from(fail, range));
        let local_range = namespace.settings.as_ref().map(|settings| settings.range);
        let key = FailureKey {
            netns,
            operation: crate::record::names::operation(fail.operation),
            error: fail.error.to_string(),
            cause,
            addr: fail.who.local_addr,
            port: fail.requested_port,
            peer: fail.who.peer,
        };
        if self.failures.len() >= MOST_FAILURES && !self.failures.contains_key(&key) {
            return;
        }
        let holder = fail.holder.as_ref().map(|holder| HolderSeen {
            owner: self.owner_of(now_ns, &holder.who),
            kind: holder.who.kind,
            phase: holder.phase,
            addr: holder.who.local_addr,
            port: holder.who.local_port,
            peer: holder.who.peer,
        });
        let crowd = self.crowd_at(now_ns, &key, destination);
        let failures = self.failures.entry(key).or_default();
        failures.crowd = crowd.unwrap_or_else(|| std::mem::take(&mut failures.crowd));
        if failures.count == 0 {
            failures.first_ns = now_ns;
        }
        failures.count += 1;
        failures.last_ns = now_ns;
        *failures.callers.entry(caller).or_default() += 1;
        failures.holder = holder.or(failures.holder.take());
        failures.used = range.map(|range| range.used).or(failures.used);
        failures.bind_locked = range.map(|range| range.bind_locked).or(failures.bind_locked);
        failures.local_range = local_range.or(failures.local_range);
        if let Some(search_us) = fail.search_us {
            failures.searches.add(search_us / 1e6);
        }
    }

    /// Who holds the ports, unless that was looked at just now. Looking takes as long as there are
    /// leases.
    fn crowd_at(
        &mut self,
        now_ns: u64,
        key: &FailureKey,
        destination: Option<Destination>,
    ) -> Option<Crowd> {
        const AGAIN_NS: u64 = 1_000_000_000;
        /// Looking takes a hundredth of that, so that it takes a hundredth of the time at most.
        const PAUSE_NS_PER_LEASE: u64 = 4_000;
        const FEW: u64 = 1_000;
        let looked_ns = self.failures.get(key).map_or(0, |failures| failures.crowd.at_ns);
        let leases = self.leases.len() as u64;
        let pause_ns = if leases > FEW { PAUSE_NS_PER_LEASE.saturating_mul(leases) } else { 0 };
        let is_due = now_ns.saturating_sub(looked_ns) >= AGAIN_NS
            && now_ns.saturating_sub(self.looked_ns) >= pause_ns;
        is_due.then(|| {
            self.looked_ns = now_ns;
            Crowd::of(self, key.netns, destination)
        })
    }

    fn note_reuse(&mut self, reuse: Option<record::Reuse>) {
        if let Some(record::Reuse { idle_s, from_time_wait: _ }) = reuse {
            self.reuse_intervals.add(idle_s);
        }
    }

    fn owner_of(&mut self, now_ns: u64, who: &Who<'_>) -> Option<OwnerId> {
        let process = who.process.as_ref()?;
        let by_name = |pid| OwnerKey { pid, comm: process.comm.to_string() };
        let key = by_name(Some(process.pid));
        if let Some(id) = self.owner_ids.get(&key) {
            return Some(*id);
        }
        let key = if self.owners.len() < MOST_PROCESSES { key } else { by_name(None) };
        if let Some(id) = self.owner_ids.get(&key) {
            return Some(*id);
        }
        let id = OwnerId(self.owners.len());
        self.owners.push(Owner {
            pid: key.pid,
            comm: key.comm.clone(),
            uid: process.uid,
            cgroup: process.cgroup.as_deref().map(str::to_owned),
            container: process.container.as_deref().map(str::to_owned),
            taken: 0,
            failed: 0,
            closed_by_peer: 0,
            then_closed: 0,
            pace: Pace { since_ns: now_ns, ..Pace::default() },
        });
        self.owner_ids.insert(key, id);
        Some(id)
    }

    fn owner_mut(&mut self, id: Option<OwnerId>) -> Option<&mut Owner> {
        self.owners.get_mut(id?.0)
    }
}

impl Lease {
    /// Where it counts: connections of clients do, accepted ones use no port of the range.
    #[must_use]
    pub fn destination(&self) -> Option<Destination> {
        let (addr, port) = self.peer.filter(|_| self.kind != Kind::Accept)?;
        Some(Destination { netns: self.netns, source: self.addr, addr, port })
    }

    /// Seconds since it began, at this time.
    #[must_use]
    pub fn age_s(&self, now_ns: u64) -> Option<f64> {
        self.began_ns.map(|began_ns| seconds(began_ns, now_ns))
    }

    /// Seconds in its present phase, at least.
    #[must_use]
    pub fn phase_age_s(&self, now_ns: u64) -> f64 {
        seconds(self.phase_since_ns, now_ns)
    }

    /// How the state is called in the lists of the kernel.
    #[must_use]
    pub fn is_close_wait(&self) -> bool {
        self.phase == Phase::Closing && self.closed_by == Some(Side::Peer)
    }

    /// Waits for the FIN of the peer.
    #[must_use]
    pub fn is_fin_wait(&self) -> bool {
        matches!(self.phase, Phase::TimeWait(Substate::FinWait2))
            || (self.phase == Phase::Closing && self.closed_by == Some(Side::Local))
    }
}

impl Namespace {
    /// True if connect() may choose the port; all ports count while the range is not known.
    #[must_use]
    pub fn may_choose(&self, port: u16) -> bool {
        self.settings.as_ref().is_none_or(|settings| settings.may_choose(Port(port)))
    }

    /// Ports of the range without those that are reserved.
    #[must_use]
    pub fn capacity(&self) -> Option<u32> {
        self.settings.as_ref().map(Settings::capacity)
    }

    /// Ports of the range that somebody holds.
    #[must_use]
    pub fn held_in_range(&self) -> u32 {
        let held = self.ports.keys().filter(|port| self.may_choose(**port)).count();
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// True if a TIME_WAIT between these addresses gives its port to a connect().
    #[must_use]
    pub fn takes_over(&self, source: IpAddr, addr: IpAddr) -> bool {
        self.settings.as_ref().is_some_and(|settings| {
            settings.timestamps
                && match settings.time_wait_reuse {
                    TimeWaitReuse::Never => false,
                    TimeWaitReuse::Always => true,
                    TimeWaitReuse::Loopback => source.is_loopback() || addr.is_loopback(),
                }
        })
    }

    /// What a search for a port found in use; `used` is that of the destination.
    fn range_as_seen_by(&self, operation: Operation, used: Option<u32>) -> Option<record::Range> {
        let settings = self.settings.as_ref()?;
        let capacity = settings.capacity();
        let used = match operation {
            Operation::Connect => used.unwrap_or(0),
            Operation::Bind | Operation::Listen => self.held_in_range(),
        };
        let reserved = settings.range.len().saturating_sub(capacity);
        Some(record::Range { capacity, reserved, used, bind_locked: self.bind_locked })
    }
}

/// Why a call found no port, for recordings that do not say: what takes most of the range.
fn cause_from(fail: &Fail<'_>, range: Option<record::Range>) -> Option<Cause> {
    if fail.requested_port != 0 && fail.operation != Operation::Connect {
        return None;
    }
    let record::Range { capacity, reserved, used, bind_locked } = range?;
    if is_another_range(capacity.saturating_sub(used + bind_locked), capacity, reserved) {
        return None;
    }
    Some(match fail.operation {
        _ if capacity == 0 => Cause::Reserved,
        Operation::Connect if bind_locked > 0 && bind_locked >= used => Cause::RangeBindLocked,
        Operation::Connect | Operation::Bind | Operation::Listen => Cause::RangeFull,
    })
}

/// How fast a process takes ports, second by second.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// When the process was seen first.
    since_ns: u64,
    /// The second under way, since the start of the observation.
    second: u64,
    count: u64,
    /// Ports taken in the seconds before it, and the most in one of them.
    before: u64,
    peak: u64,
    /// The fastest jump.
    jump: Option<Jump>,
}

/// A process takes ports far faster than before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jump {
    /// When.
    pub at_ns: u64,
    /// Ports in one second.
    pub per_s: u64,
    /// Its mean before.
    pub before_per_s: f64,
}

impl Pace {
    /// A past as long as this is one to compare with.
    const PAST_S: u64 = 10;
    /// A jump is to so many times the mean, and twice the peak, of the past ...
    const TIMES_THE_MEAN: f64 = 10.0;
    /// ... and to at least so many ports a second.
    const LEAST_PER_S: u64 = 50;

    fn tick(&mut self, first_ns: u64, now_ns: u64) {
        let second = now_ns.saturating_sub(first_ns) / 1_000_000_000;
        if second != self.second {
            self.close(first_ns);
            self.second = second;
        }
        self.count += 1;
    }

    fn close(&mut self, first_ns: u64) {
        self.jump = self.jump_now(first_ns).or(self.jump);
        self.before += self.count;
        self.peak = self.peak.max(self.count);
        self.count = 0;
    }

    /// The latest jump, with the second under way at the end.
    #[must_use]
    pub fn jump(&self, first_ns: u64) -> Option<Jump> {
        self.jump_now(first_ns).or(self.jump)
    }

    #[expect(clippy::cast_precision_loss, reason = "rates need no more")]
    fn jump_now(&self, first_ns: u64) -> Option<Jump> {
        let seen_since = self.since_ns.saturating_sub(first_ns) / 1_000_000_000;
        let past_s = self.second.saturating_sub(seen_since);
        let mean = self.before as f64 / past_s.max(1) as f64;
        let is_jump = past_s >= Self::PAST_S
            && self.count >= Self::LEAST_PER_S
            && self.count >= 2 * self.peak
            && self.count as f64 >= Self::TIMES_THE_MEAN * mean;
        is_jump.then(|| Jump {
            at_ns: first_ns + self.second * 1_000_000_000,
            per_s: self.count,
            before_per_s: mean,
        })
    }
}

/// A sum in which what is older counts less.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decaying {
    sum: f64,
    at_ns: u64,
}

impl Decaying {
    /// What is so old counts a third.
    const TIME_S: f64 = 10.0;

    fn add(&mut self, now_ns: u64, value: f64) {
        self.sum = self.at(now_ns) + value;
        self.at_ns = self.at_ns.max(now_ns);
    }

    fn at(self, now_ns: u64) -> f64 {
        self.sum * (-seconds(self.at_ns, now_ns) / Self::TIME_S).exp()
    }

    /// What was added a second, given since when.
    #[must_use]
    pub fn rate(self, since_ns: u64, now_ns: u64) -> f64 {
        // A sum that decays is short of what it will be until it has gone on for long.
        let observed_s =
            Self::TIME_S * (1.0 - (-seconds(since_ns, now_ns).max(1.0) / Self::TIME_S).exp());
        self.at(now_ns) / observed_s
    }
}

/// Seconds from one time to a later one.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "nanosecond precision is lost after 104 days")]
pub fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as casts saturate, and an age is not negative"
)]
fn earlier(now_ns: u64, by_s: f64) -> u64 {
    now_ns.saturating_sub((by_s * 1e9) as u64)
}
