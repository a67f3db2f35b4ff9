//! Sockets that go from one process to another: the port is held until the last of them closes.

use std::{io::IoSlice, mem::MaybeUninit, os::fd::AsFd as _};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{
    child::{Actor, Role, unix_pair},
    support::{Pair, Tracer, addr, cookie, for_each_net, is, reset_on_close},
};

/// fork() and close() in the parent: what a daemon does.
#[test]
fn a_socket_that_a_child_keeps_is_held_until_the_child_ends() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        let listener = net.listener_on(20_000);
        let own_cookie = cookie(&listener);
        let mut child = Actor::start(Role::Keep, "", listener);
        let child_pid = child.wait_until_it("keeps");
        // This process has closed it, and the port is held all the same.
        net.socket().bind(&net.at(20_000).into()).expect_err("the child has the port");
        // The comparison with the kernel finds who has it now.
        tracer.verify();
        child.kill();
        tracer.wait_for("release", is(own_cookie, "release:closed"));
        tracer.verify();
        let story = tracer.finish();
        assert_eq!(story.of(own_cookie), ["bind", "listen", "release:closed"]);
        assert_eq!(story.the(own_cookie, "bind")["pid"], std::process::id());
        assert_eq!(story.the(own_cookie, "release")["pid"], child_pid);
        drop(net.bound(20_000));
    });
}

#[test]
fn a_socket_that_is_sent_to_another_process_is_held_until_that_process_ends() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start_verifying(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        let listener = net.listener();
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let [client_cookie, server_cookie] = [&client, &server].map(cookie);
        let [own_end, actors_end] = unix_pair();
        let mut receiver = Actor::start(Role::Receive, "", actors_end);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let file = [client.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&file)));
        sendmsg(&own_end, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty())
            .expect("it is sent");
        reset_on_close(&client);
        // In flight it belongs to no process.
        drop(client);
        let receiver_pid = receiver.wait_until_it("received");
        tracer.verify();
        receiver.kill();
        tracer.wait_for("release", is(client_cookie, "release:reset_out"));
        tracer.verify();
        let story = tracer.finish();
        assert_eq!(story.of(client_cookie), ["connect", "established", "release:reset_out"]);
        assert_eq!(story.of(server_cookie), ["accept", "release:reset_in"]);
        assert_eq!(story.the(client_cookie, "connect")["pid"], std::process::id());
        assert_eq!(story.the(client_cookie, "release")["pid"], receiver_pid);
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
        let mut worker = Actor::start(Role::Accept, "", listener);
        let client = net.socket();
        // The worker may still be on its way to accept(): the backlog takes the connection.
        client.connect(&address.into()).expect("it connects");
        worker.wait_until_it("begins");
        let worker_pid = worker.wait_until_it("accepted");
        let client_cookie = cookie(&client);
        reset_on_close(&client);
        drop(client);
        tracer.wait_for("release", |record| {
            record["kind"] == "accept" && record["type"] == "release"
        });
        let story = tracer.finish();
        let of_worker: Vec<_> =
            story.records.iter().filter(|record| record["kind"] == "accept").collect();
        assert_eq!(of_worker.len(), 2, "{of_worker:?}");
        assert_eq!(of_worker[0]["listener"], listener_cookie);
        assert_eq!(of_worker[1]["reason"], "reset_in");
        assert_eq!(of_worker[1]["pid"], worker_pid);
        assert_eq!(story.of(client_cookie), ["connect", "established", "release:reset_out"]);
    });
}

#[test]
fn a_process_in_a_pid_namespace_is_shown_by_its_id_outside() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees_accepts() {
            return;
        }
        let listener = net.listener();
        let address = addr(&listener);
        let Some(mut inside) = Actor::start_in_pid_namespace(Role::Accept, listener) else {
            return;
        };
        let client = net.socket();
        client.connect(&address.into()).expect("it connects");
        inside.wait_until_it("begins");
        let outside_pid = inside.wait_until_it("accepted");
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
