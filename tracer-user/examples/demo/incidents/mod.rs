//! The incidents: who does what, and what the report must say of it.

pub mod actor;
pub mod stage;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};

use actor::Order;
use stage::{Actor, Stage};

/// Something that goes wrong, or does not.
pub struct Incident {
    /// For the command line.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Makes it happen, and returns those who stay until the report is there.
    pub happen: fn(&mut Stage) -> Result<Vec<Actor>>,
    /// What the report must say.
    pub expected: Expected,
}

/// A verdict.
pub struct Expected {
    /// The report's first word.
    pub word: &'static str,
    /// The kind of the finding, in JSON.
    pub kind: &'static str,
    /// The cause of failed calls, in JSON.
    pub cause: Option<&'static str>,
    /// The name of the process that brought it about.
    pub owner: Option<&'static str>,
}

/// All of them.
pub const INCIDENTS: &[Incident] = &[
    Incident {
        name: "exhaustion",
        title: "a client has a connection on every port of the range",
        happen: exhaustion,
        expected: Expected {
            word: "FAILING",
            kind: "destination_exhausted",
            cause: Some("range_full"),
            owner: Some("shop-frontend"),
        },
    },
    Incident {
        name: "time-wait",
        title: "a client that closes first leaves TIME_WAITs on every port",
        happen: time_wait,
        expected: Expected {
            word: "FAILING",
            kind: "time_wait_pile_up",
            cause: Some("range_full"),
            owner: Some("price-crawler"),
        },
    },
    Incident {
        name: "bind-before-connect",
        title: "a proxy binds its address first, and takes ports from everybody",
        happen: bind_before_connect,
        expected: Expected {
            word: "FAILING",
            kind: "bind_before_connect",
            cause: Some("range_bind_locked"),
            owner: Some("legacy-proxy"),
        },
    },
    Incident {
        name: "poisoned-port",
        title: "a port that looks free is lost, because somebody bound it on another address",
        happen: poisoned_port,
        expected: Expected {
            word: "FAILING",
            kind: "poisoned_port",
            cause: Some("range_bind_locked"),
            owner: Some("stats-agent"),
        },
    },
    Incident {
        name: "blocked-listener",
        title: "a server cannot start: a sidecar's connection has its port",
        happen: blocked_listener,
        expected: Expected {
            word: "FAILING",
            kind: "listener_blocked",
            cause: Some("port_held"),
            owner: Some("mesh-sidecar"),
        },
    },
    Incident {
        name: "close-wait",
        title: "a server forgets to close what its clients have closed",
        happen: close_wait,
        expected: Expected {
            word: "WARNING",
            kind: "close_wait_leak",
            cause: None,
            owner: Some("report-server"),
        },
    },
    Incident {
        name: "slow-connect",
        title: "connect() takes ever longer, long before it fails",
        happen: slow_connect,
        expected: Expected {
            word: "WARNING",
            kind: "slow_connect",
            cause: None,
            owner: Some("log-shipper"),
        },
    },
    Incident {
        name: "healthy",
        title: "a server and its clients with nothing wrong",
        happen: healthy,
        expected: Expected { word: "HEALTHY", kind: "healthy", cause: None, owner: None },
    },
];

fn exhaustion(stage: &mut Stage) -> Result<Vec<Actor>> {
    stage.set("ipv4/ip_local_port_range", "60000 60009")?;
    let (mut bank, mut shop) = (stage.actor("bank-api")?, stage.actor("shop-frontend")?);
    bank.listens(8443)?;
    stage.tell("bank-api listens on port 8443");
    let connected = shop.does(&connect(1, 8443, 10))?;
    ensure!(connected.done == 10, "{connected:?}");
    stage.tell("shop-frontend opens 10 connections to 127.0.0.1:8443, and keeps them");
    for _ in 0..3 {
        let failed = shop.does(&connect(1, 8443, 1))?;
        stage.tell(&format!("shop-frontend tries another: {}", failed.outcome()));
    }
    let elsewhere = shop.does(&connect(2, 8443, 1))?;
    stage.tell(&format!("shop-frontend connects to 127.0.0.2:8443: {}", elsewhere.outcome()));
    Ok(vec![bank, shop])
}

fn time_wait(stage: &mut Stage) -> Result<Vec<Actor>> {
    const PORTS: u32 = 32;
    stage.set("ipv4/ip_local_port_range", "60000 60031")?;
    // Else connect() takes ports over after a second, because this is the loopback interface.
    stage.set("ipv4/tcp_tw_reuse", "0")?;
    // Else a FIN that overtakes an acknowledgement, on another CPU, costs a TIME_WAIT: it answers
    // the late segment, of a connection that has ended for the server, whose listener answers with
    // a reset (RFC 1337; `tcp_timewait_state_process`, net/ipv4/tcp_minisocks.c).
    stage.set("ipv4/tcp_rfc1337", "1")?;
    let (mut server, mut crawler) = (stage.actor("price-server")?, stage.actor("price-crawler")?);
    server.listens(8080)?;
    crawler.does(&connect(1, 8080, PORTS))?;
    server.does(&Order::Accept { times: PORTS })?;
    crawler.does(&Order::Close)?;
    // The server's FINs turn what the crawler has closed into TIME_WAITs.
    server.does(&Order::CloseAfterPeer)?;
    stage.settle()?;
    stage.tell("price-crawler makes 32 connections to price-server and closes each of them first");
    for _ in 0..4 {
        let failed = crawler.does(&connect(1, 8080, 1))?;
        stage.tell(&format!("price-crawler makes another: {}", failed.outcome()));
    }
    Ok(vec![server, crawler])
}

fn bind_before_connect(stage: &mut Stage) -> Result<Vec<Actor>> {
    stage.set("ipv4/ip_local_port_range", "60000 60015")?;
    let mut server = stage.actor("backend")?;
    let (mut proxy, mut shop) = (stage.actor("legacy-proxy")?, stage.actor("shop-frontend")?);
    server.listens(9000)?;
    stage.tell("legacy-proxy connects to 127.0.0.1:9000, 127.0.0.2:9000 and so on, each time from");
    stage.tell("a socket that it has bound to 127.0.0.1 and any port");
    for host in 1..=17 {
        let done = proxy.does(&Order::BindThenConnect {
            from: Ipv4Addr::LOCALHOST,
            to: SocketAddr::from(([127, 0, 0, host], 9000)),
        })?;
        if host > 16 {
            stage.tell(&format!("legacy-proxy's 17th bind(): {}", done.outcome()));
        }
    }
    for _ in 0..3 {
        let failed = shop.does(&connect(50, 9000, 1))?;
        stage.tell(&format!("shop-frontend connects to 127.0.0.50:9000: {}", failed.outcome()));
    }
    Ok(vec![server, proxy, shop])
}

fn poisoned_port(stage: &mut Stage) -> Result<Vec<Actor>> {
    stage.set("ipv4/ip_local_port_range", "60000 60003")?;
    let (mut server, mut worker) = (stage.actor("queue-server")?, stage.actor("queue-worker")?);
    let mut agent = stage.actor("stats-agent")?;
    server.listens(5672)?;
    worker.does(&connect(1, 5672, 4))?;
    stage
        .tell("queue-worker has 4 connections to 127.0.0.1:5672, on ports 60000 to 60003; each of");
    stage.tell("these ports still serves connections to any other destination");
    for port in 60_000..60_004 {
        let bound = agent
            .does(&Order::Bind { at: SocketAddr::from(([127, 0, 0, 9], port)), listen: false })?;
        ensure!(bound.done == 1, "{bound:?}");
    }
    stage.tell("stats-agent binds the same ports on 127.0.0.9");
    for _ in 0..2 {
        let failed = worker.does(&connect(2, 5672, 1))?;
        stage.tell(&format!("queue-worker connects to 127.0.0.2:5672: {}", failed.outcome()));
    }
    Ok(vec![server, worker, agent])
}

fn blocked_listener(stage: &mut Stage) -> Result<Vec<Actor>> {
    let (mut cache, mut sidecar) = (stage.actor("redis-server")?, stage.actor("mesh-sidecar")?);
    let mut app = stage.actor("app-server")?;
    cache.listens(6379)?;
    // So that chance gives the sidecar this port.
    stage.set("ipv4/ip_local_port_range", "46580 46580")?;
    sidecar.does(&connect(1, 6379, 1))?;
    stage.set("ipv4/ip_local_port_range", "46570 46589")?;
    stage.tell("mesh-sidecar connects to redis-server; the kernel happens to give it port 46580");
    for _ in 0..2 {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 46_580));
        let failed = app.does(&Order::Bind { at, listen: true })?;
        stage.tell(&format!("app-server starts, on port 46580: {}", failed.outcome()));
    }
    Ok(vec![cache, sidecar, app])
}

fn close_wait(stage: &mut Stage) -> Result<Vec<Actor>> {
    const CLIENTS: u32 = 40;
    let (mut server, mut browser) = (stage.actor("report-server")?, stage.actor("browser")?);
    server.listens(8080)?;
    browser.does(&connect(1, 8080, CLIENTS))?;
    server.does(&Order::Accept { times: CLIENTS })?;
    browser.does(&Order::Close)?;
    stage.tell("browser makes 40 connections to report-server and closes them; report-server does");
    stage.tell("not look");
    // It takes some time to tell a leak from a server that is about to close.
    std::thread::sleep(Duration::from_millis(2500));
    Ok(vec![server, browser])
}

fn slow_connect(stage: &mut Stage) -> Result<Vec<Actor>> {
    const PORTS: u32 = 6_500;
    stage.set("ipv4/ip_local_port_range", "20000 31999")?;
    let (mut server, mut shipper) = (stage.actor("log-server")?, stage.actor("log-shipper")?);
    server.listens(5044)?;
    // Its queue is shorter than that.
    server.begins(&Order::Accept { times: PORTS })?;
    let connected = shipper.does(&connect(1, 5044, PORTS))?;
    server.ends()?;
    ensure!(connected.done == PORTS, "{connected:?}");
    stage
        .tell("log-shipper opens 6,500 connections to 127.0.0.1:5044; the range has 12,000 ports,");
    stage.tell("half of them of the parity that connect() tries first");
    Ok(vec![server, shipper])
}

fn healthy(stage: &mut Stage) -> Result<Vec<Actor>> {
    const CLIENTS: u32 = 20;
    let (mut server, mut browser) = (stage.actor("web-server")?, stage.actor("browser")?);
    server.listens(8080)?;
    for _ in 0..3 {
        browser.does(&connect(1, 8080, CLIENTS))?;
        server.does(&Order::Accept { times: CLIENTS })?;
        // The server closes first, and has the TIME_WAITs on its own port.
        server.does(&Order::CloseAccepted)?;
        browser.does(&Order::Close)?;
    }
    browser.does(&connect(1, 8080, CLIENTS))?;
    server.does(&Order::Accept { times: CLIENTS })?;
    stage.tell(
        "browser makes 60 connections to web-server, which closes each of them; 20 more stay",
    );
    stage.tell("open");
    stage.settle()?;
    Ok(vec![server, browser])
}

/// Connections to 127.0.0.`host`.
fn connect(host: u8, port: u16, times: u32) -> Order {
    Order::Connect { to: SocketAddr::from(([127, 0, 0, host], port)), times }
}
