//! Makes connections in a network namespace of its own, checks that the hooks report each of them,
//! and measures what the hooks cost here.

use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::mpsc::{channel, sync_channel},
    thread,
};

use aya::sys::{Stats, enable_stats};

use crate::{
    kernel::{
        hooks::{
            attached::ProgramCost,
            error::LoadError,
            loader::{self, LoadOptions},
            probes::Probes,
        },
        namespace::{sandbox::Sandbox, scope::Scope},
        wire::decode_with,
    },
    ledger::{Ledger, Sink},
    model::{Change, Failure, Instant, LeaseEvent, Pressure},
};

/// Number of connections that are made.
pub const CONNECTIONS: u32 = 200;

/// The loaded programs, and the result of the test.
pub(crate) struct Tested {
    /// The programs, attached.
    pub(crate) probes: Probes,
    /// The records of the connections, or why none could be made.
    pub(crate) records: io::Result<RecordCounts>,
    /// Mean run time of each program. Empty if the kernel keeps no statistics.
    pub(crate) costs: Vec<ProgramCost>,
}

/// Number of records of each kind. [`CONNECTIONS`] of each are expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the records'")]
pub struct RecordCounts {
    pub connect: u32,
    pub established: u32,
    pub accept: u32,
    /// TIME_WAITs of the clients, which close first.
    pub time_wait: u32,
    /// A bind() to the listener's port for each connection.
    pub fail: u32,
}

impl RecordCounts {
    /// The kinds of which records are missing, with the number that arrived.
    pub fn missing(self) -> impl Iterator<Item = (&'static str, u32)> {
        let Self { connect, established, accept, time_wait, fail } = self;
        [
            ("connect", connect),
            ("established", established),
            ("accept", accept),
            ("time_wait", time_wait),
            ("fail", fail),
        ]
        .into_iter()
        .filter(|(_, count)| *count != CONNECTIONS)
    }
}

/// Loads the programs and runs the test. Must be called within a tokio runtime.
///
/// # Errors
/// If nothing can be traced here.
pub(crate) fn run(options: &LoadOptions) -> Result<Tested, LoadError> {
    let (entered, enters) = sync_channel(1);
    let (go, goes) = channel();
    // The namespace ends with the thread, and the TIME_WAITs in it.
    let traffic = thread::spawn(move || {
        let sandbox = Sandbox::enter_new();
        let netns = sandbox.as_ref().map(Sandbox::netns).map_err(io::Error::kind);
        let is_ready = entered.send(netns).is_ok() && goes.recv().is_ok();
        match sandbox {
            Ok(_sandbox) if is_ready => connect_and_close(),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    });
    let netns = enters.recv().ok().and_then(Result::ok);
    let scope = netns.map_or(Scope::default(), |netns| Scope::of(&[netns]));
    let mut probes = loader::load(&LoadOptions { scope, ..options.clone() })?;
    let statistics = enable_stats(Stats::RunTime);
    let _ = go.send(());
    let outcome = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let costs = statistics.map_or_else(|_| Vec::new(), |_enabled| probes.hooks.costs());
    let records = outcome.and_then(|()| count(&mut probes));
    Ok(Tested { probes, records, costs })
}

fn connect_and_close() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    for _ in 0..CONNECTIONS {
        let client = TcpStream::connect(address)?;
        let (mut server, _) = listener.accept()?;
        drop(client);
        let _ = server.read(&mut [0])?;
        if TcpListener::bind(address).is_ok() {
            return Err(io::Error::other("two sockets listen on one port"));
        }
    }
    Ok(())
}

fn count(probes: &mut Probes) -> io::Result<RecordCounts> {
    let mut ledger = Ledger::new(probes.visibility());
    let mut records = RecordCounts::default();
    let mut foreign = None;
    probes.ring.drain_all(|record| {
        let decoded = decode_with(record, |observation| ledger.apply(observation, &mut records));
        foreign = foreign.or(decoded.err());
    })?;
    // No further observations will arrive, so everything that is pending is decided now.
    ledger.settle(Instant::from_ns(u64::MAX), &mut records);
    foreign.map_or(Ok(records), |error| Err(io::Error::other(error)))
}

impl Sink for RecordCounts {
    fn lease(&mut self, event: LeaseEvent<'_>, _ledger: &Ledger) {
        match event.change {
            Change::Connect { .. } => self.connect += 1,
            Change::Established { .. } => self.established += 1,
            Change::Accept { .. } => self.accept += 1,
            // A change of its substate may or may not be seen.
            Change::TimeWait(_) if event.lease.time_wait == Some(event.at) => self.time_wait += 1,
            _ => {}
        }
    }

    fn failure(&mut self, _failure: &Failure<'_>, _ledger: &Ledger) {
        self.fail += 1;
    }

    fn pressure(&mut self, _pressure: &Pressure, _ledger: &Ledger) {}
}
