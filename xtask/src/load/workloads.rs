//! Workloads beside plain connections: failing calls, reused TIME_WAITs, long-lived connections and
//! short-lived namespaces.

use std::{collections::VecDeque, io};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use socket2::Socket;

use super::{
    Counters, Environment, Event, Workload,
    connections::{Binding, Close, Connection, Family, Listener, address_of, bind},
    rng::Rng,
};

/// Fails unless a call failed with the expected error.
fn expect_errno(result: io::Result<()>, expected: Errno, what: &str) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(expected.raw_os_error()) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("{what} failed with another error than {expected}"))
        }
        Ok(()) => bail!("{what} succeeded, but should fail with {expected}"),
    }
}

/// Calls that fail in an ephemeral range of four ports that are all taken.
pub struct Failures {
    family: Family,
    held: Option<Held>,
}

struct Held {
    listener: Listener,
    _pairs: Vec<Connection>,
    taken: u16,
    /// A bound socket that does not listen, so connections to it are refused.
    closed: Socket,
}

impl Failures {
    pub fn new(family: Family) -> Self {
        Self { family, held: None }
    }
}

impl Workload for Failures {
    fn begin(&mut self, env: &Environment<'_>) -> Result<()> {
        let listener = self.family.listener(env.counters)?;
        let closed = self.family.bound(0, env.counters)?;
        env.sandbox.set("ipv4/ip_local_port_range", "20000 20003")?;
        let pairs = (0..4)
            .map(|_| Connection::connect(&listener, Binding::None, env.counters))
            .collect::<Result<Vec<_>>>()?;
        let taken = address_of(&pairs[0].client)?.port();
        self.held = Some(Held { listener, _pairs: pairs, taken, closed });
        Ok(())
    }

    fn step(&mut self, env: &Environment<'_>) -> Result<()> {
        let Some(Held { listener, _pairs, taken, closed }) = &self.held else { return Ok(()) };
        let (family, counters) = (self.family, env.counters);
        let result = family.socket()?.connect(&listener.at.into());
        expect_errno(result, Errno::ADDRNOTAVAIL, "connect() in a full range")?;
        counters.add(Event::ConnectFailed);
        // All four ports can be used again for another destination.
        let result = family.socket()?.connect(&address_of(closed)?.into());
        expect_errno(result, Errno::CONNREFUSED, "connect() to a port without a listener")?;
        counters.add(Event::Chosen);
        counters.add(Event::Refused);
        let result = family.socket()?.bind(&family.at(*taken).into());
        expect_errno(result, Errno::ADDRINUSE, "bind() to a port that is taken")?;
        counters.add(Event::BindFailed);
        let result = family.socket()?.bind(&family.at(0).into());
        expect_errno(result, Errno::ADDRINUSE, "bind() to any port of a full range")?;
        counters.add(Event::BindFailed);
        second_listener(family, counters)
    }
}

/// Two sockets share a port through SO_REUSEADDR; only one of them can listen.
fn second_listener(family: Family, counters: &Counters) -> Result<()> {
    let at = family.at(19_000);
    let [first, second] = [family.socket()?, family.socket()?];
    for socket in [&first, &second] {
        socket.set_reuse_address(true)?;
        bind(socket, at, counters)?;
    }
    first.listen(1).context("listen()")?;
    counters.add(Event::Listened);
    expect_errno(
        second.listen(1),
        Errno::ADDRINUSE,
        "listen() on a port that already has a listener",
    )?;
    counters.add(Event::ListenFailed);
    Ok(())
}

/// A range so small that every connection reuses a TIME_WAIT, or fails because none is old enough
/// (`tcp_tw_reuse_delay`, or one second on kernels without that setting).
pub struct SmallRange {
    family: Family,
    listener: Option<Listener>,
}

impl SmallRange {
    pub fn new(family: Family) -> Self {
        Self { family, listener: None }
    }
}

impl Workload for SmallRange {
    fn begin(&mut self, env: &Environment<'_>) -> Result<()> {
        self.listener = Some(self.family.listener(env.counters)?);
        env.sandbox.set("ipv4/ip_local_port_range", "20000 20063")?;
        env.sandbox.set("ipv4/tcp_tw_reuse", "1")?;
        // Exists since Linux 6.14.
        let _ = env.sandbox.set("ipv4/tcp_tw_reuse_delay", "100");
        Ok(())
    }

    fn step(&mut self, env: &Environment<'_>) -> Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        match Connection::connect(listener, Binding::None, env.counters) {
            Ok(pair) => pair.close(Close::ClientFirst),
            Err(error) => match error.downcast_ref::<io::Error>() {
                Some(cause) if cause.kind() == io::ErrorKind::AddrNotAvailable => {
                    env.counters.add(Event::ConnectFailed);
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}

/// Long-lived connections: a fixed number is open at any time, and the oldest is closed for each
/// new one.
pub struct LongLived {
    family: Family,
    open: usize,
    listener: Option<Listener>,
    pairs: VecDeque<Connection>,
    rng: Rng,
}

impl LongLived {
    pub fn new(family: Family, open: usize, seed: u64) -> Self {
        Self { family, open, listener: None, pairs: VecDeque::new(), rng: Rng::new(seed) }
    }
}

impl Workload for LongLived {
    fn begin(&mut self, env: &Environment<'_>) -> Result<()> {
        // listen() on an unbound socket chooses the port.
        let socket = self.family.socket()?;
        socket.listen(4096).context("listen() without bind()")?;
        env.counters.add(Event::Bound);
        env.counters.add(Event::Listened);
        let at = self.family.at(address_of(&socket)?.port());
        self.listener = Some(Listener { socket, at });
        Ok(())
    }

    fn step(&mut self, env: &Environment<'_>) -> Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        self.pairs.push_back(Connection::connect(listener, Binding::None, env.counters)?);
        if self.pairs.len() <= self.open {
            return Ok(());
        }
        let close = *self.rng.pick(&[Close::ClientFirst, Close::ServerFirst]);
        self.pairs.pop_front().map_or(Ok(()), |oldest| oldest.close(close))
    }
}

/// Short-lived namespaces, each with a few connections, and with TIME_WAITs when it is torn down.
pub struct Namespaces;

impl Workload for Namespaces {
    fn begin(&mut self, _place: &Environment<'_>) -> Result<()> {
        Ok(())
    }

    fn step(&mut self, env: &Environment<'_>) -> Result<()> {
        let _sandbox = env.new_namespace()?;
        for family in [Family::Ipv4, Family::Ipv6] {
            let listener = family.listener(env.counters)?;
            for close in [Close::ClientFirst, Close::ServerFirst, Close::Reset] {
                Connection::connect(&listener, Binding::None, env.counters)?.close(close)?;
            }
        }
        Ok(())
    }
}
