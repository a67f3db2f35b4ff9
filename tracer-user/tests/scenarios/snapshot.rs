//! Leases that began before the tracer started.

use serde_json::Value;
use socket2::Socket;

use crate::support::{Net, Pair, Tracer, addr, cookie, for_each_net, read_to_end, sandbox};

/// Waits for the `held` record of a socket of this process.
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
fn leases_held_at_start_are_reported_and_continue() {
    for_each_net(|net, sandbox| {
        let listener = net.bound(20_001);
        listener.listen(16).expect("listen() succeeds");
        let bound = net.bound(0);
        let explicit = net.bound(20_000);
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
        held(&mut tracer, &explicit, "bound", "bind");
        let client = held(&mut tracer, &pair.client, "established", "connect");
        held(&mut tracer, &pair.server, "established", "accept");
        let time_wait = tracer.wait_for("TIME_WAIT", |record| record["cookie"] == waiting);
        assert_eq!(time_wait["phase"], "time_wait");
        assert_eq!(time_wait["local_port"], waiting_port);
        assert!(time_wait["pid"].is_null(), "its process is not known any more");
        // Their ends are reported for the same leases.
        let client_cookie = cookie(&pair.client);
        crate::support::reset_on_close(&pair.client);
        drop(pair);
        let explicit_cookie = cookie(&explicit);
        drop(explicit);
        let recording = tracer.finish_after_release(&[client_cookie, explicit_cookie]);
        assert_eq!(recording.of(client_cookie), ["held:established", "release:reset_out"]);
        assert_eq!(recording.only(client_cookie, "release")["lease"], client["lease"]);
        assert!(
            recording.only(client_cookie, "release")["held_s"].is_null(),
            "its begin is unknown"
        );
        assert_eq!(recording.of(explicit_cookie), ["held:bound", "release:closed"]);
    });
}

#[test]
fn earlier_time_waits_show_whether_their_peers_sent_timestamps() {
    for_each_net(|net, sandbox| {
        let listener = net.listener();
        let leave_time_wait = |timestamps| {
            sandbox.set("ipv4/tcp_timestamps", timestamps).expect("the setting can be written");
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
fn the_snapshot_can_be_skipped() {
    let Some(sandbox) = sandbox() else { return };
    let listener = Net::V4.listener();
    let netns = sandbox.netns().0.to_string();
    let tracer = Tracer::start_with(&["-n", &netns, "--no-snapshot"]);
    let pair = Pair::connect(Net::V4.socket(), &listener);
    let client_cookie = cookie(&pair.client);
    let recording = tracer.finish();
    assert_eq!(recording.of(cookie(&listener)), Vec::<String>::new());
    assert_eq!(recording.of(client_cookie), ["connect", "established"]);
}

/// A namespace that is kept alive by a file descriptor only.
#[test]
fn sockets_of_a_namespace_without_processes_are_found() {
    let Some(_) = sandbox() else { return };
    let inside = std::thread::spawn(|| {
        let sandbox = sandbox().expect("another namespace can be made");
        let listener = Net::V4.listener();
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        let waiting = cookie(&client);
        drop(client);
        read_to_end(&server);
        drop(server);
        (sandbox, listener, waiting)
    });
    let (sandbox, listener, waiting) = inside.join().expect("the thread does not panic");
    let mut tracer = Tracer::start(&sandbox);
    if !tracer.sees("task_file") {
        return;
    }
    held(&mut tracer, &listener, "listen", "bind_auto");
    tracer.wait_for("TIME_WAIT", |record| record["cookie"] == waiting);
    tracer.finish();
}
