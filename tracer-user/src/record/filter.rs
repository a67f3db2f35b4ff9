//! Which records the user wants to see.

mod patterns;

use std::ops::RangeInclusive;

use tracer_ebpf::Owner;

pub use self::patterns::{KindPattern, PeerPattern, PortRange};
use crate::{
    model::{Addr, Failure, Family, Kind, Lease, Netns, Port, Pressure, Scan},
    record::{Body, Cgroup, Record, RecordType},
};

/// Selects records. A record must meet every criterion.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    criteria: Vec<Criterion>,
}

/// A condition on records: one of the alternatives must hold.
#[derive(Clone, Debug)]
pub enum Criterion {
    /// The process that holds the port or that called, by id.
    Pid(Vec<u32>),
    /// The same, by name.
    Comm(Vec<String>),
    /// The local port.
    Port(Vec<PortRange>),
    /// The other end of the connection.
    Peer(Vec<PeerPattern>),
    /// The network namespace.
    Netns(Vec<Netns>),
    /// The cgroup of the process, or an ancestor of it.
    Cgroup(Vec<String>),
    /// The socket's family.
    Family(Vec<Family>),
    /// How the lease began.
    Kind(Vec<KindPattern>),
    /// The type of the record.
    Type(Vec<RecordType>),
}

impl Criterion {
    /// True if a record about this subject meets the criterion.
    fn admits(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Pid(pids) => subject.owner.is_any(|owner| pids.contains(&owner.pid)),
            Self::Comm(comms) => {
                subject.owner.is_any(|owner| comms.iter().any(|comm| is_named(owner, comm)))
            }
            Self::Port(ranges) => {
                subject.local_ports.is_any(|ports| ranges.iter().any(|range| range.overlaps(ports)))
            }
            Self::Peer(patterns) => subject.peer.is_any(|(addr, port)| {
                patterns.iter().any(|pattern| pattern.includes(addr.ip(), port.0))
            }),
            Self::Netns(namespaces) => namespaces.contains(&subject.netns),
            Self::Cgroup(paths) => subject
                .cgroup
                .is_any(|cgroup| paths.iter().any(|path| is_within(cgroup.path.raw(), path))),
            Self::Family(families) => subject.family.is_any(|family| families.contains(family)),
            Self::Kind(kinds) => {
                subject.kind.is_any(|kind| kinds.iter().any(|pattern| pattern.includes(*kind)))
            }
            Self::Type(types) => types.contains(&subject.record),
        }
    }
}

impl Filter {
    /// The filter with another criterion; without, if there are no alternatives.
    #[must_use]
    pub fn and<T>(mut self, criterion: fn(Vec<T>) -> Criterion, alternatives: Vec<T>) -> Self {
        if !alternatives.is_empty() {
            self.criteria.push(criterion(alternatives));
        }
        self
    }

    /// True if the record is to be shown. Records about the run itself always are.
    #[must_use]
    pub fn admits(&self, record: &Record<'_>) -> bool {
        self.criteria.is_empty()
            || Subject::of(record).is_none_or(|subject| self.admits_subject(&subject))
    }

    /// True if the `held` record of this lease, whose owner is in this cgroup, is to be shown.
    #[must_use]
    pub fn admits_held(&self, lease: &Lease, cgroup: Option<&Cgroup>) -> bool {
        self.criteria.is_empty()
            || self.admits_subject(&Subject::lease(RecordType::Held, lease, cgroup))
    }

    fn admits_subject(&self, subject: &Subject<'_>) -> bool {
        self.criteria.iter().all(|criterion| criterion.admits(subject))
    }

    /// The namespaces whose records alone are to be shown; none if those of all are.
    #[must_use]
    pub fn namespaces(&self) -> &[Netns] {
        let namespaces = self.criteria.iter().find_map(|criterion| match criterion {
            Criterion::Netns(namespaces) => Some(&**namespaces),
            _ => None,
        });
        namespaces.unwrap_or_default()
    }

    /// True if the names of cgroups matter.
    #[must_use]
    pub fn needs_cgroup(&self) -> bool {
        self.criteria.iter().any(|criterion| matches!(criterion, Criterion::Cgroup(_)))
    }
}

/// What a record is about, as far as criteria ask.
#[derive(Clone, Debug)]
struct Subject<'a> {
    record: RecordType,
    netns: Netns,
    family: Property<Family>,
    /// Of a failure, the kind of the lease that was wanted.
    kind: Property<Kind>,
    local_ports: Property<RangeInclusive<u16>>,
    peer: Property<(Addr, Port)>,
    owner: Property<&'a Owner>,
    cgroup: Property<&'a Cgroup>,
}

/// A property of a subject.
#[derive(Clone, Debug)]
enum Property<T> {
    /// It has one.
    Is(T),
    /// It has none, or it is not known: a record of such a subject is not the one looked for.
    Unknown,
    /// The record is about subjects with any such property.
    All,
}

impl<T> Property<T> {
    fn is_any(&self, is_wanted: impl FnOnce(&T) -> bool) -> bool {
        match self {
            Self::Is(property) => is_wanted(property),
            Self::Unknown => false,
            Self::All => true,
        }
    }
}

impl<T> From<Option<T>> for Property<T> {
    fn from(property: Option<T>) -> Self {
        property.map_or(Self::Unknown, Self::Is)
    }
}

impl<'a> Subject<'a> {
    /// The subject of a record; `None` if it is about the run itself.
    fn of(record: &Record<'a>) -> Option<Self> {
        Some(match record.body {
            Body::Start(_) | Body::Loss(_) | Body::Verify(_) | Body::Summary(_) => return None,
            Body::Namespace { netns, .. } => Self::namespace(netns),
            Body::Lease { event, cgroup } => {
                Self::lease(RecordType::of(&event.change), event.lease, cgroup)
            }
            Body::Fail { failure, cgroup, .. } => Self::failure(failure, cgroup),
            Body::Pressure(pressure) => Self::pressure(pressure),
            Body::Scan(scan) => Self::scan(scan),
        })
    }

    /// The settings of a namespace, which all in it depends on.
    fn namespace(netns: Netns) -> Self {
        Self {
            record: RecordType::Namespace,
            netns,
            family: Property::All,
            kind: Property::All,
            local_ports: Property::All,
            peer: Property::All,
            owner: Property::All,
            cgroup: Property::All,
        }
    }

    fn lease(record: RecordType, lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Self {
        Self {
            record,
            netns: lease.netns,
            family: Property::Is(lease.family),
            kind: Property::Is(lease.kind),
            local_ports: Property::Is(lease.local_port.0..=lease.local_port.0),
            peer: lease.peer.get().into(),
            owner: lease.owner.as_deref().into(),
            cgroup: cgroup.into(),
        }
    }

    fn failure(failure: &'a Failure<'_>, cgroup: Option<&'a Cgroup>) -> Self {
        let port = failure.local_port;
        Self {
            record: RecordType::Fail,
            netns: failure.netns,
            family: Property::Is(failure.family),
            kind: Property::Is(failure.wanted_kind()),
            local_ports: (port != 0).then_some(port..=port).into(),
            peer: failure.peer.into(),
            owner: failure.owner.as_ref().into(),
            cgroup: cgroup.into(),
        }
    }

    fn pressure(pressure: &Pressure) -> Self {
        let destination = pressure.destination;
        Self {
            record: RecordType::Pressure,
            netns: pressure.netns,
            // Both families have the same range.
            family: destination
                .map_or(Property::All, |destination| Property::Is(family_of(destination.peer.0))),
            kind: Property::Is(match destination {
                Some(_) => Kind::Connect,
                None => Kind::BindAuto,
            }),
            local_ports: Property::Unknown,
            peer: destination.map(|destination| destination.peer).into(),
            owner: Property::Unknown,
            cgroup: Property::Unknown,
        }
    }

    /// A scan has no lease and no process of this host.
    fn scan(scan: &Scan) -> Self {
        Self {
            record: RecordType::Scan,
            netns: scan.netns,
            family: Property::Is(family_of(scan.source)),
            kind: Property::Unknown,
            local_ports: Property::Is(scan.port_low.0..=scan.port_high.0),
            peer: Property::Unknown,
            owner: Property::Unknown,
            cgroup: Property::Unknown,
        }
    }
}

fn family_of(addr: Addr) -> Family {
    if addr.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

fn is_named(owner: &Owner, comm: &str) -> bool {
    // The kernel keeps fifteen bytes of a name.
    let wanted = comm.as_bytes();
    let wanted = wanted.get(..15).unwrap_or(wanted);
    let end = owner.comm.iter().position(|byte| *byte == 0).unwrap_or(owner.comm.len());
    owner.comm.get(..end) == Some(wanted)
}

fn is_within(path: &str, ancestor: &str) -> bool {
    let ancestor = ancestor.trim_end_matches('/');
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{Change, Instant, LeaseEvent, Settings},
        record::{
            Loss, LostAt,
            samples::{calls, cgroups, leases, pressures, scans},
        },
    };

    fn admits(criterion: Criterion, body: Body<'_>) -> bool {
        Filter { criteria: vec![criterion] }.admits(&Record { at: Instant::BOOT, body })
    }

    fn held<'a>(lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Body<'a> {
        let event = LeaseEvent { at: Instant::BOOT, lease, change: Change::Held { bucket: None } };
        Body::Lease { event, cgroup }
    }

    const ALL_PORTS: PortRange = PortRange(1..=u16::MAX);

    fn all_peers() -> Vec<PeerPattern> {
        ["0.0.0.0/0", "::/0"].map(|text| text.parse().unwrap()).into()
    }

    proptest! {
        #[test]
        fn a_lease_is_found_by_what_it_has(lease in leases(), cgroup in cgroups()) {
            let body = held(&lease, Some(&cgroup));
            let port = lease.local_port.0;
            prop_assert!(admits(Criterion::Netns(vec![lease.netns]), body));
            prop_assert!(!admits(Criterion::Netns(vec![Netns(!lease.netns.0)]), body));
            prop_assert!(admits(Criterion::Port(vec![PortRange(port..=port)]), body));
            prop_assert!(admits(Criterion::Family(vec![lease.family]), body));
            prop_assert!(admits(Criterion::Cgroup(vec![cgroup.path.raw().to_owned()]), body));
            prop_assert!(admits(Criterion::Type(vec![RecordType::Fail, RecordType::Held]), body));
            prop_assert!(!admits(Criterion::Type(vec![RecordType::Fail]), body));
            prop_assert_eq!(admits(Criterion::Peer(all_peers()), body), lease.peer.get().is_some());
            let pid = lease.owner.as_ref().map(|owner| owner.pid);
            prop_assert_eq!(admits(Criterion::Pid(pid.into_iter().chain([7]).collect()), body), pid.is_some());
            let filter = Filter::default()
                .and(Criterion::Netns, vec![lease.netns])
                .and(Criterion::Pid, vec![]);
            prop_assert!(filter.admits_held(&lease, None));
            prop_assert!(!filter.and(Criterion::Type, vec![RecordType::Fail]).admits_held(&lease, None));
        }

        #[test]
        fn a_failed_call_has_the_port_that_it_asked_for(lease in leases(), call in calls()) {
            let failure = call.failure(Instant::BOOT, &lease);
            let body = Body::Fail { failure: &failure, cgroup: None, holder_cgroup: None };
            prop_assert!(admits(Criterion::Type(vec![RecordType::Fail]), body));
            prop_assert_eq!(admits(Criterion::Port(vec![ALL_PORTS]), body), failure.local_port != 0);
        }

        #[test]
        fn pressure_has_a_destination_but_no_process(pressure in pressures()) {
            let body = Body::Pressure(&pressure);
            let is_range = pressure.destination.is_none();
            prop_assert!(!admits(Criterion::Pid(vec![1]), body));
            prop_assert!(!admits(Criterion::Port(vec![ALL_PORTS]), body));
            prop_assert_eq!(admits(Criterion::Peer(all_peers()), body), !is_range);
            prop_assert_eq!(admits(Criterion::Kind(vec![KindPattern::Bind]), body), is_range);
            prop_assert_eq!(admits(Criterion::Kind(vec![KindPattern::Connect]), body), !is_range);
            let families = [Family::Ipv4, Family::Ipv6]
                .map(|family| admits(Criterion::Family(vec![family]), body));
            prop_assert_eq!(families == [true, true], is_range);
        }

        #[test]
        fn a_scan_has_ports_but_no_process_kind_or_peer(mut scan in scans()) {
            scan.port_high = scan.port_high.max(scan.port_low);
            let body = Body::Scan(&scan);
            let PortRange(all) = ALL_PORTS;
            prop_assert!(admits(Criterion::Port(vec![PortRange(all)]), body));
            prop_assert!(!admits(Criterion::Pid(vec![1]), body));
            prop_assert!(!admits(Criterion::Peer(all_peers()), body));
            prop_assert!(!admits(Criterion::Kind(vec![KindPattern::Listen]), body));
            prop_assert!(!admits(Criterion::Cgroup(vec!["/".to_owned()]), body));
        }
    }

    #[test]
    fn settings_are_shown_with_whatever_depends_on_them() {
        let settings = Settings::sample();
        let body = Body::Namespace { netns: Netns(1), settings: &settings, is_new: true };
        assert!(admits(Criterion::Pid(vec![1]), body));
        assert!(admits(Criterion::Peer(all_peers()), body));
        assert!(admits(Criterion::Netns(vec![Netns(1)]), body));
        assert!(!admits(Criterion::Netns(vec![Netns(2)]), body));
        assert!(!admits(Criterion::Type(vec![RecordType::Fail]), body));
    }

    #[test]
    fn no_filter_hides_records_of_the_run() {
        let loss = Loss { count: 1, lost_at: LostAt::Ring, healed: false };
        assert!(admits(Criterion::Netns(vec![Netns(1)]), Body::Loss(&loss)));
        assert!(admits(Criterion::Type(vec![RecordType::Fail]), Body::Loss(&loss)));
    }

    #[test]
    fn a_cgroup_includes_what_is_below_it() {
        assert!(is_within("/a/b", "/a"));
        assert!(is_within("/a", "/a/"));
        assert!(is_within("/a", "/"));
        assert!(!is_within("/ab", "/a"));
    }
}
