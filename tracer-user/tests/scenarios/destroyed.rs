//! What somebody else ends: sockets that are destroyed from outside (`ss -K`), and namespaces that
//! end.

use std::{
    net::{IpAddr, Shutdown, SocketAddr},
    thread,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use serde_json::Value;

use crate::support::{
    Deaf, Net, Pair, Tracer, addr, cookie, for_each_net, is, read_to_end, sandbox,
};

#[test]
fn an_established_connection_that_is_destroyed_frees_both_ports() {
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
        let story = tracer.finish();
        assert_eq!(story.of(client_cookie), ["connect", "established", "release:aborted"]);
        assert_eq!(story.of(server_cookie), ["accept", "release:reset_in"]);
    });
}

#[test]
fn a_connection_attempt_that_is_destroyed_frees_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let client = deaf.attempt(net.socket());
        let client_cookie = cookie(&client);
        if !destroy(addr(&client), addr(&deaf.listener)) {
            return;
        }
        tracer.wait_for("release", is(client_cookie, "release:aborted"));
        tracer.verify();
        let story = tracer.finish();
        assert_eq!(story.of(client_cookie), ["connect", "release:aborted"]);
    });
}

#[test]
fn a_half_closed_connection_that_is_destroyed_frees_both_ports() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let [client_cookie, server_cookie] = [&client, &server].map(cookie);
        client.shutdown(Shutdown::Write).expect("half a close");
        read_to_end(&server);
        // The server is in CLOSE_WAIT.
        if !destroy(addr(&server), addr(&client)) {
            return;
        }
        tracer.wait_for("release", is(server_cookie, "release:aborted"));
        tracer.wait_for("release", is(client_cookie, "release:reset_in"));
        tracer.verify();
        let story = tracer.finish();
        assert_eq!(
            story.of(client_cookie),
            ["connect", "established", "closing:local", "release:reset_in"]
        );
        assert_eq!(story.of(server_cookie), ["accept", "closing:peer", "release:aborted"]);
    });
}

/// tcp_abort() lets a listener go to CLOSE before it sets the error (net/ipv4/tcp.c). One that
/// bind() gave a chosen port loses it at that moment, so that the reason is not known; one that
/// asked for its port keeps it until it is closed.
#[test]
fn a_listener_that_is_destroyed_lets_go_unless_it_asked_for_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let chosen = net.listener();
        let told = net.listener_on(20_000);
        let [chosen_cookie, told_cookie] = [&chosen, &told].map(cookie);
        let nobody = SocketAddr::new(addr(&chosen).ip(), 0);
        for listener in [&chosen, &told] {
            if !destroy(addr(listener), nobody) {
                return;
            }
        }
        let rival = net.socket();
        rival.bind(&net.at(20_000).into()).expect_err("the port is still held");
        tracer.wait_for("release", |record| {
            record["cookie"] == chosen_cookie && record["type"] == "release"
        });
        tracer.verify();
        drop(told);
        let story = tracer.finish_after_release(&[told_cookie]);
        assert_eq!(story.of(chosen_cookie), ["bind", "listen", "release:closed"]);
        assert_eq!(story.of(told_cookie), ["bind", "listen", "release:aborted"]);
    });
}

/// Sockets keep their namespace alive, in which no process is any more. When the last is closed the
/// kernel ends it, with the TIME_WAITs that it still has.
#[test]
fn a_namespace_that_ends_with_its_last_sockets_holds_nothing() {
    if sandbox().is_none() {
        return;
    }
    let made = thread::spawn(|| sandbox().expect("there was one before"));
    let sandbox = made.join().expect("a namespace can be made");
    let netns = sandbox.netns();
    let mut tracer = Tracer::start_verifying(&sandbox);
    // Only through its sockets can such a namespace be looked into.
    if !tracer.sees("task_file") {
        return;
    }
    let inside = thread::spawn(move || {
        sandbox.enter().expect("the namespace exists");
        let bound = Net::V4.bound(20_000);
        let deaf = Deaf::new(Net::V4);
        let connecting = deaf.attempt(Net::V4.socket());
        let listener = Net::V4.listener();
        let pair = Pair::connect(Net::V4.socket(), &listener);
        (bound, deaf, connecting, listener, pair)
    });
    let (bound, deaf, connecting, listener, pair) = inside.join().expect("it runs");
    let Pair { client, server } = pair;
    let cookies = [&bound, &connecting, &listener, &client, &server].map(cookie);
    tracer.wait_for("accept", is(cookies[4], "accept"));
    tracer.verify();
    drop((bound, connecting, deaf, listener));
    drop(client);
    read_to_end(&server);
    drop(server);
    let release = tracer.wait_for("release", is(cookies[3], "release:netns_gone"));
    assert_eq!(release["netns"], netns.0);
    tracer.verify();
    let story = tracer.finish();
    let [bound, connecting, listener, client, server] = cookies.map(|cookie| story.of(cookie));
    assert_eq!(bound, ["bind", "release:closed"]);
    assert_eq!(connecting, ["connect", "release:closed"]);
    assert_eq!(listener, ["bind", "listen", "release:closed"]);
    assert_eq!(client.first().map(String::as_str), Some("connect"));
    assert_eq!(server, ["accept", "closing:peer", "release:closed"]);
    // After its end the kernel may give its inode to another one, such as another test's.
    let is_of_it = |record: &&Value| {
        record["netns"] == netns.0 && record["mono_ns"].as_u64() <= release["mono_ns"].as_u64()
    };
    let in_it: Vec<_> = story.records.iter().filter(is_of_it).collect();
    let [begun, ended] = [&["bind", "connect", "accept"][..], &["release"]].map(|types| {
        let of_types =
            in_it.iter().filter(|record| types.contains(&record["type"].as_str().expect("a type")));
        let mut leases: Vec<_> = of_types.map(|record| record["lease"].as_u64()).collect();
        leases.sort_unstable();
        leases
    });
    assert_eq!(begun, ended, "every lease in it has ended: {in_it:#?}");
}

/// Does what `ss -K` does (`SOCK_DESTROY`, sock_diag(7)) in the namespace of the calling thread.
/// Says that the test skips, and returns false, where the kernel does not destroy such a socket:
/// without `CONFIG_INET_DIAG_DESTROY`, and TIME_WAITs on 5.10 (`tcp_abort`, net/ipv4/tcp.c).
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
    // INET_DIAG_NOCOOKIE: whoever has these addresses and ports.
    message.extend([0xff; 8]);
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )
    .expect("sock_diag");
    rustix::net::send(&socket, &message, SendFlags::empty()).expect("it is sent");
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
