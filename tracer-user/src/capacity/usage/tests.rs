use super::*;
use crate::model::{Addr, PortSet, TimeWaitReuse};

const NETNS: Netns = Netns(1);

fn destination(port: u16) -> Destination {
    let addr = Addr([0, 0, 0xffff_u32.to_be(), 0x0100_000a]);
    Destination { netns: NETNS, source: addr, peer: (addr, Port(port)) }
}

fn usage_of(low: u16, high: u16, reserved: &str, delay_ms: u32) -> Usage {
    let mut usage = Usage::default();
    let settings = Settings {
        range: LocalRange::new(Port(low), Port(high)).expect("it is a range"),
        reserved: PortSet::parse(reserved).expect("it is a list"),
        time_wait_reuse: TimeWaitReuse::Always,
        time_wait_reuse_delay_ms: Some(delay_ms),
        ..Settings::sample()
    };
    usage.begin_recount(NETNS, Arc::new(settings));
    usage.end_recount(NETNS);
    usage
}

/// With this number of ports, from 1000 on, and three that are reserved.
fn usage(ports: u16) -> Usage {
    usage_of(997, 999 + ports, "997-999", 1)
}

fn add_connection(usage: &mut Usage, port: u16) -> DestinationIndex {
    usage.add_connection(destination(80), Port(port)).expect("it may be chosen")
}

fn range(usage: &Usage, port: u16) -> RangeUse {
    usage.range_for(&destination(port)).expect("the settings are known")
}

fn levels(usage: &mut Usage) -> Vec<(bool, u8)> {
    usage
        .take_pressure()
        .iter()
        .filter(|pressure| pressure.destination.is_some())
        .map(|pressure| (pressure.is_rising, pressure.level_percent))
        .collect()
}

#[test]
fn a_destination_crosses_levels_and_falls_back_once() {
    let mut usage = usage(20);
    let mut index = None;
    for port in 0..20 {
        usage.set_time(Instant::from_ns(u64::from(port) * 1_000_000_000));
        index = Some(add_connection(&mut usage, 1000 + port));
    }
    let index = index.expect("there were some");
    assert_eq!(levels(&mut usage), [(true, 70), (true, 90), (true, 100)]);
    // At 95 %, and again at 100 %: no crossing.
    usage.remove_connection(index, Port(1000), false, Instant::BOOT);
    add_connection(&mut usage, 1000);
    assert!(levels(&mut usage).is_empty());
    for port in 0..20 {
        usage.remove_connection(index, Port(1000 + port), false, Instant::BOOT);
    }
    assert_eq!(levels(&mut usage), [(false, 90), (false, 70), (false, 0)]);
    assert_eq!(range(&usage, 80).used, 0);
}

#[test]
fn bound_ports_are_lost_to_every_destination_but_not_counted_twice() {
    let mut usage = usage(10);
    for port in 1000..1004 {
        usage.hold_port(NETNS, Port(port));
        assert!(usage.set_locked(NETNS, Port(port), true));
        assert!(!usage.set_locked(NETNS, Port(port), true));
    }
    // Reserved.
    assert!(!usage.set_locked(NETNS, Port(999), true));
    assert_eq!(usage.add_connection(destination(80), Port(999)), None);
    let index = add_connection(&mut usage, 1000);
    add_connection(&mut usage, 1009);
    let expected = RangeUse { capacity: 10, reserved: 3, used: 2, bind_locked: 3, reusable: 0 };
    assert_eq!(range(&usage, 80), expected);
    assert_eq!(range(&usage, 80).headroom(), 5);
    assert_eq!(range(&usage, 81).headroom(), 6);
    assert_eq!(usage.locked_ports(NETNS).count(), 4);
    assert!(usage.set_locked(NETNS, Port(1000), false));
    usage.set_connection_locked(index, false);
    assert_eq!(range(&usage, 80).bind_locked, 3);
    usage.remove_connection(index, Port(1000), false, Instant::BOOT);
    assert_eq!(range(&usage, 80).used, 1);
}

#[test]
fn a_time_wait_counts_as_free_when_it_is_old_enough() {
    const DELAY_NS: u64 = 1_000_000_000;
    let mut usage = usage_of(1, 10, "", 1000);
    let mut index = None;
    for port in 1..=10 {
        index = Some(add_connection(&mut usage, port));
    }
    let index = index.expect("there were some");
    let headroom = |usage: &Usage| range(usage, 80).headroom();
    for _ in 0..4 {
        usage.set_time_wait(index, true);
    }
    assert_eq!(headroom(&usage), 0);
    usage.set_time(Instant::from_ns(DELAY_NS));
    usage.set_time_wait(index, true);
    assert_eq!(headroom(&usage), 0);
    usage.set_time(Instant::from_ns(2 * DELAY_NS));
    assert_eq!(headroom(&usage), 4);
    usage.set_time(Instant::from_ns(3 * DELAY_NS));
    assert_eq!(headroom(&usage), 5);
    usage.set_time_wait(index, false);
    assert_eq!(headroom(&usage), 4);
}

#[test]
fn destinations_without_a_port_keep_their_rates_for_a_while() {
    let mut usage = usage(10);
    let index = add_connection(&mut usage, 1000);
    usage.remove_connection(index, Port(1000), false, Instant::BOOT);
    let rates = usage.destination_rates(&destination(80)).expect("it is remembered");
    assert!(rates.taken_per_s > 0.5, "{rates:?}");
    for port in 0..10_000 {
        let other =
            usage.add_connection(destination(10_000 + port), Port(1001)).expect("it may be chosen");
        usage.remove_connection(other, Port(1001), false, Instant::BOOT);
        if port % 1000 == 0 {
            let index = add_connection(&mut usage, 1000);
            usage.remove_connection(index, Port(1000), false, Instant::BOOT);
        }
    }
    assert!(usage.destination_rates(&destination(80)).is_some(), "it was used now and then");
    assert_eq!(usage.destinations.len(), MAX_IDLE);
    let settings = Arc::clone(usage.settings(NETNS).expect("they are known"));
    usage.forget(NETNS);
    assert_eq!(usage.destinations.len(), MAX_IDLE, "the namespace may be reported on");
    // Another namespace has its inode now.
    usage.begin_recount(NETNS, settings);
    assert!(usage.destinations.is_empty() && usage.by_destination.is_empty());
}

#[test]
fn a_time_wait_keeps_a_port_until_it_may_be_taken_over_or_ends() {
    let usage = usage_of(1, 10, "", 1500);
    let settings = usage.settings(NETNS).expect("they are known");
    let of =
        |substate, timestamps| reuse::time_wait_s(settings, &destination(80), substate, timestamps);
    assert!((of(Substate::TimeWait, Some(true)) - 1.5).abs() < 1e-9);
    assert!((of(Substate::TimeWait, None) - 1.5).abs() < 1e-9);
    assert!((of(Substate::TimeWait, Some(false)) - 60.0).abs() < 1e-9);
    assert!((of(Substate::FinWait2, Some(true)) - 60.0).abs() < 1e-9);
}
