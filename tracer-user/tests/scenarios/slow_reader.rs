//! Readers of stdout that are slow: they harm only themselves.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    pipe::fcntl_setpipe_size,
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use socket2::Socket;

use crate::support::{Net, sandbox};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");
/// The least that a pipe holds.
const PIPE_BYTES: usize = 4096;

/// Starts portlife with a pipe that holds little.
fn start(arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(BINARY)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    let stdout = child.stdout.take().expect("stdout is piped");
    fcntl_setpipe_size(&stdout, PIPE_BYTES).expect("a pipe can be small");
    (child, BufReader::new(stdout))
}

fn terminate(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).expect("portlife runs");
}

fn stderr(child: &mut Child) -> String {
    let mut messages = String::new();
    let stderr = child.stderr.as_mut().expect("stderr is piped");
    stderr.read_to_string(&mut messages).expect("the messages are UTF-8");
    messages
}

#[test]
fn a_stalled_reader_costs_records_but_no_facts_no_failures_and_no_comparisons() {
    const BINDS: u64 = 30_000;
    const FAILURES: u64 = 50;
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let (mut child, mut reader) = start(&[
        "trace",
        "-o",
        "json",
        "-n",
        &netns,
        "--verify",
        "0.05",
        "--queue-bytes",
        "2000000",
    ]);
    let mut line = String::new();
    reader.read_line(&mut line).expect("the start record");
    let start: Value = serde_json::from_str(&line).expect("the record is JSON");
    let sees_failed_binds = ["sys_exit", "inet_bind"].iter().any(|hook| {
        start["hooks"][hook].as_str().is_some_and(|how| !how.starts_with("not attached"))
    });
    // From here on nothing is read, while much happens.
    let taken = Net::V4.listener_on(8080);
    for number in 0..BINDS {
        drop(Net::V4.bound(0));
        if number % (BINDS / FAILURES) == 0 {
            Net::V4.socket().bind(&Net::V4.at(8080).into()).expect_err("the port is taken");
        }
    }
    terminate(&child);
    let records: Vec<Value> = reader
        .lines()
        .map(|line| line.expect("the records are UTF-8"))
        .map(|line| serde_json::from_str(&line).expect("the record is JSON"))
        .collect();
    assert_eq!(child.wait().expect("the process exits").code(), Some(0), "{}", stderr(&mut child));
    drop(taken);
    let of_type = |name: &str| records.iter().filter(|record| record["type"] == name).count();
    let summary = records.last().expect("there is a summary");
    let number = |name: &str| summary[name].as_u64().expect("a number");
    assert_eq!(summary["type"], "summary");

    assert_eq!(number("lost"), 0, "{summary}");
    assert_eq!(number("facts_received"), number("facts_seen") - number("facts_filtered"));
    let verified: Vec<_> = records.iter().filter(|record| record["type"] == "verify").collect();
    assert!(verified.len() >= 2, "{summary}");
    for verify in verified {
        assert_eq!((&verify["missing"], &verify["extra"]), (&0.into(), &0.into()), "{verify}");
    }

    let dropped = number("dropped");
    assert!(dropped > 0, "the queue is too small for all: {summary}");
    let losses: Vec<_> = records.iter().filter(|record| record["type"] == "loss").collect();
    assert!(losses.iter().all(|loss| loss["where"] == "reader"), "{losses:?}");
    assert_eq!(losses.iter().filter_map(|loss| loss["count"].as_u64()).sum::<u64>(), dropped);
    for (name, total) in summary["totals"].as_object().expect("an object") {
        assert_eq!(total.as_u64(), Some(of_type(name) as u64), "{name}");
    }
    if sees_failed_binds {
        assert_eq!(of_type("fail") as u64, FAILURES, "failures are dropped last");
    }
    // Each of the sockets was bound and released; the listener was bound and began to listen.
    let shown = ["bind", "listen", "release"].map(of_type).iter().sum::<usize>() as u64;
    assert_eq!(shown + dropped, 2 * BINDS + 2, "{summary}");
}

#[test]
fn a_report_arrives_whole_however_slow_its_reader_is() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let sockets = sockets();
    let (mut child, mut reader) = start(&["report", "-o", "json", "-n", &netns]);
    terminate_once_it_traces(&mut child);
    // Longer than the patience that a stream's reader gets.
    thread::sleep(Duration::from_millis(1500));
    let mut report = String::new();
    reader.read_to_string(&mut report).expect("the report is UTF-8");
    assert!(report.len() > PIPE_BYTES, "the pipe does not hold it: {}", report.len());
    let report: Value = serde_json::from_str(&report).expect("the report is whole");
    assert_eq!(report["type"], "report");
    assert_eq!(child.wait().expect("the process exits").code(), Some(0));
    assert_eq!(stderr(&mut child), "");
    drop(sockets);
}

#[test]
fn signals_while_the_programs_are_loaded_end_it_without_an_error() {
    let Some(sandbox) = sandbox() else { return };
    // Little is written there if it starts nevertheless.
    let netns = sandbox.netns().0.to_string();
    let (mut child, _reader) = start(&["trace", "-q", "-n", &netns]);
    let status = loop {
        if let Some(status) = child.try_wait().expect("the process can be waited for") {
            break status;
        }
        if catches_term(&child) {
            terminate(&child);
        }
        thread::sleep(Duration::from_millis(1));
    };
    assert_eq!((status.code(), stderr(&mut child).as_str()), (Some(0), ""));
}

fn catches_term(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    let caught = status.ok().and_then(|status| {
        let set = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    });
    caught.is_some_and(|caught| caught & (1 << (Signal::TERM.as_raw() - 1)) != 0)
}

#[test]
fn a_report_that_is_not_read_ends_with_an_error_at_the_second_signal() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let sockets = sockets();
    let (mut child, reader) = start(&["report", "-o", "json", "-n", &netns]);
    terminate_once_it_traces(&mut child);
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().expect("the process can be waited for") {
            break status;
        }
        assert!(Instant::now() < deadline, "a second signal ends it");
        thread::sleep(Duration::from_millis(100));
        terminate(&child);
    };
    assert_eq!(status.code(), Some(1));
    let messages = stderr(&mut child);
    assert!(messages.contains("was not written whole"), "{messages}");
    drop((reader, sockets));
}

/// Enough for a report that the pipe does not hold.
fn sockets() -> Vec<Socket> {
    let listeners = (8000..8040).map(|port| Net::V4.listener_on(port));
    let bound = (9000..9040).map(|port| Net::V4.bound(port));
    listeners.chain(bound).collect()
}

/// Ends the observation once it has begun. The report follows.
fn terminate_once_it_traces(child: &mut Child) {
    // Byte by byte, so that nothing else is taken from the pipe.
    let stderr = child.stderr.as_mut().expect("stderr is piped");
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != [b'\n'] {
        stderr.read_exact(&mut byte).expect("it says that it observes");
        line.extend(byte);
    }
    let line = String::from_utf8_lossy(&line);
    assert!(line.contains("observing"), "{line}");
    terminate(child);
}
