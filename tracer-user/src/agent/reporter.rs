//! From leases to records: what the filter admits, with the names that go with it.

use std::{collections::BTreeMap, fs, io, time::Duration};

use rustc_hash::FxHashMap;

use crate::{
    agent::{namespaces::Namespaces, session::Audience},
    capacity::Forecast,
    kernel::{
        hooks::loader::{HookStatus, Outcome},
        host::{
            cgroup::{CgroupRoot, container_of},
            clock,
        },
    },
    ledger::{Ledger, Sink},
    model::{
        Change, Failure, Family, Instant, Kind, Lease, LeaseEvent, Netns, Operation, Pressure,
        Scan, Settings,
    },
    record::{
        Cgroup, HookReport, RecordType, Start, Totals,
        filter::{Filter, Subject},
    },
    views::{Output, stream::writer::Writer},
};

/// How long the end waits for a reader that does not read.
const READER_PATIENCE: Duration = Duration::from_secs(1);

/// Shows what the filter admits.
pub(crate) struct Reporter<'a> {
    pub output: &'a mut dyn Output,
    writer: Writer,
    filter: Filter,
    cgroups: CgroupNames,
    namespaces: Namespaces,
    /// Records shown, by type.
    pub totals: Totals,
}

impl<'a> Reporter<'a> {
    /// Shows nothing yet. Names of cgroups are those below this root; namespaces are those that were
    /// seen so far.
    pub fn new(
        output: &'a mut dyn Output,
        filter: Filter,
        cgroups: Option<CgroupRoot>,
        namespaces: Namespaces,
    ) -> io::Result<Self> {
        Ok(Self {
            output,
            writer: Writer::start()?,
            filter,
            cgroups: CgroupNames { root: cgroups, known: FxHashMap::default() },
            namespaces,
            totals: Totals::default(),
        })
    }

    /// Tells that everything is seen from now on, and what is held, if that is to be shown.
    pub fn begin(
        &mut self,
        at: Instant,
        hooks: &[HookStatus],
        warnings: Vec<String>,
        ledger: &mut Ledger,
        shows_held: bool,
    ) {
        let mut seen: BTreeMap<Netns, Option<u32>> = BTreeMap::new();
        for lease in self.admitted(ledger).into_iter().filter(|_| shows_held) {
            let pid = seen.entry(lease.netns).or_default();
            *pid = pid.or(lease.owner.as_ref().map(|owner| owner.pid));
        }
        let seen: Vec<_> = seen.into_iter().collect();
        self.namespaces.meet_all(&seen, ledger);
        let mut held = if shows_held { self.admitted(ledger) } else { Vec::new() };
        held.sort_by_key(|lease| (lease.netns, lease.local_port, lease.id));
        let Self { output, filter, cgroups, namespaces, totals, writer: _ } = self;
        let hooks = hooks.iter().map(HookReport::from);
        output.start(&Start {
            at,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "?".to_owned(), |release| release.trim().to_owned()),
            hooks: hooks.collect(),
            held: held.len(),
            warnings,
        });
        for (netns, _) in seen {
            if let Some(settings) = namespaces.untold(netns) {
                tell_settings(*output, filter, totals, at, netns, &settings);
            }
        }
        for lease in &held {
            output.lease(&LeaseEvent { at, lease, change: Change::Held }, cgroups.of_lease(lease));
        }
        totals.add(RecordType::Held, held.len() as u64);
    }

    /// The leases that the filter admits to those that are held.
    fn admitted<'l>(&mut self, ledger: &'l Ledger) -> Vec<&'l Lease> {
        let Self { filter, cgroups, .. } = self;
        ledger
            .leases()
            .filter(|lease| {
                let cgroup = filter.needs_cgroup().then(|| cgroups.of_lease(lease)).flatten();
                filter.admits(&Subject::of(RecordType::Held, lease, cgroup))
            })
            .collect()
    }

    /// Tells which settings have changed.
    pub fn follow_settings(&mut self, at: Instant, ledger: &mut Ledger) {
        let Self { output, filter, namespaces, totals, .. } = self;
        for (netns, settings) in namespaces.changes(ledger) {
            tell_settings(*output, filter, totals, at, netns, &settings);
        }
    }

    /// Tells of a port scan.
    pub fn scan(&mut self, scan: &Scan) {
        let Self { output, filter, totals, .. } = self;
        let tried = scan.port_low.0..=scan.port_high.0;
        if filter.admits_scan(scan.netns, scan.source.ip(), &tried) {
            totals.add(RecordType::Scan, 1);
            output.scan(Instant::from_ns(clock::monotonic_ns()), scan);
        }
    }

    /// Begins to write to stdout what the output has collected.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush(self.output.buffer())
    }

    /// Bytes that wait for the reader of stdout.
    pub fn backlog(&mut self) -> usize {
        self.output.buffer().len()
    }

    /// Writes the rest, unless nobody reads it.
    pub fn finish(&mut self) -> io::Result<()> {
        let unread = self.writer.finish(self.output.buffer(), READER_PATIENCE)?;
        if unread > 0 {
            crate::tell!(
                "portlife: the reader of stdout does not read: the last {unread} records are lost"
            );
        }
        Ok(())
    }
}

impl From<&HookStatus> for HookReport {
    fn from(hook: &HookStatus) -> Self {
        let HookStatus { name, without, outcome } = hook;
        let (outcome, loss) = match outcome {
            Outcome::Attached(how) => (Ok(*how), None),
            Outcome::Replaced { reason } => (Err(format!("{reason}; {without}")), None),
            Outcome::Missing { reason } => (Err(reason.clone()), Some(*without)),
        };
        Self { name, outcome, loss }
    }
}

impl Audience for Reporter<'_> {
    fn namespaces(&mut self) -> &mut Namespaces {
        &mut self.namespaces
    }
}

impl Sink for Reporter<'_> {
    fn lease(&mut self, event: LeaseEvent<'_>, _ledger: &Ledger) {
        let Self { output, filter, cgroups, namespaces, totals, writer: _ } = self;
        let record = RecordType::of(&event.change);
        let cgroup = cgroups.of_lease(event.lease);
        if filter.admits(&Subject::of(record, event.lease, cgroup)) {
            let LeaseEvent { at, lease, .. } = event;
            if let Some(settings) = namespaces.untold(lease.netns) {
                tell_settings(*output, filter, totals, at, lease.netns, &settings);
            }
            totals.add(record, 1);
            output.lease(&event, cgroup);
        }
    }

    fn pressure(&mut self, pressure: &Pressure, _ledger: &Ledger) {
        let Self { output, filter, cgroups: _, namespaces: _, totals, writer: _ } = self;
        let destination = pressure.destination;
        let subject = Subject {
            record: RecordType::Pressure,
            netns: pressure.netns,
            // A range is that of both.
            family: destination.map(|destination| match destination.peer.0.is_ipv4() {
                true => Family::Ipv4,
                false => Family::Ipv6,
            }),
            kind: if destination.is_some() { Kind::Connect } else { Kind::BindAuto },
            local_port: 0,
            peer: destination.map(|destination| destination.peer),
            owner: None,
            cgroup: None,
        };
        if filter.admits(&subject) {
            totals.add(RecordType::Pressure, 1);
            output.pressure(pressure, &Forecast::of(&pressure.range, &pressure.rates));
        }
    }

    fn failure(&mut self, failure: &Failure<'_>, _ledger: &Ledger) {
        let Self { output, filter, cgroups, namespaces, totals, writer: _ } = self;
        let holder_cgroup = failure.holder.and_then(|holder| cgroups.of_lease(holder)).cloned();
        let cgroup = failure.owner.and_then(|owner| cgroups.get(owner.cgroup_id));
        let subject = Subject {
            record: RecordType::Fail,
            netns: failure.netns,
            family: Some(failure.family),
            kind: match failure.operation {
                Operation::Bind => Kind::Bind,
                Operation::Connect => Kind::Connect,
                Operation::Listen => Kind::Listen,
            },
            local_port: failure.local_port,
            peer: failure.peer,
            owner: failure.owner.as_ref(),
            cgroup,
        };
        if filter.admits(&subject) {
            let Failure { at, netns, .. } = *failure;
            if let Some(settings) = namespaces.untold(netns) {
                tell_settings(*output, filter, totals, at, netns, &settings);
            }
            totals.add(RecordType::Fail, 1);
            output.failure(failure, cgroup, holder_cgroup.as_ref());
        }
    }
}

/// Tells the settings of a namespace, unless records of this type are not wanted.
fn tell_settings(
    output: &mut dyn Output,
    filter: &Filter,
    totals: &mut Totals,
    at: Instant,
    netns: Netns,
    settings: &Settings,
) {
    if filter.admits_settings() {
        totals.add(RecordType::Namespace, 1);
        output.namespace(at, netns, settings);
    }
}

/// Names of cgroups, each looked up once.
struct CgroupNames {
    root: Option<CgroupRoot>,
    known: FxHashMap<u64, Option<Cgroup>>,
}

impl CgroupNames {
    /// Cgroups known before the memory of them is cleared: hosts that start a container a second
    /// must not grow it for ever.
    const MOST: usize = 10_000;

    fn of_lease(&mut self, lease: &Lease) -> Option<&Cgroup> {
        self.get(lease.owner.as_ref()?.cgroup_id)
    }

    fn get(&mut self, id: u64) -> Option<&Cgroup> {
        let Self { root, known } = self;
        if known.len() >= Self::MOST && !known.contains_key(&id) {
            known.clear();
        }
        known
            .entry(id)
            .or_insert_with(|| {
                let path = root.as_ref()?.path_of(id)?;
                let container = container_of(&path).map(str::to_owned);
                Some(Cgroup { path, container })
            })
            .as_ref()
    }
}
