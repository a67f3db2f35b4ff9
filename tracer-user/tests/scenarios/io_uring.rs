//! Calls that do not come as system calls: io_uring.
#![expect(unsafe_code, reason = "the kernel is given addresses of what an operation needs")]

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use io_uring::{IoUring, Probe, opcode, squeue, types::Fd};
use socket2::{SockAddr, Socket};

use crate::support::{Deaf, Net, Tracer, addr, cookie, for_each_net, is, reset_on_close, sandbox};

/// A ring; `None`, said aloud, if it cannot be made or lacks one of the operations.
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
        println!("skipped: the kernel's io_uring lacks the operation {missing}");
        return None;
    }
    Some(ring)
}

/// Executes one operation; the result is as a system call's in the kernel.
fn execute(ring: &mut IoUring, operation: &squeue::Entry) -> i32 {
    // SAFETY: what the operation points to lives in the caller, who waits here until the kernel has
    // done with it.
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
    // SAFETY: the operation gave this descriptor to us.
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
fn connections_by_io_uring_are_told_with_port_and_owner() {
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
        let story = tracer.finish();
        assert_eq!(story.of(client_cookie), ["connect", "established", "release:reset_out"]);
        assert_eq!(story.of(server_cookie), ["accept", "release:reset_in"]);
        for record in story.records_of(client_cookie) {
            assert_eq!(record["local_port"], port);
            assert_eq!(record["pid"], std::process::id());
        }
        // The owner is the listener's, which is right as long as they are one process.
        assert_eq!(story.the(server_cookie, "accept")["pid"], std::process::id());
        assert_eq!(story.the(server_cookie, "accept")["listener"], cookie(&listener));
    });
}

/// connect() waits in a worker, which is a thread of this process, and ends when the ring does.
#[test]
fn an_attempt_by_io_uring_without_a_port_or_an_answer_is_told() {
    for_each_net(|net, sandbox| {
        let Some(mut ring) = ring(&IoUring::builder(), &CONNECT_AND_ACCEPT) else { return };
        sandbox.set("ipv4/tcp_syn_retries", "1").expect("the setting exists");
        let mut tracer = Tracer::start_verifying(sandbox);
        let deaf = Deaf::new(net);
        let unanswered = net.socket();
        assert_eq!(connect(&mut ring, &unanswered, addr(&deaf.listener)), -libc::ETIMEDOUT);
        crate::connect::one_port(sandbox, 50_000);
        let held = net.bound(50_000);
        let without_port = net.socket();
        let result = connect(&mut ring, &without_port, addr(&deaf.listener));
        assert_eq!(result, -libc::EADDRNOTAVAIL);
        let cookies = [&unanswered, &without_port].map(cookie);
        tracer.wait_for("failure", is(cookies[1], "fail:EADDRNOTAVAIL"));
        tracer.verify();
        let story = tracer.finish();
        assert_eq!(story.of(cookies[0]), ["connect", "release:timeout"]);
        assert_eq!(story.of(cookies[1]), ["fail:EADDRNOTAVAIL"]);
        assert_eq!(story.the(cookies[1], "fail")["pid"], std::process::id());
        drop(held);
    });
}

/// Operations that a kernel thread submits for this process.
#[test]
fn connections_by_a_polled_ring_are_this_processs() {
    let Some(sandbox) = sandbox() else { return };
    let mut builder = IoUring::builder();
    builder.setup_sqpoll(1000);
    let Some(mut ring) = ring(&builder, &CONNECT_AND_ACCEPT) else { return };
    if !ring.params().is_feature_sqpoll_nonfixed() || !ring.params().is_feature_native_workers() {
        println!("skipped: before 5.12 the thread that polls belongs to no process");
        return;
    }
    let mut tracer = Tracer::start_verifying(&sandbox);
    let listener = Net::V4.listener();
    let client = Net::V4.socket();
    assert_eq!(connect(&mut ring, &client, addr(&listener)), 0);
    let server = accept(&mut ring, &listener);
    tracer.verify();
    let [client_cookie, server_cookie] = [&client, &server].map(cookie);
    let story = tracer.finish();
    assert_eq!(story.of(client_cookie), ["connect", "established"]);
    assert_eq!(story.of(server_cookie), ["accept"]);
    assert_eq!(story.the(client_cookie, "connect")["pid"], std::process::id());
}

#[test]
fn bind_and_listen_by_io_uring_are_told() {
    for_each_net(|net, sandbox| {
        let operations = [opcode::Bind::CODE, opcode::Listen::CODE];
        let Some(mut ring) = ring(&IoUring::builder(), &operations) else { return };
        let mut tracer = Tracer::start_verifying(sandbox);
        let told = net.socket();
        assert_eq!(bind(&mut ring, &told, net.at(20_000)), 0);
        assert_eq!(listen(&mut ring, &told), 0);
        let chosen = net.socket();
        assert_eq!(bind(&mut ring, &chosen, net.at(0)), 0);
        let unbound = net.socket();
        assert_eq!(listen(&mut ring, &unbound), 0);
        let rival = net.socket();
        assert_eq!(bind(&mut ring, &rival, net.at(20_000)), -libc::EADDRINUSE);
        let cookies = [&told, &chosen, &unbound, &rival].map(cookie);
        let ports = [&told, &chosen, &unbound].map(|socket| addr(socket).port());
        tracer.verify();
        drop((told, chosen, unbound));
        tracer.wait_for("release", is(cookies[2], "release:closed"));
        tracer.verify();
        let story = tracer.finish();
        assert_eq!(story.of(cookies[0]), ["bind", "listen", "release:closed"]);
        assert_eq!(story.of(cookies[1]), ["bind", "release:closed"]);
        assert_eq!(story.of(cookies[2]), ["bind", "listen", "release:closed"]);
        let kinds = ["bind", "bind_auto", "listen"];
        for ((own_cookie, port), kind) in cookies.into_iter().zip(ports).zip(kinds) {
            let record = story.the(own_cookie, "bind");
            assert_eq!(record["local_port"], port);
            assert_eq!(record["kind"], kind);
            assert_eq!(record["pid"], std::process::id());
        }
        // Its errno is the result of no system call: only a function hook sees it.
        let of_rival = story.of(cookies[3]);
        assert!(
            of_rival.is_empty() || of_rival == ["fail:EADDRINUSE"],
            "a failed bind holds nothing: {of_rival:?}"
        );
    });
}
