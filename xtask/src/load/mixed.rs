//! What else befalls ports: refusals, exhaustion, TIME_WAITs taken over, connections that last, and
//! namespaces that come and go.

use std::{collections::VecDeque, io};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use socket2::Socket;

use super::{
    Deed, Place, Scene, Tally,
    pairs::{Binding, Close, Family, Listener, Pair, address_of, bind},
    rng::Rng,
};

/// A call must fail in this one way.
fn expect_errno(result: io::Result<()>, expected: Errno, what: &str) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(expected.raw_os_error()) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{what}, which should fail otherwise")),
        Ok(()) => bail!("{what} succeeded"),
    }
}

/// Calls that get no port, or no connection, in a range of four ports that are all taken.
pub struct Failures {
    family: Family,
    held: Option<Held>,
}

struct Held {
    listener: Listener,
    _pairs: Vec<Pair>,
    taken: u16,
    /// Bound and not listening: it refuses.
    closed: Socket,
}

impl Failures {
    pub fn new(family: Family) -> Self {
        Self { family, held: None }
    }
}

impl Scene for Failures {
    fn begin(&mut self, place: &Place<'_>) -> Result<()> {
        let listener = self.family.listener(place.tally)?;
        let closed = self.family.bound(0, place.tally)?;
        place.sandbox.set("ipv4/ip_local_port_range", "20000 20003")?;
        let pairs = (0..4)
            .map(|_| Pair::connect(&listener, Binding::None, place.tally))
            .collect::<Result<Vec<_>>>()?;
        let taken = address_of(&pairs[0].client)?.port();
        self.held = Some(Held { listener, _pairs: pairs, taken, closed });
        Ok(())
    }

    fn step(&mut self, place: &Place<'_>) -> Result<()> {
        let Some(Held { listener, _pairs, taken, closed }) = &self.held else { return Ok(()) };
        let (family, tally) = (self.family, place.tally);
        let result = family.socket()?.connect(&listener.at.into());
        expect_errno(result, Errno::ADDRNOTAVAIL, "connect() in a full range")?;
        tally.add(Deed::ConnectFailed);
        // Another destination has all four ports to itself.
        let result = family.socket()?.connect(&address_of(closed)?.into());
        expect_errno(result, Errno::CONNREFUSED, "connect() to a port that nobody listens on")?;
        tally.add(Deed::Chosen);
        tally.add(Deed::Refused);
        let result = family.socket()?.bind(&family.at(*taken).into());
        expect_errno(result, Errno::ADDRINUSE, "bind() to a port that is taken")?;
        tally.add(Deed::BindFailed);
        let result = family.socket()?.bind(&family.at(0).into());
        expect_errno(result, Errno::ADDRINUSE, "bind() to any port of a full range")?;
        tally.add(Deed::BindFailed);
        second_listener(family, tally)
    }
}

/// Two sockets that share a port by SO_REUSEADDR, of which only one may listen.
fn second_listener(family: Family, tally: &Tally) -> Result<()> {
    let at = family.at(19_000);
    let [first, second] = [family.socket()?, family.socket()?];
    for socket in [&first, &second] {
        socket.set_reuse_address(true)?;
        bind(socket, at, tally)?;
    }
    first.listen(1).context("listen()")?;
    tally.add(Deed::Listened);
    expect_errno(second.listen(1), Errno::ADDRINUSE, "listen() on a port that somebody else has")?;
    tally.add(Deed::ListenFailed);
    Ok(())
}

/// A range so small that every connection takes over a TIME_WAIT, or fails because none is old
/// enough (`tcp_tw_reuse_delay`; a second where the kernel has no such setting).
pub struct SmallRange {
    family: Family,
    listener: Option<Listener>,
}

impl SmallRange {
    pub fn new(family: Family) -> Self {
        Self { family, listener: None }
    }
}

impl Scene for SmallRange {
    fn begin(&mut self, place: &Place<'_>) -> Result<()> {
        self.listener = Some(self.family.listener(place.tally)?);
        place.sandbox.set("ipv4/ip_local_port_range", "20000 20063")?;
        place.sandbox.set("ipv4/tcp_tw_reuse", "1")?;
        // Since 6.14.
        let _ = place.sandbox.set("ipv4/tcp_tw_reuse_delay", "100");
        Ok(())
    }

    fn step(&mut self, place: &Place<'_>) -> Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        match Pair::connect(listener, Binding::None, place.tally) {
            Ok(pair) => pair.close(Close::ClientFirst),
            Err(error) => match error.downcast_ref::<io::Error>() {
                Some(cause) if cause.kind() == io::ErrorKind::AddrNotAvailable => {
                    place.tally.add(Deed::ConnectFailed);
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}

/// Connections that last: a number of them is always open, and the oldest makes room for the next.
pub struct Long {
    family: Family,
    open: usize,
    listener: Option<Listener>,
    pairs: VecDeque<Pair>,
    rng: Rng,
}

impl Long {
    pub fn new(family: Family, open: usize, seed: u64) -> Self {
        Self { family, open, listener: None, pairs: VecDeque::new(), rng: Rng::new(seed) }
    }
}

impl Scene for Long {
    fn begin(&mut self, place: &Place<'_>) -> Result<()> {
        // listen() without bind() chooses the port.
        let socket = self.family.socket()?;
        socket.listen(4096).context("listen() without bind()")?;
        place.tally.add(Deed::Bound);
        place.tally.add(Deed::Listened);
        let at = self.family.at(address_of(&socket)?.port());
        self.listener = Some(Listener { socket, at });
        Ok(())
    }

    fn step(&mut self, place: &Place<'_>) -> Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        self.pairs.push_back(Pair::connect(listener, Binding::None, place.tally)?);
        if self.pairs.len() <= self.open {
            return Ok(());
        }
        let close = *self.rng.pick(&[Close::ClientFirst, Close::ServerFirst]);
        self.pairs.pop_front().map_or(Ok(()), |oldest| oldest.close(close))
    }
}

/// Namespaces that come and go, each with a few connections, TIME_WAITs among them at its end.
pub struct Namespaces;

impl Scene for Namespaces {
    fn begin(&mut self, _place: &Place<'_>) -> Result<()> {
        Ok(())
    }

    fn step(&mut self, place: &Place<'_>) -> Result<()> {
        let _sandbox = place.new_namespace()?;
        for family in [Family::Ipv4, Family::Ipv6] {
            let listener = family.listener(place.tally)?;
            for close in [Close::ClientFirst, Close::ServerFirst, Close::Reset] {
                Pair::connect(&listener, Binding::None, place.tally)?.close(close)?;
            }
        }
        Ok(())
    }
}
