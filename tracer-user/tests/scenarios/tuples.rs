//! Sockets that look the same but are not.

use std::thread;

use tracer_user::kernel::namespace::sandbox::Sandbox;

use crate::support::{
    Net, Pair, Tracer, cookie, for_each_net, is, reaches_fin_wait2, read_to_end, reset_on_close,
    sandbox, wait_until_readable,
};

/// Containers can have the same addresses and ports.
#[test]
fn equal_connections_in_two_namespaces_are_two() {
    if sandbox().is_none() {
        return;
    }
    let [first_sandbox, second_sandbox] = [(), ()].map(|()| {
        let made = thread::spawn(|| sandbox().expect("another namespace can be made"));
        made.join().expect("a namespace can be made")
    });
    let [first_netns, second_netns] =
        [&first_sandbox, &second_sandbox].map(|sandbox| sandbox.netns().0.to_string());
    let arguments = ["-n", &first_netns, "-n", &second_netns, "--verify", "0.2"];
    let mut tracer = Tracer::start_with(&arguments);
    let connect_in = |sandbox: &Sandbox| {
        let connect = || {
            sandbox.enter().expect("the namespace exists");
            let listener = Net::V4.listener_on(20_000);
            let pair = Pair::connect(Net::V4.bound(30_000), &listener);
            (listener, pair)
        };
        thread::scope(|scope| scope.spawn(connect).join().expect("the thread does not panic"))
    };
    let (first_listener, Pair { client, server }) = connect_in(&first_sandbox);
    let first = [&client, &server].map(cookie);
    // The first connection leaves a TIME_WAIT. The second must not be reported as reusing it.
    drop(client);
    if !reaches_fin_wait2(&mut tracer, first[0]) {
        return;
    }
    read_to_end(&server);
    drop(server);
    tracer.wait_for("TIME_WAIT", is(first[0], "time_wait:time_wait"));
    let (second_listener, pair) = connect_in(&second_sandbox);
    let second = [&pair.client, &pair.server].map(cookie);
    tracer.wait_for("connection", is(second[0], "established"));
    tracer.wait_for("accept", is(second[1], "accept"));
    tracer.verify();
    let recording = tracer.finish();
    assert_eq!(
        recording.of(first[0]),
        [
            "bind",
            "update:connecting",
            "established",
            "closing:local",
            "time_wait:fin_wait2",
            "time_wait:time_wait"
        ]
    );
    assert_eq!(recording.of(first[1]), ["accept", "closing:peer", "release:closed"]);
    assert_eq!(recording.of(second[0]), ["bind", "update:connecting", "established"]);
    assert_eq!(recording.of(second[1]), ["accept"]);
    assert!(recording.only(second[0], "bind")["reuse"].is_null(), "the port was never used there");
    for (cookies, sandbox, listener) in
        [(first, &first_sandbox, &first_listener), (second, &second_sandbox, &second_listener)]
    {
        for own_cookie in cookies {
            for record in recording.records_of(own_cookie) {
                assert_eq!(record["netns"], sandbox.netns().0);
            }
        }
        assert_eq!(recording.only(cookies[1], "accept")["listener"], cookie(listener));
    }
}

/// The kernel reuses the memory of a socket for the next one.
#[test]
fn sockets_in_the_same_memory_are_told_apart() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let mut bound = Vec::new();
        let mut connected = Vec::new();
        for _ in 0..100 {
            // The port is the same as well.
            bound.push(cookie(net.bound(20_000)));
            let Pair { client, server } = Pair::connect(net.bound(20_000), &listener);
            connected.push([&client, &server].map(cookie));
            reset_on_close(&client);
            drop(client);
            // The reset arrives before the server closes as well.
            wait_until_readable(&server);
        }
        let [_, last] = connected.last().expect("there are some");
        tracer.wait_for("release", is(*last, "release:reset_in"));
        tracer.verify();
        let recording = tracer.finish();
        let mut previous = None;
        for (own_cookie, [client, server]) in bound.into_iter().zip(connected) {
            assert_eq!(recording.of(own_cookie), ["bind", "release:closed"]);
            assert_eq!(
                recording.of(client),
                ["bind", "update:connecting", "established", "release:reset_out"]
            );
            assert_eq!(recording.of(server), ["accept", "release:reset_in"]);
            for holder in [own_cookie, client] {
                let bind = recording.only(holder, "bind");
                assert_eq!(bind["reuse"]["lease"].as_u64(), previous);
                previous = bind["lease"].as_u64();
            }
        }
    });
}
