//! Random contents of records, usual and unusual, for tests of what is made of records.

use std::{net::Ipv4Addr, sync::Arc};

use proptest::{option, prelude::*, sample::select};
use tracer_ebpf::{Owner, mapped};

use crate::{
    model::{
        Addr, BucketClass, Cause, Change, Cookie, Destination, Failure, Family, Instant, Kind,
        Lease, LeaseId, LocalRange, Netns, Operation, Phase, Port, PortSet, Pressure, RangeUse,
        Rates, Reason, Reuse, Scan, Settings, Side, Substate, TimeWaitReuse,
    },
    record::{
        Cgroup, HookReport, Loss, LostAt, RecordType, Start, Summary, Verify, names::Named as _,
    },
};

pub(crate) fn addrs() -> impl Strategy<Value = Addr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| Addr::from(Ipv4Addr::from(octets))),
        // Any number of digits.
        prop::array::uniform4(select(vec![0, 9, 10, 99, 100, 255]))
            .prop_map(|octets| Addr::from(Ipv4Addr::from(octets))),
        any::<[u32; 4]>().prop_map(Addr),
        // Differs from the mapped form in a bit or two.
        any::<(u32, u32)>().prop_map(|(v4, odd)| {
            let [first, second, third, fourth] = mapped(v4);
            Addr([first, second, third ^ (odd & 0x0101_0101), fourth])
        }),
        select(vec![Addr([0; 4]), Addr([0, 0, 0, 1_u32.to_be()])]),
    ]
}

pub(crate) fn ports() -> impl Strategy<Value = Port> {
    (1..=u16::MAX).prop_map(Port)
}

pub(crate) fn owners() -> impl Strategy<Value = Owner> {
    let comm = prop_oneof![
        any::<[u8; 16]>(),
        prop::array::uniform16(32_u8..127),
        select(vec![
            *b"nginx\0\0\0\0\0\0\0\0\0\0\0",
            *b"a \"\\\n\t\x01\x7f\xff\xc3\xa9\0\0\0\0\0",
            [0; 16]
        ]),
    ];
    // So few that some occur twice, and some share a slot of the writer.
    (select(vec![0, 1, 2, 257, 258, u32::MAX]), any::<u32>(), any::<u64>(), comm)
        .prop_map(|(pid, uid, cgroup_id, comm)| Owner { pid, uid, cgroup_id, comm })
}

pub(crate) fn cgroups() -> impl Strategy<Value = Cgroup> {
    let path = prop_oneof![any::<String>(), Just("/system.slice/ssh.service".to_owned())];
    (path, option::of(any::<String>())).prop_map(|(path, container)| Cgroup {
        path: path.into(),
        container: container.map(Into::into),
    })
}

pub(crate) fn kinds() -> impl Strategy<Value = Kind> {
    select(Kind::ALL)
}

pub(crate) fn substates() -> impl Strategy<Value = Substate> {
    select(Substate::ALL)
}

pub(crate) fn sides() -> impl Strategy<Value = Side> {
    select(Side::ALL)
}

pub(crate) fn families() -> impl Strategy<Value = Family> {
    select(Family::ALL)
}

pub(crate) fn instants() -> impl Strategy<Value = Instant> {
    // A time of day within the same seconds, or anything.
    prop_oneof![0..3_000_000_000_u64, any::<u64>()].prop_map(Instant::from_ns)
}

pub(crate) fn leases() -> impl Strategy<Value = Lease> {
    let phase = prop_oneof![
        select(vec![
            Phase::Bound,
            Phase::Listen,
            Phase::Connecting,
            Phase::Established,
            Phase::Closing,
        ]),
        substates().prop_map(Phase::TimeWait),
    ];
    let identity = (any::<(u64, u64, u32)>(), kinds(), families(), option::of(owners()));
    let ends = (addrs(), ports(), option::of((addrs(), ports())));
    let times = prop::array::uniform5(option::of(instants()));
    let rest = (option::of(sides()), any::<Option<bool>>());
    (identity, ends, phase, times, rest).prop_map(
        |(identity, (local_addr, local_port, peer), phase, times, (closed_by, has_timestamps))| {
            let ((id, cookie, netns), kind, family, owner) = identity;
            let [acquired, established, closing, time_wait, timer_armed] = times;
            Lease {
                id: LeaseId(id),
                cookie: Cookie(cookie),
                netns: Netns(netns),
                kind,
                family,
                v6_only: false,
                local_addr,
                local_port,
                peer: peer.into(),
                phase,
                owner: owner.map(Arc::new),
                acquired,
                established,
                closing,
                closed_by,
                time_wait,
                timer_armed,
                has_timestamps,
            }
        },
    )
}

pub(crate) fn reuses() -> impl Strategy<Value = Option<Reuse>> {
    option::of(any::<(u64, u64, bool)>().prop_map(|(previous, idle_ns, from_time_wait)| Reuse {
        previous: LeaseId(previous),
        idle_ns,
        from_time_wait,
    }))
}

pub(crate) fn buckets() -> impl Strategy<Value = Option<BucketClass>> {
    option::of(select(BucketClass::ALL))
}

pub(crate) fn changes() -> impl Strategy<Value = Change> {
    let reasons = select(Reason::ALL);
    let durations = || option::of(prop_oneof![0..10_000_000_000_u64, any::<u64>()]);
    prop_oneof![
        (any::<u16>(), reuses())
            .prop_map(|(requested_port, reuse)| Change::Bind { requested_port, reuse }),
        (durations(), reuses()).prop_map(|(search_ns, reuse)| Change::Connect { search_ns, reuse }),
        durations().prop_map(|handshake_ns| Change::Established { handshake_ns }),
        option::of(any::<u64>().prop_map(Cookie)).prop_map(|listener| Change::Accept { listener }),
        Just(Change::Listen),
        buckets().prop_map(|bucket| Change::Update { bucket }),
        sides().prop_map(|by| Change::Closing { by }),
        substates().prop_map(Change::TimeWait),
        reasons.prop_map(|reason| Change::Release { reason }),
    ]
}

/// The properties of a failed call that a lease does not have.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    operation: Operation,
    errno: i32,
    cause: Option<Cause>,
    pub(crate) holder: Option<Lease>,
    range: Option<RangeUse>,
    own_range: Option<(Port, Port)>,
    numbers: (u16, Option<u32>, Option<u64>, bool),
}

pub(crate) fn calls() -> impl Strategy<Value = Call> {
    (
        select(Operation::ALL),
        prop_oneof![
            select(vec![libc::EADDRINUSE, libc::EADDRNOTAVAIL, libc::EACCES]),
            any::<i32>(),
        ],
        option::of(select(Cause::ALL)),
        option::of(leases()),
        option::of(ranges()),
        option::of((ports(), ports())),
        any::<(u16, Option<u32>, Option<u64>, bool)>(),
    )
        .prop_map(|(operation, errno, cause, holder, range, own_range, numbers)| Call {
            operation,
            errno,
            cause,
            holder,
            range,
            own_range,
            numbers,
        })
}

impl Call {
    /// The failure of such a call, by the owner of a lease and from its address.
    pub(crate) fn failure<'a>(&'a self, at: Instant, lease: &Lease) -> Failure<'a> {
        let (local_port, holder_ports, search_ns, is_of_range) = self.numbers;
        Failure {
            at,
            netns: lease.netns,
            cookie: lease.cookie,
            family: lease.family,
            owner: lease.owner.as_deref().copied(),
            operation: self.operation,
            errno: self.errno,
            local_addr: lease.local_addr,
            local_port,
            peer: lease.peer.get(),
            cause: self.cause,
            holder: self.holder.as_ref(),
            holder_ports,
            range: self.range,
            own_range: self.own_range,
            is_of_range,
            search_ns,
        }
    }
}

pub(crate) fn ranges() -> impl Strategy<Value = RangeUse> {
    prop::array::uniform5(0..70_000_u32).prop_map(
        |[capacity, reserved, used, bind_locked, reusable]| RangeUse {
            capacity,
            reserved,
            used,
            bind_locked,
            reusable,
        },
    )
}

pub(crate) fn settings() -> impl Strategy<Value = Settings> {
    let range = (ports(), ports())
        .prop_filter_map("ends before it begins", |(low, high)| LocalRange::new(low, high));
    let reserved = prop::collection::vec(ports(), 0..5).prop_map(PortSet::from_iter);
    let reuse = select(vec![TimeWaitReuse::Never, TimeWaitReuse::Always, TimeWaitReuse::Loopback]);
    let options = any::<(Option<u32>, Option<u32>)>();
    let numbers = any::<(bool, u16, bool, u32, u32, u32)>();
    (range, reserved, reuse, options, numbers).prop_map(
        |(range, reserved, time_wait_reuse, (step_width, time_wait_reuse_delay_ms), numbers)| {
            let (
                autobind_reuse,
                unprivileged_start,
                timestamps,
                max_time_waits,
                fin_timeout_s,
                max_listen_backlog,
            ) = numbers;
            Settings {
                range,
                reserved,
                step_width,
                autobind_reuse,
                unprivileged_start,
                time_wait_reuse,
                time_wait_reuse_delay_ms,
                timestamps,
                max_time_waits,
                fin_timeout_s,
                max_listen_backlog,
            }
        },
    )
}

pub(crate) fn pressures() -> impl Strategy<Value = Pressure> {
    let destination = option::of((addrs(), addrs(), ports()));
    let rates = (0.0..1e6_f64, 0.0..1e6_f64, option::of(0.0..1e6_f64));
    let level = (select(vec![0, 70, 90, 100]), any::<bool>());
    (instants(), any::<u32>().prop_map(Netns), destination, level, ranges(), rates).prop_map(
        |(at, netns, destination, (level_percent, is_rising), range, rates)| Pressure {
            at,
            netns,
            destination: destination.map(|(source, addr, port)| Destination {
                netns,
                source,
                peer: (addr, port),
            }),
            level_percent,
            is_rising,
            range,
            rates: Rates { taken_per_s: rates.0, released_per_s: rates.1, hold_s: rates.2 },
        },
    )
}

pub(crate) fn scans() -> impl Strategy<Value = Scan> {
    let times = (any::<u32>(), any::<u32>());
    (any::<u32>().prop_map(Netns), addrs(), any::<u32>(), ports(), ports(), any::<u64>(), times)
        .prop_map(|(netns, source, ports, port_low, port_high, tries, (first, lasts))| Scan {
            netns,
            source,
            ports,
            port_low,
            port_high,
            tries,
            first: Instant::from_ns(first.into()),
            last: Instant::from_ns(u64::from(first) + u64::from(lasts)),
        })
}

pub(crate) fn starts() -> impl Strategy<Value = Start> {
    let outcome = prop_oneof![
        any::<String>().prop_map(|how| Ok(format!("by {how}").into())),
        any::<String>().prop_map(|reason| Err(reason.into())),
    ];
    let loss = select(vec![None, Some("resets are reported as closed")]);
    let hook = ("[a-z_]{1,8}", outcome, loss).prop_map(|(name, outcome, loss)| HookReport {
        name: name.into(),
        outcome,
        loss,
    });
    let hooks = prop::collection::vec(hook, 0..4);
    let warnings = prop::collection::vec(any::<String>(), 0..3);
    (any::<String>(), hooks, any::<bool>(), any::<usize>(), warnings).prop_map(
        |(kernel, hooks, buckets_recover, held, warnings)| Start {
            kernel: kernel.into(),
            hooks,
            buckets_recover,
            held,
            warnings: warnings.into_iter().map(Into::into).collect(),
        },
    )
}

pub(crate) fn losses() -> impl Strategy<Value = Loss> {
    (any::<u64>(), select(LostAt::ALL), any::<bool>()).prop_map(|(count, lost_at, healed)| Loss {
        count,
        lost_at,
        healed,
    })
}

pub(crate) fn verifies() -> impl Strategy<Value = Verify> {
    let differences = prop::collection::vec(any::<String>(), 0..2);
    (any::<[u64; 6]>(), differences).prop_map(|(numbers, differences)| {
        let [leases, kernel, missing, extra, classes, unlisted] = numbers;
        Verify { leases, kernel, missing, extra, classes, unlisted, differences }
    })
}

pub(crate) fn summaries() -> impl Strategy<Value = Summary> {
    let totals = prop::collection::btree_map(
        select(RecordType::ALL).prop_map(RecordType::name),
        any::<u64>(),
        0..5,
    );
    (totals, any::<[u64; 5]>(), 0.0..1e9_f64).prop_map(|(totals, numbers, duration_s)| {
        let [facts_seen, facts_filtered, facts_received, lost, dropped] = numbers;
        Summary { totals, facts_seen, facts_filtered, facts_received, lost, dropped, duration_s }
    })
}
