//! Connection attempts without an answer or with a late one. The port is held from connect() on.

use std::{io::ErrorKind, net::Shutdown, thread, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use socket2::Socket;

use crate::{
    child::{Helper, Task},
    support::{
        Net, Tracer, UnresponsiveListener, addr, cookie, for_each_net, is, reaches_fin_wait2,
        reset_on_close, wait_until_readable,
    },
};

/// The timeout expires in a softirq, but the owner is the process that called connect().
#[test]
fn an_attempt_without_an_answer_times_out() {
    for_each_net(|net, sandbox| {
        sandbox.set("ipv4/tcp_syn_retries", "1").expect("the setting can be written");
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let [waiting, blocked] = observed_timeouts(net, &mut tracer, &unresponsive);
        for socket in [&waiting, &blocked] {
            let release = tracer.wait_for("release", is(cookie(socket), "release:timeout"));
            assert_eq!(release["pid"], std::process::id());
            assert_eq!(release["peer_port"], addr(&unresponsive.listener).port());
            assert!(release["established_s"].is_null());
            assert!(release["held_s"].as_f64() > Some(0.0));
        }
        tracer.verify();
        let recording = tracer.finish();
        for socket in [&waiting, &blocked] {
            assert_eq!(recording.of(cookie(socket)), ["connect", "release:timeout"]);
        }
        assert!(recording.failures().is_empty(), "they had their ports");
    });
}

/// A non-blocking and a blocking attempt that have timed out. Some kernels run no program in a timer
/// that interrupts certain threads (docs/accuracy.md); then a comparison ends the lease, and this
/// tries again.
fn observed_timeouts(
    net: Net,
    tracer: &mut Tracer,
    unresponsive: &UnresponsiveListener,
) -> [Socket; 2] {
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        let waiting = unresponsive.attempt(net.socket());
        let blocked = net.socket();
        let error = blocked
            .connect(&addr(&unresponsive.listener).into())
            .expect_err("the listener does not answer");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let sockets = [waiting, blocked];
        let is_observed = |socket: &Socket| {
            let own_cookie = cookie(socket);
            let release = tracer.wait_for("release", |record| {
                record["type"] == "release" && record["cookie"] == own_cookie
            });
            release["reason"] != "unseen"
        };
        if sockets.iter().all(is_observed) {
            return sockets;
        }
        println!("the kernel ran no program for a timeout: trying again");
    }
    panic!("no program saw a timeout in {ATTEMPTS} attempts");
}

#[test]
fn an_abandoned_attempt_releases_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let closed = unresponsive.attempt(net.socket());
        let reset = unresponsive.attempt(net.socket());
        let dissolved = unresponsive.attempt(net.socket());
        let shut = unresponsive.attempt(net.socket());
        let cookies = [&closed, &reset, &dissolved, &shut].map(cookie);
        tracer.verify();
        drop(closed);
        reset_on_close(&reset);
        drop(reset);
        rustix::net::connect_unspec(&dissolved).expect("AF_UNSPEC dissolves it");
        // shutdown() disconnects a socket in this state (inet_shutdown, net/ipv4/af_inet.c).
        let _ = shut.shutdown(Shutdown::Both);
        for own_cookie in cookies {
            tracer.wait_for("release", |record| {
                record["cookie"] == own_cookie && record["type"] == "release"
            });
        }
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(
            cookies.map(|own_cookie| recording.of(own_cookie).pop().unwrap_or_default()),
            ["release:closed", "release:closed", "release:disconnected", "release:disconnected"]
        );
        for own_cookie in cookies {
            assert_eq!(recording.of(own_cookie).len(), 2);
            assert_eq!(recording.of(own_cookie).first().map(String::as_str), Some("connect"));
        }
    });
}

/// Starts a process that connects a socket of this process to the listener, and waits until it
/// calls connect().
fn connecting_process(
    task: Task,
    net: Net,
    unresponsive: &UnresponsiveListener,
    tracer: &mut Tracer,
) -> (Helper, u64, Value) {
    let socket = net.socket();
    let own_cookie = cookie(&socket);
    let mut process = Helper::start(task, &addr(&unresponsive.listener).to_string(), socket);
    process.wait_until("begins");
    let connect = tracer.wait_for("connect", is(own_cookie, "connect"));
    (process, own_cookie, connect)
}

#[test]
fn an_attempt_of_a_killed_process_releases_its_port() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let (process, own_cookie, connect) =
            connecting_process(Task::Connect, net, &unresponsive, &mut tracer);
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
fn an_attempt_of_a_stopped_process_continues() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let (mut process, own_cookie, _) =
            connecting_process(Task::Connect, net, &unresponsive, &mut tracer);
        process.stop();
        tracer.verify();
        let _filler = unresponsive.accept();
        tracer.wait_for("connection", is(own_cookie, "established"));
        process.signal(Signal::CONT);
        process.wait_until("connected");
        tracer.verify();
        process.kill();
        if !reaches_fin_wait2(&mut tracer, own_cookie) {
            return;
        }
        let recording = tracer.finish();
        assert_eq!(
            recording.of(own_cookie),
            ["connect", "established", "closing:local", "time_wait:fin_wait2"]
        );
    });
}

/// connect() fails with EINTR, and the kernel establishes the connection in the background.
#[test]
fn an_attempt_continues_after_connect_is_interrupted() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let (mut process, own_cookie, _) =
            connecting_process(Task::ConnectWithTimeout, net, &unresponsive, &mut tracer);
        process.stop();
        process.signal(Signal::CONT);
        process.wait_until("Interrupted");
        tracer.verify();
        let _filler = unresponsive.accept();
        tracer.wait_for("connection", is(own_cookie, "established"));
        let recording = tracer.finish();
        assert_eq!(recording.of(own_cookie), ["connect", "established"]);
        assert!(recording.failures().is_empty());
    });
}

/// connect() times out and returns, but the attempt continues.
#[test]
fn an_attempt_that_outlives_its_connect_is_one_lease() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let client = net.socket();
        client.set_write_timeout(Some(Duration::from_millis(20))).expect("SO_SNDTIMEO");
        let error = client
            .connect(&addr(&unresponsive.listener).into())
            .expect_err("the listener does not answer");
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        tracer.verify();
        let _filler = unresponsive.accept();
        let own_cookie = cookie(&client);
        tracer.wait_for("connection", is(own_cookie, "established"));
        let recording = tracer.finish();
        assert_eq!(recording.of(own_cookie), ["connect", "established"]);
    });
}

/// Many threads race for the same ports. Each attempt must be reported once, with its own port.
#[test]
fn concurrent_connects_are_told_apart() {
    const THREADS: u16 = 8;
    const EACH: u16 = 40;
    let Some(sandbox) = crate::support::sandbox() else { return };
    // Just enough ports, so that the threads collide.
    sandbox
        .set("ipv4/ip_local_port_range", &format!("30000 {}", 30_000 + THREADS * EACH - 1))
        .expect("the setting can be written");
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
    let Some(recording) = tracer.finish_unless_preempted() else { return };
    for (own_cookie, port) in expected {
        assert_eq!(recording.of(own_cookie), ["connect", "established", "release:reset_out"]);
        for record in recording.records_of(own_cookie) {
            assert_eq!(record["local_port"], port);
            assert_eq!(record["pid"], std::process::id());
        }
    }
}

#[test]
fn an_unresponsive_listener_answers_only_after_accept() {
    let Some(_sandbox) = crate::support::sandbox() else { return };
    let unresponsive = UnresponsiveListener::new(Net::V4);
    let client = unresponsive.attempt(Net::V4.socket());
    let _filler = unresponsive.accept();
    // It answers the retransmitted SYN.
    wait_until_readable(&unresponsive.listener);
    assert_eq!(unresponsive.accept().peer_addr().expect("a peer").as_socket(), Some(addr(&client)));
}
