//! Port scans: sources that try many closed ports.

use crate::support::{Tracer, for_each_net};

#[test]
fn a_source_that_tries_many_closed_ports_is_reported() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees("tcp_send_reset") {
            return;
        }
        let _open = net.listener_on(20_010);
        for port in 20_000..20_050 {
            let is_open = net.socket().connect(&net.at(port).into()).is_ok();
            assert_eq!(is_open, port == 20_010);
        }
        let scan = tracer.wait_for("scan", |record| record["type"] == "scan");
        assert_eq!(scan["netns"], sandbox.netns().0);
        assert_eq!(scan["source_addr"], net.shown());
        assert_eq!((&scan["ports"], &scan["tries"]), (&49.into(), &49.into()));
        assert_eq!((&scan["port_low"], &scan["port_high"]), (&20_000.into(), &20_049.into()));
        let recording = tracer.finish();
        let scans = recording.records.iter().filter(|record| record["type"] == "scan").count();
        assert_eq!(scans, 1, "a scan is reported once");
    });
}

#[test]
fn repeated_attempts_on_one_closed_port_are_no_scan() {
    for_each_net(|net, sandbox| {
        let mut tracer = Tracer::start(sandbox);
        if !tracer.sees("tcp_send_reset") {
            return;
        }
        for _ in 0..50 {
            net.socket().connect(&net.at(20_000).into()).expect_err("the port is closed");
        }
        let recording = tracer.finish();
        assert!(recording.records.iter().all(|record| record["type"] != "scan"));
    });
}
