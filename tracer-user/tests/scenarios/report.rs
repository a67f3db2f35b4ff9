//! `portlife report`, live and from recordings, and the settings in the stream.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use socket2::Socket;

use crate::support::{Net, Pair, Tracer, cookie, read_to_end, sandbox};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");

/// Runs `portlife report --from -` on this input.
fn report_on(input: &[u8], arguments: &[&str]) -> Output {
    let mut child = Command::new(BINARY)
        .args(["report", "--from", "-"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    // It reads all input before it writes.
    child.stdin.take().expect("stdin is piped").write_all(input).expect("it reads");
    child.wait_with_output().expect("the process exits")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn parse(stdout: &[u8]) -> Value {
    serde_json::from_slice(stdout)
        .unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(stdout)))
}

/// A report without the times, which differ between two tracers because each stamps its own facts.
fn without_times(mut report: Value) -> Value {
    const TIMES: [&str; 21] = [
        // Leaks must have lasted for some time.
        "leaks",
        "time",
        "since",
        "until",
        "duration_s",
        "rate_per_s",
        "release_per_s",
        "mean_hold_s",
        "ceiling_per_s",
        "eta_s",
        "first_s",
        "last_s",
        "oldest_s",
        "youngest_s",
        "mean_s",
        "min_s",
        "max_s",
        "p50_s",
        "p99_s",
        "buckets",
        "advice",
    ];
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| !TIMES.contains(&name.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut report);
    report
}

#[test]
fn a_report_on_a_recording_equals_that_on_the_live_stream() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.set("ipv4/ip_local_port_range", "60000 60009").expect("the setting can be written");
    sandbox.set("ipv4/tcp_tw_reuse", "0").expect("the setting can be written");
    let netns = sandbox.netns().0.to_string();
    let before = Net::V4.bound(20_000);
    let mut tracer = Tracer::start(&sandbox);
    let mut live = Command::new(BINARY)
        .args(["report", "-o", "json", "-n", &netns])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    let mut messages = String::new();
    let mut live_stderr = BufReader::new(live.stderr.take().expect("stderr is piped"));
    while !messages.contains("observing on") {
        assert!(
            live_stderr.read_line(&mut messages).expect("text") > 0,
            "the report exited: {messages}"
        );
    }
    // Connections that stay open, TIME_WAITs, a CLOSE_WAIT and two kinds of failures.
    let listener = Net::V4.bound(8080);
    listener.listen(64).expect("listen() succeeds");
    let mut kept: Vec<Socket> = vec![before];
    let mut closed = Vec::new();
    for round in 0..10 {
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        // Fewer than half are closed, so that the TIME_WAITs are never the verdict.
        match round % 5 {
            0..=2 => kept.extend([client, server]),
            3 => {
                closed.push(cookie(&client));
                drop(client);
                read_to_end(&server);
            }
            _ => {
                closed.push(cookie(&client));
                drop(client);
                kept.push(server);
            }
        }
    }
    let failing = Net::V4.socket();
    failing.connect(&Net::V4.at(8080).into()).expect_err("no port is left");
    Net::V4.socket().bind(&Net::V4.at(8080).into()).expect_err("the port is taken");
    // Acknowledgements of a FIN may be delayed, and none may be in flight when the first tracer
    // stops.
    for client in closed {
        tracer.wait_for("TIME_WAIT", |record| {
            record["cookie"] == client && record["type"] == "time_wait"
        });
    }
    let recording = tracer.finish();
    kill_process(Pid::from_child(&live), Signal::TERM).expect("portlife runs");
    let mut reported = Vec::new();
    live.stdout.take().expect("stdout is piped").read_to_end(&mut reported).expect("a report");
    assert!(live.wait().expect("the process exits").success());
    let recording: String = recording.records.iter().map(|record| format!("{record}\n")).collect();
    let output = report_on(recording.as_bytes(), &["-o", "json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let (live, recorded) = (parse(&reported), parse(&output.stdout));
    assert_eq!(live["verdict"]["kind"], "destination_exhausted", "{live:#}");
    assert_eq!(live["failures"].as_array().map(Vec::len), Some(2), "{live:#}");
    let (live, recorded) = (without_times(live), without_times(recorded));
    let (live, recorded) = (format!("{live:#}"), format!("{recorded:#}"));
    let differing: Vec<_> =
        live.lines().zip(recorded.lines()).filter(|(live, recorded)| live != recorded).collect();
    assert!(live == recorded, "live and recorded: {differing:#?}\n{live}");
    // The same lines give the same report, to the last digit.
    let again = report_on(recording.as_bytes(), &["-o", "json"]);
    assert_eq!(again.stdout, output.stdout);
}

#[test]
fn settings_precede_the_records_of_a_namespace_and_are_repeated_when_they_change() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.set("ipv4/ip_local_port_range", "50000 50019").expect("the setting can be written");
    sandbox
        .set("ipv4/ip_local_reserved_ports", "50001,50003-50004,1")
        .expect("the setting can be written");
    let mut tracer = Tracer::start(&sandbox);
    let _first = Net::V4.bound(0);
    tracer.wait_for("bind", |record| record["type"] == "bind");
    sandbox.set("ipv4/ip_local_port_range", "50000 50009").expect("the setting can be written");
    Net::V4
        .socket()
        .bind(&"192.0.2.1:9".parse::<std::net::SocketAddr>().expect("an address").into())
        .expect_err("the address is not ours");
    tracer.wait_for("change", |record| {
        record["type"] == "namespace" && record["range_high"] == 50_009
    });
    let recording = tracer.finish();
    let reported: Vec<_> = recording
        .records
        .iter()
        .filter(|record| record["type"] == "namespace" || record["type"] == "bind")
        .map(|record| json!([record["type"], record["range_high"], record["capacity"]]))
        .collect();
    assert_eq!(
        reported,
        [
            json!(["namespace", 50_019, 17]),
            json!(["bind", null, null]),
            json!(["namespace", 50_009, 7]),
        ]
    );
    let first = recording.records.iter().find(|record| record["type"] == "namespace");
    let first = first.expect("the record was seen");
    assert_eq!(first["netns"], sandbox.netns().0);
    assert_eq!(first["reserved"], "1,50001,50003-50004");
}

#[test]
fn settings_are_reported_for_namespaces_with_leases_at_start() {
    let Some(sandbox) = sandbox() else { return };
    let _held = Net::V4.bound(20_000);
    let mut tracer = Tracer::start(&sandbox);
    if !tracer.sees("task_file") {
        return;
    }
    let recording = tracer.finish();
    let types: Vec<_> =
        recording.records.iter().filter_map(|record| record["type"].as_str()).collect();
    assert_eq!(types, ["start", "namespace", "held", "summary"]);
}

#[test]
fn an_unreadable_recording_exits_with_1_and_a_damaged_one_does_not() {
    let none = Command::new(BINARY)
        .args(["report", "--from", "/nonexistent/recording"])
        .output()
        .expect("portlife runs");
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(
        stderr(&none),
        "portlife: /nonexistent/recording cannot be opened: it does not exist\n"
    );
    let directory =
        Command::new(BINARY).args(["report", "--from", "/"]).output().expect("portlife runs");
    assert_eq!(directory.status.code(), Some(1));
    assert_eq!(stderr(&directory), "portlife: / cannot be read: it is a directory\n");
    let empty = report_on(b"", &[]);
    assert_eq!(empty.status.code(), Some(1));
    assert!(stderr(&empty).starts_with("portlife: stdin: no record could be read"));
    assert!(empty.stdout.is_empty());
    let garbage = report_on(b"\xff\xfe\x00\nhello\n", &[]);
    assert_eq!(garbage.status.code(), Some(1));
    assert!(stderr(&garbage).contains("stdin:2: expected a record"), "{}", stderr(&garbage));
    let start = br#"{"v":1,"type":"start","time":"2026-01-02T03:04:05Z","mono_ns":1,"version":"0","kernel":"6.1","hooks":{},"held":0}"#;
    let damaged = report_on(&[&start[..], b"\n", &start[..50]].concat(), &[]);
    assert_eq!(damaged.status.code(), Some(0));
    assert!(stderr(&damaged).contains("stdin:2: expected the end of the last record"));
    assert!(String::from_utf8_lossy(&damaged.stdout).starts_with("HEALTHY"));
    let usage = Command::new(BINARY)
        .args(["report", "--from", "-", "--duration", "1"])
        .stdin(File::open("/dev/null").expect("it is there"))
        .output()
        .expect("portlife runs");
    assert_eq!(usage.status.code(), Some(2));
}
