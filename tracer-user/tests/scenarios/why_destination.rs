//! `portlife why ADDR:PORT`: which ports a destination uses, and how many are left, against what
//! the kernel then permits.

use std::{io::ErrorKind, net::SocketAddr, process::Command};

use serde_json::{Value, json};
use socket2::Socket;
use tracer_user::kernel::namespace::sandbox::{Sandbox, bind_address_no_port};

use crate::{
    support::{Net, Pair, addr, for_each_net, read_to_end, sandbox},
    why::ask,
};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");
const SERVER: u16 = 9000;

fn why(sandbox: &Sandbox, destination: SocketAddr) -> Option<Value> {
    let (answer, namespace) = ask(sandbox, &destination.to_string())?;
    assert_eq!(answer["type"], "why_destination");
    assert_eq!(answer["peer_port"], destination.port());
    Some(namespace)
}

/// The only source address of an answer.
fn only_source(namespace: &Value) -> &Value {
    match namespace["sources"].as_array().map(Vec::as_slice) {
        Some([source]) => source,
        _ => panic!("one source address is used: {namespace}"),
    }
}

fn set_range(sandbox: &Sandbox, range: &str) {
    sandbox.set("ipv4/ip_local_port_range", range).expect("the setting can be written");
}

/// Connects until no port is left; returns how often that succeeded.
fn connect_until_exhausted(net: Net, to: SocketAddr, kept: &mut Vec<Socket>) -> u64 {
    for succeeded in 0.. {
        let socket = net.socket();
        match socket.connect(&to.into()) {
            Ok(()) => kept.push(socket),
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => return succeeded,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("there are fewer ports than numbers")
}

#[test]
fn as_many_connects_succeed_as_ports_are_left() {
    for_each_net(|net, sandbox| {
        set_range(sandbox, "50000 50009");
        sandbox.set("ipv4/tcp_tw_reuse", "0").expect("the setting can be written");
        let listener = net.listener_on(SERVER);
        let to = addr(&listener);
        let connected: Vec<_> = (0..4).map(|_| Pair::connect(net.socket(), &listener)).collect();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        drop(client);
        read_to_end(&server);
        drop(server);
        // The kernel may take a moment to make the TIME_WAIT.
        let answer = loop {
            let Some(answer) = why(sandbox, to) else { return };
            if only_source(&answer)["phases"]["time_wait"] == 1 {
                break answer;
            }
        };
        assert_eq!(answer["range_low"], 50_000);
        assert_eq!(answer["route_source"], net.shown());
        let source = only_source(&answer);
        assert_eq!(source["source_addr"], net.shown());
        assert_eq!((&source["connections"], &source["used"]), (&json!(5), &json!(5)));
        assert_eq!(source["phases"]["established"], 4);
        assert_eq!((&source["cause"], &source["next_free_in_s"]), (&json!(null), &json!(0.0)));
        let owners = source["owners"].as_array().expect("a list");
        let owners: Vec<_> = owners.iter().map(|it| (&it["pid"], &it["leases"])).collect();
        let own_pid = json!(std::process::id());
        assert_eq!(owners, [(&own_pid, &json!(4)), (&json!(null), &json!(1))]);

        let mut kept = Vec::new();
        let succeeded = connect_until_exhausted(net, to, &mut kept);
        assert_eq!(source["headroom"], succeeded);
        let answer = why(sandbox, to).expect("the command works here");
        let source = only_source(&answer);
        assert_eq!((&source["headroom"], &source["used"]), (&json!(0), &json!(10)));
        assert_eq!(source["cause"], "range_full");
        let left = source["next_free_in_s"].as_f64().expect("a TIME_WAIT holds one of the ports");
        assert!(0.0 < left && left <= 60.0, "{left}");
        assert_eq!(source["all_free_in_s"], json!(null), "sockets hold the others");
        drop((connected, kept));
    });
}

#[test]
fn reusable_time_waits_are_headroom_and_the_setting_that_makes_them_so_is_advised() {
    let Some(sandbox) = sandbox() else { return };
    set_range(&sandbox, "50000 50003");
    sandbox.set("ipv4/tcp_tw_reuse", "0").expect("the setting can be written");
    let listener = Net::V4.listener_on(SERVER);
    let to = addr(&listener);
    for _ in 0..4 {
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        drop(client);
        read_to_end(&server);
    }
    let advised = loop {
        let Some(answer) = why(&sandbox, to) else { return };
        let source = only_source(&answer);
        if source["phases"]["time_wait"] == 4 {
            assert_eq!((&source["headroom"], &source["reusable"]), (&json!(0), &json!(0)));
            break source["advice"].to_string();
        }
    };
    assert!(advised.contains("tcp_tw_reuse=1: 4 ports"), "{advised}");
    sandbox.set("ipv4/tcp_tw_reuse", "1").expect("the setting can be written");
    let source = loop {
        let answer = why(&sandbox, to).expect("the command works here");
        let source = only_source(&answer).clone();
        if source["reusable"] == 4 {
            break source;
        }
        // A TIME_WAIT is old enough after a second.
        let next = source["next_free_in_s"].as_f64().expect("they will be reusable");
        assert!(next <= 1.1, "{source}");
    };
    assert_eq!((&source["headroom"], &source["used"]), (&json!(4), &json!(4)));
    let mut kept = Vec::new();
    assert_eq!(connect_until_exhausted(Net::V4, to, &mut kept), 4);
}

#[test]
fn bind_locked_ports_are_counted_and_their_owner_is_named() {
    let Some(sandbox) = sandbox() else { return };
    set_range(&sandbox, "50000 50005");
    let listener = Net::V4.listener_on(SERVER);
    let to = addr(&listener);
    let bound: Vec<_> = (50_000..50_005).map(|port| Net::V4.bound(port)).collect();
    let Some(answer) = why(&sandbox, to) else { return };
    let source = only_source(&answer);
    let mut kept = Vec::new();
    let succeeded = connect_until_exhausted(Net::V4, to, &mut kept);
    if source["bind_locked"] == 0 {
        println!("skipped: this kernel does not list sockets that are bound but idle");
        return;
    }
    assert_eq!((&source["bind_locked"], &source["headroom"]), (&json!(5), &json!(succeeded)));
    let answer = why(&sandbox, to).expect("the command works here");
    let source = only_source(&answer);
    assert_eq!((&source["headroom"], &source["cause"]), (&json!(0), &json!("range_bind_locked")));
    let locker = &source["bind_locked_by"];
    assert_eq!((&locker["pid"], &locker["ports"]), (&json!(std::process::id()), &json!(5)));
    let advice = source["advice"].to_string();
    assert!(advice.contains("IP_BIND_ADDRESS_NO_PORT"), "{advice}");
    drop(bound);
}

#[test]
fn each_source_address_has_its_own_ports() {
    let Some(sandbox) = sandbox() else { return };
    set_range(&sandbox, "50000 50003");
    let listener = Net::V4.listener_on(SERVER);
    let to = addr(&listener);
    let mut kept = Vec::new();
    assert_eq!(connect_until_exhausted(Net::V4, to, &mut kept), 4);
    let other = Net::V4.socket();
    bind_address_no_port(&other).expect("the option can be set");
    other.bind(&"127.0.0.2:0".parse::<SocketAddr>().expect("an address").into()).expect("it binds");
    other.connect(&to.into()).expect("another source address has ports");
    let Some(answer) = why(&sandbox, to) else { return };
    let sources = answer["sources"].as_array().expect("a list");
    let left: Vec<_> = sources.iter().map(|it| (&it["source_addr"], &it["headroom"])).collect();
    let [full, with_room] = [json!("127.0.0.1"), json!("127.0.0.2")];
    assert_eq!(left, [(&full, &json!(0)), (&with_room, &json!(3))], "the fullest comes first");
    assert_eq!(answer["route_source"], "127.0.0.1");
}

#[test]
fn an_unused_destination_has_the_ports_of_the_source_that_the_route_gives() {
    let Some(sandbox) = sandbox() else { return };
    set_range(&sandbox, "50000 50007");
    let unused: SocketAddr = "127.0.0.9:81".parse().expect("an address");
    let Some(answer) = why(&sandbox, unused) else { return };
    let source = only_source(&answer);
    assert_eq!((&source["connections"], &source["headroom"]), (&json!(0), &json!(8)));
    let unreachable: SocketAddr = "192.0.2.1:81".parse().expect("an address");
    let answer = why(&sandbox, unreachable).expect("the command works here");
    assert_eq!((&answer["route_source"], &answer["sources"]), (&json!(null), &json!([])));
}

#[test]
fn malformed_destinations_are_rejected() {
    for what in ["10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "fd00::1", "0.0.0.0:80", "host:80"] {
        let output = Command::new(BINARY).args(["why", what]).output().expect("portlife runs");
        assert_eq!(output.status.code(), Some(2), "{what}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("expected") || said.contains("no destination"), "{what}: {said}");
    }
}
