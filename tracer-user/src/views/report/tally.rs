//! Aggregates records: ports acquired and released, calls that failed. The ports that are held, and
//! how many are left, come from the ledger.

use std::{collections::BTreeMap, net::IpAddr};

use rustc_hash::FxHashMap;

use super::{
    histogram::Histogram,
    owners::{OwnerId, Owners},
    survey::Survey,
};
use crate::{
    capacity::cause_of,
    foreign::Foreign,
    ledger::{Ledger, destination_of},
    model::{
        Cause, Change, Destination, Failure, Instant, Kind, Lease, LeaseEvent, LocalRange, Netns,
        Operation, Phase, Port, Reason, Reuse, Scan, Settings, Side, seconds,
    },
    record::{Body, Cgroup, Loss, LostAt, Record, names},
};

/// Number of destinations beyond which those that use no port and had no failure are dropped.
const MAX_DESTINATIONS: usize = 50_000;
/// Number of namespaces beyond which those without leases and failures are dropped.
const MAX_NAMESPACES: usize = 1000;
/// Scans that are counted separately.
const MAX_SCANS: usize = 1000;
/// Kinds of failures that are counted; further ones are ignored.
const MAX_FAILURES: usize = 10_000;

/// What the records add up to.
#[derive(Debug)]
pub(super) struct Tally {
    /// Nanoseconds to add to an [`Instant`] to get the time since 1970.
    pub(super) realtime_offset_ns: i128,
    /// Number of records.
    pub(super) records: u64,
    /// Time of the first record, and the latest time of all records.
    pub(super) first: Option<Instant>,
    pub(super) last: Instant,
    /// The kernel's release.
    pub(super) kernel: Option<Foreign<'static>>,
    /// What the tracer could not observe, in sentences.
    pub(super) warnings: Vec<Foreign<'static>>,
    /// True if there was a `start` record; `is_ended` if a `summary` followed the latest one.
    pub(super) is_begun: bool,
    pub(super) is_ended: bool,
    /// Facts lost, and how many of them no comparison with the kernel has healed.
    pub(super) lost: u64,
    pub(super) lost_for_good: u64,
    /// Records that a recording lacks because its reader was slow.
    pub(super) dropped: u64,
    pub(super) namespaces: BTreeMap<Netns, NamespaceTally>,
    /// The size at which they are swept: twice what the latest sweep left, so that the sweeps cost
    /// a constant for each entry.
    max_namespaces: usize,
    pub(super) owners: Owners,
    pub(super) destinations: FxHashMap<Destination, Traffic>,
    /// The same of destinations.
    max_destinations: usize,
    pub(super) failures: BTreeMap<FailureKey, Failures>,
    /// The latest record about each source.
    pub(super) scans: BTreeMap<(Netns, IpAddr), Scan>,
    /// Hold times of ports.
    pub(super) lifetimes: Histogram,
    /// Durations of TIME_WAITs.
    pub(super) time_waits: Histogram,
    /// Times between the release and the reuse of a port.
    pub(super) reuse_intervals: Histogram,
    /// Search times of the connect()s that found a port.
    pub(super) searches: Histogram,
    /// Time of the latest survey.
    last_survey: Instant,
}

/// The traffic to a destination during the observation.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    /// The maximum number of ports of the range in use at once.
    pub(super) peak: u32,
    /// Ports acquired.
    pub(super) taken: u64,
    /// Calls that got no port.
    pub(super) failed: u64,
    /// Search times of connect().
    pub(super) searches: Histogram,
}

/// What happened in a network namespace during the observation.
#[derive(Clone, Debug, Default)]
pub(super) struct NamespaceTally {
    /// The latest settings; `None` if they could not be read.
    pub(super) settings: Option<Settings>,
    /// How often they changed.
    pub(super) changes: u32,
    /// The lowest and the highest port that the kernel chose for a client.
    pub(super) client_ports: Option<(Port, Port)>,
    /// Ports acquired.
    pub(super) taken: u64,
    /// Calls that got no port.
    pub(super) failed: u64,
    /// Connections accepted, by port.
    pub(super) accepted: FxHashMap<Port, u64>,
    /// Connections without a TIME_WAIT because `tcp_max_tw_buckets` was reached.
    pub(super) time_wait_overflows: u64,
}

/// What the failures of one kind have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FailureKey {
    pub(super) netns: Netns,
    /// The call's name.
    pub(super) operation: &'static str,
    /// The errno's symbol.
    pub(super) error: String,
    pub(super) cause: Option<Cause>,
    /// The requested local address.
    pub(super) addr: IpAddr,
    /// The requested local port; 0 for any.
    pub(super) port: u16,
    /// The peer of a connect().
    pub(super) peer: Option<(IpAddr, u16)>,
}

/// Failures of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    /// Time of the first and the last failure.
    pub(super) first: Instant,
    pub(super) last: Instant,
    /// The callers, and how often each failed.
    pub(super) callers: BTreeMap<Option<OwnerId>, u64>,
    /// The holder that the latest failure names.
    pub(super) holder: Option<BlockingHolder>,
    /// Ports in use for the destination, and ports unavailable to it because they are bound, at the
    /// latest failure.
    pub(super) used: Option<u32>,
    pub(super) bind_locked: Option<u32>,
    /// The namespace's range at the latest failure.
    pub(super) local_range: Option<LocalRange>,
    /// Who held the ports, at the latest failure for which that was surveyed.
    pub(super) survey: Survey,
}

/// The holder of a port that a call asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockingHolder {
    pub(super) owner: Option<OwnerId>,
    pub(super) kind: Kind,
    pub(super) phase: Phase,
    pub(super) addr: IpAddr,
    pub(super) port: Port,
    pub(super) peer: Option<(IpAddr, u16)>,
}

impl Tally {
    /// An empty tally.
    pub(super) fn new(realtime_offset_ns: i128) -> Self {
        Self {
            realtime_offset_ns,
            records: 0,
            first: None,
            last: Instant::BOOT,
            kernel: None,
            warnings: Vec::new(),
            is_begun: false,
            is_ended: false,
            lost: 0,
            lost_for_good: 0,
            dropped: 0,
            namespaces: BTreeMap::new(),
            max_namespaces: MAX_NAMESPACES,
            owners: Owners::default(),
            destinations: FxHashMap::default(),
            max_destinations: MAX_DESTINATIONS,
            failures: BTreeMap::new(),
            scans: BTreeMap::new(),
            lifetimes: Histogram::default(),
            time_waits: Histogram::default(),
            reuse_intervals: Histogram::default(),
            searches: Histogram::default(),
            last_survey: Instant::BOOT,
        }
    }

    /// Adds a record. `ledger` is the state at that moment.
    pub(super) fn add(&mut self, record: &Record<'_>, ledger: &Ledger) {
        let Record { at, body } = *record;
        self.records += 1;
        self.first.get_or_insert(at);
        self.last = self.last.max(at);
        match body {
            Body::Start(start) => {
                self.kernel = Some(start.kernel.clone());
                self.warnings.clone_from(&start.warnings);
                (self.is_begun, self.is_ended) = (true, false);
            }
            Body::Namespace { netns, settings, is_new: _ } => {
                let namespace = self.namespace(netns, ledger);
                if namespace.settings.as_ref().is_some_and(|before| before != settings) {
                    namespace.changes += 1;
                }
                namespace.settings = Some(settings.clone());
            }
            Body::Lease { event, cgroup } => self.add_lease_event(&event, cgroup, ledger),
            Body::Fail { failure, cgroup, holder_cgroup } => {
                self.add_failure(failure, cgroup, holder_cgroup, ledger);
            }
            Body::Scan(scan) => {
                let key = (scan.netns, scan.source.ip());
                if self.scans.len() < MAX_SCANS || self.scans.contains_key(&key) {
                    self.scans.insert(key, *scan);
                }
            }
            Body::Loss(Loss { count, lost_at: LostAt::Reader, healed: _ }) => self.dropped += count,
            Body::Loss(Loss { count, lost_at: _, healed }) => {
                self.lost += count;
                self.lost_for_good += if *healed { 0 } else { *count };
            }
            Body::Summary(_) => self.is_ended = true,
            Body::Pressure(_) | Body::Verify(_) => {}
        }
    }

    /// Duration of the observation, in seconds.
    pub(super) fn duration_s(&self) -> f64 {
        self.first.map_or(0.0, |first| seconds(self.last.since(first)))
    }

    /// The entry of a namespace. Containers come and go, so namespaces that hold no port and had no
    /// failure are dropped when there are too many.
    fn namespace(&mut self, netns: Netns, ledger: &Ledger) -> &mut NamespaceTally {
        if self.namespaces.len() >= self.max_namespaces && !self.namespaces.contains_key(&netns) {
            self.namespaces
                .retain(|netns, namespace| namespace.failed > 0 || ledger.is_held_in(*netns));
            self.max_namespaces = MAX_NAMESPACES.max(2 * self.namespaces.len());
        }
        self.namespaces.entry(netns).or_default()
    }

    fn traffic(&mut self, destination: Destination, ledger: &Ledger) -> &mut Traffic {
        if self.destinations.len() >= self.max_destinations
            && !self.destinations.contains_key(&destination)
        {
            self.destinations.retain(|destination, traffic| {
                traffic.failed > 0
                    || ledger.range_for(destination).is_some_and(|range| range.used > 0)
            });
            self.max_destinations = MAX_DESTINATIONS.max(2 * self.destinations.len());
        }
        self.destinations.entry(destination).or_default()
    }

    fn add_lease_event(
        &mut self,
        event: &LeaseEvent<'_>,
        cgroup: Option<&Cgroup>,
        ledger: &Ledger,
    ) {
        let LeaseEvent { at, lease, change } = *event;
        let owner = lease.owner.as_ref().map(|owner| self.owners.id_of(at, owner, cgroup));
        // Makes sure that the namespace has an entry.
        self.namespace(lease.netns, ledger);
        match change {
            Change::Held { .. } | Change::Listen | Change::Update { .. } | Change::TimeWait(_) => {}
            Change::Bind { reuse, .. } => {
                self.note_reuse(reuse);
                self.add_acquired(at, lease, owner, ledger);
            }
            Change::Connect { search_ns, reuse } => {
                self.note_reuse(reuse);
                self.add_acquired(at, lease, owner, ledger);
                self.add_connection(lease, ledger);
                if let Some(search_ns) = search_ns {
                    let search_s = seconds(search_ns);
                    self.searches.add(search_s);
                    if let Some(destination) = destination_of(lease) {
                        self.traffic(destination, ledger).searches.add(search_s);
                    }
                }
            }
            Change::Accept { .. } => {
                self.add_acquired(at, lease, owner, ledger);
                let namespace = self.namespace(lease.netns, ledger);
                *namespace.accepted.entry(lease.local_port).or_default() += 1;
            }
            Change::Established { .. } => {
                // The connect() of a socket that was bound before.
                if !matches!(lease.kind, Kind::Connect | Kind::Accept) {
                    self.add_connection(lease, ledger);
                }
            }
            Change::Closing { .. } => {}
            Change::Release { reason } => self.add_released(at, lease, reason, owner, ledger),
        }
    }

    fn add_acquired(
        &mut self,
        at: Instant,
        lease: &Lease,
        owner: Option<OwnerId>,
        ledger: &Ledger,
    ) {
        let first = self.first.unwrap_or(at);
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.taken += 1;
            if lease.kind != Kind::Accept {
                owner.rate_history.add_port(first, at);
            }
        }
        let namespace = self.namespace(lease.netns, ledger);
        namespace.taken += 1;
        if matches!(lease.kind, Kind::Connect | Kind::BindAuto) {
            let port = lease.local_port;
            let (low, high) = namespace.client_ports.unwrap_or((port, port));
            namespace.client_ports = Some((low.min(port), high.max(port)));
        }
    }

    fn add_connection(&mut self, lease: &Lease, ledger: &Ledger) {
        let Some(destination) = destination_of(lease) else { return };
        let used = ledger.range_for(&destination).map_or(0, |range| range.used);
        let traffic = self.traffic(destination, ledger);
        traffic.taken += 1;
        traffic.peak = traffic.peak.max(used);
    }

    fn add_released(
        &mut self,
        at: Instant,
        lease: &Lease,
        reason: Reason,
        owner: Option<OwnerId>,
        ledger: &Ledger,
    ) {
        if let Some(acquired) = lease.acquired {
            self.lifetimes.add(seconds(at.since(acquired)));
        }
        if let Some(time_wait) = lease.time_wait {
            self.time_waits.add(seconds(at.since(time_wait)));
        }
        if lease.closed_by == Some(Side::Peer)
            && let Some(owner) = self.owners.get_mut(owner)
        {
            owner.closed_after_peer += 1;
        }
        if reason == Reason::TimeWaitOverflow {
            self.namespace(lease.netns, ledger).time_wait_overflows += 1;
        }
    }

    fn add_failure(
        &mut self,
        failure: &Failure<'_>,
        cgroup: Option<&Cgroup>,
        holder_cgroup: Option<&Cgroup>,
        ledger: &Ledger,
    ) {
        let Failure { at, netns, operation, local_addr, local_port, peer, holder, .. } = *failure;
        let caller = failure.owner.as_ref().map(|owner| self.owners.id_of(at, owner, cgroup));
        if let Some(owner) = self.owners.get_mut(caller) {
            owner.failed += 1;
        }
        let destination = peer
            .filter(|_| operation == Operation::Connect)
            .map(|peer| Destination { netns, source: local_addr, peer });
        if let Some(destination) = destination {
            self.traffic(destination, ledger).failed += 1;
        }
        let namespace = self.namespace(netns, ledger);
        namespace.failed += 1;
        let local_range = namespace.settings.as_ref().map(|settings| settings.range);
        let is_search = local_port == 0 || operation == Operation::Connect;
        let cause = cause_of(&Failure { range: failure.range.filter(|_| is_search), ..*failure });
        let key = FailureKey {
            netns,
            operation: names::operation(operation),
            error: names::errno(failure.errno).into_owned(),
            cause,
            addr: local_addr.ip(),
            port: local_port,
            peer: peer.map(|(addr, port)| (addr.ip(), port.0)),
        };
        if self.failures.len() >= MAX_FAILURES && !self.failures.contains_key(&key) {
            return;
        }
        let holder = holder.map(|lease| BlockingHolder {
            owner: lease.owner.as_ref().map(|owner| self.owners.id_of(at, owner, holder_cgroup)),
            kind: lease.kind,
            phase: lease.phase,
            addr: lease.local_addr.ip(),
            port: lease.local_port,
            peer: lease.peer.get().map(|(addr, port)| (addr.ip(), port.0)),
        });
        let survey = self.survey(at, &key, destination, ledger);
        let failures = self.failures.entry(key).or_default();
        failures.survey = survey.unwrap_or_else(|| std::mem::take(&mut failures.survey));
        if failures.count == 0 {
            failures.first = at;
        }
        failures.count += 1;
        failures.last = at;
        *failures.callers.entry(caller).or_default() += 1;
        failures.holder = holder.or(failures.holder);
        failures.used = failure.range.map(|range| range.used).or(failures.used);
        failures.bind_locked =
            failure.range.map(|range| range.bind_locked).or(failures.bind_locked);
        failures.local_range = local_range.or(failures.local_range);
    }

    /// Surveys who holds the ports. `None` if that was done a moment ago: a survey visits every lease.
    fn survey(
        &mut self,
        at: Instant,
        key: &FailureKey,
        destination: Option<Destination>,
        ledger: &Ledger,
    ) -> Option<Survey> {
        const MIN_INTERVAL_NS: u64 = 1_000_000_000;
        /// A survey takes about a hundredth of that, so surveys take at most 1 % of the time.
        const PAUSE_NS_PER_LEASE: u64 = 4_000;
        const SMALL_LEDGER: u64 = 1_000;
        let surveyed = self.failures.get(key).and_then(|failures| failures.survey.at);
        let leases = ledger.lease_count() as u64;
        let pause_ns =
            if leases > SMALL_LEDGER { PAUSE_NS_PER_LEASE.saturating_mul(leases) } else { 0 };
        let is_due = surveyed.is_none_or(|surveyed| at.since(surveyed) >= MIN_INTERVAL_NS)
            && at.since(self.last_survey) >= pause_ns;
        is_due.then(|| {
            self.last_survey = at;
            Survey::of(at, ledger, &mut self.owners, key.netns, destination)
        })
    }

    fn note_reuse(&mut self, reuse: Option<Reuse>) {
        if let Some(Reuse { idle_ns, .. }) = reuse {
            self.reuse_intervals.add(seconds(idle_ns));
        }
    }
}
