//! A process that takes part: it does what it is told on stdin, one order a line, and says on
//! stdout what came of it. Processes rather than threads, so that the report can name them.

use std::{
    fs,
    io::{self, Write as _},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// The argument that makes a process an actor; its name follows.
pub const ROLE: &str = "actor";

/// What to do. Sockets are kept until they are to be closed.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// connect(), until one fails.
    Connect {
        /// Where to.
        to: SocketAddr,
        /// How often.
        times: u32,
    },
    /// bind() to any port, then connect().
    BindThenConnect {
        /// The address.
        from: Ipv4Addr,
        /// Where to.
        to: SocketAddr,
    },
    /// bind() to a port, as servers do with `SO_REUSEADDR`.
    Bind {
        /// The address and port.
        at: SocketAddr,
        /// Also listen().
        listen: bool,
    },
    /// accept().
    Accept {
        /// How often.
        times: u32,
    },
    /// Close what it has connected.
    Close,
    /// Close what it has accepted.
    CloseAccepted,
    /// Close what it has accepted, each when the peer has closed it.
    CloseAfterPeer,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// How often it succeeded.
    pub done: u32,
    /// Why it then failed.
    pub error: Option<String>,
}

impl Reply {
    /// In a word or a sentence.
    pub fn outcome(&self) -> &str {
        self.error.as_deref().unwrap_or("it works")
    }
}

/// Is an actor until stdin ends.
pub fn act() -> Result<()> {
    let name = std::env::args().nth(2).context("an actor has a name")?;
    fs::write("/proc/self/comm", name)?;
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let mut actor = Actor::default();
    for line in io::stdin().lines() {
        let order = serde_json::from_str(&line?)?;
        let mut done = 0;
        let error = actor.obey(&order, &mut done).err().map(|error| error.to_string());
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, &Reply { done, error })?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct Actor {
    connected: Vec<Socket>,
    bound: Vec<Socket>,
    accepted: Vec<Socket>,
}

impl Actor {
    fn obey(&mut self, order: &Order, done: &mut u32) -> io::Result<()> {
        match order {
            Order::Connect { to, times } => {
                for _ in 0..*times {
                    let socket = socket()?;
                    socket.connect(&(*to).into())?;
                    self.connected.push(socket);
                    *done += 1;
                }
            }
            Order::BindThenConnect { from, to } => {
                let socket = socket()?;
                socket.bind(&SocketAddr::from((*from, 0)).into())?;
                socket.connect(&(*to).into())?;
                self.connected.push(socket);
                *done += 1;
            }
            Order::Bind { at, listen } => {
                let socket = socket()?;
                socket.set_reuse_address(true)?;
                socket.bind(&(*at).into())?;
                if *listen {
                    socket.listen(4096)?;
                }
                self.bound.push(socket);
                *done += 1;
            }
            Order::Accept { times } => {
                let listener = self.bound.first().ok_or(io::ErrorKind::NotConnected)?;
                for _ in 0..*times {
                    self.accepted.push(listener.accept()?.0);
                    *done += 1;
                }
            }
            Order::Close => self.connected.clear(),
            Order::CloseAccepted => self.accepted.clear(),
            Order::CloseAfterPeer => {
                for socket in self.accepted.drain(..) {
                    let mut buffer = [MaybeUninit::uninit(); 64];
                    while socket.recv(&mut buffer)? > 0 {}
                    *done += 1;
                }
            }
        }
        Ok(())
    }
}

fn socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
}
