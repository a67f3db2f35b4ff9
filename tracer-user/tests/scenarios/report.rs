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
        .expect("it starts");
    // It reads all of it before it writes.
    child.stdin.take().expect("stdin is piped").write_all(input).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn parse(stdout: &[u8]) -> Value {
    serde_json::from_slice(stdout)
        .unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(stdout)))
}

/// A report without what two tracers cannot measure alike: each stamps its own facts.
fn without_times(mut report: Value) -> Value {
    const TIMES: [&str; 21] = [
        // What is held for nothing must be held for long.
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
fn a_report_on_a_recording_is_that_of_the_live_stream() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.set("ipv4/ip_local_port_range", "60000 60009").expect("it can be set");
    sandbox.set("ipv4/tcp_tw_reuse", "0").expect("it can be set");
    let netns = sandbox.netns().0.to_string();
    let before = Net::V4.bound(20_000);
    let mut tracer = Tracer::start(&sandbox);
    let mut live = Command::new(BINARY)
        .args(["report", "-o", "json", "-n", &netns])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut said = String::new();
    let mut live_stderr = BufReader::new(live.stderr.take().expect("stderr is piped"));
    while !said.contains("observing on") {
        assert!(live_stderr.read_line(&mut said).expect("text") > 0, "it ended: {said}");
    }
    // Connections that stay, TIME_WAITs, a CLOSE_WAIT, failures of two kinds.
    let listener = Net::V4.bound(8080);
    listener.listen(64).expect("it listens");
    let mut kept: Vec<Socket> = vec![before];
    let mut closed = Vec::new();
    for round in 0..10 {
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        // Fewer than half end, so that it is no pile of TIME_WAITs whatever has arrived by then.
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
    // Acknowledgements of a FIN may be delayed; nothing must be on its way when the first ends.
    for client in closed {
        tracer.wait_for("TIME_WAIT", |record| {
            record["cookie"] == client && record["type"] == "time_wait"
        });
    }
    let story = tracer.finish();
    kill_process(Pid::from_child(&live), Signal::TERM).expect("it runs");
    let mut reported = Vec::new();
    live.stdout.take().expect("stdout is piped").read_to_end(&mut reported).expect("a report");
    assert!(live.wait().expect("it ends").success());
    let recording: String = story.records.iter().map(|record| format!("{record}\n")).collect();
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
    // The same lines make the same report, to the last digit.
    let again = report_on(recording.as_bytes(), &["-o", "json"]);
    assert_eq!(again.stdout, output.stdout);
}

#[test]
fn the_settings_of_a_namespace_come_before_what_happens_there_and_again_when_they_change() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.set("ipv4/ip_local_port_range", "50000 50019").expect("it can be set");
    sandbox.set("ipv4/ip_local_reserved_ports", "50001,50003-50004,1").expect("it can be set");
    let mut tracer = Tracer::start(&sandbox);
    let _first = Net::V4.bound(0);
    tracer.wait_for("bind", |record| record["type"] == "bind");
    sandbox.set("ipv4/ip_local_port_range", "50000 50009").expect("it can be set");
    Net::V4
        .socket()
        .bind(&"192.0.2.1:9".parse::<std::net::SocketAddr>().expect("an address").into())
        .expect_err("the address is not ours");
    tracer.wait_for("change", |record| {
        record["type"] == "namespace" && record["range_high"] == 50_009
    });
    let story = tracer.finish();
    let told: Vec<_> = story
        .records
        .iter()
        .filter(|record| record["type"] == "namespace" || record["type"] == "bind")
        .map(|record| json!([record["type"], record["range_high"], record["capacity"]]))
        .collect();
    assert_eq!(
        told,
        [
            json!(["namespace", 50_019, 17]),
            json!(["bind", null, null]),
            json!(["namespace", 50_009, 7]),
        ]
    );
    let first = story.records.iter().find(|record| record["type"] == "namespace");
    let first = first.expect("it was told");
    assert_eq!(first["netns"], sandbox.netns().0);
    assert_eq!(first["reserved"], "1,50001,50003-50004");
}

#[test]
fn settings_are_told_of_namespaces_in_which_something_is_held_already() {
    let Some(sandbox) = sandbox() else { return };
    let _held = Net::V4.bound(20_000);
    let mut tracer = Tracer::start(&sandbox);
    if !tracer.sees("task_file") {
        return;
    }
    let story = tracer.finish();
    let types: Vec<_> = story.records.iter().filter_map(|record| record["type"].as_str()).collect();
    assert_eq!(types, ["start", "namespace", "held", "summary"]);
}

#[test]
fn a_recording_that_cannot_be_read_ends_it_with_1_and_one_that_is_damaged_does_not() {
    let none = Command::new(BINARY)
        .args(["report", "--from", "/nonexistent/recording"])
        .output()
        .expect("it runs");
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(
        stderr(&none),
        "portlife: /nonexistent/recording cannot be opened: it does not exist\n"
    );
    let directory = Command::new(BINARY).args(["report", "--from", "/"]).output().expect("it runs");
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
        .expect("it runs");
    assert_eq!(usage.status.code(), Some(2));
}
