//! Adds up what records say: what was taken, what was released, what failed. What is held, and how
//! many ports are left, the ledger says.

use std::{collections::BTreeMap, net::IpAddr};

use rustc_hash::FxHashMap;

use super::{
    histogram::Histogram,
    owners::{OwnerId, Owners},
    survey::Survey,
};
use crate::{
    capacity::cause_of,
    ledger::{Ledger, destination_of},
    model::{
        Cause, Change, Destination, Failure, Instant, Kind, Lease, LeaseEvent, LocalRange, Netns,
        Operation, Phase, Port, Reason, Reuse, Scan, Settings, Side, seconds,
    },
    record::{Body, Cgroup, Loss, LostAt, Record, names},
};

/// Destinations remembered before those that use no port and never failed are forgotten.
const MOST_DESTINATIONS: usize = 50_000;
/// Namespaces remembered before those in which nothing is held and nothing failed are forgotten.
const MOST_NAMESPACES: usize = 1000;
/// Scans that are told apart.
const MOST_SCANS: usize = 1000;
/// Different failures that are told apart.
const MOST_FAILURES: usize = 10_000;

/// All that the records said.
#[derive(Debug)]
pub(super) struct Tally {
    /// Added to an instant, gives the nanoseconds since 1970.
    pub(super) realtime_offset_ns: i128,
    /// Number of records.
    pub(super) records: u64,
    /// Time of the first record, and the latest time of any.
    pub(super) first: Option<Instant>,
    pub(super) last: Instant,
    /// The kernel's release.
    pub(super) kernel: Option<String>,
    /// What the tracer did not see, in sentences.
    pub(super) warnings: Vec<String>,
    /// There was a `start` record, and after the last of them a `summary`.
    pub(super) is_begun: bool,
    pub(super) is_ended: bool,
    /// Facts lost, and those of them after which ledger and kernel were not found to agree.
    pub(super) lost: u64,
    pub(super) lost_for_good: u64,
    /// Records that a recording lacks because its reader was slow.
    pub(super) dropped: u64,
    pub(super) namespaces: BTreeMap<Netns, NamespaceTally>,
    pub(super) owners: Owners,
    pub(super) destinations: FxHashMap<Destination, Traffic>,
    pub(super) failures: BTreeMap<FailureKey, Failures>,
    /// What each source has tried, by the latest record about it.
    pub(super) scans: BTreeMap<(Netns, IpAddr), Scan>,
    /// How long ports were held.
    pub(super) lifetimes: Histogram,
    /// How long TIME_WAITs lasted.
    pub(super) time_waits: Histogram,
    /// How long ports were free before they were used again.
    pub(super) reuse_intervals: Histogram,
    /// How long connect() searched, where it found a port.
    pub(super) searches: Histogram,
    /// When all leases were looked at last.
    looked: Instant,
}

/// What went to a destination while observed.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    /// The most ports of the range in use at a time.
    pub(super) peak: u32,
    /// Ports taken.
    pub(super) taken: u64,
    /// Calls that got no port.
    pub(super) failed: u64,
    /// How long connect() searched.
    pub(super) searches: Histogram,
}

/// What happened in a network namespace while observed.
#[derive(Clone, Debug, Default)]
pub(super) struct NamespaceTally {
    /// The latest settings; `None` if they could not be read.
    pub(super) settings: Option<Settings>,
    /// How often they changed.
    pub(super) changes: u32,
    /// Lowest and highest port that was chosen for a client.
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

/// What failures have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FailureKey {
    pub(super) netns: Netns,
    /// The call's name.
    pub(super) operation: &'static str,
    /// The errno's symbol.
    pub(super) error: String,
    pub(super) cause: Option<Cause>,
    /// Local address that was wanted.
    pub(super) addr: IpAddr,
    /// Local port that was wanted; 0 for any.
    pub(super) port: u16,
    /// Where connect() was to go.
    pub(super) peer: Option<(IpAddr, u16)>,
}

/// Failures of a kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    /// When the first and the last happened.
    pub(super) first: Instant,
    pub(super) last: Instant,
    /// Who called, and how often.
    pub(super) callers: BTreeMap<Option<OwnerId>, u64>,
    /// The last holder that was named as being in the way.
    pub(super) holder: Option<HolderSeen>,
    /// Ports in use for the destination, and lost to it because they are bound, at the last.
    pub(super) used: Option<u32>,
    pub(super) bind_locked: Option<u32>,
    /// The namespace's range at the last of them.
    pub(super) local_range: Option<LocalRange>,
    /// Who held the ports, at the last of them for which that was looked at.
    pub(super) survey: Survey,
}

/// A holder that was in the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct HolderSeen {
    pub(super) owner: Option<OwnerId>,
    pub(super) kind: Kind,
    pub(super) phase: Phase,
    pub(super) addr: IpAddr,
    pub(super) port: Port,
    pub(super) peer: Option<(IpAddr, u16)>,
}

impl Tally {
    /// Nothing yet.
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
            owners: Owners::default(),
            destinations: FxHashMap::default(),
            failures: BTreeMap::new(),
            scans: BTreeMap::new(),
            lifetimes: Histogram::default(),
            time_waits: Histogram::default(),
            reuse_intervals: Histogram::default(),
            searches: Histogram::default(),
            looked: Instant::BOOT,
        }
    }

    /// Takes one record, with the ledger as it is then.
    pub(super) fn take(&mut self, record: &Record<'_>, ledger: &Ledger) {
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
            Body::Lease { event, cgroup } => self.lease(&event, cgroup, ledger),
            Body::Fail { failure, cgroup, holder_cgroup } => {
                self.fail(failure, cgroup, holder_cgroup, ledger);
            }
            Body::Scan(scan) => {
                let key = (scan.netns, scan.source.ip());
                if self.scans.len() < MOST_SCANS || self.scans.contains_key(&key) {
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

    /// How long was observed, seconds.
    pub(super) fn duration_s(&self) -> f64 {
        self.first.map_or(0.0, |first| seconds(self.last.since(first)))
    }

    /// Containers come and go: what is over and never failed makes room.
    fn namespace(&mut self, netns: Netns, ledger: &Ledger) -> &mut NamespaceTally {
        if self.namespaces.len() >= MOST_NAMESPACES && !self.namespaces.contains_key(&netns) {
            self.namespaces
                .retain(|netns, namespace| namespace.failed > 0 || ledger.is_held_in(*netns));
        }
        self.namespaces.entry(netns).or_default()
    }

    fn traffic(&mut self, destination: Destination, ledger: &Ledger) -> &mut Traffic {
        if self.destinations.len() >= MOST_DESTINATIONS
            && !self.destinations.contains_key(&destination)
        {
            self.destinations.retain(|destination, traffic| {
                traffic.failed > 0
                    || ledger.range_for(destination).is_some_and(|range| range.used > 0)
            });
        }
        self.destinations.entry(destination).or_default()
    }

    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>, ledger: &Ledger) {
        let LeaseEvent { at, lease, change } = *event;
        let owner = lease.owner.as_ref().map(|owner| self.owners.place(at, owner, cgroup));
        // A change that is the first of its lease makes the namespace known.
        self.namespace(lease.netns, ledger);
        match change {
            Change::Held | Change::Listen | Change::Update | Change::TimeWait(_) => {}
            Change::Bind { reuse, .. } => {
                self.note_reuse(reuse);
                self.acquired(at, lease, owner, ledger);
            }
            Change::Connect { search_ns, reuse } => {
                self.note_reuse(reuse);
                self.acquired(at, lease, owner, ledger);
                self.connects(lease, ledger);
                if let Some(search_ns) = search_ns {
                    let search_s = seconds(search_ns);
                    self.searches.add(search_s);
                    if let Some(destination) = destination_of(lease) {
                        self.traffic(destination, ledger).searches.add(search_s);
                    }
                }
            }
            Change::Accept { .. } => {
                self.acquired(at, lease, owner, ledger);
                let namespace = self.namespace(lease.netns, ledger);
                *namespace.accepted.entry(lease.local_port).or_default() += 1;
            }
            Change::Established { .. } => {
                // connect() of a socket that was bound before.
                if !matches!(lease.kind, Kind::Connect | Kind::Accept) {
                    self.connects(lease, ledger);
                }
            }
            Change::Closing { .. } => {}
            Change::Release { reason } => self.released(at, lease, reason, owner, ledger),
        }
    }

    fn acquired(&mut self, at: Instant, lease: &Lease, owner: Option<OwnerId>, ledger: &Ledger) {
        let first = self.first.unwrap_or(at);
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.taken += 1;
            if lease.kind != Kind::Accept {
                owner.pace.tick(first, at);
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

    fn connects(&mut self, lease: &Lease, ledger: &Ledger) {
        let Some(destination) = destination_of(lease) else { return };
        let used = ledger.range_for(&destination).map_or(0, |range| range.used);
        let traffic = self.traffic(destination, ledger);
        traffic.taken += 1;
        traffic.peak = traffic.peak.max(used);
    }

    fn released(
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

    fn fail(
        &mut self,
        failure: &Failure<'_>,
        cgroup: Option<&Cgroup>,
        holder_cgroup: Option<&Cgroup>,
        ledger: &Ledger,
    ) {
        let Failure { at, netns, operation, local_addr, local_port, peer, holder, .. } = *failure;
        let caller = failure.owner.as_ref().map(|owner| self.owners.place(at, owner, cgroup));
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
        // Recordings of earlier versions say neither how full the range was nor why the call
        // failed.
        let range = failure.range.or_else(|| match destination {
            Some(destination) => ledger.range_for(&destination),
            None => ledger.range(netns),
        });
        let is_search = local_port == 0 || operation == Operation::Connect;
        let cause = failure.cause.or_else(|| {
            let with_range = Failure { range: range.filter(|_| is_search), ..*failure };
            cause_of(&with_range)
        });
        let key = FailureKey {
            netns,
            operation: names::operation(operation),
            error: names::errno(failure.errno).into_owned(),
            cause,
            addr: local_addr.ip(),
            port: local_port,
            peer: peer.map(|(addr, port)| (addr.ip(), port.0)),
        };
        if self.failures.len() >= MOST_FAILURES && !self.failures.contains_key(&key) {
            return;
        }
        let holder = holder.map(|lease| HolderSeen {
            owner: lease.owner.as_ref().map(|owner| self.owners.place(at, owner, holder_cgroup)),
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
        failures.used = range.map(|range| range.used).or(failures.used);
        failures.bind_locked = range.map(|range| range.bind_locked).or(failures.bind_locked);
        failures.local_range = local_range.or(failures.local_range);
    }

    /// Who holds the ports, unless that was looked at a moment ago. Looking takes as long as there
    /// are leases.
    fn survey(
        &mut self,
        at: Instant,
        key: &FailureKey,
        destination: Option<Destination>,
        ledger: &Ledger,
    ) -> Option<Survey> {
        const AGAIN_NS: u64 = 1_000_000_000;
        /// Looking takes a hundredth of that, and so a hundredth of the time at most.
        const PAUSE_NS_PER_LEASE: u64 = 4_000;
        const FEW: u64 = 1_000;
        let surveyed = self.failures.get(key).and_then(|failures| failures.survey.at);
        let leases = ledger.len() as u64;
        let pause_ns = if leases > FEW { PAUSE_NS_PER_LEASE.saturating_mul(leases) } else { 0 };
        let is_due = surveyed.is_none_or(|surveyed| at.since(surveyed) >= AGAIN_NS)
            && at.since(self.looked) >= pause_ns;
        is_due.then(|| {
            self.looked = at;
            Survey::of(at, ledger, &mut self.owners, key.netns, destination)
        })
    }

    fn note_reuse(&mut self, reuse: Option<Reuse>) {
        if let Some(Reuse { idle_ns, .. }) = reuse {
            self.reuse_intervals.add(seconds(idle_ns));
        }
    }
}
