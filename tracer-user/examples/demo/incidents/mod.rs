//! The incidents: what the processes do, and what the report must say about it.

pub mod environment;
pub mod process;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};

use environment::{Environment, Process};
use process::Request;

/// Something that goes wrong, or a healthy system to compare it with.
pub struct Incident {
    /// The name on the command line.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Makes it happen. The processes returned keep their sockets until the report is made.
    pub run: fn(&mut Environment) -> Result<Vec<Process>>,
    /// What the report must say.
    pub expected: Expected,
}

/// The expected verdict.
pub struct Expected {
    /// The first word of the text report.
    pub severity: &'static str,
    /// `verdict.kind` in JSON.
    pub kind: &'static str,
    /// `verdict.cause` in JSON; `None` where no call fails.
    pub cause: Option<&'static str>,
    /// The name of the process to blame; `None` where nothing is wrong.
    pub owner: Option<&'static str>,
}

/// All incidents, in the order in which `--list` shows them.
pub const INCIDENTS: &[Incident] = &[
    Incident {
        name: "exhaustion",
        summary: "a client has a connection on every port of the range",
        run: exhaustion,
        expected: Expected {
            severity: "FAILING",
            kind: "destination_exhausted",
            cause: Some("range_full"),
            owner: Some("shop-frontend"),
        },
    },
    Incident {
        name: "time-wait",
        summary: "a client that closes first leaves TIME_WAITs on every port",
        run: time_wait,
        expected: Expected {
            severity: "FAILING",
            kind: "time_wait_pile_up",
            cause: Some("range_full"),
            owner: Some("price-crawler"),
        },
    },
    Incident {
        name: "bind-before-connect",
        summary: "a proxy binds its address first, and takes the ports away from everyone",
        run: bind_before_connect,
        expected: Expected {
            severity: "FAILING",
            kind: "bind_before_connect",
            cause: Some("range_bind_locked"),
            owner: Some("legacy-proxy"),
        },
    },
    Incident {
        name: "poisoned-port",
        summary: "a port that looks free is lost because someone bound it on another address",
        run: poisoned_port,
        expected: Expected {
            severity: "FAILING",
            kind: "poisoned_port",
            cause: Some("range_bind_locked"),
            owner: Some("stats-agent"),
        },
    },
    Incident {
        name: "blocked-listener",
        summary: "a server cannot start because a sidecar's connection holds its port",
        run: blocked_listener,
        expected: Expected {
            severity: "FAILING",
            kind: "listener_blocked",
            cause: Some("port_held"),
            owner: Some("mesh-sidecar"),
        },
    },
    Incident {
        name: "close-wait",
        summary: "a server does not close connections that its clients have closed",
        run: close_wait,
        expected: Expected {
            severity: "WARNING",
            kind: "close_wait_leak",
            cause: None,
            owner: Some("report-server"),
        },
    },
    Incident {
        name: "slow-connect",
        summary: "connect() slows down long before it fails",
        run: slow_connect,
        expected: Expected {
            severity: "WARNING",
            kind: "slow_connect",
            cause: None,
            owner: Some("log-shipper"),
        },
    },
    Incident {
        name: "healthy",
        summary: "a server and its clients, with nothing wrong",
        run: healthy,
        expected: Expected { severity: "HEALTHY", kind: "healthy", cause: None, owner: None },
    },
];

fn exhaustion(env: &mut Environment) -> Result<Vec<Process>> {
    env.set("ipv4/ip_local_port_range", "60000 60009")?;
    let (mut bank, mut shop) = (env.process("bank-api")?, env.process("shop-frontend")?);
    bank.listen(8443)?;
    env.log("bank-api listens on port 8443");
    let connected = shop.request(&connect(1, 8443, 10))?;
    ensure!(connected.done == 10, "{connected:?}");
    env.log("shop-frontend opens 10 connections to 127.0.0.1:8443, and keeps them");
    for _ in 0..3 {
        let failed = shop.request(&connect(1, 8443, 1))?;
        env.log(&format!("shop-frontend tries another: {}", failed.outcome()));
    }
    let elsewhere = shop.request(&connect(2, 8443, 1))?;
    env.log(&format!("shop-frontend connects to 127.0.0.2:8443: {}", elsewhere.outcome()));
    Ok(vec![bank, shop])
}

fn time_wait(env: &mut Environment) -> Result<Vec<Process>> {
    const PORTS: u32 = 32;
    env.set("ipv4/ip_local_port_range", "60000 60031")?;
    // With the default, connect() would reuse these ports after a second: it is the loopback
    // interface.
    env.set("ipv4/tcp_tw_reuse", "0")?;
    keep_time_waits(env)?;
    let (mut server, mut crawler) = (env.process("price-server")?, env.process("price-crawler")?);
    server.listen(8080)?;
    crawler.request(&connect(1, 8080, PORTS))?;
    server.request(&Request::Accept { times: PORTS })?;
    crawler.request(&Request::ShutDown)?;
    // The server's FINs turn the crawler's sockets into TIME_WAITs.
    server.request(&Request::CloseAfterPeer)?;
    env.wait_until_quiet()?;
    crawler.request(&Request::Close)?;
    env.log("price-crawler makes 32 connections to price-server and is the first to close each");
    for _ in 0..4 {
        let failed = crawler.request(&connect(1, 8080, 1))?;
        env.log(&format!("price-crawler makes another: {}", failed.outcome()));
    }
    Ok(vec![server, crawler])
}

fn bind_before_connect(env: &mut Environment) -> Result<Vec<Process>> {
    env.set("ipv4/ip_local_port_range", "60000 60015")?;
    let mut server = env.process("backend")?;
    let (mut proxy, mut shop) = (env.process("legacy-proxy")?, env.process("shop-frontend")?);
    server.listen(9000)?;
    env.log("legacy-proxy connects to 127.0.0.1:9000, 127.0.0.2:9000 and so on, each time from a");
    env.log("socket that it has bound to 127.0.0.1, port 0");
    for host in 1..=17 {
        let done = proxy.request(&Request::BindThenConnect {
            from: Ipv4Addr::LOCALHOST,
            to: SocketAddr::from(([127, 0, 0, host], 9000)),
        })?;
        if host > 16 {
            env.log(&format!("legacy-proxy's 17th bind(): {}", done.outcome()));
        }
    }
    for _ in 0..3 {
        let failed = shop.request(&connect(50, 9000, 1))?;
        env.log(&format!("shop-frontend connects to 127.0.0.50:9000: {}", failed.outcome()));
    }
    Ok(vec![server, proxy, shop])
}

fn poisoned_port(env: &mut Environment) -> Result<Vec<Process>> {
    env.set("ipv4/ip_local_port_range", "60000 60003")?;
    let (mut server, mut worker) = (env.process("queue-server")?, env.process("queue-worker")?);
    let mut agent = env.process("stats-agent")?;
    server.listen(5672)?;
    worker.request(&connect(1, 5672, 4))?;
    env.log("queue-worker has 4 connections to 127.0.0.1:5672, from ports 60000 to 60003; all of");
    env.log("these ports can still be used for other destinations");
    for port in 60_000..60_004 {
        let bound = agent.request(&Request::Bind {
            at: SocketAddr::from(([127, 0, 0, 9], port)),
            listen: false,
        })?;
        ensure!(bound.done == 1, "{bound:?}");
    }
    env.log("stats-agent binds the same ports on 127.0.0.9");
    for _ in 0..2 {
        let failed = worker.request(&connect(2, 5672, 1))?;
        env.log(&format!("queue-worker connects to 127.0.0.2:5672: {}", failed.outcome()));
    }
    Ok(vec![server, worker, agent])
}

fn blocked_listener(env: &mut Environment) -> Result<Vec<Process>> {
    let (mut cache, mut sidecar) = (env.process("redis-server")?, env.process("mesh-sidecar")?);
    let mut app = env.process("app-server")?;
    cache.listen(6379)?;
    // Leaves the kernel no other port to give the sidecar.
    env.set("ipv4/ip_local_port_range", "46580 46580")?;
    sidecar.request(&connect(1, 6379, 1))?;
    env.set("ipv4/ip_local_port_range", "46570 46589")?;
    env.log("mesh-sidecar connects to redis-server; the kernel happens to give it port 46580");
    for _ in 0..2 {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 46_580));
        let failed = app.request(&Request::Bind { at, listen: true })?;
        env.log(&format!("app-server tries to listen on port 46580: {}", failed.outcome()));
    }
    Ok(vec![cache, sidecar, app])
}

fn close_wait(env: &mut Environment) -> Result<Vec<Process>> {
    const CLIENTS: u32 = 40;
    let (mut server, mut browser) = (env.process("report-server")?, env.process("browser")?);
    server.listen(8080)?;
    browser.request(&connect(1, 8080, CLIENTS))?;
    server.request(&Request::Accept { times: CLIENTS })?;
    browser.request(&Request::Close)?;
    env.log("browser makes 40 connections to report-server and closes them; report-server does");
    env.log("not notice");
    // Only after a while does the report call this a leak: the server might be about to close.
    std::thread::sleep(Duration::from_millis(2500));
    Ok(vec![server, browser])
}

fn slow_connect(env: &mut Environment) -> Result<Vec<Process>> {
    const PORTS: u32 = 6_500;
    env.set("ipv4/ip_local_port_range", "20000 31999")?;
    let (mut server, mut shipper) = (env.process("log-server")?, env.process("log-shipper")?);
    server.listen(5044)?;
    // The accept queue is too short for all of them.
    server.send(&Request::Accept { times: PORTS })?;
    let connected = shipper.request(&connect(1, 5044, PORTS))?;
    server.receive()?;
    ensure!(connected.done == PORTS, "{connected:?}");
    env.log("log-shipper opens 6,500 connections to 127.0.0.1:5044; the range has 12,000 ports,");
    env.log("and connect() tries one parity, half of them, first");
    Ok(vec![server, shipper])
}

fn healthy(env: &mut Environment) -> Result<Vec<Process>> {
    const CLIENTS: u32 = 20;
    keep_time_waits(env)?;
    let (mut server, mut browser) = (env.process("web-server")?, env.process("browser")?);
    server.listen(8080)?;
    for _ in 0..3 {
        browser.request(&connect(1, 8080, CLIENTS))?;
        server.request(&Request::Accept { times: CLIENTS })?;
        // The server closes first, so the TIME_WAITs are on its own port.
        server.request(&Request::ShutDown)?;
        browser.request(&Request::Close)?;
        env.wait_until_quiet()?;
        server.request(&Request::CloseAccepted)?;
    }
    browser.request(&connect(1, 8080, CLIENTS))?;
    server.request(&Request::Accept { times: CLIENTS })?;
    env.log("browser makes 60 connections to web-server, which closes each of them, and 20 more");
    env.log("that stay open");
    env.wait_until_quiet()?;
    Ok(vec![server, browser])
}

/// Makes the number of TIME_WAITs the same in every run.
fn keep_time_waits(env: &Environment) -> Result<()> {
    // A FIN can overtake an acknowledgement on another CPU. The TIME_WAIT then answers the late
    // segment, the server's listener resets the connection it no longer knows, and without this
    // setting the reset would end the TIME_WAIT (RFC 1337; `tcp_timewait_state_process`,
    // net/ipv4/tcp_minisocks.c).
    env.set("ipv4/tcp_rfc1337", "1")
}

/// A request to connect to 127.0.0.`host`.
fn connect(host: u8, port: u16, times: u32) -> Request {
    Request::Connect { to: SocketAddr::from(([127, 0, 0, host], port)), times }
}
