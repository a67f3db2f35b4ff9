//! Ports chosen by connect().

use std::io::ErrorKind;

use tracer_user::kernel::namespace::sandbox::{Sandbox, bind_address_no_port};

use crate::support::{
    ClosedFirst, Net, Pair, Tracer, addr, close_into_fin_wait2, cookie, for_each_net, is,
    read_to_end, reset_on_close,
};

#[test]
fn a_connection_closed_by_the_client_is_reported_from_connect_to_time_wait() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let connect = || Pair::connect(net.socket(), &listener);
        let ClosedFirst { cookie: client_cookie, other: server } =
            close_into_fin_wait2(&mut tracer, connect, |pair| [pair.client, pair.server]);
        let server_cookie = cookie(&server);
        let client_addr = server.peer_addr().expect("a peer").as_socket().expect("an IP socket");
        let server_addr = addr(&listener);
        read_to_end(&server);
        drop(server);
        tracer.wait_for("TIME_WAIT", is(client_cookie, "time_wait:time_wait"));
        let recording = tracer.finish_after_release(&[server_cookie]);
        assert_eq!(
            recording.of(client_cookie),
            [
                "connect",
                "established",
                "closing:local",
                "time_wait:fin_wait2",
                "time_wait:time_wait"
            ]
        );
        assert_eq!(recording.of(server_cookie), ["accept", "closing:peer", "release:closed"]);
        for record in recording.records_of(client_cookie) {
            assert_eq!(record["kind"], "connect");
            assert_eq!(record["family"], net.family());
            assert_eq!(record["local_addr"], net.shown());
            assert_eq!(record["local_port"], client_addr.port());
            assert_eq!(record["peer_addr"], net.shown());
            assert_eq!(record["peer_port"], server_addr.port());
            assert_eq!(record["pid"], std::process::id());
            assert_eq!(record["netns"], sandbox.netns().0);
        }
        let accept = recording.only(server_cookie, "accept");
        assert_eq!(accept["kind"], "accept");
        assert_eq!(accept["listener"], cookie(&listener));
        assert_eq!(accept["local_port"], server_addr.port());
        assert_eq!(accept["peer_port"], client_addr.port());
        assert_eq!(accept["pid"], std::process::id());
        assert!(recording.only(client_cookie, "connect")["search_us"].as_f64() > Some(0.0));
        assert!(recording.only(client_cookie, "established")["handshake_us"].as_f64() > Some(0.0));
    });
}

#[test]
fn a_client_port_is_released_at_once_if_the_server_closed_first() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let connect = || Pair::connect(net.socket(), &listener);
        let ClosedFirst { cookie: server_cookie, other: client } =
            close_into_fin_wait2(&mut tracer, connect, |pair| [pair.server, pair.client]);
        let client_cookie = cookie(&client);
        read_to_end(&client);
        drop(client);
        tracer.wait_for("TIME_WAIT", is(server_cookie, "time_wait:time_wait"));
        let recording = tracer.finish_after_release(&[client_cookie]);
        assert_eq!(
            recording.of(client_cookie),
            ["connect", "established", "closing:peer", "release:closed"]
        );
        let release = recording.only(client_cookie, "release");
        assert_eq!(release["closed_by"], "peer");
        assert!(release["held_s"].as_f64() >= release["established_s"].as_f64());
        assert!(release["time_wait_s"].is_null());
        assert_eq!(
            recording.of(server_cookie),
            ["accept", "closing:local", "time_wait:fin_wait2", "time_wait:time_wait"]
        );
    });
}

#[test]
fn a_reset_releases_both_ports_at_once() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let (client_cookie, server_cookie) = (cookie(&client), cookie(&server));
        reset_on_close(&client);
        drop(client);
        let recording = tracer.finish_after_release(&[client_cookie, server_cookie]);
        assert_eq!(recording.of(client_cookie), ["connect", "established", "release:reset_out"]);
        assert_eq!(recording.of(server_cookie), ["accept", "release:reset_in"]);
        drop(server);
    });
}

#[test]
fn a_refused_connection_releases_its_port_and_the_next_attempt_is_a_new_lease() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let closed_port = {
            let unused = net.bound(0);
            addr(&unused).port()
        };
        let client = net.socket();
        let refused = client.connect(&net.at(closed_port).into()).expect_err("the port is closed");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // The kernel leaves the stale port in the socket's name, but the lease has ended.
        client.connect(&addr(&listener).into()).expect("connect() succeeds");
        let client_cookie = cookie(&client);
        let recording = tracer.finish();
        assert_eq!(
            recording.of(client_cookie),
            ["connect", "release:refused", "connect", "established"]
        );
        let leases: Vec<_> =
            recording.records_of(client_cookie).map(|record| record["lease"].as_u64()).collect();
        assert_eq!(leases.first(), leases.get(1));
        assert_ne!(leases.get(1), leases.get(2));
        let last = recording.records_of(client_cookie).last().expect("there are records");
        assert_eq!(last["local_port"], addr(&client).port());
    });
}

#[test]
fn disconnecting_releases_a_chosen_port_but_keeps_an_explicit_one() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let chosen = Pair::connect(net.socket(), &listener);
        let bound = Pair::connect(net.bound(0), &listener);
        let explicit_port = {
            let unused = net.bound(0);
            addr(&unused).port()
        };
        let locked = Pair::connect(net.bound(explicit_port), &listener);
        for pair in [&chosen, &bound, &locked] {
            rustix::net::connect_unspec(&pair.client).expect("AF_UNSPEC dissolves it");
        }
        let cookies = [&chosen, &bound, &locked].map(|pair| cookie(&pair.client));
        let [chosen_cookie, bound_cookie, locked_cookie] = cookies;
        tracer.wait_for("release", |record| {
            record["cookie"] == bound_cookie && record["type"] == "release"
        });
        let still_held = addr(&locked.client).port();
        assert_eq!(still_held, explicit_port);
        let recording = tracer.finish();
        assert_eq!(recording.of(chosen_cookie), ["connect", "established", "release:disconnected"]);
        // bind() to port 0 does not lock the port (SOCK_BINDPORT_LOCK).
        assert_eq!(
            recording.of(bound_cookie),
            ["bind", "update:connecting", "established", "release:disconnected"]
        );
        assert_eq!(
            recording.of(locked_cookie),
            ["bind", "update:connecting", "established", "update:bound"]
        );
    });
}

#[test]
fn connect_without_a_free_port_fails_once_with_its_destination_and_owner() {
    for_each_net(|net, sandbox| {
        one_port(sandbox, 50_000);
        let mut tracer = Tracer::start(sandbox);
        let listener = net.bound(40_000);
        listener.listen(16).expect("listen() succeeds");
        let first = Pair::connect(net.socket(), &listener);
        let blocking = net.socket();
        let error = blocking.connect(&addr(&listener).into()).expect_err("there is one port");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        let other = net.socket();
        other.set_nonblocking(true).expect("O_NONBLOCK");
        let error = other.connect(&addr(&listener).into()).expect_err("there is one port");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        for socket in [&blocking, &other] {
            let failed = cookie(socket);
            tracer.wait_for("failure", |record| record["cookie"] == failed);
        }
        let recording = tracer.finish();
        assert_eq!(recording.failures().len(), 2);
        for failure in recording.failures() {
            assert_eq!(failure["op"], "connect");
            assert_eq!(failure["errno"], libc::EADDRNOTAVAIL);
            assert_eq!(failure["error"], "EADDRNOTAVAIL");
            assert_eq!(failure["peer_addr"], net.shown());
            assert_eq!(failure["peer_port"], 40_000);
            assert_eq!(failure["pid"], std::process::id());
            assert_eq!(failure["requested_port"], 0);
            assert!(failure["lease"].is_null());
            assert!(failure["search_us"].as_f64() > Some(0.0));
        }
        drop(first);
    });
}

#[test]
fn a_client_that_binds_an_address_without_a_port_gets_its_port_from_connect() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let client = net.socket();
        bind_address_no_port(&client).expect("Linux 4.2 has the option");
        client.bind(&net.at(0).into()).expect("bind() succeeds");
        let client_cookie = cookie(&client);
        let pair = Pair::connect(client, &listener);
        let recording = tracer.finish();
        assert_eq!(recording.of(client_cookie), ["connect", "established"]);
        let connect = recording.only(client_cookie, "connect");
        assert_eq!(connect["kind"], "connect");
        assert_eq!(connect["local_port"], addr(&pair.client).port());
    });
}

#[test]
fn a_socket_that_connects_to_itself_is_one_lease() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let socket = net.bound(0);
        let itself = addr(&socket);
        socket.connect(&itself.into()).expect("a simultaneous open");
        let own_cookie = cookie(&socket);
        let recording = tracer.finish();
        assert_eq!(recording.of(own_cookie), ["bind", "update:connecting", "established"]);
        let established = recording.only(own_cookie, "established");
        assert_eq!(established["local_port"], established["peer_port"]);
    });
}

#[test]
fn a_reused_port_names_its_previous_lease() {
    for_each_net(|net, sandbox| {
        one_port(sandbox, 50_000);
        let tracer = Tracer::start(sandbox);
        let listener = net.bound(40_000);
        listener.listen(16).expect("listen() succeeds");
        let first = Pair::connect(net.socket(), &listener);
        let first_cookie = cookie(&first.client);
        reset_on_close(&first.client);
        drop(first);
        let second = Pair::connect(net.socket(), &listener);
        let second_cookie = cookie(&second.client);
        let recording = tracer.finish();
        let first = recording.only(first_cookie, "connect");
        assert!(first["reuse"].is_null());
        let reuse = &recording.only(second_cookie, "connect")["reuse"];
        assert_eq!(reuse["lease"], first["lease"]);
        assert_eq!(reuse["from_time_wait"], false);
        let released = recording.only(first_cookie, "release")["mono_ns"].as_u64();
        let taken = recording.only(second_cookie, "connect")["mono_ns"].as_u64();
        let idle_s = (taken.unwrap_or(0) - released.unwrap_or(0)) as f64 / 1e9;
        assert_eq!(reuse["idle_s"].as_f64(), Some(idle_s));
    });
}

/// Limits the ephemeral range of the namespace to one port.
pub fn one_port(sandbox: &Sandbox, port: u16) {
    sandbox
        .set("ipv4/ip_local_port_range", &format!("{port} {port}"))
        .expect("the setting can be written");
}

#[test]
fn ipv4_mapped_addresses_are_shown_as_ipv4() {
    assert_eq!(Net::Mapped.shown(), "127.0.0.1");
    assert_eq!(Net::Mapped.family(), "ipv6");
}
