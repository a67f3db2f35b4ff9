//! Turns events of leases into records, with the names of cgroups.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::{
    agent::{intake::NamespaceSink, namespaces::Namespaces, outlet::Outlet},
    foreign::Foreign,
    kernel::{
        hooks::status::{HookStatus, Outcome},
        host::{cgroup::CgroupRoot, kernel_release},
    },
    ledger::{Ledger, Sink},
    model::{Change, Failure, Instant, Lease, LeaseEvent, Netns, Pressure},
    record::{Body, Cgroup, HookReport, Record, Start},
    sources::cgroup,
};

/// Turns the ledger's events into records.
pub(crate) struct Reporter<'a> {
    pub outlet: Outlet<'a>,
    cgroups: CgroupNames,
}

impl<'a> Reporter<'a> {
    /// A reporter that reads the names of cgroups below this root.
    pub fn new(outlet: Outlet<'a>, cgroups: Option<CgroupRoot>) -> Self {
        Self { outlet, cgroups: CgroupNames { root: cgroups, known: FxHashMap::default() } }
    }

    /// Shows the start of the trace, and the leases that are held if `shows_held`.
    pub fn begin(
        &mut self,
        at: Instant,
        hooks: &[HookStatus],
        mut warnings: Vec<String>,
        ledger: &mut Ledger,
        shows_held: bool,
    ) {
        let mut seen: BTreeMap<Netns, Option<u32>> = BTreeMap::new();
        for lease in self.admitted(ledger).into_iter().filter(|_| shows_held) {
            let pid = seen.entry(lease.netns).or_default();
            *pid = pid.or(lease.owner.as_ref().map(|owner| owner.pid));
        }
        let seen: Vec<_> = seen.into_iter().collect();
        self.outlet.namespaces.read_all(&seen, ledger);
        let mut held = if shows_held { self.admitted(ledger) } else { Vec::new() };
        held.sort_by_key(|lease| (lease.netns, lease.local_port, lease.id));
        let hooks: Vec<_> = hooks.iter().map(HookReport::from).collect();
        warnings.extend(hooks.iter().filter_map(HookReport::warning));
        let start = Start {
            kernel: kernel_release(),
            hooks,
            buckets_recover: ledger.do_buckets_recover(),
            held: held.len(),
            warnings: warnings.into_iter().map(Foreign::from).collect(),
        };
        self.show(&Record { at, body: Body::Start(&start) }, ledger);
        for (netns, _) in seen {
            if let Some((settings, is_new)) = self.outlet.namespaces.unshown(netns) {
                let body = Body::Namespace { netns, settings: &settings, is_new };
                self.show(&Record { at, body }, ledger);
            }
        }
        for lease in held {
            let bucket = ledger.bucket_class(lease.netns, lease.local_port);
            self.lease(LeaseEvent { at, lease, change: Change::Held { bucket } }, ledger);
        }
        self.outlet.end_snapshot();
    }

    /// The held leases that the filter admits.
    fn admitted<'l>(&mut self, ledger: &'l Ledger) -> Vec<&'l Lease> {
        let Self { outlet, cgroups } = self;
        let filter = outlet.filter();
        ledger
            .leases()
            .filter(|lease| {
                let cgroup = filter.needs_cgroup().then(|| cgroups.of_lease(lease)).flatten();
                filter.admits_held(lease, cgroup)
            })
            .collect()
    }

    /// Shows the settings that have changed.
    pub fn follow_settings(&mut self, at: Instant, ledger: &mut Ledger) {
        for (netns, settings) in self.outlet.namespaces.changes(ledger) {
            let body = Body::Namespace { netns, settings: &settings, is_new: false };
            self.show(&Record { at, body }, ledger);
        }
    }

    /// Shows a record, if the filter admits it.
    pub fn show(&mut self, record: &Record<'_>, ledger: &Ledger) {
        self.outlet.show(record, ledger);
    }
}

impl From<&HookStatus> for HookReport {
    fn from(hook: &HookStatus) -> Self {
        let HookStatus { name, without, outcome } = hook;
        let (outcome, loss) = match outcome {
            Outcome::Attached(how) => (Ok((*how).into()), None),
            Outcome::Replaced { reason } => (Err(format!("{reason}; {without}").into()), None),
            Outcome::Missing { reason } => (Err(reason.clone().into()), Some(*without)),
        };
        Self { name: (*name).into(), outcome, loss }
    }
}

impl NamespaceSink for Reporter<'_> {
    fn namespaces(&mut self) -> &mut Namespaces {
        &mut self.outlet.namespaces
    }
}

impl Sink for Reporter<'_> {
    fn lease(&mut self, event: LeaseEvent<'_>, ledger: &Ledger) {
        let Self { outlet, cgroups } = self;
        let body = Body::Lease { event, cgroup: cgroups.of_lease(event.lease) };
        outlet.show(&Record { at: event.at, body }, ledger);
    }

    fn pressure(&mut self, pressure: &Pressure, ledger: &Ledger) {
        self.show(&Record { at: pressure.at, body: Body::Pressure(pressure) }, ledger);
    }

    fn failure(&mut self, failure: &Failure<'_>, ledger: &Ledger) {
        let Self { outlet, cgroups } = self;
        let holder_cgroup = failure.holder.and_then(|holder| cgroups.of_lease(holder)).cloned();
        let cgroup = failure.owner.and_then(|owner| cgroups.get(owner.cgroup_id));
        let body = Body::Fail { failure, cgroup, holder_cgroup: holder_cgroup.as_ref() };
        outlet.show(&Record { at: failure.at, body }, ledger);
    }
}

/// Names of cgroups, each looked up once.
struct CgroupNames {
    root: Option<CgroupRoot>,
    known: FxHashMap<u64, Option<Cgroup>>,
}

impl CgroupNames {
    /// The cache is cleared when it has this number of cgroups: on hosts that start a container
    /// each second it would grow for ever.
    const MOST: usize = 10_000;

    fn of_lease(&mut self, lease: &Lease) -> Option<&Cgroup> {
        self.get(lease.owner.as_ref()?.cgroup_id)
    }

    fn get(&mut self, id: u64) -> Option<&Cgroup> {
        let Self { root, known } = self;
        if known.len() >= Self::MOST && !known.contains_key(&id) {
            known.clear();
        }
        known.entry(id).or_insert_with(|| cgroup::by_id(root.as_ref()?, id)).as_ref()
    }
}
