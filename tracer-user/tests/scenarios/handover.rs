//! Sockets passed from one process to another. The port is held until the last process closes them.

use std::{io::IoSlice, mem::MaybeUninit, os::fd::AsFd as _};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{
    child::{Helper, Task, unix_pair},
    support::{Pair, Tracer, addr, cookie, for_each_net, is, reset_on_close},
};

/// fork(), then close() in the parent, as daemons do.
#[test]
fn a_socket_kept_by_a_child_is_held_until_the_child_exits() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        let listener = net.listener_on(20_000);
        let own_cookie = cookie(&listener);
        let mut child = Helper::start(Task::Keep, "", listener);
        let child_pid = child.wait_until("keeps");
        // This process has closed it, but the port is still held.
        net.socket().bind(&net.at(20_000).into()).expect_err("the child has the port");
        // The comparison with the kernel finds the new owner.
        tracer.verify();
        child.kill();
        tracer.wait_for("release", is(own_cookie, "release:closed"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(recording.of(own_cookie), ["bind", "listen", "update:listen", "release:closed"]);
        assert_eq!(recording.only(own_cookie, "bind")["pid"], std::process::id());
        assert_eq!(recording.only(own_cookie, "release")["pid"], child_pid);
        drop(net.bound(20_000));
    });
}

#[test]
fn a_socket_sent_to_another_process_is_held_until_that_process_exits() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let [client_cookie, server_cookie] = [&client, &server].map(cookie);
        let [own_end, actors_end] = unix_pair();
        let mut receiver = Helper::start(Task::Receive, "", actors_end);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let file = [client.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&file)));
        sendmsg(&own_end, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty())
            .expect("send() succeeds");
        reset_on_close(&client);
        // While in flight, the socket belongs to no process.
        drop(client);
        let receiver_pid = receiver.wait_until("received");
        tracer.verify();
        receiver.kill();
        tracer.wait_for("release", is(client_cookie, "release:reset_out"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(
            recording.of(client_cookie),
            ["connect", "established", "update:established", "release:reset_out"]
        );
        assert_eq!(recording.of(server_cookie), ["accept", "release:reset_in"]);
        assert_eq!(recording.only(client_cookie, "connect")["pid"], std::process::id());
        assert_eq!(recording.only(client_cookie, "release")["pid"], receiver_pid);
    });
}

/// A server whose workers inherit the listener (prefork).
#[test]
fn a_connection_belongs_to_the_worker_that_accepts_it() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees_accepts() {
            return;
        }
        let listener = net.listener();
        let listener_cookie = cookie(&listener);
        let address = addr(&listener);
        let mut worker = Helper::start(Task::Accept, "", listener);
        let client = net.socket();
        // If the worker has not called accept() yet, the connection waits in the backlog.
        client.connect(&address.into()).expect("connect() succeeds");
        worker.wait_until("begins");
        let worker_pid = worker.wait_until("accepted");
        let client_cookie = cookie(&client);
        reset_on_close(&client);
        drop(client);
        tracer.wait_for("release", |record| {
            record["kind"] == "accept" && record["type"] == "release"
        });
        let recording = tracer.finish();
        let of_worker: Vec<_> =
            recording.records.iter().filter(|record| record["kind"] == "accept").collect();
        assert_eq!(of_worker.len(), 2, "{of_worker:?}");
        assert_eq!(of_worker[0]["listener"], listener_cookie);
        assert_eq!(of_worker[1]["reason"], "reset_in");
        assert_eq!(of_worker[1]["pid"], worker_pid);
        assert_eq!(recording.of(client_cookie), ["connect", "established", "release:reset_out"]);
    });
}

#[test]
fn a_process_in_a_pid_namespace_is_shown_with_its_outer_pid() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees_accepts() {
            return;
        }
        let listener = net.listener();
        let address = addr(&listener);
        let Some(mut inside) = Helper::start_in_pid_namespace(Task::Accept, listener) else {
            return;
        };
        let client = net.socket();
        client.connect(&address.into()).expect("connect() succeeds");
        inside.wait_until("begins");
        let outside_pid = inside.wait_until("accepted");
        assert_ne!(outside_pid, inside.pid(), "unshare forks");
        reset_on_close(&client);
        drop(client);
        let release = tracer.wait_for("release", |record| {
            record["kind"] == "accept" && record["type"] == "release"
        });
        assert_eq!(release["pid"], outside_pid);
        tracer.finish();
    });
}
