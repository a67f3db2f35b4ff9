//! Leases and what happens to them, for tests of the forms of output: usual, and unheard of.

use std::{net::Ipv4Addr, sync::Arc};

use proptest::{option, prelude::*, sample::select};
use tracer_ebpf::{Owner, mapped};

use crate::{
    model::{
        Addr, Change, Cookie, Family, Instant, Kind, Lease, LeaseId, Netns, Phase, Port, Reason,
        Reuse, Side, Substate,
    },
    record::Cgroup,
};

pub(crate) fn addrs() -> impl Strategy<Value = Addr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| Addr::from(Ipv4Addr::from(octets))),
        // Any number of digits.
        prop::array::uniform4(select(vec![0, 9, 10, 99, 100, 255]))
            .prop_map(|octets| Addr::from(Ipv4Addr::from(octets))),
        any::<[u32; 4]>().prop_map(Addr),
        // Like the mapped form, but for a bit or two.
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
    // Few enough for some to be met again, and some to share a place.
    (select(vec![0, 1, 2, 257, 258, u32::MAX]), any::<u32>(), any::<u64>(), comm)
        .prop_map(|(pid, uid, cgroup_id, comm)| Owner { pid, uid, cgroup_id, comm })
}

pub(crate) fn cgroups() -> impl Strategy<Value = Cgroup> {
    let path = prop_oneof![any::<String>(), Just("/system.slice/ssh.service".to_owned())];
    (path, option::of(any::<String>())).prop_map(|(path, container)| Cgroup { path, container })
}

pub(crate) fn kinds() -> impl Strategy<Value = Kind> {
    select(Kind::ALL.to_vec())
}

pub(crate) fn substates() -> impl Strategy<Value = Substate> {
    select(vec![Substate::TimeWait, Substate::FinWait2])
}

pub(crate) fn sides() -> impl Strategy<Value = Side> {
    select(vec![Side::Local, Side::Peer])
}

pub(crate) fn families() -> impl Strategy<Value = Family> {
    select(vec![Family::Ipv4, Family::Ipv6])
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

pub(crate) fn changes() -> impl Strategy<Value = Change> {
    let reasons = select(Reason::ALL.to_vec());
    let durations = || option::of(prop_oneof![0..10_000_000_000_u64, any::<u64>()]);
    prop_oneof![
        (any::<u16>(), reuses())
            .prop_map(|(requested_port, reuse)| Change::Bind { requested_port, reuse }),
        (durations(), reuses()).prop_map(|(search_ns, reuse)| Change::Connect { search_ns, reuse }),
        durations().prop_map(|handshake_ns| Change::Established { handshake_ns }),
        option::of(any::<u64>().prop_map(Cookie)).prop_map(|listener| Change::Accept { listener }),
        Just(Change::Listen),
        sides().prop_map(|by| Change::Closing { by }),
        substates().prop_map(Change::TimeWait),
        reasons.prop_map(|reason| Change::Release { reason }),
    ]
}
