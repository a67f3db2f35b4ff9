//! Compares the tracer's counts with the kernel's view.

use std::io;

use tracer_user::{
    capacity::{Connect, NamespaceState},
    kernel::{
        host::clock,
        namespace::{sandbox::Sandbox, settings::SettingsFiles},
    },
    model::Port,
};

use crate::{
    lists,
    random::Random,
    seeds,
    state::{State, wait_until_settled},
    support::{Tracer, cookie},
};

/// Default number of namespaces, which share one tracer.
const USUAL_CASES: u64 = 12;

#[test]
fn a_failure_is_explained_by_the_kernels_state() {
    let Some(lists) = lists() else { return };
    let (first, cases) = seeds(USUAL_CASES);
    let (mut locked, mut failures) = (0, 0);
    let mut tracer = Tracer::start_with(&["-x", "-v", "--verify", "1", "--ring-bytes", "67108864"]);
    for seed in first..first + cases {
        // A thread cannot leave its namespace, so each case has a thread of its own.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random::new(seed);
                let sandbox = Sandbox::enter_new().expect("root can make a namespace");
                let files = SettingsFiles::open().expect("the settings can be opened");
                let state = State::make(&mut random, &sandbox, false);
                let mut kept = Vec::new();
                for _ in 0..3 {
                    let (client, destination) = state.ends(&mut random);
                    wait_until_settled(sandbox.netns());
                    let mut try_once = || {
                        let socket = client.socket();
                        client.bind_without_port(&socket);
                        socket.set_nonblocking(true).expect("O_NONBLOCK");
                        match socket.connect(&client.form(destination).into()) {
                            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                                Some(socket)
                            }
                            _ => {
                                kept.push(socket);
                                None
                            }
                        }
                    };
                    let list = || lists.of_this_thread().expect("the holders can be listed");
                    let (failed, view) = loop {
                        let before = list();
                        let Some(failed) = try_once() else { continue };
                        let view = list();
                        // Otherwise a segment that was still in flight has changed something.
                        if before.holders == view.holders {
                            break (failed, view);
                        }
                    };
                    let settings = files.read().expect("the namespace is there");
                    let moment = NamespaceState {
                        settings: &settings,
                        rules: lists.rules(),
                        holders: &view.holders,
                        now: view.at,
                    };
                    let seen = moment.connect(&Connect {
                        source: client.source.into(),
                        destination: (destination.ip().into(), Port(destination.port())),
                        device: 0,
                        own_range: None,
                    });
                    let failed = cookie(&failed);
                    let record = tracer.wait_for("failure", |record| record["cookie"] == failed);
                    let range = &record["range"];
                    let counted = ["capacity", "used", "bind_locked"].map(|name| {
                        range[name].as_u64().unwrap_or_else(|| panic!("seed {seed}: {record}"))
                    });
                    let expected = [seen.range.capacity, seen.range.used, seen.range.bind_locked]
                        .map(u64::from);
                    let context = format!(
                        "seed {seed}: {record}\n{seen:?} at {:?}\n{settings:?}\n{:#?}",
                        view.at, view.holders
                    );
                    assert_eq!(counted, expected, "{context}");
                    let cause = match (seen.range.capacity, seen.range.used, seen.range.bind_locked)
                    {
                        (0, _, _) => "reserved",
                        (_, used, locked) if locked > 0 && locked >= used => "range_bind_locked",
                        _ => "range_full",
                    };
                    assert_eq!(record["cause"], cause, "{context}");
                    assert_eq!(
                        record["holder"].is_null(),
                        seen.range.bind_locked == 0,
                        "{context}"
                    );
                    locked += u64::from(seen.range.bind_locked > 0);
                    failures += 1;
                }
            });
        });
    }
    // A comparison made after all this finds the same bucket classes in the kernel.
    let last = clock::monotonic_ns();
    tracer.wait_for("verify", |record| {
        record["type"] == "verify" && record["mono_ns"].as_u64() > Some(last)
    });
    let recording = tracer.finish();
    for verify in recording.records.iter().filter(|record| record["type"] == "verify") {
        assert_eq!(verify["classes"], 0, "{verify}");
    }
    println!("{failures} failures, {locked} of them with ports that others had bound");
}
