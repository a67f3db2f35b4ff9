//! Ports of servers.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::support::{Net, Pair, Tracer, addr, cookie, for_each_net, is, sandbox};

#[test]
fn listen_on_an_unbound_socket_takes_a_port() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let listener = net.socket();
        listener.listen(1).expect("listen() succeeds");
        let (own_cookie, port) = (cookie(&listener), addr(&listener).port());
        drop(listener);
        let recording = tracer.finish_after_release(&[own_cookie]);
        assert_eq!(recording.of(own_cookie), ["bind", "listen", "release:closed"]);
        let bind = recording.only(own_cookie, "bind");
        assert_eq!(bind["kind"], "listen");
        assert_eq!(bind["requested_port"], 0);
        assert_eq!(bind["local_port"], port);
        assert_eq!(bind["pid"], std::process::id());
    });
}

#[test]
fn a_second_listener_on_a_port_fails_and_keeps_its_bind() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let [first, second] = [20_000, 20_000].map(|port| {
            let socket = net.socket();
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            socket.bind(&net.at(port).into()).expect("neither listens yet");
            socket
        });
        first.listen(1).expect("listen() succeeds");
        let error = second.listen(1).expect_err("the port has a listener");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let (first_cookie, second_cookie) = (cookie(&first), cookie(&second));
        drop(second);
        let recording = tracer.finish_after_release(&[second_cookie]);
        assert_eq!(recording.of(first_cookie), ["bind", "listen"]);
        assert_eq!(recording.of(second_cookie), ["bind", "fail:EADDRINUSE", "release:closed"]);
        let failure = recording.only(second_cookie, "fail");
        assert_eq!(failure["op"], "listen");
        assert_eq!(failure["requested_port"], 20_000);
        assert_eq!(failure["holder"]["cookie"], first_cookie);
    });
}

#[test]
fn an_unaccepted_connection_is_owned_by_the_listener() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let client = net.socket();
        client.connect(&addr(&listener).into()).expect("the backlog has room");
        let accept = tracer.wait_for("accept", |record| record["type"] == "accept");
        assert_eq!(accept["pid"], std::process::id());
        assert_eq!(accept["peer_port"], addr(&client).port());
        tracer.finish();
    });
}

#[test]
fn the_listener_is_null_if_two_share_the_port() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let listeners = [20_000, 20_000].map(|port| {
            let socket = net.socket();
            socket.set_reuse_port(true).expect("SO_REUSEPORT");
            socket.bind(&net.at(port).into()).expect("the port is shared");
            socket.listen(16).expect("listen() succeeds");
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            socket
        });
        let client = net.socket();
        client.connect(&net.at(20_000).into()).expect("one of them takes it");
        let server = listeners
            .iter()
            .find_map(|listener| listener.accept().ok())
            .map(|(socket, _)| socket)
            .expect("one of them has it");
        let pair = Pair { client, server };
        let server_cookie = cookie(&pair.server);
        let recording = tracer.finish();
        assert!(recording.only(server_cookie, "accept")["listener"].is_null());
    });
}

/// A wildcard listener for each family, as most servers have.
#[test]
fn listeners_of_both_families_are_told_apart() {
    let Some(sandbox) = sandbox() else { return };
    let tracer = Tracer::start(&sandbox);
    let [four, six] = [Net::V4, Net::V6].map(|net| {
        let socket = net.socket();
        let wildcard = if let Net::V4 = net {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 20_000))
        } else {
            socket.set_only_v6(true).expect("IPV6_V6ONLY");
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 20_000))
        };
        socket.bind(&wildcard.into()).expect("the families do not overlap");
        socket.listen(16).expect("listen() succeeds");
        socket
    });
    let connections = [(Net::V4, &four), (Net::V6, &six)].map(|(net, listener)| {
        let client = net.socket();
        client.connect(&net.at(20_000).into()).expect("connect() succeeds");
        let (server, _) = listener.accept().expect("accept() succeeds");
        (cookie(&server), cookie(listener), client, server)
    });
    let rival = Net::V4.socket();
    rival.bind(&Net::V4.at(20_000).into()).expect_err("the wildcard is in the way");
    let rival_cookie = cookie(&rival);
    let recording = tracer.finish();
    for (server, listener, ..) in &connections {
        assert_eq!(recording.only(*server, "accept")["listener"], *listener);
    }
    assert_eq!(recording.only(rival_cookie, "fail")["holder"]["cookie"], cookie(&four));
}

#[test]
fn a_connection_whose_listener_closes_before_accept_is_reset() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let client = net.socket();
        client.connect(&addr(&listener).into()).expect("the backlog has room");
        let accept = tracer.wait_for("accept", |record| record["type"] == "accept");
        let client_cookie = cookie(&client);
        drop(listener);
        tracer.wait_for("release", is(client_cookie, "release:reset_in"));
        let recording = tracer.finish();
        let server = accept["cookie"].as_u64().expect("a number");
        assert_eq!(recording.only(server, "release")["reason"], "reset_out");
    });
}
