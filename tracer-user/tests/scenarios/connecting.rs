//! Connection attempts that get no answer, or a late one: the port is held from connect() on.

use std::{io::ErrorKind, net::Shutdown, thread, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    child::{Actor, Role},
    support::{
        Deaf, Net, Tracer, addr, cookie, for_each_net, is, reset_on_close, wait_until_readable,
    },
};

/// The answer comes in a softirq, and so does the end of the waiting for it: the owner is the
/// process that connected all the same.
#[test]
fn an_attempt_without_an_answer_times_out() {
    for_each_net(|net, sandbox| {
        sandbox.set("ipv4/tcp_syn_retries", "1").expect("the setting exists");
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let waiting = deaf.attempt(net.socket());
        let blocked = net.socket();
        let error = blocked.connect(&addr(&deaf.listener).into()).expect_err("it is deaf");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        for socket in [&waiting, &blocked] {
            let own_cookie = cookie(socket);
            let release = tracer.wait_for("release", is(own_cookie, "release:timeout"));
            assert_eq!(release["pid"], std::process::id());
            assert_eq!(release["peer_port"], addr(&deaf.listener).port());
            assert!(release["established_s"].is_null());
            assert!(release["held_s"].as_f64() > Some(0.0));
        }
        tracer.verify();
        let story = tracer.finish();
        for socket in [&waiting, &blocked] {
            assert_eq!(story.of(cookie(socket)), ["connect", "release:timeout"]);
        }
        assert!(story.failures().is_empty(), "they had their ports");
    });
}

#[test]
fn an_attempt_that_is_given_up_frees_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let closed = deaf.attempt(net.socket());
        let reset = deaf.attempt(net.socket());
        let dissolved = deaf.attempt(net.socket());
        let shut = deaf.attempt(net.socket());
        let cookies = [&closed, &reset, &dissolved, &shut].map(cookie);
        tracer.verify();
        drop(closed);
        reset_on_close(&reset);
        drop(reset);
        rustix::net::connect_unspec(&dissolved).expect("AF_UNSPEC dissolves it");
        // Disconnects a socket in this state (inet_shutdown, net/ipv4/af_inet.c).
        let _ = shut.shutdown(Shutdown::Both);
        for own_cookie in cookies {
            tracer.wait_for("release", |record| {
                record["cookie"] == own_cookie && record["type"] == "release"
            });
        }
        tracer.verify();
        let story = tracer.finish();
        assert_eq!(
            cookies.map(|own_cookie| story.of(own_cookie).pop().unwrap_or_default()),
            ["release:closed", "release:closed", "release:disconnected", "release:disconnected"]
        );
        for own_cookie in cookies {
            assert_eq!(story.of(own_cookie).len(), 2);
            assert_eq!(story.of(own_cookie).first().map(String::as_str), Some("connect"));
        }
    });
}

/// Starts a process that connects this socket of ours to the listener, and waits until it does.
fn connecting_process(
    role: Role,
    net: Net,
    deaf: &Deaf,
    tracer: &mut Tracer,
) -> (Actor, u64, Value) {
    let socket = net.socket();
    let own_cookie = cookie(&socket);
    let mut process = Actor::start(role, &addr(&deaf.listener).to_string(), socket);
    process.wait_until_it("begins");
    let connect = tracer.wait_for("connect", is(own_cookie, "connect"));
    (process, own_cookie, connect)
}

#[test]
fn an_attempt_of_a_process_that_is_killed_frees_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let (process, own_cookie, connect) =
            connecting_process(Role::Connect, net, &deaf, &mut tracer);
        assert_eq!(connect["pid"], process.pid(), "not the process that made the socket");
        tracer.verify();
        let pid = process.pid();
        process.kill();
        let release = tracer.wait_for("release", is(own_cookie, "release:closed"));
        assert_eq!(release["pid"], pid);
        tracer.verify();
        assert_eq!(tracer.finish().of(own_cookie), ["connect", "release:closed"]);
    });
}

#[test]
fn an_attempt_of_a_process_that_is_stopped_goes_on() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let (mut process, own_cookie, _) =
            connecting_process(Role::Connect, net, &deaf, &mut tracer);
        process.stop();
        tracer.verify();
        let _filler = deaf.hear();
        tracer.wait_for("connection", is(own_cookie, "established"));
        process.signal(Signal::CONT);
        process.wait_until_it("connected");
        tracer.verify();
        process.kill();
        tracer.wait_for("FIN_WAIT2", is(own_cookie, "time_wait:fin_wait2"));
        let story = tracer.finish();
        assert_eq!(
            story.of(own_cookie),
            ["connect", "established", "closing:local", "time_wait:fin_wait2"]
        );
    });
}

/// connect() fails with EINTR, and the connection is made in the background.
#[test]
fn an_attempt_whose_connect_is_interrupted_goes_on() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let (mut process, own_cookie, _) =
            connecting_process(Role::ConnectWithTimeout, net, &deaf, &mut tracer);
        process.stop();
        process.signal(Signal::CONT);
        process.wait_until_it("Interrupted");
        tracer.verify();
        let _filler = deaf.hear();
        tracer.wait_for("connection", is(own_cookie, "established"));
        let story = tracer.finish();
        assert_eq!(story.of(own_cookie), ["connect", "established"]);
        assert!(story.failures().is_empty());
    });
}

/// connect() returns after its time, and the attempt is under way still.
#[test]
fn an_attempt_that_outlives_its_connect_is_one_lease() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let client = net.socket();
        client.set_write_timeout(Some(Duration::from_millis(20))).expect("SO_SNDTIMEO");
        let error = client.connect(&addr(&deaf.listener).into()).expect_err("it is deaf");
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        tracer.verify();
        let _filler = deaf.hear();
        let own_cookie = cookie(&client);
        tracer.wait_for("connection", is(own_cookie, "established"));
        let story = tracer.finish();
        assert_eq!(story.of(own_cookie), ["connect", "established"]);
    });
}

/// Many at once: each of the attempts that race for the same ports is told once, and right.
#[test]
fn threads_that_connect_at_once_are_told_apart() {
    const THREADS: u16 = 8;
    const EACH: u16 = 40;
    let Some(sandbox) = crate::support::sandbox() else { return };
    // Just enough ports, so that they collide.
    sandbox
        .set("ipv4/ip_local_port_range", &format!("30000 {}", 30_000 + THREADS * EACH - 1))
        .expect("the range can be set");
    let mut tracer = Tracer::start_verifying(&sandbox);
    let listener = Net::V4.listener_on(20_000);
    let barrier = std::sync::Barrier::new(THREADS.into());
    let connect_some = || {
        sandbox.enter().expect("the namespace exists");
        barrier.wait();
        let connected = (0..EACH).map(|_| {
            let client = Net::V4.socket();
            client.connect(&Net::V4.at(20_000).into()).expect("there are ports enough");
            client
        });
        connected.collect::<Vec<_>>()
    };
    let clients: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(connect_some)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("every connect() succeeds"))
            .collect()
    });
    tracer.verify();
    let expected: Vec<_> =
        clients.iter().map(|client| (cookie(client), addr(client).port())).collect();
    for client in &clients {
        reset_on_close(client);
    }
    drop(clients);
    for (own_cookie, _) in &expected {
        tracer.wait_for_release(*own_cookie);
    }
    tracer.verify();
    drop(listener);
    let Some(story) = tracer.finish_unless_preempted() else { return };
    for (own_cookie, port) in expected {
        assert_eq!(story.of(own_cookie), ["connect", "established", "release:reset_out"]);
        for record in story.records_of(own_cookie) {
            assert_eq!(record["local_port"], port);
            assert_eq!(record["pid"], std::process::id());
        }
    }
}

#[test]
fn a_deaf_listener_is_deaf() {
    let Some(_sandbox) = crate::support::sandbox() else { return };
    let deaf = Deaf::new(Net::V4);
    let client = deaf.attempt(Net::V4.socket());
    let _filler = deaf.hear();
    // What it did not answer at first it answers when the SYN is repeated.
    wait_until_readable(&deaf.listener);
    assert_eq!(deaf.hear().peer_addr().expect("a peer").as_socket(), Some(addr(&client)));
}
