//! A process that takes part in an incident. It reads requests from stdin, one JSON object a line,
//! and answers each on stdout. Incidents use processes rather than threads so that the report can
//! name them.

use std::{
    fs,
    io::{self, Write as _},
    mem::MaybeUninit,
    net::{Ipv4Addr, Shutdown, SocketAddr},
};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// The first argument of a process that takes part in an incident; the second is its name.
pub const SUBCOMMAND: &str = "process";

/// What a process is asked to do. It keeps the sockets until it is asked to close them.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Calls connect() until a call fails.
    Connect {
        /// The destination.
        to: SocketAddr,
        /// Number of connections.
        times: u32,
    },
    /// Calls bind() with port 0, then connect().
    BindThenConnect {
        /// The address to bind.
        from: Ipv4Addr,
        /// The destination.
        to: SocketAddr,
    },
    /// Calls bind() with a port and, as servers do, `SO_REUSEADDR`.
    Bind {
        /// The address and port to bind.
        at: SocketAddr,
        /// True to call listen() as well.
        listen: bool,
    },
    /// Calls accept() on the first bound socket.
    Accept {
        /// Number of connections.
        times: u32,
    },
    /// Shuts every connection down for writing, which sends a FIN, and keeps the sockets. When the
    /// peer's FIN follows they become TIME_WAITs directly; a socket that is closed before is first
    /// replaced by a minisocket in FIN_WAIT2.
    ShutDown,
    /// Closes the connections made by connect().
    Close,
    /// Closes the accepted connections.
    CloseAccepted,
    /// Closes each accepted connection once its peer has closed it.
    CloseAfterPeer,
}

/// The answer to a [`Request`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    /// Number of calls or sockets that succeeded.
    pub done: u32,
    /// The error that ended the request; `None` if all of it succeeded.
    pub error: Option<String>,
}

impl Response {
    /// The error, or "success".
    pub fn outcome(&self) -> &str {
        self.error.as_deref().unwrap_or("success")
    }
}

/// Serves requests until stdin ends.
pub fn serve() -> Result<()> {
    let name = std::env::args().nth(2).context("the process needs a name")?;
    fs::write("/proc/self/comm", name)?;
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let mut sockets = Sockets::default();
    for line in io::stdin().lines() {
        let request = serde_json::from_str(&line?)?;
        let mut done = 0;
        let error = sockets.handle(&request, &mut done).err().map(|error| error.to_string());
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, &Response { done, error })?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
    }
    Ok(())
}

/// The sockets that the process keeps open.
#[derive(Default)]
struct Sockets {
    connected: Vec<Socket>,
    bound: Vec<Socket>,
    accepted: Vec<Socket>,
}

impl Sockets {
    /// Handles a request, and counts in `done` what succeeded before an error.
    fn handle(&mut self, request: &Request, done: &mut u32) -> io::Result<()> {
        match request {
            Request::Connect { to, times } => {
                for _ in 0..*times {
                    let socket = socket()?;
                    socket.connect(&(*to).into())?;
                    self.connected.push(socket);
                    *done += 1;
                }
            }
            Request::BindThenConnect { from, to } => {
                let socket = socket()?;
                socket.bind(&SocketAddr::from((*from, 0)).into())?;
                socket.connect(&(*to).into())?;
                self.connected.push(socket);
                *done += 1;
            }
            Request::Bind { at, listen } => {
                let socket = socket()?;
                socket.set_reuse_address(true)?;
                socket.bind(&(*at).into())?;
                if *listen {
                    socket.listen(4096)?;
                }
                self.bound.push(socket);
                *done += 1;
            }
            Request::Accept { times } => {
                let listener = self.bound.first().ok_or(io::ErrorKind::NotConnected)?;
                for _ in 0..*times {
                    self.accepted.push(listener.accept()?.0);
                    *done += 1;
                }
            }
            Request::ShutDown => {
                for socket in self.connected.iter().chain(&self.accepted) {
                    socket.shutdown(Shutdown::Write)?;
                    *done += 1;
                }
            }
            Request::Close => self.connected.clear(),
            Request::CloseAccepted => self.accepted.clear(),
            Request::CloseAfterPeer => {
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
