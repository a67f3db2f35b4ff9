//! `portlife why`: who holds a port, in which phase, and what can still use it.

use std::process::Command;

use serde_json::{Value, json};
use tracer_user::kernel::namespace::sandbox::Sandbox;

use crate::{
    connect::one_port,
    support::{Net, Pair, addr, cookie, for_each_net, read_to_end, sandbox},
};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");

/// The answer about a port or a destination, in one namespace. `None`, after printing why, if this
/// kernel lacks the lists for it.
pub fn ask(sandbox: &Sandbox, what: &str) -> Option<(Value, Value)> {
    let output = Command::new(BINARY)
        .args(["why", what, "-o", "json", "-n", &sandbox.netns().0.to_string()])
        .output()
        .expect("portlife runs");
    if output.status.code() == Some(3) {
        println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON");
    assert_eq!(answer["problems"], json!([]));
    let [namespace] = answer["namespaces"].as_array()?.as_slice() else {
        panic!("the answer must be about one namespace: {answer}");
    };
    assert_eq!(namespace["netns"], sandbox.netns().0);
    let namespace = namespace.clone();
    Some((answer, namespace))
}

fn why(sandbox: &Sandbox, port: u16) -> Option<Value> {
    let (answer, namespace) = ask(sandbox, &port.to_string())?;
    assert_eq!((&answer["type"], &answer["port"]), (&json!("why"), &json!(port)));
    Some(namespace)
}

fn holders(answer: &Value) -> Vec<(u64, &str)> {
    let holders = answer["holders"].as_array().expect("a list");
    holders
        .iter()
        .map(|holder| {
            let phase = holder["phase"].as_str().expect("the socket has an address");
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

        let answer = why(sandbox, client_port).expect("the command works here");
        assert_eq!(holders(&answer), [(cookie(&client), "established")]);
        assert_eq!(answer["holders"][0]["kind"], "connect");
        assert_eq!(answer["holders"][0]["peer_port"], server_port);
        assert_eq!(answer["connect"], "per_destination");

        let idle = net.bound(0);
        let answer = why(sandbox, addr(&idle).port()).expect("the command works here");
        assert_eq!(holders(&answer), [(cookie(&idle), "bound")]);
        assert_eq!(answer["holders"][0]["kind"], "bind_auto");
        assert_eq!(answer["connect"], "bound");

        let client_cookie = cookie(&client);
        drop(client);
        read_to_end(&server);
        drop(server);
        // The kernel may take a moment to make the TIME_WAIT, which then lasts a minute.
        let answer =
            std::iter::repeat_with(|| why(sandbox, client_port).expect("the command works here"))
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
fn an_unheld_port_is_reported_as_free() {
    let Some(sandbox) = sandbox() else { return };
    one_port(&sandbox, 50_000);
    for (port, connect) in [(50_000, "free"), (50_001, "outside_range")] {
        let Some(answer) = why(&sandbox, port) else { return };
        assert!(holders(&answer).is_empty());
        assert_eq!(answer["bind"]["possible"], true);
        assert_eq!(answer["connect"], connect);
    }
    sandbox.set("ipv4/ip_local_reserved_ports", "50000").expect("the setting can be written");
    assert_eq!(why(&sandbox, 50_000).expect("the command works here")["connect"], "reserved");
}

#[test]
fn a_server_in_the_ephemeral_range_is_advised_to_reserve_its_port() {
    let Some(sandbox) = sandbox() else { return };
    let listener = Net::V4.bound(40_000);
    listener.listen(16).expect("listen() succeeds");
    sandbox.set("ipv4/ip_local_reserved_ports", "39999").expect("the setting can be written");
    let Some(answer) = why(&sandbox, 40_000) else { return };
    let advice = answer["advice"].to_string();
    assert!(advice.contains("ip_local_reserved_ports=39999-40000"), "{advice}");
    sandbox.set("ipv4/ip_local_reserved_ports", "40000").expect("the setting can be written");
    let answer = why(&sandbox, 40_000).expect("the command works here");
    assert_eq!(answer["advice"], json!([]));
}

#[test]
fn a_stale_bind_lock_is_told_from_a_current_one() {
    let Some(sandbox) = sandbox() else { return };
    one_port(&sandbox, 50_000);
    let listener = Net::V4.bound(40_000);
    listener.listen(16).expect("listen() succeeds");
    let pair = Pair::connect(Net::V4.socket(), &listener);
    let port = addr(&pair.client).port();
    let binder = Net::V4.socket();
    binder
        .bind(&"127.0.0.2:50000".parse::<std::net::SocketAddr>().expect("an address").into())
        .expect("another address");
    let Some(answer) = why(&sandbox, port) else { return };
    assert_eq!(answer["connect"], "bound");
    drop(binder);
    let answer = why(&sandbox, port).expect("the command works here");
    // Since Linux 6.18 the kernel removes the lock with the last bound socket.
    let connect = answer["connect"].as_str().expect("the socket has an address");
    assert!(["poisoned", "per_destination"].contains(&connect), "{connect}");
    let other = Net::V4.bound(40_001);
    other.listen(16).expect("listen() succeeds");
    let outcome = Net::V4.socket().connect(&addr(&other).into());
    assert_eq!(outcome.is_ok(), connect == "per_destination", "{outcome:?}");
}

#[test]
fn invalid_ports_are_rejected() {
    for port in ["0", "65536", "http"] {
        let output = Command::new(BINARY).args(["why", port]).output().expect("portlife runs");
        assert_eq!(output.status.code(), Some(2), "{port}");
    }
}
