//! The records that are put together by hand against what serde makes of the same.

use std::{borrow::Cow, net::IpAddr};

use proptest::{option, prelude::*, sample::select};
use serde::Serialize;
use tracer_ebpf::Owner;

use super::{fields::RangeFields, write::Writer};
use crate::{
    capacity::{advice_on, free_in_s},
    model::{
        Addr, BucketClass, Change, Failure, Instant, Kind, Lease, LeaseEvent, Operation, Phase,
        Port, Reuse, microseconds, seconds,
    },
    record::{
        Body, Cgroup, Record, RecordType, comm,
        durations::Durations,
        names::{self, Named as _},
        samples::{Call, calls, cgroups, changes, instants, leases},
    },
};

#[derive(Serialize)]
struct Subject<'a, D> {
    #[serde(flatten)]
    identity: Identity<'a>,
    #[serde(flatten)]
    rest: D,
}

#[derive(Serialize)]
struct Identity<'a> {
    lease: Option<u64>,
    cookie: u64,
    kind: &'static str,
    family: &'static str,
    local_addr: IpAddr,
    local_port: Option<u16>,
    peer_addr: Option<IpAddr>,
    peer_port: Option<u16>,
    pid: Option<u32>,
    comm: Option<Cow<'a, str>>,
    uid: Option<u32>,
    cgroup: Option<&'a str>,
    container: Option<&'a str>,
}

impl<'a> Identity<'a> {
    fn of(lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Self {
        Self::with(
            (lease.cookie.0, names::kind(lease.kind), names::family(lease.family)),
            (lease.local_addr, lease.peer.get()),
            (Some(lease.id.0), Some(lease.local_port.0)),
            (lease.owner.as_deref(), cgroup),
        )
    }

    fn with(
        (cookie, kind, family): (u64, &'static str, &'static str),
        (local, peer): (Addr, Option<(Addr, Port)>),
        (lease, local_port): (Option<u64>, Option<u16>),
        (owner, cgroup): (Option<&'a Owner>, Option<&'a Cgroup>),
    ) -> Self {
        Self {
            lease,
            cookie,
            kind,
            family,
            local_addr: local.ip(),
            local_port,
            peer_addr: peer.map(|(addr, _)| addr.ip()),
            peer_port: peer.map(|(_, port)| port.0),
            pid: owner.map(|owner| owner.pid),
            comm: owner.map(|owner| comm(&owner.comm).raw().to_owned().into()),
            uid: owner.map(|owner| owner.uid),
            cgroup: cgroup.map(|cgroup| cgroup.path.raw()),
            container: cgroup.and_then(|cgroup| Some(cgroup.container.as_ref()?.raw())),
        }
    }
}

#[derive(Serialize)]
struct ReuseRecord {
    lease: u64,
    idle_s: f64,
    from_time_wait: bool,
}

impl From<Reuse> for ReuseRecord {
    fn from(Reuse { previous, idle_ns, from_time_wait }: Reuse) -> Self {
        Self { lease: previous.0, idle_s: seconds(idle_ns), from_time_wait }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Details {
    Bind {
        requested_port: u16,
        reuse: Option<ReuseRecord>,
    },
    Connect {
        search_us: Option<f64>,
        reuse: Option<ReuseRecord>,
    },
    Established {
        handshake_us: Option<f64>,
    },
    Accept {
        listener: Option<u64>,
    },
    Listen {},
    Update {
        phase: &'static str,
        substate: Option<&'static str>,
        closed_by: Option<&'static str>,
        bucket: Option<&'static str>,
    },
    Closing {
        by: &'static str,
    },
    TimeWait {
        substate: &'static str,
        timestamps: Option<bool>,
    },
    Release {
        reason: &'static str,
        held_s: Option<f64>,
        established_s: Option<f64>,
        time_wait_s: Option<f64>,
        closed_by: Option<&'static str>,
    },
}

impl Details {
    fn of(LeaseEvent { at, lease, change }: &LeaseEvent<'_>) -> Self {
        match *change {
            Change::Held { .. } => unreachable!("`held_by_serde` writes it"),
            Change::Bind { requested_port, reuse } => {
                Self::Bind { requested_port, reuse: reuse.map(Into::into) }
            }
            Change::Connect { search_ns, reuse } => Self::Connect {
                search_us: search_ns.map(microseconds),
                reuse: reuse.map(Into::into),
            },
            Change::Established { handshake_ns } => {
                Self::Established { handshake_us: handshake_ns.map(microseconds) }
            }
            Change::Accept { listener } => {
                Self::Accept { listener: listener.map(|cookie| cookie.0) }
            }
            Change::Listen => Self::Listen {},
            Change::Update { bucket } => Self::Update {
                phase: names::phase(lease.phase),
                substate: match lease.phase {
                    Phase::TimeWait(substate) => Some(names::substate(substate)),
                    _ => None,
                },
                closed_by: lease.closed_by.map(names::side),
                bucket: bucket.map(names::bucket_class),
            },
            Change::Closing { by } => Self::Closing { by: names::side(by) },
            Change::TimeWait(substate) => Self::TimeWait {
                substate: names::substate(substate),
                timestamps: lease.has_timestamps,
            },
            Change::Release { reason } => {
                let Durations { held_ns, established_ns, time_wait_ns } = Durations::of(lease, *at);
                Self::Release {
                    reason: names::reason(reason),
                    held_s: held_ns.map(seconds),
                    established_s: established_ns.map(seconds),
                    time_wait_s: time_wait_ns.map(seconds),
                    closed_by: lease.closed_by.map(names::side),
                }
            }
        }
    }
}

fn lease_by_serde(writer: &mut Writer, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) {
    let LeaseEvent { at, lease, change } = event;
    let subject = Subject { identity: Identity::of(lease, cgroup), rest: Details::of(event) };
    writer.write(RecordType::of(change).name(), *at, Some(lease.netns), subject);
}

fn held_by_serde(
    writer: &mut Writer,
    at: Instant,
    lease: &Lease,
    bucket: Option<BucketClass>,
    cgroup: Option<&Cgroup>,
) {
    #[derive(Serialize)]
    struct Details {
        phase: &'static str,
        substate: Option<&'static str>,
        closed_by: Option<&'static str>,
        age_s: Option<f64>,
        timestamps: Option<bool>,
        bucket: Option<&'static str>,
    }
    let rest = Details {
        phase: names::phase(lease.phase),
        substate: match lease.phase {
            Phase::TimeWait(substate) => Some(names::substate(substate)),
            _ => None,
        },
        closed_by: lease.closed_by.map(names::side),
        age_s: lease.acquired.map(|acquired| seconds(at.since(acquired))),
        timestamps: lease.has_timestamps,
        bucket: bucket.map(names::bucket_class),
    };
    let subject = Subject { identity: Identity::of(lease, cgroup), rest };
    writer.write("held", at, Some(lease.netns), subject);
}

fn failure_by_serde(
    writer: &mut Writer,
    failure: &Failure<'_>,
    cgroup: Option<&Cgroup>,
    holder_cgroup: Option<&Cgroup>,
) {
    #[derive(Serialize)]
    struct Details<'a> {
        op: &'static str,
        errno: i32,
        error: Cow<'static, str>,
        requested_addr: IpAddr,
        requested_port: u16,
        cause: Option<&'static str>,
        holder: Option<Subject<'a, Extra>>,
        holder_ports: Option<u32>,
        range: Option<RangeFields>,
        own_range: Option<[u16; 2]>,
        advice: Option<&'static str>,
        search_us: Option<f64>,
    }
    #[derive(Serialize)]
    struct Extra {
        phase: &'static str,
        free_in_s: Option<f64>,
    }
    let cause = failure.cause;
    let port = failure.local_port;
    let kind = match failure.operation {
        Operation::Bind if port == 0 => names::kind(Kind::BindAuto),
        Operation::Bind => names::kind(Kind::Bind),
        Operation::Connect => names::kind(Kind::Connect),
        Operation::Listen => names::kind(Kind::Listen),
    };
    let rest = Details {
        op: names::operation(failure.operation),
        errno: failure.errno,
        error: names::errno(failure.errno),
        requested_addr: failure.local_addr.ip(),
        requested_port: port,
        cause: cause.map(names::cause),
        holder: failure.holder.map(|lease| Subject {
            identity: Identity::of(lease, holder_cgroup),
            rest: Extra {
                phase: names::phase(lease.phase),
                free_in_s: free_in_s(lease, failure.at),
            },
        }),
        holder_ports: failure.holder_ports,
        range: failure.range.map(Into::into),
        own_range: failure.own_range.map(|(low, high)| [low.0, high.0]),
        advice: advice_on(failure, cause).map(names::advice),
        search_us: failure.search_ns.map(microseconds),
    };
    let identity = Identity::with(
        (failure.cookie.0, kind, names::family(failure.family)),
        (failure.local_addr, failure.peer),
        (None, (port != 0).then_some(port)),
        (failure.owner.as_ref(), cgroup),
    );
    writer.write("fail", failure.at, Some(failure.netns), Subject { identity, rest });
}

/// Writes a record in one of two ways: by serde or by hand.
type Write = fn(&mut Writer, bool, Instant, &Lease, Change, &Call, Option<&Cgroup>);

const RECORDS: [Write; 3] = [
    |writer, by_serde, at, lease, change, _, cgroup| {
        let event = LeaseEvent { at, lease, change };
        if by_serde && let Change::Held { bucket } = change {
            held_by_serde(writer, at, lease, bucket, cgroup);
        } else if by_serde {
            lease_by_serde(writer, &event, cgroup);
        } else {
            writer.record(&Record { at, body: Body::Lease { event, cgroup } });
        }
    },
    |writer, by_serde, at, lease, _, _, cgroup| {
        let bucket = Some(BucketClass::Bind);
        if by_serde {
            held_by_serde(writer, at, lease, bucket, cgroup);
        } else {
            let event = LeaseEvent { at, lease, change: Change::Held { bucket } };
            writer.record(&Record { at, body: Body::Lease { event, cgroup } });
        }
    },
    |writer, by_serde, at, lease, _, call, cgroup| {
        let failure = &call.failure(at, lease);
        if by_serde {
            failure_by_serde(writer, failure, cgroup, cgroup);
        } else {
            let body = Body::Fail { failure, cgroup, holder_cgroup: cgroup };
            writer.record(&Record { at, body });
        }
    },
];

proptest! {
    #[test]
    fn records_are_what_serde_makes_of_them(
        offset_ns in prop_oneof![Just(1_700_000_000_123_456_789), any::<i64>()],
        records in prop::collection::vec(
            (
                select(RECORDS.to_vec()),
                instants(),
                leases(),
                changes(),
                calls(),
                option::of(cgroups()),
            ),
            1..12,
        ),
    ) {
        let [mut by_hand, mut by_serde] =
            [(); 2].map(|()| Writer::new(i128::from(offset_ns)));
        for (write, at, lease, change, call, cgroup) in &records {
            write(&mut by_hand, false, *at, lease, *change, call, cgroup.as_ref());
            write(&mut by_serde, true, *at, lease, *change, call, cgroup.as_ref());
            // Again, from text that was kept.
            write(&mut by_hand, false, *at, lease, *change, call, cgroup.as_ref());
            write(&mut by_serde, true, *at, lease, *change, call, cgroup.as_ref());
        }
        let [by_hand, by_serde] = [by_hand, by_serde].map(|mut writer| {
            String::from_utf8(std::mem::take(writer.buffer())).expect("JSON is UTF-8")
        });
        for (ours, serdes) in by_hand.lines().zip(by_serde.lines()) {
            prop_assert_eq!(ours, serdes);
        }
        prop_assert_eq!(by_hand.len(), by_serde.len());
    }
}
