//! Function hooks and tracepoints lead to the same records.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;
use tracer_user::kernel::namespace::sandbox::Sandbox;

use crate::support::{
    Pair, Recording, Tracer, addr, brief, cookie, for_each_net, is, reaches_fin_wait2, read_to_end,
    reset_on_close, sandbox,
};

/// False, after printing why, if function hooks cannot be used on this kernel.
fn has_functions(sandbox: &Sandbox) -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_portlife"))
        .args(["--hooks", "functions", "--duration", "0.01", "-n", &sandbox.netns().0.to_string()])
        .output()
        .expect("the tracer starts");
    match output.status.code() {
        Some(0) => true,
        Some(3) => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        _ => panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// The records about each socket in order, and those about failed calls. Without times, which
/// differ by microseconds, and lease numbers, which each run counts by itself.
fn grouped(recording: &Recording) -> BTreeMap<u64, Vec<String>> {
    let mut grouped: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for record in recording.records.iter().filter(|record| record["cookie"].is_u64()) {
        let fields = [
            "kind",
            "local_addr",
            "local_port",
            "peer_addr",
            "peer_port",
            "pid",
            "comm",
            "uid",
            "cgroup",
            "closed_by",
            "requested_addr",
            "requested_port",
            "listener",
            "errno",
            "cause",
        ];
        let text = fields.map(|field| format!("{field}={}", record[field])).join(" ");
        let cookie = record["cookie"].as_u64().unwrap_or_default();
        grouped.entry(cookie).or_default().push(format!("{} {text}", brief(record)));
    }
    grouped
}

#[test]
fn both_families_of_hooks_give_the_same_records() {
    let Some(own) = sandbox() else { return };
    if !has_functions(&own) {
        return;
    }
    for_each_net(|net, sandbox| {
        let netns = sandbox.netns().0.to_string();
        // An orphaned FIN_WAIT2 expires soon, but a TIME_WAIT that follows it lasts a minute.
        sandbox.set("ipv4/tcp_fin_timeout", "2").expect("the setting can be written");
        let start = |family| Tracer::start_with(&["-n", &netns, "--hooks", family]);
        let mut functions = start("functions");
        let mut tracepoints = start("tracepoints");
        assert_eq!(functions.hook("inet_twsk_kill"), "fentry");
        assert_eq!(functions.hook("inet_bind"), "fexit");
        assert_eq!(functions.hook("timer_start"), Value::Null);
        assert_eq!(functions.hook("sys_exit"), Value::Null);
        assert_eq!(tracepoints.hook("timer_start"), "tp_btf");
        assert_eq!(tracepoints.hook("sys_exit"), "tp_btf");
        assert_eq!(tracepoints.hook("inet_twsk_kill"), Value::Null);

        let listener = net.listener();
        // Failing bind() calls: the port is taken, the address is foreign, the socket is bound
        // already.
        let taken = net.socket();
        taken.bind(&addr(&listener).into()).expect_err("it is taken");
        let bound = net.bound(0);
        bound.bind(&net.at(0).into()).expect_err("it is bound");
        // A TIME_WAIT that stays, one that is reused, one that expires, one that is killed by late
        // data, and a connection without one.
        let close = |client, reused: bool| {
            let Pair { client, server } = Pair::connect(client, &listener);
            let cookie = cookie(&client);
            drop(client);
            read_to_end(&server);
            if reused {
                drop(server);
                return (cookie, None);
            }
            (cookie, Some(server))
        };
        let (stays, _) = close(net.socket(), true);
        let reusing = || {
            let socket = net.socket();
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            socket.bind(&net.at(20_000).into()).expect("both have SO_REUSEADDR");
            socket
        };
        let (reused, _) = close(reusing(), true);
        for tracer in [&mut functions, &mut tracepoints] {
            tracer.wait_for("TIME_WAIT", is(reused, "time_wait:time_wait"));
        }
        let successor = Pair::connect(reusing(), &listener);
        let (expires, expires_server) = close(net.socket(), false);
        let (killed, killed_server) = close(net.socket(), false);
        for tracer in [&mut functions, &mut tracepoints] {
            if !reaches_fin_wait2(tracer, killed) {
                return;
            }
        }
        killed_server.as_ref().expect("it is open").send(b"late").expect("send() succeeds");
        let reset = Pair::connect(net.socket(), &listener);
        reset_on_close(&reset.client);
        drop(reset);
        for tracer in [&mut functions, &mut tracepoints] {
            tracer.wait_for("TIME_WAIT", is(stays, "time_wait:time_wait"));
            tracer.wait_for("reuse", is(reused, "release:time_wait_reused"));
            tracer.wait_for("expiry", is(expires, "release:time_wait_expired"));
            tracer.wait_for("kill", is(killed, "release:time_wait_killed"));
        }
        drop((expires_server, killed_server, successor));
        drop((taken, bound));
        let last = net.bound(0);
        let last_cookie = cookie(&last);
        drop(last);
        for tracer in [&mut functions, &mut tracepoints] {
            tracer.wait_for("the last release", is(last_cookie, "release:closed"));
        }
        let (functions, tracepoints) = (functions.finish(), tracepoints.finish());
        assert_eq!(functions.failures().len(), 2);
        assert_eq!(grouped(&functions), grouped(&tracepoints));
    });
}
