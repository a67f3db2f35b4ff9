//! Reports on made-up recordings: situations that are hard to stage, and damaged input.

use serde_json::{Value, json};

use crate::{
    ledger::Ledger,
    model::Cause,
    record::{
        Record,
        filter::{Criterion, Filter},
    },
    sources::replay::Recording,
    views::{
        Verbosity, View as _,
        report::{
            Form, Report, ReportView, Services,
            model::{FindingKind, Severity},
            text,
        },
    },
};

const NETNS: u32 = 4_026_531_840;

/// A recording that is being made up.
#[derive(Default)]
struct Tape {
    lines: Vec<String>,
    now_ns: u64,
    leases: u64,
}

impl Tape {
    fn new() -> Self {
        let mut tape = Self { now_ns: 1_000_000_000_000, ..Self::default() };
        tape.record("start", json!({"version": "0", "kernel": "6.18", "hooks": {}, "held": 0}));
        tape
    }

    fn wait(&mut self, seconds: f64) {
        self.now_ns += (seconds * 1e9) as u64;
    }

    fn record(&mut self, kind: &str, rest: Value) {
        let mut record = json!({
            "v": 1,
            "type": kind,
            "time": "2026-01-02T03:04:05.000000000Z",
            "mono_ns": self.now_ns,
            "netns": NETNS,
        });
        extend(&mut record, rest);
        self.lines.push(record.to_string());
    }

    fn range(&mut self, low: u16, high: u16, reserved: &str) {
        self.settings(low, high, reserved, 0);
    }

    fn settings(&mut self, low: u16, high: u16, reserved: &str, tw_reuse: u32) {
        self.record(
            "namespace",
            json!({
                "range_low": low, "range_high": high, "reserved": reserved, "capacity": 0,
                "step_width": null, "autobind_reuse": false, "unprivileged_start": 1024,
                "tw_reuse": tw_reuse, "tw_reuse_delay_ms": 1000, "timestamps": true,
                "max_tw_buckets": 131_072, "fin_timeout_s": 60, "somaxconn": 4096,
            }),
        );
    }

    fn lease(&mut self, kind: &str, process: &Process, port: u16, rest: Value) {
        let mut fields = process.fields(port);
        extend(&mut fields, rest);
        self.record(kind, fields);
    }

    /// connect() to 10.0.0.2:80; returns the lease.
    fn connect(&mut self, process: &Process, port: u16) -> u64 {
        self.leases += 1;
        let lease = self.leases;
        self.lease(
            "connect",
            process,
            port,
            json!({"lease": lease, "search_us": 5.0, "reuse": null}),
        );
        lease
    }

    /// connect() to 10.0.0.2:80 that finds `used` ports in use for it, and the others of the range
    /// bind-locked.
    fn fail(&mut self, process: &Process, capacity: u32, used: u32) {
        self.lease(
            "fail",
            process,
            0,
            json!({
                "lease": null, "local_port": null, "op": "connect", "errno": 99,
                "error": "EADDRNOTAVAIL", "requested_addr": "10.0.0.1", "requested_port": 0,
                "cause": null, "holder": null, "search_us": 100.0,
                "range": {"capacity": capacity, "used": used, "bind_locked": capacity - used},
            }),
        );
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn report(&self) -> Report {
        let (report, outcome) = read(self.text().as_bytes(), &Filter::default());
        assert_eq!(outcome.problems, Vec::<String>::new());
        report
    }
}

/// A process.
struct Process {
    kind: &'static str,
    pid: u32,
    comm: &'static str,
    peer: bool,
}

const CLIENT: Process = Process { kind: "connect", pid: 12, comm: "client", peer: true };
const BINDER: Process = Process { kind: "bind", pid: 13, comm: "binder", peer: false };

impl Process {
    fn fields(&self, port: u16) -> Value {
        json!({
            "lease": 0, "cookie": 1, "kind": self.kind, "family": "ipv4",
            "local_addr": "10.0.0.1", "local_port": port,
            "peer_addr": self.peer.then_some("10.0.0.2"), "peer_port": self.peer.then_some(80),
            "pid": self.pid, "comm": self.comm, "uid": 0, "cgroup": "/a", "container": null,
        })
    }
}

fn extend(record: &mut Value, with: Value) {
    let (Value::Object(record), Value::Object(with)) = (record, with) else { panic!("objects") };
    record.extend(with);
}

fn read(input: &[u8], filter: &Filter) -> (Report, Recording) {
    let services = Services::default();
    let mut view = ReportView::new(0, Form::Json, services, filter.clone(), Verbosity::Quiet);
    let mut recording = Recording::default();
    let take = |record: &Record<'_>, ledger: &Ledger| view.record(record, ledger);
    recording.read(input, "tape", filter, take).unwrap();
    (view.report(recording.ledger()), recording)
}

#[test]
fn damaged_lines_are_named_and_the_rest_is_reported() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_009, "");
    tape.connect(&CLIENT, 50_000);
    tape.lines.push("{\"v\":1,".to_owned());
    tape.lines.push(String::new());
    tape.lines.push("not JSON".to_owned());
    tape.connect(&CLIENT, 50_001);
    let mut input = tape.text().into_bytes();
    let whole = tape.lines.last().unwrap().clone();
    input.extend_from_slice(&whole.as_bytes()[..whole.len() / 2]);
    let (report, outcome) = read(&input, &Filter::default());
    assert_eq!((outcome.records, outcome.damaged), (4, 3));
    let [cut, garbage, last] = &outcome.problems[..] else { panic!("{:?}", outcome.problems) };
    assert!(cut.starts_with("tape:4: expected a record, a JSON object with"), "{cut}");
    assert!(garbage.starts_with("tape:6: expected a record"), "{garbage}");
    assert!(last.starts_with("tape:8: expected the end of the last record"), "{last}");
    assert_eq!(report.namespaces[0].phases.connecting, 2);
    let shortcomings = &report.observed.shortcomings;
    assert!(
        shortcomings.iter().any(|what| what.raw().contains("without a summary")),
        "{shortcomings:?}"
    );
}

#[test]
fn a_file_that_is_no_recording_is_not_reported_line_by_line() {
    let input = b"garbage\n".repeat(1000);
    let (report, outcome) = read(&input, &Filter::default());
    assert_eq!((outcome.records, outcome.damaged, outcome.problems.len()), (0, 1000, 11));
    assert_eq!(report.observed.records, 0);
    // A line without an end is not kept in memory.
    let (_, outcome) = read(&vec![b'x'; 3 << 20], &Filter::default());
    assert_eq!(outcome.damaged, 1);
    assert!(outcome.problems[0].contains("a line of more than"), "{:?}", outcome.problems);
}

#[test]
fn the_filter_applies_to_recordings() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_009, "");
    tape.connect(&CLIENT, 50_000);
    tape.connect(&Process { comm: "other", pid: 14, ..CLIENT }, 50_001);
    let filter = Filter::default().and(Criterion::Comm, vec!["other".to_owned()]);
    let (report, _) = read(tape.text().as_bytes(), &filter);
    let owners: Vec<_> =
        report.owners.iter().filter_map(|row| Some(row.owner.as_ref()?.comm.raw())).collect();
    assert_eq!(owners, ["other"]);
}

#[test]
fn used_ports_follow_a_change_of_the_range() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_009, "");
    for port in 50_000..50_006 {
        tape.connect(&CLIENT, port);
    }
    let row = tape.report().destinations.remove(0);
    assert_eq!((row.used, row.capacity, row.headroom), (6, Some(10), Some(4)));
    tape.range(50_004, 50_009, "50005");
    let report = tape.report();
    assert_eq!(report.namespaces[0].settings_changes, 1);
    let row = &report.destinations[0];
    assert_eq!((row.used, row.capacity, row.headroom), (1, Some(5), Some(4)));
}

#[test]
fn what_a_recording_could_not_observe_is_said() {
    let mut tape = Tape::new();
    let warning =
        "the hook tcp_send_reset is not attached (no such tracepoint): port scans are not seen";
    let start = json!({
        "version": "0", "kernel": "6.1", "hooks": {}, "held": 0, "warnings": [warning],
    });
    tape.record("start", start);
    let report = tape.report();
    assert!(report.observed.shortcomings.iter().any(|what| what.raw() == warning), "{report:?}");
    let shown = text::render(&report, false).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains(&format!("not seen: {warning}")), "{shown}");
}

#[test]
fn a_failure_names_the_range_at_that_time() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_003, "");
    for port in 50_000..50_004 {
        tape.connect(&CLIENT, port);
    }
    tape.fail(&CLIENT, 4, 4);
    tape.range(32_768, 60_999, "");
    let sentence = tape.report().verdict.sentence;
    assert!(sentence.contains("50000-50003") && !sentence.contains("60999"), "{sentence}");
}

#[test]
fn bound_ports_are_unavailable_to_all_destinations() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_003, "");
    tape.connect(&CLIENT, 50_000);
    for (lease, port) in [(100, 50_000), (101, 50_001), (102, 50_002), (103, 60_000)] {
        tape.lease("bind", &BINDER, port, json!({"lease": lease, "requested_port": port}));
    }
    let report = tape.report();
    assert_eq!(report.namespaces[0].bind_locked, 3);
    let row = &report.destinations[0];
    assert_eq!((row.used, row.bind_locked, row.headroom), (1, 2, Some(1)));
    tape.lease("release", &BINDER, 50_001, json!({"lease": 101, "reason": "closed"}));
    assert_eq!(tape.report().destinations[0].headroom, Some(2));
    // A record without a cause: it is what takes most of the range.
    tape.lease("bind", &BINDER, 50_001, json!({"lease": 104, "requested_port": 50_001}));
    tape.lease("bind", &BINDER, 50_003, json!({"lease": 105, "requested_port": 50_003}));
    tape.fail(&CLIENT, 4, 1);
    let report = tape.report();
    assert_eq!(report.failures[0].cause, Some(Cause::RangeBindLocked));
    assert_eq!(report.verdict.kind, FindingKind::PoisonedPort);
    assert_eq!(report.verdict.owner.unwrap().comm.raw(), "binder");
}

#[test]
fn the_owner_at_the_time_of_a_failure_is_named_even_after_it_released_the_ports() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_003, "");
    let leases: Vec<_> = (50_000..50_004).map(|port| tape.connect(&CLIENT, port)).collect();
    tape.fail(&Process { comm: "victim", pid: 15, ..CLIENT }, 4, 4);
    for (lease, port) in leases.iter().zip(50_000..) {
        let released = json!({"lease": lease, "reason": "closed", "held_s": 1.0});
        tape.lease("release", &CLIENT, port, released);
    }
    let report = tape.report();
    assert_eq!(report.verdict.kind, FindingKind::DestinationExhausted);
    assert_eq!(report.verdict.cause, Some(Cause::RangeFull));
    assert_eq!(report.verdict.owner.unwrap().comm.raw(), "client");
    assert_eq!(report.failures[0].callers[0].owner.as_ref().unwrap().comm.raw(), "victim");
    assert_eq!(report.destinations[0].headroom, Some(4));
}

#[test]
fn a_process_that_takes_ports_far_faster_than_before_is_named() {
    let mut tape = Tape::new();
    tape.range(1024, 65_535, "");
    let steady = Process { comm: "steady", pid: 14, ..CLIENT };
    let mut port = 1024;
    let mut connect = |tape: &mut Tape, process: &Process| {
        port += 1;
        tape.connect(process, port);
    };
    for _ in 0..20 {
        tape.wait(1.0);
        for _ in 0..60 {
            connect(&mut tape, &steady);
        }
        connect(&mut tape, &CLIENT);
    }
    assert!(tape.report().jumps.is_empty());
    tape.wait(1.0);
    for _ in 0..200 {
        connect(&mut tape, &CLIENT);
        connect(&mut tape, &steady);
    }
    tape.wait(5.0);
    connect(&mut tape, &CLIENT);
    let report = tape.report();
    let [jump] = &report.jumps[..] else { panic!("{:?}", report.jumps) };
    assert_eq!((jump.owner.comm.raw(), jump.per_s), ("client", 200));
    assert!((jump.before_per_s - 1.0).abs() < 0.2, "{jump:?}");
    assert_eq!(report.findings[0].kind, FindingKind::RateJump);
    assert_eq!(report.verdict.severity, Severity::Healthy);
}

#[test]
fn time_waits_set_the_ceiling_and_the_advice_says_what_helps() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_059, "");
    for port in 50_000..50_060 {
        let lease = tape.connect(&CLIENT, port);
        tape.lease("time_wait", &CLIENT, port, json!({"lease": lease, "substate": "time_wait"}));
    }
    tape.fail(&CLIENT, 60, 60);
    let report = tape.report();
    assert_eq!(report.verdict.kind, FindingKind::TimeWaitPileUp);
    let ceiling = report.destinations[0].ceiling_per_s.unwrap();
    assert!((ceiling - 1.0).abs() < 0.01, "{ceiling}");
    let reuse = report.advice.iter().find(|one| one.command.contains("tcp_tw_reuse")).unwrap();
    assert!(reuse.command.ends_with("sysctl -w net.ipv4.tcp_tw_reuse=\"1\""), "{reuse:?}");
    assert!(reuse.gain.starts_with("from 1.0 to 60.0 connections a second"), "{reuse:?}");
    assert!(report.folklore.iter().any(|line| line.contains("tcp_tw_recycle was removed")));
    assert!(report.folklore.iter().any(|line| line.contains("tcp_fin_timeout does not")));
}

#[test]
fn time_waits_without_timestamps_are_not_reusable_and_the_advice_is_for_the_peer() {
    let with = |timestamps: Option<bool>| {
        let mut tape = Tape::new();
        tape.settings(50_000, 50_059, "", 1);
        for port in 50_000..50_060 {
            let lease = tape.connect(&CLIENT, port);
            let time_wait =
                json!({"lease": lease, "substate": "time_wait", "timestamps": timestamps});
            tape.lease("time_wait", &CLIENT, port, time_wait);
        }
        tape.wait(5.0);
        tape.fail(&CLIENT, 60, 60);
        tape.report()
    };
    for timestamps in [Some(true), None] {
        let report = with(timestamps);
        assert_eq!(
            (report.destinations[0].reusable, report.destinations[0].headroom),
            (60, Some(60))
        );
    }
    let report = with(Some(false));
    let row = &report.destinations[0];
    assert_eq!((row.without_timestamps, row.reusable, row.headroom), (60, 0, Some(0)));
    let mend = report.advice.iter().find(|one| one.what.contains("timestamps"));
    let mend = mend.expect("tcp_tw_reuse is on and does nothing");
    assert!(mend.evidence.starts_with("60 of 60 connections"), "{mend:?}");
    assert!(!report.advice.iter().any(|one| one.command.contains("tcp_tw_reuse=\"1\"")));
}

#[test]
fn a_second_run_in_the_stream_starts_without_the_leases_of_the_first() {
    let mut tape = Tape::new();
    tape.range(50_000, 50_003, "");
    tape.connect(&CLIENT, 50_000);
    tape.lines.extend(Tape::new().lines);
    tape.leases = 0;
    tape.connect(&CLIENT, 50_001);
    let report = tape.report();
    assert_eq!(report.namespaces[0].held_in_range, 1);
    assert_eq!(report.destinations[0].used, 1);
}

#[test]
fn namespaces_that_have_ended_are_dropped() {
    let mut tape = Tape::new();
    for netns in 1..2_500 {
        let lease = json!({"lease": netns, "netns": netns, "search_us": 1.0});
        tape.lease("connect", &CLIENT, 50_000, lease);
        let released = json!({"lease": netns, "netns": netns, "reason": "netns_gone"});
        tape.lease("release", &CLIENT, 50_000, released);
    }
    assert!(tape.report().namespaces.len() <= 1000);
}

/// With the longest values everywhere.
#[test]
fn the_text_fits_120_columns_and_has_colour_only_on_request() {
    let mut tape = Tape::new();
    tape.range(
        1024,
        65_535,
        &(1025..1100).step_by(2).map(|p| p.to_string()).collect::<Vec<_>>().join(","),
    );
    let process = Process { comm: "a-long-process-n", pid: 4_194_303, ..CLIENT };
    let long = json!({
        "local_addr": "2001:db8:1111:2222:3333:4444:5555:6666",
        "peer_addr": "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff",
        "peer_port": 65_535,
        "container": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "family": "ipv6",
    });
    let with = |rest: Value| {
        let mut fields = long.clone();
        extend(&mut fields, rest);
        fields
    };
    for lease in 0..30_000 {
        let port = 30_000 + u16::try_from(lease % 30_000).unwrap();
        tape.lease(
            "connect",
            &process,
            port,
            with(json!({"lease": lease, "search_us": 123_456.0})),
        );
    }
    let listen =
        with(json!({"lease": 40_000, "kind": "bind", "peer_addr": null, "peer_port": null}));
    tape.lease("listen", &process, 30_000, listen);
    tape.lease(
        "fail",
        &process,
        0,
        with(json!({
            "lease": null, "local_port": null, "op": "connect", "errno": 99,
            "error": "EADDRNOTAVAIL", "requested_port": 65_535, "cause": "range_bind_locked",
            "holder": {
                "kind": "bind_auto", "family": "ipv6", "local_addr": "::", "local_port": 65_535,
                "peer_addr": null, "peer_port": null, "pid": 4_194_303, "comm": "a-long-process-n",
                "phase": "time_wait",
            },
        })),
    );
    // A second namespace, so that every row names its own.
    let own = json!({"lease": 50_000, "netns": 1, "search_us": 1.0});
    tape.lease("connect", &CLIENT, 50_000, own);
    let shown = text::render(&tape.report(), false);
    // A command that must be given in one word is not broken.
    let commands = "net.ipv4.ip_local_reserved_ports=";
    for line in shown.lines().filter(|line| !line.contains(commands)) {
        assert!(line.chars().count() <= 120, "{} columns: {line}\n{shown}", line.chars().count());
    }
    assert!(!shown.contains('\x1b'));
    assert!(text::render(&tape.report(), true).contains('\x1b'));
}
