//! Ports acquired by bind().

use std::io::ErrorKind;

use socket2::Socket;

use crate::{
    connect::one_port,
    support::{Net, Pair, Tracer, addr, cookie, for_each_net},
};

#[test]
fn a_bound_port_is_held_until_close() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let any = net.bound(0);
        let any_addr = addr(&any);
        let any_cookie = cookie(&any);
        let explicit = net.bound(20_000);
        let explicit_cookie = cookie(&explicit);
        drop((any, explicit));
        let recording = tracer.finish_after_release(&[any_cookie, explicit_cookie]);
        assert_eq!(recording.of(any_cookie), ["bind", "release:closed"]);
        assert_eq!(recording.of(explicit_cookie), ["bind", "release:closed"]);
        let bind = recording.only(any_cookie, "bind");
        assert_eq!(bind["kind"], "bind_auto");
        assert_eq!(bind["requested_port"], 0);
        assert_eq!(bind["local_port"], any_addr.port());
        assert_eq!(bind["local_addr"], net.shown());
        assert_eq!(bind["pid"], std::process::id());
        assert!(bind["peer_addr"].is_null() && bind["peer_port"].is_null());
        let bind = recording.only(explicit_cookie, "bind");
        assert_eq!(bind["kind"], "bind");
        assert_eq!(bind["requested_port"], 20_000);
        assert_eq!(bind["local_port"], 20_000);
        assert!(recording.only(any_cookie, "release")["established_s"].is_null());
    });
}

#[test]
fn a_refused_connection_releases_a_port_chosen_by_bind_but_not_an_explicit_one() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let closed_port = 30_000;
        let chosen = net.bound(0);
        let explicit = net.bound(20_000);
        let chosen_port = addr(&chosen).port();
        for socket in [&chosen, &explicit] {
            let error =
                socket.connect(&net.at(closed_port).into()).expect_err("the port is closed");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        // getsockname() still returns the port, although another socket can have it now.
        assert_eq!(addr(&chosen).port(), chosen_port);
        let successor = net.bound(chosen_port);
        let cookies = [&chosen, &explicit, &successor].map(cookie);
        let [chosen_cookie, explicit_cookie, successor_cookie] = cookies;
        let rival = net.socket();
        let error = rival.bind(&net.at(20_000).into()).expect_err("the port is held");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let rival_cookie = cookie(&rival);
        let recording = tracer.finish();
        assert_eq!(recording.of(chosen_cookie), ["bind", "update:connecting", "release:refused"]);
        assert_eq!(recording.of(explicit_cookie), ["bind", "update:connecting", "update:bound"]);
        assert_eq!(recording.of(successor_cookie), ["bind"]);
        assert_eq!(recording.of(rival_cookie), ["fail:EADDRINUSE"]);
    });
}

#[test]
fn a_failed_bind_is_reported_with_the_requested_port_and_its_holder() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let taken = addr(&listener);
        let rival = net.socket();
        let error = rival.bind(&taken.into()).expect_err("the port is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let rival_cookie = cookie(&rival);
        let recording = tracer.finish();
        assert_eq!(recording.of(rival_cookie), ["fail:EADDRINUSE"]);
        let failure = recording.only(rival_cookie, "fail");
        assert_eq!(failure["op"], "bind");
        assert_eq!(failure["errno"], libc::EADDRINUSE);
        assert_eq!(failure["requested_addr"], net.shown());
        assert_eq!(failure["requested_port"], taken.port());
        assert_eq!(failure["pid"], std::process::id());
        assert_eq!(failure["cause"], "port_held");
        assert_eq!(failure["holder"]["cookie"], cookie(&listener));
        assert_eq!(failure["holder"]["phase"], "listen");
        assert_eq!(failure["holder"]["pid"], std::process::id());
    });
}

#[test]
fn a_bind_to_a_foreign_address_is_reported() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let socket = net.socket();
        let (elsewhere, shown) = match net {
            Net::V4 => ("192.0.2.1:1234", "192.0.2.1"),
            Net::V6 => ("[2001:db8::1]:1234", "2001:db8::1"),
            Net::Mapped => ("[::ffff:192.0.2.1]:1234", "192.0.2.1"),
        };
        let elsewhere: std::net::SocketAddr = elsewhere.parse().expect("an address");
        let error = socket.bind(&elsewhere.into()).expect_err("the address is not ours");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        let own_cookie = cookie(&socket);
        let recording = tracer.finish();
        let failure = recording.only(own_cookie, "fail");
        assert_eq!(failure["error"], "EADDRNOTAVAIL");
        assert_eq!(failure["cause"], "address_not_local");
        assert_eq!(failure["requested_addr"], shown);
        assert_eq!(failure["requested_port"], 1234);
    });
}

/// connect() cannot use the bucket of a bound port, whatever the address.
#[test]
fn connect_cannot_use_a_port_that_is_bound_on_another_address() {
    let Some(sandbox) = crate::support::sandbox() else { return };
    one_port(&sandbox, 50_000);
    let tracer = Tracer::start(&sandbox);
    let listener = Net::V4.bound(40_000);
    listener.listen(16).expect("listen() succeeds");
    let other_address: std::net::SocketAddr = "127.0.0.2:50000".parse().expect("an address");
    let bound = Net::V4.socket();
    bound.bind(&other_address.into()).expect("the port is free");
    let client = Net::V4.socket();
    let error = client.connect(&addr(&listener).into()).expect_err("the bucket is bound");
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    drop(bound);
    let client_cookie = cookie(&client);
    let pair = Pair::connect(client, &listener);
    let recording = tracer.finish();
    assert_eq!(recording.of(client_cookie), ["fail:EADDRNOTAVAIL", "connect", "established"]);
    drop(pair);
}

#[test]
fn a_connected_port_can_be_bound_on_another_address() {
    let Some(sandbox) = crate::support::sandbox() else { return };
    one_port(&sandbox, 50_000);
    let tracer = Tracer::start(&sandbox);
    let listener = Net::V4.bound(40_000);
    listener.listen(16).expect("listen() succeeds");
    let pair = Pair::connect(Net::V4.socket(), &listener);
    let other_address: std::net::SocketAddr = "127.0.0.2:0".parse().expect("an address");
    let bound = Net::V4.socket();
    bound.bind(&other_address.into()).expect("the addresses do not overlap");
    assert_eq!(addr(&bound).port(), 50_000);
    let cookies = [&pair.client, &bound].map(cookie);
    let recording = tracer.finish();
    let [connected, bound_cookie] = cookies;
    assert_eq!(recording.of(connected), ["connect", "established"]);
    assert_eq!(recording.of(bound_cookie), ["bind"]);
    assert_eq!(recording.only(bound_cookie, "bind")["kind"], "bind_auto");
}

#[test]
fn a_bound_port_stays_one_lease_through_the_connection() {
    for_each_net(|net, sandbox| {
        let tracer = Tracer::start(sandbox);
        let listener = net.listener();
        let client: Socket = net.bound(0);
        let client_cookie = cookie(&client);
        let pair = Pair::connect(client, &listener);
        crate::support::reset_on_close(&pair.client);
        drop(pair);
        let recording = tracer.finish_after_release(&[client_cookie]);
        assert_eq!(
            recording.of(client_cookie),
            ["bind", "update:connecting", "established", "release:reset_out"]
        );
        let leases: std::collections::BTreeSet<_> =
            recording.records_of(client_cookie).map(|record| record["lease"].as_u64()).collect();
        assert_eq!(leases.len(), 1);
        assert_eq!(recording.only(client_cookie, "established")["kind"], "bind_auto");
    });
}
