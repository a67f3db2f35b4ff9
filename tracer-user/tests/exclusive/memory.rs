//! The tracer's memory is bounded, whatever the host and the reader of its output do.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::{SockAddr, Socket};
use tracer_user::kernel::namespace::sandbox::Sandbox;

use crate::{
    alone, churn,
    support::{Net, Pair, Tracer, addr, cookie, sandbox},
};

/// Unoptimised builds do a tenth of the work.
const SCALE: u32 = if cfg!(debug_assertions) { 1 } else { 10 };
const PATIENCE: Duration = Duration::from_secs(120);
const MB: u64 = 1 << 20;

/// A tracer whose records are counted by type.
struct Counted {
    child: Child,
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
    reading: Option<JoinHandle<Value>>,
}

impl Counted {
    fn start(arguments: &[&str]) -> Self {
        let (child, mut records) = start(arguments);
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let counted = Arc::clone(&counts);
        let reading = thread::spawn(move || {
            let mut line = String::new();
            let mut last = String::new();
            while records.read_line(&mut line).expect("the tracer writes UTF-8") > 0 {
                let kind = kind_of(&line).to_owned();
                *counted.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() +=
                    1;
                std::mem::swap(&mut line, &mut last);
                line.clear();
            }
            serde_json::from_str(&last).expect("the last record")
        });
        Self { child, counts, reading: Some(reading) }
    }

    fn count(&self, kind: &str) -> u64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(kind).copied().unwrap_or_default()
    }

    fn wait_for(&self, kind: &str, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(kind) < count {
            let seen = self.count(kind);
            assert!(Instant::now() < deadline, "{seen} of {count} records '{kind}' came");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn resident(&self) -> u64 {
        resident(&self.child)
    }

    /// Stops the tracer and returns its summary.
    fn finish(mut self) -> Value {
        signal(&self.child, Signal::TERM);
        let summary = self.reading.take().map(|reading| reading.join().expect("it reads"));
        assert!(self.child.wait().expect("the process exits").success());
        summary.expect("it was read")
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // It still runs only if the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a tracer, and returns once it traces.
fn start(arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portlife"))
        .args(["trace", "-o", "json"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tracer starts");
    let mut records = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut first = String::new();
    records.read_line(&mut first).expect("the first record");
    assert_eq!(kind_of(&first), "start");
    (child, records)
}

fn kind_of(line: &str) -> &str {
    let (_, rest) = line.split_once("\"type\":\"").expect("a record has a type");
    rest.split_once('"').expect("the type ends").0
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("the tracer runs");
}

/// Resident memory in bytes.
fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    let status = status.expect("the tracer runs");
    let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = field.and_then(|field| field.trim().strip_suffix(" kB"));
    kb.and_then(|kb| kb.parse::<u64>().ok()).expect("a number of KB") * 1024
}

#[test]
fn short_lived_namespaces_leave_nothing_behind() {
    let _turn = alone();
    if sandbox().is_none() {
        return;
    }
    let own_pid = std::process::id().to_string();
    let tracer = Counted::start(&["-e", "accept", "-p", &own_pid]);
    let each = u64::from(250 * SCALE).max(1200);
    let mut connections = 0;
    let mut memory = Vec::new();
    let began = Instant::now();
    // In a thread, because it stays in the last namespace.
    let mut live_through = |count: u64| {
        let lives = thread::spawn(move || {
            for _ in 0..count {
                let _sandbox = Sandbox::enter_new().expect("another namespace can be made");
                let listener = Net::V4.listener();
                let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
                drop((client, server));
            }
        });
        lives.join().expect("the thread does not panic");
        connections += count;
        tracer.wait_for("accept", connections);
        memory.push(tracer.resident());
    };
    for _ in 0..4 {
        live_through(each);
    }
    println!("{} namespaces in {:?}, bytes: {memory:?}", 4 * each, began.elapsed());
    let [_, early, _, late] = memory[..] else { panic!("four measurements") };
    // Two pages per namespace would be more than twice as much.
    assert!(late < early + 2 * each * 8192, "{memory:?}");
    let summary = tracer.finish();
    assert_eq!(summary["totals"]["accept"], connections);
}

#[test]
fn failed_connects_are_all_reported_and_leave_nothing_behind() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let listener = Net::V4.listener();
    let closed = Net::V6.bound(0);
    sandbox.set("ipv4/ip_local_port_range", "50000 50000").expect("a range of one port");
    let _taken = Pair::connect(Net::V4.socket(), &listener);
    let tracer = Counted::start(&["-n", &netns, "-e", "fail", "-e", "connect"]);
    let each = 12_500 * SCALE;
    let errno = |socket: &Socket, to: &SockAddr| {
        let error = socket.connect(to).expect_err("no port, or no listener");
        error.raw_os_error().expect("an errno")
    };
    let (full, refusing) = (addr(&listener).into(), addr(&closed).into());
    let mut memory = Vec::new();
    for round in 1..=4 {
        for _ in 0..each {
            assert_eq!(errno(&Net::V4.socket(), &full), libc::EADDRNOTAVAIL);
            assert_eq!(errno(&Net::V6.socket(), &refusing), libc::ECONNREFUSED);
        }
        tracer.wait_for("fail", u64::from(round * each));
        tracer.wait_for("connect", u64::from(round * each));
        memory.push(tracer.resident());
    }
    println!("{} failures, bytes: {memory:?}", 8 * each);
    let [_, early, _, late] = memory[..] else { panic!("four measurements") };
    // If the tracer gets little CPU time, its two output buffers grow to 4 MB each.
    assert!(late < early + 12 * MB, "{memory:?}");
    let summary = tracer.finish();
    assert_eq!(summary["lost"], 0);
    assert_eq!(summary["totals"]["fail"], 4 * each);
}

#[test]
fn a_stalled_reader_costs_bounded_memory_and_gets_a_loss_record() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let (mut child, mut records) = start(&["-n", &netns]);
    // About 200 MB of records, of which 32 MB may be queued.
    let mut most = 0;
    for _ in 0..50 {
        churn(1000);
        most = most.max(resident(&child));
    }
    assert!(most < 80 * MB, "{most}");
    println!("at most {} MB while the reader was stalled", most / MB);
    let mut dropped = 0;
    let mut line = String::new();
    let mut next = |what: &str| {
        line.clear();
        assert!(
            records.read_line(&mut line).expect("UTF-8") > 0,
            "the tracer exited before {what}"
        );
        line.clone()
    };
    loop {
        let record = next("the loss");
        if kind_of(&record) == "loss" {
            let record: Value = serde_json::from_str(&record).expect("JSON");
            assert_eq!((&record["where"], &record["healed"]), (&"reader".into(), &false.into()));
            dropped += record["count"].as_u64().expect("a count");
            break;
        }
    }
    signal(&child, Signal::TERM);
    let summary = loop {
        let record = next("the summary");
        let record: Value = serde_json::from_str(&record).expect("JSON");
        match record["type"].as_str() {
            Some("loss") => dropped += record["count"].as_u64().expect("a count"),
            Some("summary") => break record,
            _ => {}
        }
    };
    assert!(child.wait().expect("the process exits").success());
    assert_eq!((&summary["lost"], &summary["dropped"]), (&0.into(), &dropped.into()));
    assert_eq!(summary["facts_seen"], summary["facts_received"]);
}

#[test]
fn a_namespace_that_reuses_an_inode_has_no_history() {
    const PORT: u16 = 20_000;
    let _turn = alone();
    if sandbox().is_none() {
        return;
    }
    let use_port = || {
        let sandbox = Sandbox::enter_new().expect("another namespace can be made");
        drop(Net::V4.bound(PORT));
        let known = Net::V4.bound(PORT);
        (sandbox.netns().0, cookie(&known))
    };
    let mut tracer = Tracer::start_with(&["-P", &PORT.to_string()]);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut inodes = BTreeMap::new();
    // The kernel assigns the lowest free number.
    let (second, first_of_second) = loop {
        let (inode, cookie) = thread::spawn(use_port).join().expect("bind() succeeds");
        if inodes.insert(inode, cookie).is_some() {
            break (inode, cookie);
        }
        if Instant::now() > deadline {
            println!("skipped: this kernel does not reuse the inodes of namespaces");
            return;
        }
    };
    let last = tracer.wait_for("the last bind", |record| {
        record["type"] == "bind" && record["cookie"] == first_of_second
    });
    assert!(last["reuse"].is_object(), "the second bind of a namespace follows the first: {last}");
    let recording = tracer.finish();
    let binds: Vec<_> = recording
        .records
        .iter()
        .filter(|record| record["type"] == "bind" && record["netns"] == second)
        .map(|record| record["reuse"].is_object())
        .collect();
    assert_eq!(binds, [false, true, false, true], "of each namespace the first bind is new");
}

#[test]
fn starting_and_stopping_tracers_disturbs_no_traffic() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            sandbox.enter().expect("its namespace");
            let mut connections = 0;
            // Panics if any call fails.
            while !is_over.load(Relaxed) {
                connections += churn(50);
            }
            connections
        });
        for round in 0..12 {
            let (mut child, records) = start(&["-n", "1", "--verify", "0.1"]);
            match round % 4 {
                0 => signal(&child, Signal::KILL),
                1 => {
                    signal(&child, Signal::STOP);
                    thread::sleep(Duration::from_millis(50));
                    signal(&child, Signal::KILL);
                }
                2 => {
                    signal(&child, Signal::STOP);
                    thread::sleep(Duration::from_millis(50));
                    signal(&child, Signal::CONT);
                    signal(&child, Signal::TERM);
                }
                _ => signal(&child, Signal::TERM),
            }
            drop(records);
            let status = child.wait().expect("the process exits");
            assert!(round % 4 < 2 || status.success(), "{status}");
        }
        is_over.store(true, Relaxed);
        let connections = load.join().expect("nothing disturbs the load");
        println!("{connections} connections while 12 tracers came and went");
    });
}
