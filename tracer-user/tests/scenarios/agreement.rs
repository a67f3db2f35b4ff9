//! Live reports, reports on recordings, and forecasts agree.

use std::{
    net::SocketAddr,
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use serde_json::Value;
use socket2::Socket;
use tracer_user::{
    agent::{self, Options},
    capacity::Forecast,
    kernel::{
        hooks::{loader::LoadOptions, table::HookFamily},
        host::clock,
        namespace::scope::Scope,
    },
    ledger::Ledger,
    model::{Destination, Netns, Port},
    record::{
        Body, Record,
        filter::{Criterion, Filter},
    },
    sources::replay::Recording,
    views::{
        Verbosity, View,
        report::{Form, ReportView, Services},
        stream::json::Json,
    },
};

use crate::support::{Net, Pair, addr, longer_patience, sandbox};

/// Passes every record to two views, and signals when tracing has started.
struct Both {
    begun: Sender<()>,
    stream: Json,
    report: ReportView,
    /// Empty: nothing goes to stdout.
    nothing: Vec<u8>,
}

impl View for Both {
    fn record(&mut self, record: &Record<'_>, ledger: &Ledger) {
        self.stream.record(record, ledger);
        self.report.record(record, ledger);
        if matches!(record.body, Body::Start(_)) {
            self.begun.send(()).expect("the test waits for it");
        }
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.nothing
    }
}

/// Makes connections that stay open, TIME_WAITs and connections closed by the peer until no port is
/// left, and two kinds of failures. Returns the sockets that must stay open.
fn traffic() -> Vec<Socket> {
    let listener = Net::V4.bound(8080);
    listener.listen(64).expect("listen() succeeds");
    let mut kept = Vec::new();
    let mut rounds = 0;
    let failing = loop {
        let client = Net::V4.socket();
        if client.connect(&Net::V4.at(8080).into()).is_err() {
            break client;
        }
        let (server, _) = listener.accept().expect("it is connected");
        match rounds % 4 {
            0 | 1 => kept.extend([client, server]),
            2 => drop((client, server)),
            _ => {
                drop(server);
                kept.push(client);
            }
        }
        rounds += 1;
    };
    assert!((9..=10).contains(&rounds), "{rounds} connections");
    Net::V4.socket().bind(&Net::V4.at(8080).into()).expect_err("the port is taken");
    kept.extend([listener, failing]);
    kept
}

/// Makes a connection whose port somebody else bound for a moment. Before Linux 6.18 no other
/// destination can use the port until the connection ends.
fn poison_a_port() -> [Socket; 3] {
    let listener = Net::V4.listener_on(8081);
    let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
    let port = addr(&client).port();
    let binder = Net::V4.socket();
    binder.bind(&SocketAddr::from(([127, 0, 0, 2], port)).into()).expect("another address");
    [listener, client, server]
}

/// Traces three namespaces with traffic in each; one of them ends meanwhile. Returns the stream
/// and the report.
fn record_a_run() -> Option<(Vec<u8>, Vec<u8>)> {
    let own = sandbox()?;
    own.set("ipv4/ip_local_port_range", "60000 60009").expect("the setting can be written");
    own.set("ipv4/tcp_tw_reuse", "0").expect("the setting can be written");
    let poisoned = poison_a_port();
    let (found, other_netns) = channel();
    let (go, goes) = channel::<()>();
    let (done, is_done) = channel::<()>();
    let (end, ends) = channel::<()>();
    let other = thread::spawn(move || {
        let sandbox = sandbox().expect("another namespace can be made");
        sandbox.set("ipv4/ip_local_port_range", "50000 50009").expect("the setting can be written");
        found.send(sandbox.netns()).expect("the test waits for it");
        goes.recv().expect("the test says when");
        let kept = traffic();
        done.send(()).expect("the test waits for it");
        // Both namespaces must exist until the report is made.
        let _ = ends.recv();
        drop(kept);
    });
    let (found, short_netns) = channel();
    let (go_short, goes) = channel::<()>();
    let short = thread::spawn(move || {
        let sandbox = sandbox().expect("there was one before");
        found.send(sandbox.netns()).expect("the test waits for it");
        goes.recv().expect("the test says when");
        // The namespace ends with its last socket.
        let listener = Net::V4.bound(8080);
        listener.listen(64).expect("it listens");
        drop(Pair::connect(Net::V4.socket(), &listener));
    });
    let namespaces: Vec<Netns> = [&other_netns, &short_netns]
        .into_iter()
        .map(|netns| netns.recv().expect("it has one"))
        .chain([own.netns()])
        .collect();
    let (begun, has_begun) = channel();
    let tracing = thread::spawn(move || {
        let filter = Filter::default().and(Criterion::Netns, namespaces.clone());
        let options = Options {
            load: LoadOptions {
                ring_bytes: 4 << 20,
                hooks: HookFamily::Auto,
                scope: Scope::of(&namespaces),
            },
            snapshot: true,
            // An emulated machine takes longer for the traffic.
            duration: Some(Duration::from_secs(if longer_patience().is_some() { 30 } else { 4 })),
            verify: None,
            filter: filter.clone(),
            queue_bytes: Options::QUEUE_BYTES,
        };
        let offset = clock::realtime_offset_ns();
        let quiet = Verbosity::Quiet;
        let mut both = Both {
            begun,
            stream: Json::new(offset, quiet),
            report: ReportView::new(offset, Form::Json, Services::default(), filter, quiet),
            nothing: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("there can be a runtime");
        runtime.block_on(agent::trace(options, &mut both)).expect("it traces");
        (both.stream.buffer().clone(), both.report.buffer().clone())
    });
    has_begun.recv().expect("it begins");
    for go in [go, go_short] {
        go.send(()).expect("it waits for that");
    }
    short.join().expect("it ends");
    let kept = traffic();
    is_done.recv().expect("the other does the same");
    let (stream, report) = tracing.join().expect("the process exits");
    end.send(()).expect("the other waits for it");
    other.join().expect("the process exits");
    drop((kept, poisoned));
    Some((stream, report))
}

#[test]
fn the_report_on_a_recording_equals_the_live_report_to_the_byte() {
    let Some((stream, live)) = record_a_run() else { return };
    let live_report: Value = serde_json::from_slice(&live).expect("the output is JSON");
    // Another test's namespace may have got the inode of the one that ended.
    let failures = live_report["failures"].as_array().map(Vec::len);
    assert!(failures >= Some(4), "{live_report:#}");
    assert_eq!(live_report["namespaces"].as_array().map(Vec::len), Some(3), "{live_report:#}");
    let quiet = Verbosity::Quiet;
    let services = Services::default();
    let mut recorded = ReportView::new(0, Form::Json, services, Filter::default(), quiet);
    let mut recording = Recording::default();
    let mut pressures = 0;
    let mut offset = None;
    for line in stream.split_inclusive(|byte| *byte == b'\n') {
        let value: Value = serde_json::from_slice(line).expect("the output is JSON");
        recording
            .read(line, "recording", &Filter::default(), |record, ledger| {
                recorded.record(record, ledger);
            })
            .expect("it can be read");
        if value["type"] == "pressure" && !value["peer_addr"].is_null() {
            pressures += 1;
            agrees_on_the_end(&value, recording.ledger());
        }
        if offset.is_none() {
            offset = recording.realtime_offset_ns;
        }
    }
    assert_eq!(recording.problems, Vec::<String>::new());
    assert!(pressures >= 4, "two destinations fill up: {pressures}");
    recorded.set_realtime_offset(offset.expect("records have a time"));
    let report = recorded.report(recording.ledger());
    let again = Form::Json.write(&report);
    let again_report: Value = serde_json::from_slice(&again).expect("the output is JSON");
    let (live_lines, again_lines) = (format!("{live_report:#}"), format!("{again_report:#}"));
    let differing: Vec<_> = live_lines
        .lines()
        .zip(again_lines.lines())
        .filter(|(live, recorded)| live != recorded)
        .collect();
    assert!(live == again, "live and recorded differ: {differing:#?}");
}

/// The forecast of a `pressure` record must equal that of the report's ledger at the same moment.
fn agrees_on_the_end(pressure: &Value, ledger: &Ledger) {
    let addr = |name: &str| {
        let text = pressure[name].as_str().expect("it is an address");
        text.parse::<std::net::IpAddr>().expect("it is an address").into()
    };
    let number = |name: &str| pressure[name].as_u64().expect("it is a number");
    let destination = Destination {
        netns: Netns(u32::try_from(number("netns")).expect("it is an inode")),
        source: addr("source_addr"),
        peer: (addr("peer_addr"), Port(u16::try_from(number("peer_port")).expect("a port"))),
    };
    let range = ledger.range_for(&destination).expect("the settings are known");
    let rates = ledger.rates_for(&destination).expect("it is in use");
    assert_eq!(u64::from(range.headroom()), number("headroom"), "{pressure}");
    let close = |name: &str, here: Option<f64>| match (pressure[name].as_f64(), here) {
        (Some(there), Some(here)) => {
            assert!((there - here).abs() <= 1e-6 * there.abs().max(1.0), "{here}: {pressure}");
        }
        (there, here) => assert_eq!(there, here, "{name}: {pressure}"),
    };
    close("eta_s", Forecast::of(&range, &rates).eta_s);
    close("rate_per_s", Some(rates.taken_per_s));
    close("hold_s", rates.hold_s);
}
