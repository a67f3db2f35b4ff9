//! TIME_WAITs: what holds a port after the connection has ended.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use socket2::Socket;
use tracer_user::kernel::host::clock;

use crate::{
    connect::one_port,
    destroyed::destroy,
    support::{
        ClosedFirst, Net, Pair, Tracer, addr, close_into_fin_wait2, cookie, for_each_net, is,
        is_slow_machine, reaches_fin_wait2, read_to_end, reset_on_close, sandbox,
    },
};

/// Longer than a TIME_WAIT: 60 s, which the timer wheel rounds up by at most 4 s.
const TIME_WAIT_PATIENCE: Duration = Duration::from_secs(75);

/// Leaves a TIME_WAIT of the client behind and returns the client's cookie.
fn time_wait_of_client(client: Socket, listener: &Socket, tracer: &mut Tracer) -> u64 {
    let [client_cookie, _] = Pair::connect(client, listener).close_client_first(tracer);
    client_cookie
}

#[test]
fn a_chosen_port_is_held_by_the_time_wait_alone_while_the_socket_is_open() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let client_cookie = cookie(&client);
        client.shutdown(Shutdown::Write).expect("shutdown() succeeds");
        read_to_end(&server);
        drop(server);
        read_to_end(&client);
        tracer.wait_for("TIME_WAIT", is(client_cookie, "time_wait:time_wait"));
        drop(client);
        let recording = tracer.finish();
        assert_eq!(
            recording.of(client_cookie),
            ["connect", "established", "closing:local", "time_wait:time_wait"]
        );
    });
}

#[test]
fn an_explicit_port_is_held_by_both_socket_and_time_wait() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.bound(20_000), &listener);
        let client_cookie = cookie(&client);
        client.shutdown(Shutdown::Write).expect("shutdown() succeeds");
        read_to_end(&server);
        drop(server);
        read_to_end(&client);
        tracer.wait_for("TIME_WAIT", is(client_cookie, "time_wait:time_wait"));
        // The TIME_WAIT is killed, but the socket still holds the port.
        if !destroy(addr(&client), addr(&listener)) {
            return;
        }
        tracer.wait_for("the end of the TIME_WAIT", is(client_cookie, "update:bound"));
        let rival = net.socket();
        let error = rival.bind(&net.at(20_000).into()).expect_err("the socket is open");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        drop(client);
        let release = tracer.wait_for("release", is(client_cookie, "release:closed"));
        assert_eq!(release["local_port"], 20_000);
        let heir = net.bound(20_000);
        let recording = tracer.finish();
        assert_eq!(
            recording.all_of(client_cookie),
            [
                "bind",
                "update:connecting",
                "established",
                "closing:local",
                "time_wait:time_wait",
                "update:bound",
                "release:closed"
            ]
        );
        drop(heir);
    });
}

#[test]
fn a_socket_that_listens_beside_its_time_wait_goes_on_listening() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let client = net.socket();
        client.set_reuse_address(true).expect("SO_REUSEADDR can be set");
        client.bind(&net.at(20_000).into()).expect("the port is free");
        let Pair { client, server } = Pair::connect(client, &listener);
        let client_cookie = cookie(&client);
        client.shutdown(Shutdown::Write).expect("shutdown() succeeds");
        read_to_end(&server);
        let connection = (addr(&client), addr(&listener));
        drop(server);
        read_to_end(&client);
        tracer.wait_for("TIME_WAIT", is(client_cookie, "time_wait:time_wait"));
        rustix::net::connect_unspec(&client).expect("AF_UNSPEC dissolves it");
        client.listen(8).expect("a bound socket in CLOSE can listen");
        tracer.wait_for("listen", is(client_cookie, "listen"));
        // The TIME_WAIT ends: the listener is untouched.
        if !destroy(connection.0, connection.1) {
            return;
        }
        tracer.wait_for("release", is(client_cookie, "release:time_wait_killed"));
        tracer.verify();
        let rival = net.socket();
        let error = rival.bind(&net.at(20_000).into()).expect_err("the listener is there");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        if tracer.sees_failed_binds() {
            let failure = tracer.wait_for("fail", |record| record["type"] == "fail");
            assert_eq!(failure["holder"]["phase"], "listen", "{failure}");
        }
        drop(client);
        tracer.wait_for("release", is(client_cookie, "release:closed"));
        tracer.finish();
    });
}

#[test]
fn connect_reuses_a_time_wait_once_the_kernel_allows_it() {
    for_each_net(|net, sandbox| {
        one_port(sandbox, 50_000);
        let mut tracer = Tracer::start(sandbox);
        let listener = net.bound(40_000);
        listener.listen(16).expect("listen() succeeds");
        let old = time_wait_of_client(net.socket(), &listener, &mut tracer);
        // On loopback, with tcp_tw_reuse=2: not before a second has passed.
        let began = Instant::now();
        let mut failures = 0;
        let client = loop {
            let client = net.socket();
            match client.connect(&addr(&listener).into()) {
                Ok(()) => break client,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
                    assert!(began.elapsed() < Duration::from_secs(10), "it is never reused");
                    failures += 1;
                    thread::sleep(Duration::from_millis(100));
                }
            }
        };
        // A slow machine may take that second to get here.
        assert!(failures > 0 || is_slow_machine(), "the kernel waits before it reuses a TIME_WAIT");
        let new = cookie(&client);
        tracer.wait_for("connection", is(new, "established"));
        let recording = tracer.finish();
        assert_eq!(recording.failures().len(), failures);
        let release = recording.only(old, "release");
        assert_eq!(release["reason"], "time_wait_reused");
        let connect = recording.only(new, "connect");
        assert_eq!(connect["reuse"]["from_time_wait"], true);
        assert_eq!(connect["reuse"]["lease"], release["lease"]);
        assert_eq!(connect["reuse"]["idle_s"], 0.0);
        let position = |record: &Value| recording.records.iter().position(|other| other == record);
        assert!(position(release) < position(connect), "the release comes first");
    });
}

#[test]
fn a_time_wait_is_not_reused_without_timestamps_or_permission() {
    for (setting, value) in [("ipv4/tcp_timestamps", "0"), ("ipv4/tcp_tw_reuse", "0")] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let Some(sandbox) = sandbox() else { return };
                one_port(&sandbox, 50_000);
                sandbox.set(setting, value).expect("the setting can be written");
                let mut tracer = Tracer::start(&sandbox);
                let listener = Net::V4.bound(40_000);
                listener.listen(16).expect("listen() succeeds");
                let old = time_wait_of_client(Net::V4.socket(), &listener, &mut tracer);
                // Waits past the second after which it would be reused.
                thread::sleep(Duration::from_millis(1500));
                let client = Net::V4.socket();
                let error = client.connect(&addr(&listener).into()).expect_err("one port");
                assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
                let new = cookie(&client);
                let recording = tracer.finish();
                assert_eq!(recording.of(new), ["fail:EADDRNOTAVAIL"]);
                assert!(!recording.of(old).iter().any(|record| record.starts_with("release")));
            });
        });
    }
}

#[test]
fn a_socket_bound_to_the_port_of_its_time_wait_reuses_it_at_once() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let reusing = || {
            let socket = net.socket();
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            socket.bind(&net.at(20_000).into()).expect("both have SO_REUSEADDR");
            socket
        };
        let old = time_wait_of_client(reusing(), &listener, &mut tracer);
        let pair = Pair::connect(reusing(), &listener);
        let new = cookie(&pair.client);
        tracer.wait_for("connection", is(new, "established"));
        let recording = tracer.finish();
        assert_eq!(recording.only(old, "release")["reason"], "time_wait_reused");
        assert_eq!(recording.of(new), ["bind", "update:connecting", "established"]);
    });
}

#[test]
fn a_returning_client_reuses_the_servers_time_wait() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let client = || net.bound(20_000);
        let Pair { client: first, server } = Pair::connect(client(), &listener);
        let old = cookie(&server);
        drop(server);
        read_to_end(&first);
        drop(first);
        tracer.wait_for("TIME_WAIT", is(old, "time_wait:time_wait"));
        let second = Pair::connect(client(), &listener);
        let new = cookie(&second.server);
        tracer.wait_for("connection", is(new, "accept"));
        let recording = tracer.finish();
        assert_eq!(recording.only(old, "release")["reason"], "time_wait_reused");
        drop(second);
    });
}

#[test]
fn an_orphan_whose_peer_never_closes_is_released_after_fin_timeout() {
    for_each_net(|net, sandbox| {
        sandbox.set("ipv4/tcp_fin_timeout", "2").expect("the setting can be written");
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let connect = || Pair::connect(net.socket(), &listener);
        let ClosedFirst { cookie: client_cookie, other: _server } =
            close_into_fin_wait2(&mut tracer, connect, |pair| [pair.client, pair.server]);
        let release = tracer.wait_for("release", is(client_cookie, "release:time_wait_expired"));
        let time_wait_s = release["time_wait_s"].as_f64().expect("the phase was seen");
        assert!((2.0..4.5).contains(&time_wait_s), "{time_wait_s} s");
        let recording = tracer.finish();
        assert_eq!(
            recording.of(client_cookie),
            [
                "connect",
                "established",
                "closing:local",
                "time_wait:fin_wait2",
                "release:time_wait_expired"
            ]
        );
    });
}

#[test]
fn beyond_the_limit_of_time_waits_the_port_is_released_at_once() {
    for_each_net(|net, sandbox| {
        sandbox.set("ipv4/tcp_max_tw_buckets", "0").expect("the setting can be written");
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let client_cookie = cookie(&client);
        drop(client);
        read_to_end(&server);
        drop(server);
        tracer.wait_for("release", is(client_cookie, "release:time_wait_overflow"));
        tracer.finish();
    });
}

/// Half-closed connections can end without a TIME_WAIT although the limit is not reached.
#[test]
fn an_abandoned_half_closed_connection_is_no_overflow() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let half_closed = || {
            let pair = Pair::connect(net.socket(), &listener);
            pair.client.shutdown(Shutdown::Write).expect("shutdown() succeeds");
            read_to_end(&pair.server);
            pair
        };
        let reset = half_closed();
        let dissolved = half_closed();
        let cookies = [&reset, &dissolved].map(|pair| cookie(&pair.client));
        // Data from the peer carries the ACK of the FIN, which moves the client to FIN_WAIT2.
        for pair in [&reset, &dissolved] {
            pair.server.send(b"x").expect("send() succeeds");
            let mut buffer = [std::mem::MaybeUninit::uninit(); 1];
            pair.client.recv(&mut buffer).expect("recv() succeeds");
        }
        reset_on_close(&reset.client);
        drop(reset.client);
        rustix::net::connect_unspec(&dissolved.client).expect("AF_UNSPEC dissolves it");
        let [reset_cookie, dissolved_cookie] = cookies;
        tracer.wait_for("release", is(reset_cookie, "release:reset_out"));
        tracer.wait_for("release", is(dissolved_cookie, "release:disconnected"));
        tracer.finish();
    });
}

#[test]
fn destroying_a_time_wait_releases_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let client = net.bound(20_000);
        let old = time_wait_of_client(client, &listener, &mut tracer);
        if !destroy(net.at(20_000), addr(&listener)) {
            return;
        }
        tracer.wait_for("release", is(old, "release:time_wait_killed"));
        tracer.finish();
    });
}

/// tcp_timewait_state_process() kills it and resets the peer (net/ipv4/tcp_minisocks.c).
#[test]
fn data_after_close_ends_the_time_wait() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let [client_cookie, server_cookie] = [&client, &server].map(cookie);
        drop(client);
        if !reaches_fin_wait2(&mut tracer, client_cookie) {
            return;
        }
        server.send(b"x").expect("send() succeeds");
        tracer.wait_for("release", is(client_cookie, "release:time_wait_killed"));
        tracer.wait_for("release", is(server_cookie, "release:reset_in"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(
            recording.of(client_cookie),
            [
                "connect",
                "established",
                "closing:local",
                "time_wait:fin_wait2",
                "release:time_wait_killed"
            ]
        );
        assert_eq!(recording.of(server_cookie), ["accept", "closing:peer", "release:reset_in"]);
    });
}

#[test]
fn tearing_down_a_namespace_releases_its_time_waits() {
    if sandbox().is_none() {
        return;
    }
    // The tracer runs outside, so that it does not keep the namespace alive.
    let mut tracer = Tracer::start_with(&[]);
    let inside = thread::spawn(|| {
        let sandbox = sandbox().expect("another namespace can be made");
        let listener = Net::V4.listener();
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        let client_cookie = cookie(&client);
        drop(client);
        read_to_end(&server);
        (client_cookie, sandbox.netns())
    });
    let (client_cookie, netns) = inside.join().expect("the thread does not panic");
    let release = tracer.wait_for("release", is(client_cookie, "release:netns_gone"));
    assert_eq!(release["netns"], netns.0);
}

/// The release must be reported when the kernel releases the port, not after 60 seconds: the timer
/// wheel makes all TIME_WAITs of a slot expire together.
#[test]
fn time_waits_end_when_they_end_in_the_kernel() {
    let Some(sandbox) = sandbox() else { return };
    let mut tracer = Tracer::start(&sandbox);
    let listener = Net::V4.listener();
    let mut waiting = HashMap::new();
    for pause_ms in [0, 700, 700] {
        thread::sleep(Duration::from_millis(pause_ms));
        let client = Net::V4.bound(0);
        let port = addr(&client).port();
        waiting.insert(port, time_wait_of_client(client, &listener, &mut tracer));
    }
    let vanished = watch_time_waits(waiting.keys().copied().collect());
    for (port, client_cookie) in waiting {
        let release = tracer.wait_long_for(
            "release",
            TIME_WAIT_PATIENCE,
            is(client_cookie, "release:time_wait_expired"),
        );
        let held_s = release["time_wait_s"].as_f64().expect("the phase was seen");
        assert!((60.0..64.5).contains(&held_s), "{held_s} s");
        let released_ns = release["mono_ns"].as_u64().expect("a number");
        let (last_seen_ns, first_missed_ns) = vanished[&port];
        // Reading the list takes time, so the end lies between two readings.
        assert!(
            (last_seen_ns..=first_missed_ns).contains(&released_ns),
            "port {port}: release at {released_ns}, listed until {last_seen_ns}, gone by {first_missed_ns}"
        );
    }
    tracer.finish();
}

/// For each port, the start of the last reading that showed its TIME_WAIT, and the end of the first
/// that did not.
fn watch_time_waits(mut ports: Vec<u16>) -> HashMap<u16, (u64, u64)> {
    let mut last_seen = HashMap::new();
    let mut vanished = HashMap::new();
    let deadline = Instant::now() + TIME_WAIT_PATIENCE;
    while !ports.is_empty() {
        assert!(Instant::now() < deadline, "TIME_WAITs on {ports:?} do not end");
        let began = clock::monotonic_ns();
        let list = fs::read_to_string("/proc/thread-self/net/tcp").expect("the list");
        let ended = clock::monotonic_ns();
        ports.retain(|port| {
            let is_listed = list.contains(&format!("0100007F:{port:04X} "));
            if is_listed {
                last_seen.insert(*port, began);
            } else {
                vanished.insert(*port, (last_seen.get(port).copied().unwrap_or(0), ended));
            }
            is_listed
        });
        thread::sleep(Duration::from_millis(20));
    }
    vanished
}
