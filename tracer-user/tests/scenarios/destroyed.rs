//! Sockets destroyed by others (`ss -K`), and namespaces that are torn down.

use std::{
    net::{IpAddr, Shutdown, SocketAddr},
    thread,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use serde_json::Value;

use crate::support::{
    Net, Pair, Tracer, UnresponsiveListener, addr, cookie, for_each_net, is, read_to_end, sandbox,
};

#[test]
fn destroying_an_established_connection_releases_both_ports() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let [client_cookie, server_cookie] = [&client, &server].map(cookie);
        if !destroy(addr(&client), addr(&listener)) {
            return;
        }
        tracer.wait_for("release", is(client_cookie, "release:aborted"));
        tracer.wait_for("release", is(server_cookie, "release:reset_in"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(recording.of(client_cookie), ["connect", "established", "release:aborted"]);
        assert_eq!(recording.of(server_cookie), ["accept", "release:reset_in"]);
    });
}

#[test]
fn destroying_a_connection_attempt_releases_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let client = unresponsive.attempt(net.socket());
        let client_cookie = cookie(&client);
        if !destroy(addr(&client), addr(&unresponsive.listener)) {
            return;
        }
        tracer.wait_for("release", is(client_cookie, "release:aborted"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(recording.of(client_cookie), ["connect", "release:aborted"]);
    });
}

#[test]
fn destroying_a_half_closed_connection_releases_both_ports() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let [client_cookie, server_cookie] = [&client, &server].map(cookie);
        client.shutdown(Shutdown::Write).expect("shutdown() succeeds");
        read_to_end(&server);
        // The server is in CLOSE_WAIT.
        if !destroy(addr(&server), addr(&client)) {
            return;
        }
        tracer.wait_for("release", is(server_cookie, "release:aborted"));
        tracer.wait_for("release", is(client_cookie, "release:reset_in"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(
            recording.of(client_cookie),
            ["connect", "established", "closing:local", "release:reset_in"]
        );
        assert_eq!(recording.of(server_cookie), ["accept", "closing:peer", "release:aborted"]);
    });
}

/// tcp_abort() moves a listener to CLOSE before it sets the error (net/ipv4/tcp.c). A port chosen
/// by bind() is released at that moment, so the reason is unknown; an explicit port is held until
/// the socket is closed.
#[test]
fn destroying_a_listener_releases_its_port_unless_it_is_explicit() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let chosen = net.listener();
        let explicit = net.listener_on(20_000);
        let [chosen_cookie, explicit_cookie] = [&chosen, &explicit].map(cookie);
        let no_peer = SocketAddr::new(addr(&chosen).ip(), 0);
        for listener in [&chosen, &explicit] {
            if !destroy(addr(listener), no_peer) {
                return;
            }
        }
        let rival = net.socket();
        rival.bind(&net.at(20_000).into()).expect_err("the port is still held");
        tracer.wait_for("release", |record| {
            record["cookie"] == chosen_cookie && record["type"] == "release"
        });
        tracer.verify();
        drop(explicit);
        let recording = tracer.finish_after_release(&[explicit_cookie]);
        assert_eq!(recording.of(chosen_cookie), ["bind", "listen", "release:closed"]);
        assert_eq!(
            recording.all_of(explicit_cookie),
            ["bind", "listen", "update:bound", "release:aborted"]
        );
    });
}

/// Sockets keep alive a namespace without processes. When the last one is closed the kernel tears
/// the namespace down, with the TIME_WAITs that are left.
#[test]
fn a_namespace_torn_down_with_its_last_socket_holds_nothing() {
    if sandbox().is_none() {
        return;
    }
    let made = thread::spawn(|| sandbox().expect("another namespace can be made"));
    let sandbox = made.join().expect("a namespace can be made");
    let netns = sandbox.netns();
    let mut tracer = Tracer::start_verifying(&sandbox);
    // Such a namespace can be inspected only through its sockets.
    if !tracer.sees("task_file") {
        return;
    }
    let inside = thread::spawn(move || {
        sandbox.enter().expect("the namespace exists");
        let bound = Net::V4.bound(20_000);
        let unresponsive = UnresponsiveListener::new(Net::V4);
        let connecting = unresponsive.attempt(Net::V4.socket());
        let listener = Net::V4.listener();
        let pair = Pair::connect(Net::V4.socket(), &listener);
        (bound, unresponsive, connecting, listener, pair)
    });
    let (bound, unresponsive, connecting, listener, pair) = inside.join().expect("portlife runs");
    let Pair { client, server } = pair;
    let cookies = [&bound, &connecting, &listener, &client, &server].map(cookie);
    tracer.wait_for("accept", is(cookies[4], "accept"));
    tracer.verify();
    drop((bound, connecting, unresponsive, listener));
    drop(client);
    read_to_end(&server);
    drop(server);
    let release = tracer.wait_for("release", is(cookies[3], "release:netns_gone"));
    assert_eq!(release["netns"], netns.0);
    tracer.verify();
    let recording = tracer.finish();
    let [bound, connecting, listener, client, server] = cookies.map(|cookie| recording.of(cookie));
    assert_eq!(bound, ["bind", "release:closed"]);
    assert_eq!(connecting, ["connect", "release:closed"]);
    assert_eq!(listener, ["bind", "listen", "release:closed"]);
    assert_eq!(client.first().map(String::as_str), Some("connect"));
    assert_eq!(server, ["accept", "closing:peer", "release:closed"]);
    // After that the kernel may reuse its inode for another namespace, such as that of another
    // test.
    let is_of_it = |record: &&Value| {
        record["netns"] == netns.0 && record["mono_ns"].as_u64() <= release["mono_ns"].as_u64()
    };
    let in_it: Vec<_> = recording.records.iter().filter(is_of_it).collect();
    let [begun, ended] = [&["bind", "connect", "accept"][..], &["release"]].map(|types| {
        let of_types =
            in_it.iter().filter(|record| types.contains(&record["type"].as_str().expect("a type")));
        let mut leases: Vec<_> = of_types.map(|record| record["lease"].as_u64()).collect();
        leases.sort_unstable();
        leases
    });
    assert_eq!(begun, ended, "every lease in it has ended: {in_it:#?}");
}

/// Destroys a socket like `ss -K` (`SOCK_DESTROY`, sock_diag(7)), in the namespace of the calling
/// thread. Prints that the test is skipped and returns false if the kernel cannot destroy such a
/// socket: without `CONFIG_INET_DIAG_DESTROY`, or TIME_WAITs on 5.10 (`tcp_abort`, net/ipv4/tcp.c).
#[must_use]
pub fn destroy(local: SocketAddr, peer: SocketAddr) -> bool {
    const SOCK_DESTROY: u16 = 21;
    const NLM_F_REQUEST_ACK: u16 = 5;
    let octets = |address: SocketAddr| -> [u8; 16] {
        match address.ip() {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            }
            IpAddr::V6(ip) => ip.octets(),
        }
    };
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = Vec::new();
    message.extend(72_u32.to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(peer.port().to_be_bytes());
    message.extend(octets(local));
    message.extend(octets(peer));
    message.extend([0; 4]);
    // INET_DIAG_NOCOOKIE: any socket with these addresses and ports.
    message.extend([0xff; 8]);
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )
    .expect("sock_diag");
    rustix::net::send(&socket, &message, SendFlags::empty()).expect("send() succeeds");
    let mut reply = [0; 256];
    let (length, _) = rustix::net::recv(&socket, &mut reply, RecvFlags::empty()).expect("a reply");
    let errno = reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    assert!(length >= 20);
    if errno == Some(-libc::EOPNOTSUPP) {
        println!("skipped: the kernel does not destroy sockets in this state");
        return false;
    }
    assert_eq!(errno, Some(0), "it is destroyed");
    true
}
