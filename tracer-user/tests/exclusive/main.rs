//! Scenarios that count events on the whole host and therefore run alone: losses are counted
//! exactly and healed, and a killed tracer leaves nothing behind.

mod firings;
#[path = "../scenarios/support.rs"]
#[expect(dead_code, reason = "the other scenarios use the rest of it")]
mod support;

mod memory;

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use support::{Net, Pair, Tracer, addr, cookie, read_to_end, reset_on_close, sandbox};

/// Lets these tests run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes connections that end in every way. Returns their number.
fn churn(rounds: usize) -> usize {
    let listener = Net::V4.listener();
    for round in 0..rounds {
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        match round % 4 {
            0 => reset_on_close(&client),
            1 => drop(server),
            2 => {
                drop(client);
                read_to_end(&server);
            }
            _ => drop(Net::V6.bound(0)),
        }
    }
    rounds
}

#[test]
fn every_fact_is_accounted_for() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    let tracer = Tracer::start(&sandbox);
    let connections = churn(2000);
    let recording = tracer.finish();
    let summary = recording.records.last().expect("the summary");
    let number = |field: &str| summary[field].as_u64().expect("a number");
    assert_eq!(number("facts_seen"), number("facts_filtered") + number("facts_received"));
    // The facts of these connections were received, those of the rest of the host filtered out.
    assert!(number("facts_received") > 0);
    assert_eq!(summary["totals"]["connect"], connections);
    assert_eq!(summary["totals"]["accept"], connections);
}

#[test]
fn a_stopped_agent_loses_exactly_what_overflowed_and_heals() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    let before = Net::V4.bound(20_000);
    let netns = sandbox.netns().0.to_string();
    let mut tracer = Tracer::start_with(&["-n", &netns, "--ring-bytes", "4096", "--verify", "0.2"]);
    tracer.signal(Signal::STOP);
    let listener = Net::V4.listener();
    // Connections that outlive the loss, and others that begin and end during it.
    let kept: Vec<_> = (0..50).map(|_| Pair::connect(Net::V4.socket(), &listener)).collect();
    let before_cookie = cookie(&before);
    drop(before);
    churn(500);
    tracer.signal(Signal::CONT);
    let loss = tracer.wait_for("loss", |record| record["type"] == "loss");
    assert_eq!(loss["where"], "ring");
    assert_eq!(loss["healed"], true);
    let after = loss["mono_ns"].as_u64();
    let verify = tracer.wait_for("verify", |record| {
        record["type"] == "verify" && record["mono_ns"].as_u64() >= after
    });
    assert_eq!((&verify["missing"], &verify["extra"]), (&0.into(), &0.into()), "{verify}");
    // The leases whose beginning was lost are healed: each ends with its port and owner.
    for Pair { client, server } in kept {
        let ends = [&client, &server].map(|socket| (cookie(socket), addr(socket).port()));
        reset_on_close(&client);
        drop((client, server));
        for (own_cookie, port) in ends {
            let release = tracer.wait_for("release", |record| {
                record["cookie"] == own_cookie && record["type"] == "release"
            });
            assert_eq!(release["local_port"], port);
            assert_eq!(release["pid"], std::process::id());
        }
    }
    tracer.wait_for("release", |record| {
        record["cookie"] == before_cookie && record["type"] == "release"
    });
    let recording = tracer.finish_with_losses();
    let summary = recording.records.last().expect("the summary");
    let number = |field: &str| summary[field].as_u64().expect("a number");
    let accounted = number("facts_filtered") + number("facts_received") + number("lost");
    assert_eq!(number("facts_seen"), accounted);
    let reported: u64 = recording
        .records
        .iter()
        .filter(|record| record["type"] == "loss")
        .filter_map(|record| record["count"].as_u64())
        .sum();
    assert_eq!(reported, number("lost"));
    assert!(reported > 1000, "a ring of 4096 bytes cannot hold the facts of 550 connections");
}

#[test]
fn a_verified_ledger_agrees_with_the_kernel_under_load() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let mut tracer = Tracer::start_with(&["-n", &netns, "--verify", "0.1"]);
    let mut latest = 0;
    for _ in 0..3 {
        churn(1500);
        let record = tracer.wait_for("another comparison", |record| {
            record["type"] == "verify" && record["mono_ns"].as_u64() > Some(latest)
        });
        latest = record["mono_ns"].as_u64().expect("a number");
    }
    let recording = tracer.finish();
    let verified: Vec<_> =
        recording.records.iter().filter(|record| record["type"] == "verify").collect();
    assert!(!verified.is_empty());
    for record in verified {
        assert_eq!((&record["missing"], &record["extra"]), (&0.into(), &0.into()), "{record}");
    }
}

#[test]
fn a_killed_tracer_leaves_nothing_behind_and_disturbs_no_traffic() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    for _ in 0..5 {
        let mut tracer = Tracer::start(&sandbox);
        let programs = programs_of(tracer.pid());
        assert!(programs > 10, "{programs}");
        // Panics if any call fails.
        churn(200);
        tracer.signal(Signal::STOP);
        churn(200);
        let pid = tracer.pid();
        tracer.signal(Signal::KILL);
        tracer.wait();
        churn(200);
        // Its descriptors are gone, and with them what they referred to.
        assert!(!fs::exists(format!("/proc/{}/fdinfo", pid.as_raw_nonzero())).unwrap_or(true));
        assert!(kill_process(pid, Signal::CONT).is_err());
    }
    // Links end with their descriptors; the kernel frees the programs an RCU grace period later.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !loaded_programs().is_empty() {
        assert!(Instant::now() < deadline, "still loaded: {:?}", loaded_programs());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Number of eBPF programs that a process holds.
fn programs_of(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fdinfo", pid.as_raw_nonzero()))
        .expect("the process runs")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter(|info| info.contains("prog_tag:"))
        .count()
}

/// Names of portlife's programs that are still loaded.
fn loaded_programs() -> Vec<String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| name.starts_with("inet_sock_set_s") || name.starts_with("sock_ops"))
        .collect()
}
