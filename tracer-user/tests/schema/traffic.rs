//! Sockets in every phase, and calls that fail for every reason that can be had in a namespace.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use socket2::Socket;
use tracer_user::kernel::namespace::sandbox::{Sandbox, set_local_port_range};

use crate::support::{
    Net, Pair, Tracer, UnresponsiveListener, addr, cookie, is, read_to_end, reset_on_close,
    wait_until_readable,
};

pub const SERVER: u16 = 8080;

/// A socket in each phase in which a port can be held.
pub struct Held {
    listener: Socket,
    /// Bound to a port that was asked for, and to any.
    bound: [Socket; 2],
    established: Pair,
    /// The client has not closed what its peer has.
    close_wait: Socket,
    /// In TIME_WAIT.
    time_wait: u16,
}

impl Held {
    pub fn new() -> Self {
        let listener = Net::V4.listener_on(SERVER);
        let bound = [Net::V4.bound(20_000), Net::V4.bound(0)];
        let established = Pair::connect(Net::V4.socket(), &listener);
        let Pair { client: close_wait, server } = Pair::connect(Net::V4.socket(), &listener);
        drop(server);
        wait_until_readable(&close_wait);
        let Pair { client, server } = Pair::connect(Net::V4.socket(), &listener);
        let time_wait = addr(&client).port();
        drop(client);
        read_to_end(&server);
        drop(server);
        Self { listener, bound, established, close_wait, time_wait }
    }

    /// The local ports, of each phase at least one.
    pub fn ports(&self) -> [u16; 6] {
        let Self { listener, bound: [chosen, any], established, close_wait, time_wait } = self;
        let [listener, chosen, any, client, close_wait] =
            [listener, chosen, any, &established.client, close_wait].map(|it| addr(it).port());
        [listener, chosen, any, client, close_wait, *time_wait]
    }
}

/// Lets about everything happen that there are records for, but losses. The range is one of few
/// ports, of which `held` has some.
pub fn cause_trouble(sandbox: &Sandbox, tracer: &mut Tracer, held: &Held) {
    let listener = &held.listener;
    scan_ports();
    // The ends of a connection: by either side, by a reset from either side, with a TIME_WAIT.
    for (closes_client_first, resets) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        let Pair { client, server } = Pair::connect(Net::V4.socket(), listener);
        let [first, second] = if closes_client_first { [client, server] } else { [server, client] };
        let cookies = [cookie(&first), cookie(&second)];
        if resets {
            reset_on_close(&first);
        }
        drop(first);
        wait_until_readable(&second);
        drop(second);
        if resets {
            for cookie in cookies {
                tracer.wait_for_release(cookie);
            }
        } else {
            tracer.wait_for("TIME_WAIT", is(cookies[0], "time_wait:time_wait"));
        }
    }
    // A bound socket connects.
    let bound = Net::V4.bound(20_001);
    bound.connect(&addr(listener).into()).expect("the listener accepts");
    tracer.wait_for("update", is(cookie(&bound), "update:connecting"));
    reset_on_close(&bound);
    drop((bound, listener.accept().expect("it is connected")));
    // IPv6, and a handshake that goes on.
    let Pair { client, server } = Pair::connect(Net::V6.socket(), &Net::V6.listener_on(SERVER));
    reset_on_close(&client);
    drop((client, server));
    let deaf = UnresponsiveListener::new(Net::V4);
    let connecting = deaf.attempt(Net::V4.socket());
    // Ports that are asked for, and are not to be had.
    fail_to_bind(SERVER, Ipv4Addr::LOCALHOST);
    fail_to_bind(0, Ipv4Addr::new(192, 0, 2, 1));
    // Until there are none left.
    let mut kept = Vec::new();
    let failed = loop {
        let socket = Net::V4.socket();
        match socket.connect(&addr(listener).into()) {
            Ok(()) => kept.push(socket),
            Err(_) => break cookie(&socket),
        }
    };
    tracer.wait_for("failure", is(failed, "fail:EADDRNOTAVAIL"));
    let narrow = Net::V4.socket();
    // Before Linux 6.3 there is no such option, and the call fails like the one above.
    let _ = set_local_port_range(&narrow, 50_000, 50_002);
    narrow.connect(&addr(listener).into()).expect_err("no port is left");
    fail_to_bind(0, Ipv4Addr::UNSPECIFIED);
    Net::V4.socket().listen(1).expect_err("no port is left");
    // Other settings, which a failure brings to light.
    sandbox.set("ipv4/ip_local_port_range", "50000 50011").expect("it can be set");
    fail_to_bind(SERVER, Ipv4Addr::LOCALHOST);
    tracer.wait_for("change of settings", |record| {
        record["type"] == "namespace" && record["range_high"] == 50_011
    });
    // So long that what is held for nothing is shown as such.
    thread::sleep(Duration::from_millis(2500));
    drop((connecting, kept, deaf));
}

/// Tries more closed ports than clients do whose server is down.
fn scan_ports() {
    for port in 30_000..30_020 {
        Net::V4.socket().connect(&Net::V4.at(port).into()).expect_err("nobody listens");
    }
}

fn fail_to_bind(port: u16, addr: Ipv4Addr) {
    Net::V4.socket().bind(&SocketAddr::from((addr, port)).into()).expect_err("it cannot be had");
}
