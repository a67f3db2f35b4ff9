//! Connections, one after the other: the workload that can saturate a CPU.

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tracer_user::kernel::namespace::sandbox;

use super::{Counters, Environment, Event, Workload, rng::Rng};

/// The address family of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::LOCALHOST.into(),
            Self::Ipv6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.loopback(), port)
    }

    pub fn socket(self) -> Result<Socket> {
        let domain = match self {
            Self::Ipv4 => Domain::IPV4,
            Self::Ipv6 => Domain::IPV6,
        };
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).context("socket()")
    }

    /// A socket bound to the loopback address and this port. With port 0 the kernel chooses.
    pub fn bound(self, port: u16, counters: &Counters) -> Result<Socket> {
        let socket = self.socket()?;
        bind(&socket, self.at(port), counters)?;
        Ok(socket)
    }

    pub fn listener(self, counters: &Counters) -> Result<Listener> {
        let socket = self.bound(0, counters)?;
        socket.listen(4096).context("listen()")?;
        counters.add(Event::Listened);
        let at = address_of(&socket)?;
        Ok(Listener { socket, at })
    }
}

/// A listening socket and its address.
pub struct Listener {
    pub socket: Socket,
    pub at: SocketAddr,
}

pub fn address_of(socket: &Socket) -> Result<SocketAddr> {
    socket.local_addr()?.as_socket().context("a TCP socket has no IP address")
}

pub fn bind(socket: &Socket, at: SocketAddr, counters: &Counters) -> Result<()> {
    socket.bind(&at.into()).with_context(|| format!("bind() to {at}"))?;
    counters.add(Event::Bound);
    Ok(())
}

/// How a client gets its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// connect() chooses it.
    None,
    /// connect() chooses it, after bind() with an address only (`IP_BIND_ADDRESS_NO_PORT`).
    Address,
    /// bind() to port 0 chooses it.
    AnyPort,
    /// bind() to this port.
    Port(u16),
}

/// Who ends a connection, and how. The side that closes first is left with the TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    ClientFirst,
    ServerFirst,
    /// The client resets it (SO_LINGER 0).
    Reset,
}

/// Both sockets of a connection.
pub struct Connection {
    pub client: Socket,
    pub server: Socket,
}

impl Connection {
    /// Makes a connection. The kernel can abort one before it is accepted (seen once in eight
    /// million on a busy machine); that is counted and the attempt repeated.
    pub fn connect(listener: &Listener, binding: Binding, counters: &Counters) -> Result<Self> {
        loop {
            if let Some(pair) = Self::attempt(listener, binding, counters)? {
                return Ok(pair);
            }
            counters.add(Event::Aborted);
        }
    }

    fn attempt(listener: &Listener, binding: Binding, counters: &Counters) -> Result<Option<Self>> {
        let Listener { socket, at } = listener;
        let family = if at.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let client = family.socket()?;
        match binding {
            Binding::None => {}
            Binding::Address => {
                sandbox::bind_address_no_port(&client)?;
                client.bind(&family.at(0).into()).context("bind() to an address")?;
            }
            Binding::AnyPort => bind(&client, family.at(0), counters)?,
            Binding::Port(port) => {
                client.set_reuse_address(true)?;
                bind(&client, family.at(port), counters)?;
            }
        }
        client.connect(&(*at).into()).with_context(|| format!("connect() after {binding:?}"))?;
        if matches!(binding, Binding::None | Binding::Address) {
            counters.add(Event::Chosen);
        }
        match socket.accept() {
            Ok((server, _)) => {
                counters.add(Event::Connected);
                Ok(Some(Self { client, server }))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error).context("accept()"),
        }
    }

    /// Closes both sockets. When this returns, each side has seen the other close.
    pub fn close(self, how: Close) -> Result<()> {
        let Self { client, server } = self;
        let (first, last) = match how {
            Close::ClientFirst => (client, server),
            Close::ServerFirst => (server, client),
            Close::Reset => {
                client.set_linger(Some(Duration::ZERO))?;
                (client, server)
            }
        };
        drop(first);
        let mut last = last;
        match (last.read(&mut [0]), how) {
            (Err(error), Close::Reset) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            (Ok(0), Close::ClientFirst | Close::ServerFirst) => Ok(()),
            (Ok(_), _) => anyhow::bail!("{how:?}: the peer received data, but none was sent"),
            (Err(error), _) => Err(error).context("read() at the end of a connection"),
        }
    }
}

/// Connections to a number of destinations, which differ in their ports.
pub struct Connections {
    family: Family,
    closes: Vec<Close>,
    bindings: Vec<Binding>,
    destinations: u16,
    most_time_waits: u32,
    rng: Rng,
    listeners: Vec<Listener>,
}

/// Ports used for [`Binding::Port`], below those that connect() chooses from.
const EXPLICIT_PORTS: (u16, u16) = (1024, 19_999);

impl Connections {
    /// Connections that are all alike, for measurements.
    pub fn uniform(family: Family, close: Close, destinations: u16) -> Self {
        Self {
            family,
            closes: vec![close],
            bindings: vec![Binding::None],
            destinations,
            most_time_waits: 5000,
            rng: Rng::new(0),
            listeners: Vec::new(),
        }
    }

    /// A mixture of all kinds of connections, in an order that depends on the seed only.
    pub fn mixed(family: Family, most_time_waits: u32, seed: u64) -> Self {
        Self {
            family,
            closes: vec![
                Close::ClientFirst,
                Close::ServerFirst,
                Close::ServerFirst,
                Close::Reset,
                Close::Reset,
            ],
            bindings: vec![
                Binding::None,
                Binding::None,
                Binding::None,
                Binding::None,
                Binding::None,
                Binding::Address,
                Binding::AnyPort,
                Binding::Port(0),
            ],
            destinations: 16,
            most_time_waits,
            rng: Rng::new(seed),
            listeners: Vec::new(),
        }
    }
}

impl Workload for Connections {
    fn begin(&mut self, env: &Environment<'_>) -> Result<()> {
        // Once more than half of the ports of a destination are taken, connect() searches a hundred
        // times longer, so the number of TIME_WAITs is limited. Connections that end above the
        // limit leave none, which is a case worth testing too.
        let most = self.most_time_waits.to_string();
        env.sandbox.set("ipv4/tcp_max_tw_buckets", &most)?;
        env.sandbox.set("ipv4/ip_local_port_range", "20000 65535")?;
        for _ in 0..self.destinations {
            self.listeners.push(self.family.listener(env.counters)?);
        }
        Ok(())
    }

    fn step(&mut self, env: &Environment<'_>) -> Result<()> {
        let close = *self.rng.pick(&self.closes);
        let binding = match *self.rng.pick(&self.bindings) {
            Binding::Port(_) => Binding::Port(self.rng.port(EXPLICIT_PORTS.0, EXPLICIT_PORTS.1)),
            other => other,
        };
        let listener = self.rng.pick(&self.listeners);
        Connection::connect(listener, binding, env.counters)?.close(close)
    }
}
