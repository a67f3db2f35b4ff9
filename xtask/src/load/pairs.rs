//! Connections, one after the other: the loop that saturates.

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tracer_user::kernel::namespace::sandbox;

use super::{Deed, Place, Scene, Tally, rng::Rng};

/// Which addresses are used.
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

    /// A socket bound to the loopback address and this port, or any if it is 0.
    pub fn bound(self, port: u16, tally: &Tally) -> Result<Socket> {
        let socket = self.socket()?;
        bind(&socket, self.at(port), tally)?;
        Ok(socket)
    }

    pub fn listener(self, tally: &Tally) -> Result<Listener> {
        let socket = self.bound(0, tally)?;
        socket.listen(4096).context("listen()")?;
        tally.add(Deed::Listened);
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

pub fn bind(socket: &Socket, at: SocketAddr, tally: &Tally) -> Result<()> {
    socket.bind(&at.into()).with_context(|| format!("bind() to {at}"))?;
    tally.add(Deed::Bound);
    Ok(())
}

/// How a client gets its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// By connect().
    None,
    /// By connect(), after bind() has given it an address (`IP_BIND_ADDRESS_NO_PORT`).
    Address,
    /// By bind() to port 0.
    AnyPort,
    /// By bind() to this port.
    Port(u16),
}

/// Who ends a connection, and how. The one that closes first is left with the TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    ClientFirst,
    ServerFirst,
    /// The client resets it (SO_LINGER 0).
    Reset,
}

/// A connected pair of sockets.
pub struct Pair {
    pub client: Socket,
    pub server: Socket,
}

impl Pair {
    /// Makes a connection. The kernel may end one before it is accepted, which was seen once in
    /// eight million on a busy machine: that is counted, and another is made.
    pub fn connect(listener: &Listener, binding: Binding, tally: &Tally) -> Result<Self> {
        loop {
            if let Some(pair) = Self::attempt(listener, binding, tally)? {
                return Ok(pair);
            }
            tally.add(Deed::Aborted);
        }
    }

    fn attempt(listener: &Listener, binding: Binding, tally: &Tally) -> Result<Option<Self>> {
        let Listener { socket, at } = listener;
        let family = if at.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let client = family.socket()?;
        match binding {
            Binding::None => {}
            Binding::Address => {
                sandbox::bind_address_no_port(&client)?;
                client.bind(&family.at(0).into()).context("bind() to an address")?;
            }
            Binding::AnyPort => bind(&client, family.at(0), tally)?,
            Binding::Port(port) => {
                client.set_reuse_address(true)?;
                bind(&client, family.at(port), tally)?;
            }
        }
        client.connect(&(*at).into()).with_context(|| format!("connect() after {binding:?}"))?;
        if matches!(binding, Binding::None | Binding::Address) {
            tally.add(Deed::Chosen);
        }
        match socket.accept() {
            Ok((server, _)) => {
                tally.add(Deed::Connected);
                Ok(Some(Self { client, server }))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error).context("accept()"),
        }
    }

    /// Ends the connection. Each side has seen the other's end when this returns.
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
            (Ok(_), _) => anyhow::bail!("{how:?}: the peer reads what nobody wrote"),
            (Err(error), _) => Err(error).context("read() of a connection's end"),
        }
    }
}

/// Connections to a number of destinations, which differ in their port.
pub struct Pairs {
    family: Family,
    closes: Vec<Close>,
    bindings: Vec<Binding>,
    destinations: u16,
    most_time_waits: u32,
    rng: Rng,
    listeners: Vec<Listener>,
}

/// Ports that [`Binding::Port`] takes in the mixture: below what connect() chooses from.
const EXPLICIT_PORTS: (u16, u16) = (1024, 19_999);

impl Pairs {
    /// Connections of one sort, for measurements.
    pub fn of(family: Family, close: Close, destinations: u16) -> Self {
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

    /// Connections of every sort, in an order that the seed repeats.
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

impl Scene for Pairs {
    fn begin(&mut self, place: &Place<'_>) -> Result<()> {
        // With more than half of the ports of a destination taken, connect() searches a hundred
        // times as long; and once there are as many TIME_WAITs as may be, none is made any more,
        // which is worth its place in the mixture.
        let most = self.most_time_waits.to_string();
        place.sandbox.set("ipv4/tcp_max_tw_buckets", &most)?;
        place.sandbox.set("ipv4/ip_local_port_range", "20000 65535")?;
        for _ in 0..self.destinations {
            self.listeners.push(self.family.listener(place.tally)?);
        }
        Ok(())
    }

    fn step(&mut self, place: &Place<'_>) -> Result<()> {
        let close = *self.rng.pick(&self.closes);
        let binding = match *self.rng.pick(&self.bindings) {
            Binding::Port(_) => Binding::Port(self.rng.port(EXPLICIT_PORTS.0, EXPLICIT_PORTS.1)),
            other => other,
        };
        let listener = self.rng.pick(&self.listeners);
        Pair::connect(listener, binding, place.tally)?.close(close)
    }
}
