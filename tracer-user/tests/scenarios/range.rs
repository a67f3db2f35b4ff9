//! Ranges of ports that are used to the last.

use std::{collections::BTreeSet, fs, io::ErrorKind};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use socket2::Socket;
use tracer_user::kernel::namespace::sandbox::Sandbox;

use crate::support::{Net, Story, Tracer, addr, cookie, for_each_net, is, reset_on_close, sandbox};

fn set_range(sandbox: &Sandbox, low: u16, high: u16) {
    sandbox
        .set("ipv4/ip_local_port_range", &format!("{low} {high}"))
        .expect("the range can be set");
}

/// As many sockets as the hard limit allows.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("within the limit");
}

/// Connects until no port is left. Returns the clients and the one without a port.
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

/// The ports that the clients have, by the kernel and by the records.
fn ports(story: &Story, clients: &[Socket]) -> BTreeSet<u16> {
    let ports = clients.iter().map(|client| {
        let port = addr(client).port();
        assert_eq!(story.the(cookie(client), "connect")["local_port"], port);
        port
    });
    ports.collect()
}

/// connect() looks at one half of the ports, and at the other only after that one is full
/// (`__inet_hash_connect`, net/ipv4/inet_hashtables.c). That takes longer, and can be seen before
/// the ports run out.
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
        listener.listen(COUNT.into()).expect("it listens");
        listener
    });
    let (clients, without_port) = fill(Net::V4, 20_000);
    assert_eq!(clients.len(), usize::from(COUNT));
    tracer.wait_for("failure", is(cookie(&without_port), "fail:EADDRNOTAVAIL"));
    // The ports are lost to one destination only.
    let elsewhere = Net::V4.socket();
    elsewhere.connect(&Net::V4.at(20_001).into()).expect("another destination shares them");
    tracer.verify();
    let elsewhere_cookie = cookie(&elsewhere);
    let story = tracer.finish();
    let range = LOW..LOW + COUNT;
    assert_eq!(ports(&story, &clients), range.clone().collect());
    assert_eq!(story.of(cookie(&without_port)), ["fail:EADDRNOTAVAIL"]);
    assert_eq!(story.of(elsewhere_cookie), ["connect", "established"]);
    assert!(range.contains(&addr(&elsewhere).port()));
    drop(listeners);
    // Where this setting exists (7.3), the steps of the search are of random width.
    if fs::exists("/proc/sys/net/ipv4/ip_local_port_step_width").expect("/proc is mounted") {
        println!("skipped: whether the second half takes longer, with steps of random width");
        return;
    }
    let searches: Vec<_> =
        clients.iter().map(|client| search_us(story.the(cookie(client), "connect"))).collect();
    let (first, second) = searches.split_at(searches.len() / 2);
    let (first, second) = (median(first.to_vec()), median(second.to_vec()));
    let in_vain = search_us(story.the(cookie(&without_port), "fail"));
    println!("median {first} us below a half, {second} us above, {in_vain} us in vain");
    assert!(second > 2.0 * first, "median {first} us below a half, {second} us above");
    assert!(in_vain > second, "{in_vain} us in vain");
}

/// Of an odd number of ports the kernel may not find the last: it looks at an even number of them
/// (`remaining &= ~1U` in `__inet_hash_connect`).
#[test]
fn of_an_odd_range_one_port_may_be_missed() {
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
        // What is left can be bound, if anything is.
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
        let story = tracer.finish_after_release(&bound_cookies);
        assert_eq!(story.failures().len(), 1);
        assert_eq!(story_ports, cookies.len(), "each has a port of its own");
        for own_cookie in cookies {
            assert_eq!(story.of(own_cookie), ["connect", "established", "release:reset_out"]);
            let port = story.the(own_cookie, "connect")["local_port"].as_u64();
            assert!(port.is_some_and(|port| held.contains(&(port as u16))));
        }
        for own_cookie in bound_cookies {
            assert_eq!(story.of(own_cookie), ["bind", "release:closed"]);
        }
    });
}
