//! Connections and calls that are in progress when the tracer starts.

use std::net::Shutdown;

use rustix::process::Signal;

use crate::{
    child::{Helper, Task},
    snapshot::held,
    support::{
        Pair, Tracer, UnresponsiveListener, addr, cookie, for_each_net, is, reaches_fin_wait2,
        read_to_end, reset_on_close, wait_until_readable,
    },
};

#[test]
fn connections_in_every_phase_continue_as_the_same_leases() {
    for_each_net(|net, sandbox| {
        let listener = net.listener();
        let unresponsive = UnresponsiveListener::new(net);
        let connecting = unresponsive.attempt(net.socket());
        let half = Pair::connect(net.socket(), &listener);
        half.client.shutdown(Shutdown::Write).expect("shutdown() succeeds");
        read_to_end(&half.server);
        // Data from the peer carries the ACK of the FIN, which moves the client to FIN_WAIT2.
        half.server.send(b"x").expect("send() succeeds");
        half.client.recv(&mut [std::mem::MaybeUninit::uninit()]).expect("recv() succeeds");
        let waiting = net.socket();
        waiting.connect(&addr(&listener).into()).expect("the backlog has room");
        wait_until_readable(&listener);
        let mut tracer = Tracer::start_verifying(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        held(&mut tracer, &connecting, "connecting", "connect");
        held(&mut tracer, &half.client, "closing", "connect");
        held(&mut tracer, &half.server, "closing", "accept");
        held(&mut tracer, &waiting, "established", "connect");
        tracer.wait_for("the unaccepted connection", |record| {
            record["phase"] == "established"
                && record["kind"] == "accept"
                && record["peer_port"] == addr(&waiting).port()
                && record["pid"].is_null()
        });
        tracer.verify();
        let _filler = unresponsive.accept();
        let connecting_cookie = cookie(&connecting);
        tracer.wait_for("connection", is(connecting_cookie, "established"));
        let [client_cookie, server_cookie] = [&half.client, &half.server].map(cookie);
        drop(half.server);
        tracer.wait_for("TIME_WAIT", is(client_cookie, "time_wait:time_wait"));
        let (accepted, _) = listener.accept().expect("one waits");
        let accepted_cookie = cookie(&accepted);
        tracer.verify();
        reset_on_close(&waiting);
        drop(waiting);
        tracer.wait_for("release", is(accepted_cookie, "release:reset_in"));
        tracer.verify();
        let recording = tracer.finish();
        assert_eq!(recording.of(connecting_cookie), ["held:connecting", "established"]);
        assert_eq!(recording.of(client_cookie), ["held:closing", "time_wait:time_wait"]);
        assert_eq!(recording.of(server_cookie), ["held:closing", "release:closed"]);
        assert_eq!(recording.of(accepted_cookie), ["held:established", "release:reset_in"]);
        assert_eq!(recording.only(accepted_cookie, "release")["pid"], std::process::id());
        for own_cookie in [connecting_cookie, client_cookie, server_cookie, accepted_cookie] {
            let mut leases: Vec<_> =
                recording.records_of(own_cookie).map(|record| record["lease"].as_u64()).collect();
            leases.dedup();
            assert_eq!(leases.len(), 1);
        }
    });
}

#[test]
fn a_connect_in_progress_is_owned_by_its_process() {
    for_each_net(|net, sandbox| {
        let unresponsive = UnresponsiveListener::new(net);
        let socket = net.socket();
        let own_cookie = cookie(&socket);
        let mut process =
            Helper::start(Task::Connect, &addr(&unresponsive.listener).to_string(), socket);
        let pid = process.wait_until("begins");
        let mut tracer = Tracer::start_verifying(sandbox);
        if !tracer.sees("task_file") {
            return;
        }
        // If it was not in progress by then, it is reported as it happens.
        let first = tracer.wait_for("attempt", |record| record["cookie"] == own_cookie);
        assert_eq!(first["pid"], pid);
        tracer.verify();
        let _filler = unresponsive.accept();
        process.wait_until("connected");
        let established = tracer.wait_for("connection", is(own_cookie, "established"));
        assert_eq!(established["pid"], pid);
        assert_eq!(established["lease"], first["lease"]);
        process.kill();
        if !reaches_fin_wait2(&mut tracer, own_cookie) {
            return;
        }
        tracer.verify();
        tracer.finish();
    });
}

#[test]
fn an_accept_in_progress_is_reported_with_its_process() {
    for_each_net(|net, sandbox| {
        let listener = net.listener();
        let (listener_cookie, address) = (cookie(&listener), addr(&listener));
        let mut process = Helper::start(Task::Accept, "", listener);
        let pid = process.wait_until("begins");
        let mut tracer = Tracer::start_verifying(sandbox);
        // A function hook misses the return from a call that started earlier. The process is then
        // known because it has the listener open.
        let has_exit = tracer.hook("sys_exit") == "tp_btf";
        if !tracer.sees_accepts() || !(has_exit || tracer.sees("task_file")) {
            return;
        }
        let client = net.socket();
        client.connect(&address.into()).expect("connect() succeeds");
        process.wait_until("accepted");
        let accept = tracer.wait_for("accept", |record| record["type"] == "accept");
        assert_eq!(accept["listener"], listener_cookie);
        assert_eq!(accept["pid"], pid);
        tracer.verify();
        // The kernel closes the connection that it leaves.
        process.signal(Signal::KILL);
        let server_cookie = accept["cookie"].as_u64().expect("a number");
        if !reaches_fin_wait2(&mut tracer, server_cookie) {
            return;
        }
        let recording = tracer.finish();
        assert_eq!(recording.of(server_cookie), ["accept", "closing:local", "time_wait:fin_wait2"]);
    });
}
