//! Text is what the formatting of the standard library makes of a record, and stays in its columns.

use jiff::Timestamp;
use proptest::{option, prelude::*};

use crate::{
    model::Addr,
    record::samples::{cgroups, changes, instants, leases},
    views::stream::text::*,
};

/// What [`Text`] writes, without colour and in UTC, by `format!`.
fn by_format(offset_ns: i128, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) -> String {
    let LeaseEvent { at, lease, change } = event;
    let time = Timestamp::from_nanosecond(i128::from(at.ns()) + offset_ns).unwrap_or_default();
    let clock = time.to_zoned(TimeZone::UTC).strftime("%H:%M:%S%.3f");
    let (pid, name) = lease.owner.as_ref().map_or_else(
        || ("-".to_owned(), "-".to_owned()),
        |owner| (owner.pid.to_string(), comm(&owner.comm).to_string()),
    );
    let end = |(addr, port): (Addr, Port)| {
        let ip = addr.ip();
        if ip.is_unspecified() {
            format!("*:{}", port.0)
        } else {
            std::net::SocketAddr::new(ip, port.0).to_string()
        }
    };
    let ns = |ns: u64| {
        let mut text = Vec::new();
        append_duration(ns, &mut text);
        String::from_utf8(text).expect("it is ASCII")
    };
    let held = lease.acquired.map_or_else(|| "-".to_owned(), |acquired| ns(at.since(acquired)));
    let reused = |reuse: Option<Reuse>| match reuse {
        None => String::new(),
        Some(Reuse { from_time_wait: true, .. }) => "reuses a TIME-WAIT".to_owned(),
        Some(Reuse { idle_ns, .. }) => format!("idle {}", ns(idle_ns)),
    };
    let of = |what: &str, took: Option<u64>| {
        took.map(|took| format!("{what} {}", ns(took))).unwrap_or_default()
    };
    let mut parts = match *change {
        Change::Held { .. } => {
            let lacks =
                matches!(lease.phase, Phase::TimeWait(_)) && lease.has_timestamps == Some(false);
            let timestamps = if lacks { "no timestamps" } else { "" };
            vec![names::ss_state(lease.phase, lease.closed_by).to_owned(), timestamps.to_owned()]
        }
        Change::Bind { requested_port, reuse } => {
            let asked = if requested_port == 0 { "any port" } else { "" };
            vec![asked.to_owned(), reused(reuse)]
        }
        Change::Connect { search_ns, reuse } => vec![of("search", search_ns), reused(reuse)],
        Change::Established { handshake_ns } => vec![of("handshake", handshake_ns)],
        Change::Accept { .. } | Change::Listen => vec![],
        Change::Update { .. } => vec![names::ss_state(lease.phase, lease.closed_by).to_owned()],
        Change::Closing { by } => vec![format!("by {}", names::side(by))],
        Change::TimeWait(substate) => {
            let timestamps = if lease.has_timestamps == Some(false) { "no timestamps" } else { "" };
            vec![names::ss_state(Phase::TimeWait(substate), None).to_owned(), timestamps.to_owned()]
        }
        Change::Release { reason } => {
            let Durations { established_ns, time_wait_ns, .. } = Durations::of(lease, *at);
            vec![
                names::reason(reason).replace('_', " "),
                of("estab", established_ns),
                of("tw", time_wait_ns),
            ]
        }
    };
    if let Some(container) = cgroup.and_then(|cgroup| cgroup.container.as_ref()) {
        parts.push(format!("container {container}"));
    }
    parts.retain(|part| !part.is_empty());
    let (local, peer) = (end((lease.local_addr, lease.local_port)), lease.peer.get().map(end));
    let columns = format!(
        "{clock} {:<11} {:<10} {pid:>7} {name:<15} {local:<21} {:<21} {held:>8}",
        RecordType::of(change).name(),
        lease.netns.0,
        peer.as_deref().unwrap_or("-"),
    );
    let detail = parts.join(", ");
    let separator = if detail.is_empty() { "" } else { " " };
    format!("{columns}{separator}{detail}\n")
}

fn text() -> Text {
    Text { zone: TimeZone::UTC, ..Text::new(0, false, Verbosity::Quiet) }
}

proptest! {
    #[test]
    fn lines_are_what_format_makes_of_them(
        events in prop::collection::vec(
            (instants(), leases(), changes(), option::of(cgroups())),
            1..20,
        ),
        realtime_offset_ns in prop_oneof![
            Just(0),
            Just(1_700_000_000_987_654_321),
            any::<i64>().prop_map(i128::from),
        ],
    ) {
        let mut fast = Text { realtime_offset_ns, ..text() };
        let mut slow = String::new();
        for (at, lease, change, cgroup) in &events {
            let event = LeaseEvent { at: *at, lease, change: *change };
            fast.lease(&event, cgroup.as_ref());
            slow += &by_format(realtime_offset_ns, &event, cgroup.as_ref());
        }
        prop_assert_eq!(String::from_utf8_lossy(fast.buffer()), slow);
    }

    #[test]
    fn durations_are_rounded_to_what_is_shown(ns in 0..20_000_000_000_000_u64) {
        let mut shown = Vec::new();
        append_duration(ns, &mut shown);
        let shown = String::from_utf8(shown).expect("it is ASCII");
        let unit = shown.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
        let (unit_ns, digits) = match unit {
            "us" => (1e3, 0),
            "ms" => (1e6, 1),
            "s" if ns < 100_000_000_000 => (1e9, 2),
            "s" => (1e9, 0),
            "min" => (60e9, 0),
            other => panic!("{other}"),
        };
        let number = shown.trim_end_matches(unit);
        prop_assert_eq!(number.split('.').nth(1).map_or(0, str::len), digits);
        let error = (number.parse::<f64>().expect("a number") * unit_ns - ns as f64).abs();
        let step = unit_ns / 10_f64.powi(i32::try_from(digits).expect("it is small"));
        prop_assert!(error <= step * 0.500_001, "{shown} of {ns} ns");
        prop_assert!(shown.len() <= 8);
    }
}

#[test]
fn a_line_is_coloured_by_its_event_alone() {
    let line = Line {
        at: Instant::BOOT,
        event: "listen",
        netns: 7,
        owner: None,
        local: End::ANY,
        peer: End::NONE,
        held_ns: None,
    };
    let mut text = Text { colour: true, ..text() };
    text.line(&line, |details| details.add(""));
    let expected = "00:00:00.000 \x1b[32mlisten     \x1b[0m 7                - -               \
                    *:*                   -                            -\n";
    assert_eq!(String::from_utf8_lossy(text.buffer()), expected);
}

#[test]
fn tz_is_the_name_of_a_zone_and_never_a_file() {
    match TimeZone::get("Etc/GMT+5") {
        Ok(zone) => {
            assert_eq!(zone_named("Etc/GMT+5"), zone);
            assert_eq!(zone_named(":Etc/GMT+5"), zone);
        }
        Err(error) => println!("skipped: this host has no time zones: {error}"),
    }
    for name in ["", "/etc/localtime", "../../etc/localtime", "Europe//Berlin", "no/such", "a\0b"] {
        assert_eq!(zone_named(name), TimeZone::UTC, "{name}");
    }
}
