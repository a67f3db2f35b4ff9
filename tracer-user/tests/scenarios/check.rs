//! `portlife check`: whether portlife can run, what its hooks cost, and what the settings mean.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::support::{Net, Pair, sandbox};

fn check(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portlife"));
    command.args(["check", "-o", "json"]).args(arguments);
    command
}

fn record(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn verdict(answer: &Value, setting: &str) -> Value {
    let settings = answer["namespaces"][0]["settings"].as_array().expect("a list");
    let found = settings.iter().find(|verdict| verdict["setting"] == setting);
    found.unwrap_or_else(|| panic!("no {setting} in {settings:#?}"))["verdict"].clone()
}

#[test]
fn every_connection_of_the_self_test_is_reported_where_it_can_run() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let output = check(&["-n", &netns]).output().expect("portlife runs");
    let answer = record(&output);
    assert_eq!(output.status.code(), Some(0), "{answer:#}");
    assert_eq!((&answer["type"], &answer["can_run"]), (&json!("check"), &json!(true)));
    assert_eq!(answer["self_test"]["outcome"], "passed", "{:#}", answer["self_test"]);
    let hooks = answer["hooks"].as_array().expect("a list");
    let state = hooks.iter().find(|hook| hook["name"] == "inet_sock_set_state");
    let state = state.expect("the hook is listed");
    assert_eq!(state["attached"], "tp_btf");
    assert!(state["run_ns"].as_u64() > Some(0), "{state}");
    assert_eq!(answer["namespaces"][0]["netns"], sandbox.netns().0);
}

#[test]
fn settings_that_reduce_capacity_are_bad() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    sandbox.set("ipv4/ip_local_port_range", "50000 50099").expect("the setting can be written");
    sandbox.set("ipv4/tcp_timestamps", "0").expect("the setting can be written");
    let listener = Net::V4.bound(50_050);
    listener.listen(16).expect("listen() succeeds");
    let answer = record(&check(&["-n", &netns]).output().expect("portlife runs"));
    for setting in
        ["ipv4.ip_local_port_range", "ipv4.tcp_timestamps", "ipv4.ip_local_reserved_ports"]
    {
        assert_eq!(verdict(&answer, setting), "bad", "{setting}");
    }
    sandbox.set("ipv4/ip_local_port_range", "1024 65535").expect("the setting can be written");
    sandbox.set("ipv4/tcp_timestamps", "1").expect("the setting can be written");
    sandbox.set("ipv4/ip_local_reserved_ports", "50050").expect("the setting can be written");
    let answer = record(&check(&["-n", &netns]).output().expect("portlife runs"));
    for setting in
        ["ipv4.ip_local_port_range", "ipv4.tcp_timestamps", "ipv4.ip_local_reserved_ports"]
    {
        assert_eq!(verdict(&answer, setting), "good", "{setting}");
    }
}

#[test]
fn as_many_binds_to_port_0_succeed_as_ports_are_left() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    sandbox.set("ipv4/ip_local_port_range", "50000 50009").expect("the setting can be written");
    let listener = Net::V4.listener_on(8080);
    let _connected = Pair::connect(Net::V4.socket(), &listener);
    let mut bound = vec![Net::V4.bound(50_003), Net::V4.bound(0)];
    let answer = record(&check(&["-n", &netns]).output().expect("portlife runs"));
    let left = &answer["namespaces"][0]["bind_any"];
    if left.is_null() {
        println!("skipped: this kernel does not list sockets that are bound but idle");
        return;
    }
    assert_eq!(*left, json!({"capacity": 10, "used": 3, "headroom": 7}));
    for _ in 0..7 {
        let socket = Net::V4.socket();
        let any: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        socket.bind(&any.into()).expect("a port is left");
        bound.push(socket);
    }
    let answer = record(&check(&["-n", &netns]).output().expect("portlife runs"));
    assert_eq!(answer["namespaces"][0]["bind_any"]["headroom"], 0);
    let error = Net::V4.socket().bind(&Net::V4.at(0).into()).expect_err("no port is left");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}

#[test]
fn where_it_cannot_run_it_says_why_and_still_judges_the_settings() {
    if sandbox().is_none() {
        return;
    }
    const NOBODY: u32 = 65_534;
    let output = check(&[]).uid(NOBODY).gid(NOBODY).output().expect("portlife runs");
    assert_eq!(output.status.code(), Some(3));
    let answer = record(&output);
    assert_eq!(answer["can_run"], false);
    let reason = answer["reason"].as_str().expect("a sentence");
    assert!(reason.contains("CAP_BPF"), "{reason}");
    assert!(verdict(&answer, "ipv4.ip_local_port_range").is_string());
}
