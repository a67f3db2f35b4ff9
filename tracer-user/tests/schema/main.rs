//! What is written with `-o json` is what `docs/records.schema.json` says: real streams and answers
//! are validated against it, field by field. Needs root, and says so if it does not have it.

mod manual;
mod schema;
#[path = "../scenarios/support.rs"]
#[expect(dead_code, reason = "the scenarios use the rest of it")]
mod support;
mod traffic;

use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;
use tracer_user::{
    kernel::namespace::sandbox::Sandbox,
    model::{Kind, Reason},
    record::names::Named,
};

use schema::Schema;
use support::{Net, Tracer, sandbox};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");

/// The answers of commands, which do not occur in a stream.
const ANSWERS: [&str; 4] = ["report", "why", "why_destination", "check"];

/// Record types that do not occur on every kernel: the hook without which they cannot, and why.
const NEEDS_HOOK: [(&str, &str, &str); 1] = [(
    "scan",
    "tcp_send_reset",
    "before Linux 6.10 the tracepoint does not fire for segments that go to closed ports",
)];

/// Tables of a report that stay empty here, and why.
const EMPTY_TABLES: [(&str, &str); 1] = [(
    "jumps",
    "a jump is one against the rate of many seconds before, longer than a test may take",
)];

#[test]
fn every_record_type_occurs_in_a_stream_and_is_valid() {
    let Some(sandbox) = sandbox() else { return };
    let schema = Schema::load();
    let (mut records, hooks) = incident(&sandbox);
    records.extend(loss(&sandbox));
    for record in &records {
        schema.assert_valid(record);
    }
    let seen: BTreeSet<&str> = records.iter().filter_map(|it| it["type"].as_str()).collect();
    for name in schema.names().filter(|name| !ANSWERS.contains(name)) {
        let excuse = NEEDS_HOOK.iter().find(|(excused, hook, _)| {
            *excused == name && hooks[*hook].as_str().is_some_and(|it| it.starts_with("not"))
        });
        match excuse {
            Some((_, _, reason)) => println!("skipped: no `{name}` record occurs here: {reason}"),
            None => assert!(seen.contains(name), "no `{name}` record occurred"),
        }
    }
}

#[test]
fn the_schema_has_the_types_that_can_be_asked_for() {
    let output =
        Command::new(BINARY).args(["trace", "-e", "no_such_type"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, list) = said.split_once("there are ").expect("it says which types there are");
    let list = list.lines().next().expect("there is a line");
    let asked_for = list.split(", ").map(str::trim);
    // What a filter must not hide, and the answers of other commands, cannot be asked for.
    let others = ["start", "loss", "verify", "summary"];
    let all: BTreeSet<&str> = asked_for.chain(others).chain(ANSWERS).collect();
    assert_eq!(Schema::load().names().collect::<BTreeSet<_>>(), all);
}

#[test]
fn the_schema_has_the_names_that_the_code_has() {
    fn names<T: Named>() -> Vec<&'static str> {
        T::ALL.iter().map(|value| value.name()).collect()
    }
    assert_eq!(schema::choices("/$defs/kind/enum"), names::<Kind>());
    assert_eq!(schema::choices("/$defs/release/properties/reason/enum"), names::<Reason>());
}

#[test]
fn a_record_that_the_schema_does_not_describe_is_not_valid() {
    let schema = Schema::load();
    let loss = serde_json::json!({
        "v": 1, "type": "loss", "time": "2026-01-02T03:04:05.000000006Z", "mono_ns": 7,
        "netns": null, "count": 3, "where": "ring", "healed": true
    });
    schema.assert_valid(&loss);
    let changed = |field: &str, value: Value| {
        let mut changed = loss.clone();
        changed[field] = value;
        changed
    };
    let mut incomplete = loss.clone();
    incomplete.as_object_mut().expect("it is an object").remove("healed");
    for wrong in [
        incomplete,
        changed("something_new", Value::Null),
        changed("where", "elsewhere".into()),
        changed("count", "3".into()),
        changed("time", "yesterday".into()),
        changed("type", "weather".into()),
        changed("v", 2.into()),
    ] {
        assert!(!schema.is_valid(&wrong), "{wrong}");
    }
}

#[test]
fn reports_of_recordings_are_valid_and_no_table_stays_empty() {
    let Some(sandbox) = sandbox() else { return };
    let schema = Schema::load();
    let (records, hooks) = incident(&sandbox);
    let recording: String = records.iter().map(|record| format!("{record}\n")).collect();
    let report = report_on(recording.as_bytes());
    schema.assert_valid(&report);
    let tables = report.as_object().expect("it is an object").iter();
    for (name, table) in tables.filter_map(|(name, table)| Some((name, table.as_array()?))) {
        let excuse = EMPTY_TABLES.iter().find(|(excused, _)| excused == name);
        let needs_hook = name == "scans"
            && hooks["tcp_send_reset"].as_str().is_some_and(|it| it.starts_with("not"));
        match excuse {
            _ if needs_hook => {}
            Some((_, reason)) => assert!(table.is_empty(), "`{name}` is filled though {reason}"),
            None => assert!(!table.is_empty(), "`{name}` is empty"),
        }
    }
    // As little as there can be: a recording of nothing, and one that is cut off.
    let first = format!("{}\n", records.first().expect("there is a start record"));
    schema.assert_valid(&report_on(first.as_bytes()));
    let middle = recording.lines().nth(10).expect("there are more lines");
    schema.assert_valid(&report_on(middle.as_bytes()));
}

#[test]
fn a_live_report_is_valid() {
    let Some(sandbox) = sandbox() else { return };
    let _held = traffic::Held::new();
    let netns = sandbox.netns().0.to_string();
    let arguments = ["report", "-o", "json", "-q", "--duration", "1", "-n", &netns];
    let output = Command::new(BINARY).args(arguments).output().expect("it runs");
    Schema::load().assert_valid(&answer(&output, 0));
}

#[test]
fn the_answers_of_why_are_valid() {
    let Some(sandbox) = sandbox() else { return };
    let schema = Schema::load();
    let held = traffic::Held::new();
    let netns = sandbox.netns().0.to_string();
    let mut phases = BTreeSet::new();
    let ports = held.ports().into_iter().chain([1, 80, 40_000, 65_535]);
    // The server, a destination without connections, and one without a route.
    let destinations = [Net::V4.at(traffic::SERVER), Net::V6.at(1), "192.0.2.1:1".parse().unwrap()];
    let questions = ports.map(|port| port.to_string()).chain(destinations.map(|it| it.to_string()));
    for question in questions {
        let output = Command::new(BINARY)
            .args(["why", &question, "-o", "json", "-n", &netns])
            .output()
            .expect("it runs");
        if output.status.code() == Some(3) {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            return;
        }
        let answer = answer(&output, 0);
        schema.assert_valid(&answer);
        let Some(holders) = answer["namespaces"][0]["holders"].as_array() else { continue };
        phases.extend(holders.iter().filter_map(|it| it["phase"].as_str().map(str::to_owned)));
    }
    let expected = ["bound", "closing", "established", "listen", "time_wait"];
    assert_eq!(phases.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn the_answers_of_check_are_valid() {
    let Some(sandbox) = sandbox() else { return };
    let schema = Schema::load();
    let _held = traffic::Held::new();
    let netns = sandbox.netns().0.to_string();
    let check = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["check", "-o", "json"]).args(arguments);
        command
    };
    let able = check(&["-n", &netns]).output().expect("it runs");
    schema.assert_valid(&answer(&able, 0));
    const NOBODY: u32 = 65_534;
    let unable = check(&[]).uid(NOBODY).gid(NOBODY).output().expect("it runs");
    schema.assert_valid(&answer(&unable, 3));
    // A namespace that does not exist has no settings to judge.
    let elsewhere = check(&["-n", "1"]).output().expect("it runs");
    schema.assert_valid(&answer(&elsewhere, 0));
}

/// The records of a run in which about everything happens, and the hooks that were tried.
fn incident(sandbox: &Sandbox) -> (Vec<Value>, Value) {
    sandbox.set("ipv4/ip_local_port_range", "50000 50009").expect("it can be set");
    let held = traffic::Held::new();
    let netns = sandbox.netns().0.to_string();
    let mut tracer = Tracer::start_with(&["-n", &netns, "--verify", "0.2"]);
    traffic::cause_trouble(sandbox, &mut tracer, &held);
    tracer.verify();
    let story = tracer.finish_with_losses();
    let hooks = story.records.first().expect("there is a start record")["hooks"].clone();
    (story.records, hooks)
}

/// The records of a tracer whose ring overflows.
fn loss(sandbox: &Sandbox) -> Vec<Value> {
    let netns = sandbox.netns().0.to_string();
    let arguments = ["-n", &netns, "--ring-bytes", "4096", "--verify", "0.2"];
    let mut tracer = Tracer::start_with(&arguments);
    tracer.signal(Signal::STOP);
    for port in 20_000..20_200 {
        drop(Net::V4.bound(port));
    }
    tracer.signal(Signal::CONT);
    tracer.wait_for("loss", |record| record["type"] == "loss");
    tracer.finish_with_losses().records
}

fn report_on(recording: &[u8]) -> Value {
    let mut child = Command::new(BINARY)
        .args(["report", "-o", "json", "-q", "--from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // It reads all of it before it writes.
    child.stdin.take().expect("stdin is piped").write_all(recording).expect("it reads");
    answer(&child.wait_with_output().expect("it ends"), 0)
}

/// The only object of an answer.
fn answer(output: &Output, status: i32) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}
