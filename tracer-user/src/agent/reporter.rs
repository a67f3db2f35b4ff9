//! From leases to records: what the filter admits, with the names that go with it.

use std::{collections::BTreeMap, fs, io, time::Duration};

use rustc_hash::FxHashMap;

use crate::{
    agent::{namespaces::Namespaces, session::Audience},
    kernel::{
        hooks::loader::{HookStatus, Outcome},
        host::cgroup::{CgroupRoot, container_of},
    },
    ledger::{Ledger, Sink},
    model::{Change, Failure, Instant, Lease, LeaseEvent, Netns, Pressure},
    record::{
        Body, Cgroup, HookReport, Record, RecordType, Start, Totals,
        filter::{Filter, Subject},
    },
    views::{View, stream::writer::Writer},
};

/// How long the end waits for a reader that does not read.
const READER_PATIENCE: Duration = Duration::from_secs(1);

/// Shows what the filter admits.
pub(crate) struct Reporter<'a> {
    output: &'a mut dyn View,
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
        output: &'a mut dyn View,
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
        let start = Start {
            at,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "?".to_owned(), |release| release.trim().to_owned()),
            hooks: hooks.iter().map(HookReport::from).collect(),
            held: held.len(),
            warnings,
        };
        self.show(&Record { at, body: Body::Start(&start) }, ledger);
        for (netns, _) in seen {
            if let Some(settings) = self.namespaces.untold(netns) {
                let body = Body::Namespace { netns, settings: &settings };
                self.show(&Record { at, body }, ledger);
            }
        }
        for lease in held {
            self.lease(LeaseEvent { at, lease, change: Change::Held }, ledger);
        }
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

    /// Shows which settings have changed.
    pub fn follow_settings(&mut self, at: Instant, ledger: &mut Ledger) {
        for (netns, settings) in self.namespaces.changes(ledger) {
            let body = Body::Namespace { netns, settings: &settings };
            self.show(&Record { at, body }, ledger);
        }
    }

    /// Shows a record, if the filter admits it.
    pub fn show(&mut self, record: &Record<'_>, ledger: &Ledger) {
        let Self { output, filter, cgroups: _, namespaces, totals, writer: _ } = self;
        show(*output, filter, namespaces, totals, record, ledger);
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
            Outcome::Attached(how) => (Ok((*how).into()), None),
            Outcome::Replaced { reason } => (Err(format!("{reason}; {without}")), None),
            Outcome::Missing { reason } => (Err(reason.clone()), Some(*without)),
        };
        Self { name: (*name).into(), outcome, loss }
    }
}

impl Audience for Reporter<'_> {
    fn namespaces(&mut self) -> &mut Namespaces {
        &mut self.namespaces
    }
}

impl Sink for Reporter<'_> {
    fn lease(&mut self, event: LeaseEvent<'_>, ledger: &Ledger) {
        let Self { output, filter, cgroups, namespaces, totals, writer: _ } = self;
        let body = Body::Lease { event, cgroup: cgroups.of_lease(event.lease) };
        let record = Record { at: event.at, body };
        show(*output, filter, namespaces, totals, &record, ledger);
    }

    fn pressure(&mut self, pressure: &Pressure, ledger: &Ledger) {
        self.show(&Record { at: pressure.at, body: Body::Pressure(pressure) }, ledger);
    }

    fn failure(&mut self, failure: &Failure<'_>, ledger: &Ledger) {
        let Self { output, filter, cgroups, namespaces, totals, writer: _ } = self;
        let holder_cgroup = failure.holder.and_then(|holder| cgroups.of_lease(holder)).cloned();
        let cgroup = failure.owner.and_then(|owner| cgroups.get(owner.cgroup_id));
        let body = Body::Fail { failure, cgroup, holder_cgroup: holder_cgroup.as_ref() };
        let record = Record { at: failure.at, body };
        show(*output, filter, namespaces, totals, &record, ledger);
    }
}

/// Shows a record, if the filter admits it, after the settings of its namespace if no record has
/// shown them yet.
fn show(
    output: &mut dyn View,
    filter: &Filter,
    namespaces: &mut Namespaces,
    totals: &mut Totals,
    record: &Record<'_>,
    ledger: &Ledger,
) {
    if !filter.admits_record(record) {
        return;
    }
    if let Some(netns) = record.netns()
        && let Some(settings) = namespaces.untold(netns)
    {
        let body = Body::Namespace { netns, settings: &settings };
        let settings = Record { at: record.at, body };
        if filter.admits_record(&settings) {
            totals.add(RecordType::Namespace, 1);
            output.record(&settings, ledger);
        }
    }
    let record_type = record.record_type();
    if record_type.is_selectable() {
        totals.add(record_type, 1);
    }
    output.record(record, ledger);
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
