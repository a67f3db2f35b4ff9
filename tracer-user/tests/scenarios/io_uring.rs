//! Socket calls through io_uring, which are not system calls.
#![expect(unsafe_code, reason = "the kernel is given addresses of what an operation needs")]

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use io_uring::{IoUring, Probe, opcode, squeue, types::Fd};
use socket2::{SockAddr, Socket};

use crate::support::{
    Net, Tracer, UnresponsiveListener, addr, cookie, for_each_net, is, reset_on_close, sandbox,
};

/// A ring. `None`, after printing why, if it cannot be made or lacks one of the operations.
fn ring(builder: &io_uring::Builder, operations: &[u8]) -> Option<IoUring> {
    let ring = match builder.build(8) {
        Ok(ring) => ring,
        Err(error) => {
            println!("skipped: io_uring_setup: {error}");
            return None;
        }
    };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).expect("Linux 5.6 has the probe");
    if let Some(missing) = operations.iter().find(|operation| !probe.is_supported(**operation)) {
        println!("skipped: io_uring of this kernel lacks operation {missing}");
        return None;
    }
    Some(ring)
}

/// Executes one operation. Returns its result, which is a negative errno on failure.
fn execute(ring: &mut IoUring, operation: &squeue::Entry) -> i32 {
    // SAFETY: the memory that the operation points to belongs to the caller and stays valid,
    // because this function waits until the operation is complete.
    unsafe { ring.submission().push(operation).expect("the queue is empty") };
    ring.submit_and_wait(1).expect("it is submitted");
    ring.completion().next().expect("it is completed").result()
}

fn connect(ring: &mut IoUring, socket: &Socket, to: SocketAddr) -> i32 {
    let to = SockAddr::from(to);
    let connect =
        opcode::Connect::new(Fd(socket.as_raw_fd()), to.as_ptr().cast(), to.len()).build();
    execute(ring, &connect)
}

fn accept(ring: &mut IoUring, listener: &Socket) -> Socket {
    let listener = Fd(listener.as_raw_fd());
    let accept = opcode::Accept::new(listener, std::ptr::null_mut(), std::ptr::null_mut()).build();
    let fd = execute(ring, &accept);
    assert!(fd >= 0, "accept: {fd}");
    // SAFETY: the operation returned this descriptor, which nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

fn bind(ring: &mut IoUring, socket: &Socket, to: SocketAddr) -> i32 {
    let to = SockAddr::from(to);
    let bind = opcode::Bind::new(Fd(socket.as_raw_fd()), to.as_ptr().cast(), to.len()).build();
    execute(ring, &bind)
}

fn listen(ring: &mut IoUring, socket: &Socket) -> i32 {
    execute(ring, &opcode::Listen::new(Fd(socket.as_raw_fd()), 16).build())
}

const CONNECT_AND_ACCEPT: [u8; 2] = [opcode::Connect::CODE, opcode::Accept::CODE];

#[test]
fn connections_through_io_uring_are_reported_with_port_and_owner() {
    for_each_net(|net, sandbox| {
        let Some(mut ring) = ring(&IoUring::builder(), &CONNECT_AND_ACCEPT) else { return };
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener();
        let client = net.socket();
        assert_eq!(connect(&mut ring, &client, addr(&listener)), 0);
        let server = accept(&mut ring, &listener);
        let [client_cookie, server_cookie] = [&client, &server].map(cookie);
        let port = addr(&client).port();
        tracer.verify();
        reset_on_close(&client);
        drop(client);
        tracer.wait_for("release", is(server_cookie, "release:reset_in"));
        let recording = tracer.finish();
        assert_eq!(recording.of(client_cookie), ["connect", "established", "release:reset_out"]);
        assert_eq!(recording.of(server_cookie), ["accept", "release:reset_in"]);
        for record in recording.records_of(client_cookie) {
            assert_eq!(record["local_port"], port);
            assert_eq!(record["pid"], std::process::id());
        }
        // The owner is that of the listener, which is right as long as both are one process.
        assert_eq!(recording.only(server_cookie, "accept")["pid"], std::process::id());
        assert_eq!(recording.only(server_cookie, "accept")["listener"], cookie(&listener));
    });
}

/// connect() waits in a worker thread of this process, and is cancelled with the ring.
#[test]
fn attempts_through_io_uring_without_a_port_or_an_answer_are_reported() {
    for_each_net(|net, sandbox| {
        let Some(mut ring) = ring(&IoUring::builder(), &CONNECT_AND_ACCEPT) else { return };
        sandbox.set("ipv4/tcp_syn_retries", "1").expect("the setting can be written");
        let mut tracer = Tracer::start_verifying(sandbox);
        let unresponsive = UnresponsiveListener::new(net);
        let unanswered = net.socket();
        assert_eq!(connect(&mut ring, &unanswered, addr(&unresponsive.listener)), -libc::ETIMEDOUT);
        crate::connect::one_port(sandbox, 50_000);
        let held = net.bound(50_000);
        let without_port = net.socket();
        let result = connect(&mut ring, &without_port, addr(&unresponsive.listener));
        assert_eq!(result, -libc::EADDRNOTAVAIL);
        let cookies = [&unanswered, &without_port].map(cookie);
        tracer.wait_for("failure", is(cookies[1], "fail:EADDRNOTAVAIL"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(recording.of(cookies[0]), ["connect", "release:timeout"]);
        assert_eq!(recording.of(cookies[1]), ["fail:EADDRNOTAVAIL"]);
        assert_eq!(recording.only(cookies[1], "fail")["pid"], std::process::id());
        drop(held);
    });
}

/// Operations submitted by a kernel thread on behalf of this process.
#[test]
fn connections_through_a_polled_ring_are_owned_by_this_process() {
    let Some(sandbox) = sandbox() else { return };
    let mut builder = IoUring::builder();
    builder.setup_sqpoll(1000);
    let Some(mut ring) = ring(&builder, &CONNECT_AND_ACCEPT) else { return };
    if !ring.params().is_feature_sqpoll_nonfixed() || !ring.params().is_feature_native_workers() {
        println!("skipped: before Linux 5.12 the polling thread belongs to no process");
        return;
    }
    let mut tracer = Tracer::start_verifying(&sandbox);
    let listener = Net::V4.listener();
    let client = Net::V4.socket();
    assert_eq!(connect(&mut ring, &client, addr(&listener)), 0);
    let server = accept(&mut ring, &listener);
    tracer.verify();
    let [client_cookie, server_cookie] = [&client, &server].map(cookie);
    let recording = tracer.finish();
    assert_eq!(recording.of(client_cookie), ["connect", "established"]);
    assert_eq!(recording.of(server_cookie), ["accept"]);
    assert_eq!(recording.only(client_cookie, "connect")["pid"], std::process::id());
}

#[test]
fn bind_and_listen_through_io_uring_are_reported() {
    for_each_net(|net, sandbox| {
        let operations = [opcode::Bind::CODE, opcode::Listen::CODE];
        let Some(mut ring) = ring(&IoUring::builder(), &operations) else { return };
        let mut tracer = Tracer::start_verifying(sandbox);
        let explicit = net.socket();
        assert_eq!(bind(&mut ring, &explicit, net.at(20_000)), 0);
        assert_eq!(listen(&mut ring, &explicit), 0);
        let chosen = net.socket();
        assert_eq!(bind(&mut ring, &chosen, net.at(0)), 0);
        let unbound = net.socket();
        assert_eq!(listen(&mut ring, &unbound), 0);
        let rival = net.socket();
        assert_eq!(bind(&mut ring, &rival, net.at(20_000)), -libc::EADDRINUSE);
        let cookies = [&explicit, &chosen, &unbound, &rival].map(cookie);
        let ports = [&explicit, &chosen, &unbound].map(|socket| addr(socket).port());
        tracer.verify();
        drop((explicit, chosen, unbound));
        tracer.wait_for("release", is(cookies[2], "release:closed"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(recording.of(cookies[0]), ["bind", "listen", "release:closed"]);
        assert_eq!(recording.of(cookies[1]), ["bind", "release:closed"]);
        assert_eq!(recording.of(cookies[2]), ["bind", "listen", "release:closed"]);
        let kinds = ["bind", "bind_auto", "listen"];
        for ((own_cookie, port), kind) in cookies.into_iter().zip(ports).zip(kinds) {
            let record = recording.only(own_cookie, "bind");
            assert_eq!(record["local_port"], port);
            assert_eq!(record["kind"], kind);
            assert_eq!(record["pid"], std::process::id());
        }
        // The error is not the result of a system call, so only a function hook sees it.
        let of_rival = recording.of(cookies[3]);
        assert!(
            of_rival.is_empty() || of_rival == ["fail:EADDRINUSE"],
            "a failed bind holds nothing: {of_rival:?}"
        );
    });
}
