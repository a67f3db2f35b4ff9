//! Port exhaustion: the cause of each failure, the culprit, and the warning beforehand.

use std::{
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use socket2::Socket;
use tracer_user::kernel::namespace::sandbox::{
    Sandbox, bind_address_no_port, set_local_port_range,
};

use crate::support::{
    Net, Pair, Tracer, addr, cookie, for_each_net, is_slow_machine, read_to_end, reset_on_close,
    sandbox,
};

const LISTENER: u16 = 10_001;

fn range(sandbox: &Sandbox, low: u16, high: u16) {
    sandbox
        .set("ipv4/ip_local_port_range", &format!("{low} {high}"))
        .expect("the setting can be written");
}

fn listener(net: Net, port: u16) -> Socket {
    let listener = net.bound(port);
    listener.listen(4096).expect("listen() succeeds");
    listener
}

/// Connects to the listener until no port is left. Returns the connected sockets and the one that
/// failed.
fn fill(net: Net, to: &Socket) -> (Vec<Socket>, Socket) {
    let mut connected = Vec::new();
    loop {
        let socket = net.socket();
        match socket.connect(&addr(to).into()) {
            Ok(()) => connected.push(socket),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
                return (connected, socket);
            }
        }
    }
}

fn failure(tracer: &mut Tracer, of: &Socket) -> Value {
    let failed = cookie(of);
    tracer.wait_for("failure", |record| record["cookie"] == failed && record["type"] == "fail")
}

fn ports(capacity: u32, reserved: u32, used: u32, bind_locked: u32) -> Value {
    json!({
        "capacity": capacity, "reserved": reserved, "used": used, "bind_locked": bind_locked,
        "reusable": 0
    })
}

#[test]
fn a_range_that_one_destination_uses_up_is_full() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_009);
        sandbox
            .set("ipv4/ip_local_reserved_ports", "50003,50004,60000")
            .expect("the setting can be written");
        let mut tracer = Tracer::start(sandbox);
        let full = listener(net, LISTENER);
        let other = listener(net, LISTENER + 1);
        let (connected, failed) = fill(net, &full);
        assert_eq!(connected.len(), 8);
        let failure = failure(&mut tracer, &failed);
        assert_eq!(failure["cause"], "range_full");
        assert_eq!(failure["range"], ports(8, 2, 8, 0));
        assert!(failure["holder"].is_null());
        assert!(failure["advice"].is_string());
        // All ports are still free for another destination.
        net.socket().connect(&addr(&other).into()).expect("ports are left");
    });
}

#[test]
fn ports_bound_before_connecting_are_lost_and_their_owner_is_named() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_009);
        let mut tracer = Tracer::start(sandbox);
        let (one, other) = (listener(net, LISTENER), listener(net, LISTENER + 1));
        let hoard: Vec<_> = (0..8).map(|_| Pair::connect(net.bound(0), &one).client).collect();
        let (connected, failed) = fill(net, &other);
        assert_eq!(connected.len(), 2);
        let failure = failure(&mut tracer, &failed);
        assert_eq!(failure["cause"], "range_bind_locked");
        assert_eq!(failure["range"], ports(10, 0, 2, 8));
        assert_eq!(failure["holder_ports"], 8);
        assert_eq!(failure["holder"]["pid"], std::process::id());
        assert_eq!(failure["holder"]["kind"], "bind_auto");
        let named = failure["holder"]["cookie"].as_u64();
        assert!(hoard.iter().any(|socket| Some(cookie(socket)) == named));
        assert!(
            failure["advice"].as_str().is_some_and(|it| it.contains("IP_BIND_ADDRESS_NO_PORT"))
        );
    });
}

#[test]
fn a_fully_reserved_range_is_reported_as_such() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let to = listener(net, LISTENER);
        range(sandbox, 50_000, 50_001);
        sandbox
            .set("ipv4/ip_local_reserved_ports", "50000-50001")
            .expect("the setting can be written");
        let (_, failed) = fill(net, &to);
        let record = failure(&mut tracer, &failed);
        assert_eq!(record["cause"], "reserved");
        assert_eq!(record["range"], ports(0, 2, 0, 0));
    });
}

#[test]
fn a_failure_of_a_socket_with_its_own_range_reports_that_range() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_099);
        let to = listener(net, LISTENER);
        let own = |low, high| {
            let socket = net.socket();
            set_local_port_range(&socket, low, high).map(|()| socket)
        };
        if let Err(error) = own(50_010, 50_013) {
            println!("skipped: this kernel lacks IP_LOCAL_PORT_RANGE: {error}");
            return;
        }
        let mut tracer = Tracer::start(sandbox);
        let binder = net.bound(50_011);
        let outside = net.bound(50_020);
        let mut connected = Vec::new();
        let failed = loop {
            let socket = own(50_010, 50_013).expect("the option exists");
            match socket.connect(&addr(&to).into()) {
                Ok(()) => connected.push(socket),
                Err(_) => break socket,
            }
        };
        assert_eq!(connected.len(), 3);
        let record = failure(&mut tracer, &failed);
        assert_eq!(record["cause"], "range_full");
        assert_eq!(record["range"], ports(4, 0, 3, 1));
        assert_eq!(record["own_range"], json!([50_010, 50_013]));
        assert_eq!(record["holder"]["cookie"], cookie(&binder));
        assert_eq!(record["holder_ports"], 1);
        // A bound outside the range of the namespace is ignored.
        let failed = own(1000, 50_010).expect("the option exists");
        let next = failed.connect(&addr(&to).into());
        assert!(next.is_ok(), "there are ports below");
        drop(outside);
    });
}

#[test]
fn a_bind_to_any_port_fails_when_every_port_is_held() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_003);
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees_failed_binds() {
            return;
        }
        let to = listener(net, LISTENER);
        let (_connected, _) = fill(net, &to);
        let failed = net.socket();
        let error = failed.bind(&net.at(0).into()).expect_err("every port is in use");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let record = failure(&mut tracer, &failed);
        assert_eq!(record["cause"], "range_full");
        assert_eq!(record["op"], "bind");
        assert_eq!(record["range"], ports(4, 0, 4, 0));
    });
}

#[test]
fn a_blocked_listener_is_reported_with_the_connection_in_its_way() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_000);
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees_failed_binds() {
            return;
        }
        let to = listener(net, LISTENER);
        let outgoing = Pair::connect(net.socket(), &to);
        let blocked = net.socket();
        blocked.set_reuse_address(true).expect("SO_REUSEADDR");
        blocked.bind(&net.at(50_000).into()).expect_err("the port is in use");
        let record = failure(&mut tracer, &blocked);
        assert_eq!(record["cause"], "port_held");
        assert_eq!(record["holder"]["cookie"], cookie(&outgoing.client));
        assert_eq!(record["holder"]["kind"], "connect");
        assert_eq!(record["holder"]["phase"], "established");
        assert!(record["holder"]["free_in_s"].is_null());
        assert!(record["advice"].as_str().is_some_and(|it| it.contains("ip_local_reserved_ports")));
    });
}

#[test]
fn a_time_wait_in_the_way_is_reported_with_its_remaining_time() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_000);
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees_failed_binds() {
            return;
        }
        let to = listener(net, LISTENER);
        let Pair { client, server } = Pair::connect(net.bound(40_000), &to);
        let client_cookie = cookie(&client);
        drop(client);
        read_to_end(&server);
        drop(server);
        tracer.wait_for("TIME_WAIT", |record| {
            record["cookie"] == client_cookie && record["substate"] == "time_wait"
        });
        let blocked = net.socket();
        blocked.bind(&net.at(40_000).into()).expect_err("a TIME_WAIT has the port");
        let record = failure(&mut tracer, &blocked);
        assert_eq!(record["cause"], "port_held");
        assert_eq!(record["holder"]["phase"], "time_wait");
        let free_in_s = record["holder"]["free_in_s"].as_f64().expect("it is known");
        assert!((0.0..=60.0).contains(&free_in_s) && free_in_s > 1.0, "{free_in_s}");
        assert!(record["advice"].as_str().is_some_and(|it| it.contains("SO_REUSEADDR")));
    });
}

/// With tcp_tw_reuse=1, connect() can reuse the port of a TIME_WAIT, but only if the peer sent
/// timestamps (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c).
#[test]
fn time_waits_without_timestamps_do_not_count_as_headroom() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_009);
        sandbox.set("ipv4/tcp_tw_reuse", "1").expect("the setting can be written");
        if sandbox.set("ipv4/tcp_tw_reuse_delay", "1").is_err() {
            println!("without tcp_tw_reuse_delay this takes seconds");
        }
        sandbox.set("ipv4/tcp_timestamps", "0").expect("the setting can be written");
        let mut tracer = Tracer::start(sandbox);
        let to = listener(net, LISTENER);
        let leave_time_wait = |client, tracer: &mut Tracer| {
            let [client, _] = Pair::connect(client, &to).close_client_first(tracer);
            client
        };
        let without: Vec<_> = (0..9).map(|_| leave_time_wait(net.socket(), &mut tracer)).collect();
        sandbox.set("ipv4/tcp_timestamps", "1").expect("the setting can be written");
        // The tracer rereads settings only when something happens in a namespace.
        let _bound = net.bound(LISTENER + 1);
        tracer.wait_for("change", |record| {
            record["type"] == "namespace" && record["timestamps"] == true
        });
        // Its port is reused again and again, until the other nine would be reusable as well.
        let mut with = vec![leave_time_wait(net.socket(), &mut tracer)];
        let client = loop {
            let client = net.socket();
            match client.connect(&addr(&to).into()) {
                Ok(()) if with.len() == 4 => break client,
                Ok(()) => {
                    let (server, _) = to.accept().expect("it is connected");
                    with.push(cookie(&client));
                    Pair { client, server }.close_client_first(&mut tracer);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
                    thread::sleep(Duration::from_millis(10));
                }
            }
        };
        let (connected, failed) = fill(net, &to);
        assert_eq!(connected.len(), 0);
        let failure = failure(&mut tracer, &failed);
        assert_eq!(failure["cause"], "range_full");
        assert_eq!(failure["range"], ports(10, 0, 10, 0));
        let recording = tracer.finish();
        for record in recording.records.iter().filter(|record| record["type"] == "time_wait") {
            let cookie = record["cookie"].as_u64().expect("a number");
            assert!(without.contains(&cookie) || with.contains(&cookie));
            assert_eq!(record["timestamps"], with.contains(&cookie));
        }
        drop(client);
    });
}

/// connect() skips buckets of bound ports (`__inet_hash_connect`, net/ipv4/inet_hashtables.c).
#[test]
fn a_time_wait_on_a_bound_port_does_not_count_as_headroom() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_000);
        sandbox.set("ipv4/tcp_tw_reuse", "1").expect("the setting can be written");
        let delay = match sandbox.set("ipv4/tcp_tw_reuse_delay", "1") {
            Ok(()) => Duration::from_millis(1),
            Err(_) => Duration::from_secs(1),
        };
        let mut tracer = Tracer::start(sandbox);
        let to = listener(net, LISTENER);
        Pair::connect(net.socket(), &to).close_client_first(&mut tracer);
        let began = Instant::now();
        // Joins the bucket, which has no family, with another address.
        let elsewhere = std::net::SocketAddr::from(([127, 0, 0, 2], 50_000));
        let poison = Net::V4.socket();
        poison.bind(&elsewhere.into()).expect("another address");
        // Without this socket the port would be reusable after the delay.
        let failed = loop {
            let (connected, failed) = fill(net, &to);
            assert_eq!(connected.len(), 0);
            if began.elapsed() > 3 * delay {
                break failed;
            }
            thread::sleep(Duration::from_millis(10));
        };
        let failure = failure(&mut tracer, &failed);
        assert_eq!(failure["cause"], "range_full");
        assert_eq!(failure["range"], ports(1, 0, 1, 0));
        drop(poison);
        tracer.finish();
    });
}

#[test]
fn a_bucket_recovers_from_a_bind_exactly_as_in_the_kernel() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_000);
        let mut tracer = Tracer::start(sandbox);
        let (one, other) = (listener(net, LISTENER), listener(net, LISTENER + 1));
        let kept = Pair::connect(net.socket(), &one);
        // Joins the bucket, which has no family, with another address, and leaves it again.
        let elsewhere = std::net::SocketAddr::from(([127, 0, 0, 2], 50_000));
        let poison = Net::V4.socket();
        poison.bind(&elsewhere.into()).expect("another address");
        let (_, failed) = fill(net, &other);
        let record = failure(&mut tracer, &failed);
        assert_eq!(record["cause"], "range_bind_locked");
        assert_eq!(record["holder"]["cookie"], cookie(&poison));
        drop(poison);
        let again = net.socket();
        match again.connect(&addr(&other).into()) {
            // Since Linux 6.18 the bucket recovers at once.
            Ok(()) => {
                let (_, failed) = fill(net, &other);
                let record = failure(&mut tracer, &failed);
                assert_eq!(record["cause"], "range_full");
                assert_eq!(record["range"], ports(1, 0, 1, 0));
            }
            // Before, it is lost until its last connection ends, and that connection is named.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
                let record = failure(&mut tracer, &again);
                assert_eq!(record["cause"], "range_bind_locked");
                assert_eq!(record["holder"]["cookie"], cookie(&kept.client));
                assert!(
                    record["advice"]
                        .as_str()
                        .is_some_and(|it| it.contains("a process that is gone"))
                );
            }
        }
    });
}

#[test]
fn ports_bound_before_the_tracer_started_are_known() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_003);
        let to = listener(net, LISTENER);
        let hoard: Vec<_> = (0..3).map(|_| net.bound(0)).collect();
        let before = Pair::connect(net.socket(), &to);
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        let (_, failed) = fill(net, &to);
        let record = failure(&mut tracer, &failed);
        assert_eq!(record["cause"], "range_bind_locked");
        assert_eq!(record["range"], ports(4, 0, 1, 3));
        assert_eq!(record["holder"]["pid"], std::process::id());
        drop((hoard, before));
    });
}

#[test]
fn pressure_is_reported_before_a_destination_is_full_and_after() {
    for_each_net(|net, sandbox| {
        range(sandbox, 50_000, 50_019);
        let mut tracer = Tracer::start(sandbox);
        let to = listener(net, LISTENER);
        let (connected, failed) = fill(net, &to);
        assert_eq!(connected.len(), 20);
        failure(&mut tracer, &failed);
        for socket in &connected {
            reset_on_close(socket);
        }
        drop(connected);
        tracer.wait_for("relief", |record| {
            record["type"] == "pressure"
                && record["peer_port"] == LISTENER
                && record["level_percent"] == 0
        });
        let recording = tracer.finish();
        let pressures = |of_destination: bool| {
            recording.records.iter().filter(move |record| {
                record["type"] == "pressure" && record["peer_port"].is_null() != of_destination
            })
        };
        for of_destination in [true, false] {
            let levels: Vec<_> = pressures(of_destination)
                .map(|record| (record["rising"].as_bool(), record["level_percent"].as_u64()))
                .collect();
            let expected =
                [(true, 70), (true, 90), (true, 100), (false, 90), (false, 70), (false, 0)]
                    .map(|(rising, level)| (Some(rising), Some(level)));
            assert_eq!(levels, expected);
        }
        let [at_70, at_90, at_100, ..] = pressures(true).collect::<Vec<_>>()[..] else {
            unreachable!("they were counted")
        };
        for (record, used) in [(at_70, 14), (at_90, 18), (at_100, 20)] {
            assert_eq!(record["capacity"], 20);
            assert_eq!(record["used"], used);
            assert_eq!(record["headroom"], 20 - used);
            assert_eq!(record["source_addr"], net.shown());
            assert_eq!(record["peer_addr"], net.shown());
            assert!(record["rate_per_s"].as_f64() > Some(0.0));
            assert_eq!(record["netns"], sandbox.netns().0);
        }
        assert!(at_70["eta_s"].as_f64() > Some(0.0));
        assert_eq!(at_100["eta_s"], 0.0);
    });
}

#[test]
fn tens_of_thousands_of_failures_are_all_explained() {
    let Some(sandbox) = sandbox() else { return };
    // Each failure searches the whole range, which takes milliseconds on an emulated machine.
    let failures = if is_slow_machine() { 1_000 } else { 30_000 };
    range(&sandbox, 32_768, 33_767);
    let net = Net::V4;
    let mut tracer = Tracer::start_with(&[
        "-x",
        "-n",
        &sandbox.netns().0.to_string(),
        "--ring-bytes",
        "67108864",
    ]);
    let to = listener(net, LISTENER);
    let hoard: Vec<_> = (0..300).map(|_| net.bound(0)).collect();
    let (connected, last) = fill(net, &to);
    assert_eq!(connected.len(), 700);
    let began = Instant::now();
    for _ in 0..failures {
        let socket = net.socket();
        socket.connect(&addr(&to).into()).expect_err("there is no port");
    }
    let took = began.elapsed();
    failure(&mut tracer, &last);
    let marker = net.socket();
    bind_address_no_port(&marker).expect("Linux 4.2 has the option");
    marker.bind(&net.at(0).into()).expect("bind() succeeds");
    marker.connect(&addr(&to).into()).expect_err("there is no port");
    failure(&mut tracer, &marker);
    let behind = began.elapsed() - took;
    let recording = tracer.finish();
    let explained = recording
        .failures()
        .iter()
        .filter(|record| {
            record["cause"] == "range_full"
                && record["range"] == ports(1000, 0, 700, 300)
                && record["holder_ports"] == 300
        })
        .count();
    assert_eq!(explained, failures + 2);
    println!("{failures} failures in {took:?}; the last was reported {behind:?} after it");
    drop(hoard);
}
