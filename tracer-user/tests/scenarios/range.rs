//! Ephemeral ranges that are used up to the last port.

use std::{collections::BTreeSet, fs, io::ErrorKind};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use socket2::Socket;
use tracer_user::kernel::namespace::sandbox::Sandbox;

use crate::support::{
    Net, Recording, Tracer, addr, cookie, for_each_net, is, reset_on_close, sandbox,
};

fn set_range(sandbox: &Sandbox, low: u16, high: u16) {
    sandbox
        .set("ipv4/ip_local_port_range", &format!("{low} {high}"))
        .expect("the setting can be written");
}

/// Allows as many sockets as the hard limit permits.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("within the limit");
}

/// Connects until no port is left. Returns the connected clients and the one without a port.
fn fill(net: Net, port: u16) -> (Vec<Socket>, Socket) {
    let mut clients = Vec::new();
    loop {
        let client = net.socket();
        match client.connect(&net.at(port).into()) {
            Ok(()) => clients.push(client),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
                return (clients, client);
            }
        }
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn search_us(record: &Value) -> f64 {
    record["search_us"].as_f64().expect("the search was seen")
}

/// The ports of the clients; the kernel and the records must agree on them.
fn ports(recording: &Recording, clients: &[Socket]) -> BTreeSet<u16> {
    let ports = clients.iter().map(|client| {
        let port = addr(client).port();
        assert_eq!(recording.only(cookie(client), "connect")["local_port"], port);
        port
    });
    ports.collect()
}

/// connect() searches one half of the ports, and the other half only once the first is full
/// (`__inet_hash_connect`, net/ipv4/inet_hashtables.c). The longer search shows before the ports
/// run out.
#[test]
fn a_search_takes_longer_in_the_second_half_of_a_range_until_there_is_no_port() {
    const LOW: u16 = 30_000;
    const COUNT: u16 = 2000;
    let Some(sandbox) = sandbox() else { return };
    raise_descriptor_limit();
    set_range(&sandbox, LOW, LOW + COUNT - 1);
    let mut tracer = Tracer::start_verifying(&sandbox);
    let listeners = [20_000, 20_001].map(|port| {
        let listener = Net::V4.bound(port);
        listener.listen(COUNT.into()).expect("listen() succeeds");
        listener
    });
    let (clients, without_port) = fill(Net::V4, 20_000);
    assert_eq!(clients.len(), usize::from(COUNT));
    tracer.wait_for("failure", is(cookie(&without_port), "fail:EADDRNOTAVAIL"));
    // The range is full for one destination only.
    let elsewhere = Net::V4.socket();
    elsewhere.connect(&Net::V4.at(20_001).into()).expect("another destination shares them");
    tracer.verify();
    let elsewhere_cookie = cookie(&elsewhere);
    let recording = tracer.finish();
    let range = LOW..LOW + COUNT;
    assert_eq!(ports(&recording, &clients), range.clone().collect());
    assert_eq!(recording.of(cookie(&without_port)), ["fail:EADDRNOTAVAIL"]);
    assert_eq!(recording.of(elsewhere_cookie), ["connect", "established"]);
    assert!(range.contains(&addr(&elsewhere).port()));
    drop(listeners);
    // With this setting (Linux 7.3) the search proceeds in steps of random width.
    if fs::exists("/proc/sys/net/ipv4/ip_local_port_step_width").expect("/proc is mounted") {
        println!("skipped: with steps of random width the second half takes no longer");
        return;
    }
    let searches: Vec<_> =
        clients.iter().map(|client| search_us(recording.only(cookie(client), "connect"))).collect();
    let (first, second) = searches.split_at(searches.len() / 2);
    let (first, second) = (median(first.to_vec()), median(second.to_vec()));
    let in_vain = search_us(recording.only(cookie(&without_port), "fail"));
    println!(
        "median search: {first} us in the first half, {second} us in the second, {in_vain} us without success"
    );
    assert!(second > 2.0 * first, "median {first} us below a half, {second} us above");
    assert!(in_vain > second, "{in_vain} us in vain");
}

/// In a range with an odd number of ports the kernel may miss the last one, because it searches an
/// even number of them (`remaining &= ~1U` in `__inet_hash_connect`).
#[test]
fn one_port_of_an_odd_range_may_be_missed() {
    for_each_net(|net, sandbox| {
        const LOW: u16 = 50_000;
        const COUNT: u16 = 5;
        set_range(sandbox, LOW, LOW + COUNT - 1);
        let mut tracer = Tracer::start_verifying(sandbox);
        let listener = net.listener_on(20_000);
        let (clients, without_port) = fill(net, 20_000);
        assert!((COUNT - 1..=COUNT).contains(&(clients.len() as u16)), "{}", clients.len());
        let failed_cookie = cookie(&without_port);
        tracer.wait_for("failure", is(failed_cookie, "fail:EADDRNOTAVAIL"));
        // If a port is left it can be bound.
        let held: BTreeSet<_> = clients.iter().map(|client| addr(client).port()).collect();
        let left: Vec<_> = (LOW..LOW + COUNT).filter(|port| !held.contains(port)).collect();
        let bound: Vec<_> = left.iter().map(|port| net.bound(*port)).collect();
        tracer.verify();
        let bound_cookies: Vec<_> = bound.iter().map(cookie).collect();
        drop(bound);
        let cookies: Vec<_> = clients.iter().map(cookie).collect();
        for client in &clients {
            reset_on_close(client);
        }
        let story_ports = held.len();
        drop(clients);
        for own_cookie in &cookies {
            tracer.wait_for("release", is(*own_cookie, "release:reset_out"));
        }
        tracer.verify();
        drop(listener);
        let recording = tracer.finish_after_release(&bound_cookies);
        assert_eq!(recording.failures().len(), 1);
        assert_eq!(story_ports, cookies.len(), "each has a port of its own");
        for own_cookie in cookies {
            assert_eq!(recording.of(own_cookie), ["connect", "established", "release:reset_out"]);
            let port = recording.only(own_cookie, "connect")["local_port"].as_u64();
            assert!(port.is_some_and(|port| held.contains(&(port as u16))));
        }
        for own_cookie in bound_cookies {
            assert_eq!(recording.of(own_cookie), ["bind", "release:closed"]);
        }
    });
}
