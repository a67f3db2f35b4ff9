//! Socket options and protocols that change how a port is acquired, kept or released.

use std::{
    io::ErrorKind,
    net::{Ipv6Addr, Shutdown, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tracer_user::kernel::namespace::sandbox::set_option;

use crate::support::{
    Net, Pair, Tracer, addr, cookie, for_each_net, is, read_to_end, reset_on_close, sandbox,
};

/// Exists since Linux 6.3 (include/uapi/linux/in.h).
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

#[test]
fn with_negative_linger2_an_orphan_leaves_no_time_wait() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let impatient = || {
            let pair = Pair::connect(net.socket(), &listener);
            set_option(&pair.client, libc::IPPROTO_TCP, libc::TCP_LINGER2, -1)
                .expect("the option exists");
            pair
        };
        // Closed right away: the ACK of its FIN ends it (tcp_rcv_state_process, tcp_input.c).
        let at_once = impatient();
        let at_once_cookie = cookie(&at_once.client);
        drop(at_once.client);
        tracer.wait_for("release", is(at_once_cookie, "release:reset_out"));
        // Closed in FIN_WAIT2: the peer is sent a reset (__tcp_close, tcp.c).
        let later = impatient();
        let [later_cookie, peer_cookie] = [&later.client, &later.server].map(cookie);
        later.client.shutdown(Shutdown::Write).expect("shutdown() succeeds");
        read_to_end(&later.server);
        later.server.send(b"x").expect("send() succeeds");
        later.client.recv(&mut [std::mem::MaybeUninit::uninit()]).expect("recv() succeeds");
        drop(later.client);
        tracer.wait_for("release", is(peer_cookie, "release:reset_in"));
        tracer.verify();
        let recording = tracer.finish();
        for own_cookie in [at_once_cookie, later_cookie] {
            assert_eq!(
                recording.of(own_cookie),
                ["connect", "established", "closing:local", "release:reset_out"]
            );
            assert!(recording.only(own_cookie, "release")["time_wait_s"].is_null());
        }
        assert_eq!(recording.of(peer_cookie), ["accept", "closing:peer", "release:reset_in"]);
        drop(at_once.server);
    });
}

#[test]
fn the_range_of_a_socket_limits_its_ports() {
    for_each_net(|net, sandbox| {
        let narrow = || {
            let socket = net.socket();
            // The upper bound is in the upper half.
            let range = 40_001 << 16 | 40_000;
            set_option(&socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range).map(|()| socket)
        };
        if let Err(error) = narrow() {
            assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
            println!("skipped: IP_LOCAL_PORT_RANGE needs Linux 6.3");
            return;
        }
        let narrow = || narrow().expect("the option exists");
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener_on(20_000);
        let connected = [narrow(), narrow()].map(|socket| Pair::connect(socket, &listener));
        let without_port = narrow();
        let error = without_port.connect(&net.at(20_000).into()).expect_err("two ports are taken");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        let wide = Pair::connect(net.socket(), &listener);
        let failed_cookie = cookie(&without_port);
        tracer.wait_for("failure", is(failed_cookie, "fail:EADDRNOTAVAIL"));
        tracer.verify();
        let mut ports: Vec<_> = connected.iter().map(|pair| addr(&pair.client).port()).collect();
        ports.sort_unstable();
        assert_eq!(ports, [40_000, 40_001]);
        // bind() to port 0 chooses from the same range, and cannot share ports with connect().
        for pair in &connected {
            reset_on_close(&pair.client);
        }
        let cookies = connected.each_ref().map(|pair| cookie(&pair.client));
        drop(connected);
        let bound = [narrow(), narrow()].map(|socket| {
            socket.bind(&net.at(0).into()).expect("two ports are free");
            socket
        });
        let rival = narrow();
        let error = rival.bind(&net.at(0).into()).expect_err("two ports are taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        tracer.verify();
        let rival_cookie = cookie(&rival);
        let recording = tracer.finish();
        for own_cookie in cookies {
            assert_eq!(recording.of(own_cookie), ["connect", "established", "release:reset_out"]);
        }
        assert_eq!(recording.of(failed_cookie), ["fail:EADDRNOTAVAIL"]);
        assert_eq!(recording.of(cookie(&wide.client)), ["connect", "established"]);
        for socket in &bound {
            assert_eq!(recording.of(cookie(socket)), ["bind"]);
            assert_eq!(recording.only(cookie(socket), "bind")["local_port"], addr(socket).port());
        }
        assert_eq!(recording.of(rival_cookie), ["fail:EADDRINUSE"]);
        assert_eq!(recording.only(rival_cookie, "fail")["requested_port"], 0);
    });
}

/// TCP Fast Open (RFC 7413): connect() may wait for the first data, and the SYN may carry it.
#[test]
fn fast_open_connections_are_connections() {
    for_each_net(|net, sandbox| {
        // Enables it for clients and servers. A first connection has to fetch a cookie.
        if let Err(error) = sandbox.set("ipv4/tcp_fastopen", "3") {
            println!("skipped: TCP Fast Open is not available: {error}");
            return;
        }
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener_on(20_000);
        set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).expect("it is allowed");
        let send_first = || {
            let client = net.socket();
            let sent = client.send_to_with_flags(b"x", &net.at(20_000).into(), libc::MSG_FASTOPEN);
            assert_eq!(sent.expect("it connects and sends"), 1);
            client
        };
        let clients = [send_first(), send_first()];
        let deferred = net.socket();
        set_option(&deferred, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
            .expect("Linux 4.11 has the option");
        deferred.connect(&net.at(20_000).into()).expect("it has a cookie");
        // No SYN is sent, but the port is held (tcp_fastopen_defer_connect, tcp_fastopen.c).
        let port = addr(&deferred).port();
        net.socket().bind(&net.at(port).into()).expect_err("the port is held");
        deferred.send(b"x").expect("it connects and sends");
        let [first, second] = clients;
        let clients = [first, second, deferred];
        let servers = clients.each_ref().map(|_| {
            let (server, _) = listener.accept().expect("accept() succeeds");
            server.recv(&mut [std::mem::MaybeUninit::uninit()]).expect("the data arrive");
            server
        });
        for client in &clients {
            tracer.wait_for("connection", is(cookie(client), "established"));
        }
        tracer.verify();
        let cookies = clients.each_ref().map(cookie);
        let server_cookies = servers.each_ref().map(cookie);
        let ports = clients.each_ref().map(|client| addr(client).port());
        for client in &clients {
            reset_on_close(client);
        }
        drop(clients);
        for own_cookie in server_cookies {
            tracer.wait_for("release", is(own_cookie, "release:reset_in"));
        }
        tracer.verify();
        let recording = tracer.finish();
        for (own_cookie, port) in cookies.into_iter().zip(ports) {
            assert_eq!(recording.of(own_cookie), ["connect", "established", "release:reset_out"]);
            let connect = recording.only(own_cookie, "connect");
            assert_eq!(connect["local_port"], port);
            assert_eq!(connect["kind"], "connect");
            assert_eq!(connect["pid"], std::process::id());
        }
        for own_cookie in server_cookies {
            assert_eq!(recording.of(own_cookie), ["accept", "release:reset_in"]);
        }
    });
}

/// connect() waits for data that never arrive.
#[test]
fn a_deferred_connection_closed_without_data_leaves_nothing() {
    for_each_net(|net, sandbox| {
        // Enables Fast Open without cookies.
        if let Err(error) = sandbox.set("ipv4/tcp_fastopen", "5") {
            println!("skipped: TCP Fast Open is not available: {error}");
            return;
        }
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener_on(20_000);
        let deferred = net.socket();
        set_option(&deferred, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
            .expect("Linux 4.11 has the option");
        deferred.connect(&net.at(20_000).into()).expect("it needs no answer");
        let own_cookie = cookie(&deferred);
        drop(deferred);
        tracer.verify();
        drop(listener);
        let recording = tracer.finish();
        assert!(recording.failures().is_empty(), "it had a port: {:?}", recording.failures());
        let reported = recording.of(own_cookie);
        // Choosing a port has no hook, so nothing is reported before the SYN.
        assert!(reported.is_empty() || reported == ["connect", "release:closed"], "{reported:?}");
    });
}

/// The ports of an MPTCP connection belong to its subflows, which are TCP sockets
/// (net/mptcp/protocol.c).
#[test]
fn an_mptcp_connection_is_reported_once() {
    for net in [Net::V4, Net::V6] {
        let Some(sandbox) = sandbox() else { return };
        if let Err(error) = sandbox.set("mptcp/enabled", "1") {
            println!("skipped: MPTCP is not available: {error}");
            return;
        }
        let domain = if let Net::V4 = net { Domain::IPV4 } else { Domain::IPV6 };
        let socket =
            || Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)).expect("MPTCP is enabled");
        let mut tracer = Tracer::start_verifying(&sandbox);
        let listener = socket();
        listener.bind(&net.at(20_000).into()).expect("the port is free");
        listener.listen(16).expect("listen() succeeds");
        let pair = Pair::connect(socket(), &listener);
        let port = addr(&pair.client).port();
        let rival = socket();
        rival.bind(&net.at(20_000).into()).expect_err("the port is taken");
        tracer.wait_for("connection", |record| {
            record["type"] == "established" && record["local_port"] == port
        });
        tracer
            .wait_for("accept", |record| record["type"] == "accept" && record["peer_port"] == port);
        tracer.verify();
        let Pair { client, server } = pair;
        drop(client);
        read_to_end(&server);
        drop(server);
        drop(listener);
        tracer.wait_for("release", |record| {
            record["type"] == "release"
                && record["local_port"] == 20_000
                && record["peer_port"].is_null()
        });
        tracer.verify();
        let recording = tracer.finish();
        let leases = recording.records.iter().filter(|record| record["lease"].is_u64());
        let begins: Vec<_> = leases
            .filter(|record| {
                ["bind", "connect", "accept", "held"]
                    .contains(&record["type"].as_str().expect("a type"))
            })
            .map(|record| (record["type"].as_str(), record["local_port"].as_u64()))
            .collect();
        let (server_port, port) = (Some(20_000), Some(port.into()));
        assert_eq!(
            begins,
            [(Some("bind"), server_port), (Some("connect"), port), (Some("accept"), server_port)]
        );
    }
}

/// A dual-stack listener, as most IPv6 servers have.
#[test]
fn a_dual_stack_listener_accepts_ipv4_and_blocks_ipv4_binds() {
    let Some(sandbox) = sandbox() else { return };
    let mut tracer = Tracer::start_verifying(&sandbox);
    let both = Net::V6.socket();
    both.set_only_v6(false).expect("IPV6_V6ONLY");
    both.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 20_000)).into()).expect("it is free");
    both.listen(16).expect("listen() succeeds");
    let connections = Net::ALL.map(|net| {
        let client = net.socket();
        client.connect(&net.at(20_000).into()).expect("connect() succeeds");
        let (server, _) = both.accept().expect("accept() succeeds");
        (net, client, server)
    });
    let rivals = ["0.0.0.0:20000", "127.0.0.1:20000", "[::1]:20000"].map(|address| {
        let address: SocketAddr = address.parse().expect("an address");
        let net = if address.is_ipv4() { Net::V4 } else { Net::V6 };
        let rival = net.socket();
        let error = rival.bind(&address.into()).expect_err("the listener has them all");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        rival
    });
    tracer.verify();
    let recording = tracer.finish();
    for (net, client, server) in &connections {
        assert_eq!(recording.of(cookie(client)), ["connect", "established"]);
        assert_eq!(recording.of(cookie(server)), ["accept"]);
        let accept = recording.only(cookie(server), "accept");
        assert_eq!(accept["family"], "ipv6");
        assert_eq!(accept["local_addr"], net.shown());
        assert_eq!(accept["listener"], cookie(&both));
        assert_eq!(recording.only(cookie(client), "connect")["family"], net.family());
    }
    for rival in &rivals {
        assert_eq!(recording.of(cookie(rival)), ["fail:EADDRINUSE"]);
        assert_eq!(recording.only(cookie(rival), "fail")["holder"]["cookie"], cookie(&both));
    }
}
