//! What was held before the tracer came.

use serde_json::Value;
use socket2::Socket;

use crate::support::{Net, Pair, Tracer, addr, cookie, for_each_net, read_to_end, sandbox};

/// Waits for the record of a lease of ours that is held from before.
pub fn held(tracer: &mut Tracer, socket: &Socket, phase: &str, kind: &str) -> Value {
    let own_cookie = cookie(socket);
    let record = tracer.wait_for("held", |record| record["cookie"] == own_cookie);
    assert_eq!(record["type"], "held");
    assert_eq!(record["phase"], phase);
    assert_eq!(record["kind"], kind);
    assert_eq!(record["local_port"], addr(socket).port());
    assert_eq!(record["pid"], std::process::id());
    assert!(record["age_s"].is_null());
    record
}

#[test]
fn what_is_held_at_start_is_told_and_goes_on_as_the_same_lease() {
    for_each_net(|net, sandbox| {
        let listener = net.bound(20_001);
        listener.listen(16).expect("it listens");
        let bound = net.bound(0);
        let told = net.bound(20_000);
        let pair = Pair::connect(net.socket(), &listener);
        let Pair { client, server } = Pair::connect(net.socket(), &listener);
        let (waiting, waiting_port) = (cookie(&client), addr(&client).port());
        drop(client);
        read_to_end(&server);
        drop(server);
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        held(&mut tracer, &listener, "listen", "bind");
        held(&mut tracer, &bound, "bound", "bind_auto");
        held(&mut tracer, &told, "bound", "bind");
        let client = held(&mut tracer, &pair.client, "established", "connect");
        held(&mut tracer, &pair.server, "established", "accept");
        let time_wait = tracer.wait_for("TIME_WAIT", |record| record["cookie"] == waiting);
        assert_eq!(time_wait["phase"], "time_wait");
        assert_eq!(time_wait["local_port"], waiting_port);
        assert!(time_wait["pid"].is_null(), "its process is not known any more");
        // Their ends are told of the same leases.
        let client_cookie = cookie(&pair.client);
        crate::support::reset_on_close(&pair.client);
        drop(pair);
        let told_cookie = cookie(&told);
        drop(told);
        let story = tracer.finish_after_release(&[client_cookie, told_cookie]);
        assert_eq!(story.of(client_cookie), ["held:established", "release:reset_out"]);
        assert_eq!(story.the(client_cookie, "release")["lease"], client["lease"]);
        assert!(story.the(client_cookie, "release")["held_s"].is_null(), "its begin is unknown");
        assert_eq!(story.of(told_cookie), ["held:bound", "release:closed"]);
    });
}

#[test]
fn time_waits_from_before_tell_whether_their_peers_sent_timestamps() {
    for_each_net(|net, sandbox| {
        let listener = net.listener();
        let leave_time_wait = |timestamps| {
            sandbox.set("ipv4/tcp_timestamps", timestamps).expect("it can be set");
            let Pair { client, server } = Pair::connect(net.socket(), &listener);
            let client_cookie = cookie(&client);
            drop(client);
            read_to_end(&server);
            drop(server);
            client_cookie
        };
        let waiting = [("0", false), ("1", true)]
            .map(|(setting, has_timestamps)| (leave_time_wait(setting), has_timestamps));
        let pair = Pair::connect(net.socket(), &listener);
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees("tcp_holders") {
            return;
        }
        for (waiting, has_timestamps) in waiting {
            let held = tracer.wait_for("held", |record| record["cookie"] == waiting);
            assert_eq!(held["phase"], "time_wait");
            assert_eq!(held["timestamps"], has_timestamps);
        }
        let connected = cookie(&pair.client);
        let held = tracer.wait_for("held", |record| record["cookie"] == connected);
        assert!(held["timestamps"].is_null());
        tracer.finish();
    });
}

#[test]
fn a_snapshot_can_be_left_out() {
    let Some(sandbox) = sandbox() else { return };
    let listener = Net::V4.listener();
    let netns = sandbox.netns().0.to_string();
    let tracer = Tracer::start_with(&["-n", &netns, "--no-snapshot"]);
    let pair = Pair::connect(Net::V4.socket(), &listener);
    let client_cookie = cookie(&pair.client);
    let story = tracer.finish();
    assert_eq!(story.of(cookie(&listener)), Vec::<String>::new());
    assert_eq!(story.of(client_cookie), ["connect", "established"]);
}

/// A namespace without a process, which only a file descriptor keeps alive.
#[test]
fn sockets_of_a_namespace_without_processes_are_found() {
    let Some(_) = sandbox() else { return };
    let inside = std::thread::spawn(|| {
        let sandbox = sandbox().expect("there was one before");
        let listener = Net::V4.listener();
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        let waiting = cookie(&client);
        drop(client);
        read_to_end(&server);
        drop(server);
        (sandbox, listener, waiting)
    });
    let (sandbox, listener, waiting) = inside.join().expect("the scenario runs");
    let mut tracer = Tracer::start(&sandbox);
    if !tracer.sees("task_file") {
        return;
    }
    held(&mut tracer, &listener, "listen", "bind_auto");
    tracer.wait_for("TIME_WAIT", |record| record["cookie"] == waiting);
    tracer.finish();
}
