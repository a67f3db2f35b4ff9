//! `portlife why`: who holds a port, in which phase, and what it is good for.

use std::process::Command;

use serde_json::{Value, json};
use tracer_user::kernel::namespace::sandbox::Sandbox;

use crate::{
    connect::one_port,
    support::{Net, Pair, addr, cookie, for_each_net, read_to_end, sandbox},
};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");

/// The answer for one namespace; `None`, said aloud, if this kernel has not the lists for it.
fn why(sandbox: &Sandbox, port: u16) -> Option<Value> {
    let output = Command::new(BINARY)
        .args(["why", &port.to_string(), "-o", "json", "-n", &sandbox.netns().0.to_string()])
        .output()
        .expect("it runs");
    if output.status.code() == Some(3) {
        println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!((&answer["type"], &answer["port"]), (&json!("why"), &json!(port)));
    let [namespace] = answer["namespaces"].as_array()?.as_slice() else {
        panic!("one namespace was asked for: {answer}");
    };
    assert_eq!(namespace["netns"], sandbox.netns().0);
    Some(namespace.clone())
}

fn holders(answer: &Value) -> Vec<(u64, &str)> {
    let holders = answer["holders"].as_array().expect("a list");
    holders
        .iter()
        .map(|holder| {
            let phase = holder["phase"].as_str().expect("a name");
            (holder["cookie"].as_u64().expect("a number"), phase)
        })
        .collect()
}

#[test]
fn every_kind_of_holder_is_named() {
    for_each_net(|net, sandbox| {
        let listener = net.listener();
        let server_port = addr(&listener).port();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let client_port = addr(&client).port();
        let Some(answer) = why(sandbox, server_port) else { return };
        assert_eq!(
            holders(&answer),
            [(cookie(&listener), "listen"), (cookie(&server), "established")]
        );
        for holder in answer["holders"].as_array().expect("a list") {
            assert_eq!(holder["pid"], std::process::id());
        }
        assert_eq!(answer["bind"]["possible"], false);
        assert_eq!(answer["connect"], "bound");

        let answer = why(sandbox, client_port).expect("it did before");
        assert_eq!(holders(&answer), [(cookie(&client), "established")]);
        assert_eq!(answer["holders"][0]["kind"], "connect");
        assert_eq!(answer["holders"][0]["peer_port"], server_port);
        assert_eq!(answer["connect"], "per_destination");

        let idle = net.bound(0);
        let answer = why(sandbox, addr(&idle).port()).expect("it did before");
        assert_eq!(holders(&answer), [(cookie(&idle), "bound")]);
        assert_eq!(answer["holders"][0]["kind"], "bind_auto");
        assert_eq!(answer["connect"], "bound");

        let client_cookie = cookie(&client);
        drop(client);
        read_to_end(&server);
        drop(server);
        // The kernel may take a moment to make the TIME_WAIT of it; it then lasts a minute.
        let answer = std::iter::repeat_with(|| why(sandbox, client_port).expect("it did before"))
            .find(|answer| answer["holders"][0]["substate"] == "time_wait")
            .expect("there is no end to this");
        assert_eq!(holders(&answer), [(client_cookie, "time_wait")]);
        assert_eq!(answer["holders"][0]["pid"], Value::Null);
        let left = answer["bind"]["free_in_s"].as_f64().expect("only a TIME_WAIT holds it");
        assert!(0.0 < left && left <= 60.0, "{left}");
        let age = answer["holders"][0]["age_s"].as_f64().expect("a TIME_WAIT has an age");
        assert!((left + age - 60.0).abs() < 0.01, "{left} s left after {age} s");
    });
}

#[test]
fn a_port_that_nobody_holds_is_said_to_be_free() {
    let Some(sandbox) = sandbox() else { return };
    one_port(&sandbox, 50_000);
    for (port, connect) in [(50_000, "free"), (50_001, "outside_range")] {
        let Some(answer) = why(&sandbox, port) else { return };
        assert!(holders(&answer).is_empty());
        assert_eq!(answer["bind"]["possible"], true);
        assert_eq!(answer["connect"], connect);
    }
    sandbox.set("ipv4/ip_local_reserved_ports", "50000").expect("the setting exists");
    assert_eq!(why(&sandbox, 50_000).expect("it did before")["connect"], "reserved");
}

#[test]
fn a_server_within_the_ephemeral_range_is_told_to_reserve_its_port() {
    let Some(sandbox) = sandbox() else { return };
    let listener = Net::V4.bound(40_000);
    listener.listen(16).expect("it listens");
    sandbox.set("ipv4/ip_local_reserved_ports", "39999").expect("the setting exists");
    let Some(answer) = why(&sandbox, 40_000) else { return };
    let advice = answer["advice"].to_string();
    assert!(advice.contains("ip_local_reserved_ports=39999-40000"), "{advice}");
    sandbox.set("ipv4/ip_local_reserved_ports", "40000").expect("the setting exists");
    let answer = why(&sandbox, 40_000).expect("it did before");
    assert_eq!(answer["advice"], json!([]));
}

#[test]
fn a_lock_that_outlived_its_bind_is_told_from_one_that_did_not() {
    let Some(sandbox) = sandbox() else { return };
    one_port(&sandbox, 50_000);
    let listener = Net::V4.bound(40_000);
    listener.listen(16).expect("it listens");
    let pair = Pair::connect(Net::V4.socket(), &listener);
    let port = addr(&pair.client).port();
    let binder = Net::V4.socket();
    binder
        .bind(&"127.0.0.2:50000".parse::<std::net::SocketAddr>().expect("an address").into())
        .expect("another address");
    let Some(answer) = why(&sandbox, port) else { return };
    assert_eq!(answer["connect"], "bound");
    drop(binder);
    let answer = why(&sandbox, port).expect("it did before");
    // Since 6.18 the kernel takes the lock off with the last binder.
    let connect = answer["connect"].as_str().expect("a name");
    assert!(["poisoned", "per_destination"].contains(&connect), "{connect}");
    let other = Net::V4.bound(40_001);
    other.listen(16).expect("it listens");
    let outcome = Net::V4.socket().connect(&addr(&other).into());
    assert_eq!(outcome.is_ok(), connect == "per_destination", "{outcome:?}");
}

#[test]
fn what_is_no_port_is_refused() {
    for port in ["0", "65536", "http"] {
        let output = Command::new(BINARY).args(["why", port]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{port}");
    }
}
