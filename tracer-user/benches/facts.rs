//! What a fact costs the agent on one core, from the ring's bytes to JSON, and what a lease costs
//! in memory, with few and with many live leases. Instructions, which a busy machine does not
//! change, are 0 where they cannot be counted.
//!
//! Each size runs in a process of its own, so that memory is that of its leases alone. The load is
//! that of connections of a host to itself, the worst for portlife: both ends are seen, and the
//! client's holds its port for as long in TIME_WAIT as there are leases to be held.

use std::{
    env, fs,
    io::{self, Write as _},
    net::Ipv4Addr,
    process::Command,
    sync::Arc,
    time::Instant as Clock,
};

use anyhow::{Context as _, Result, bail};
use perf_event::{Builder, events::Hardware};
use tracer_ebpf::{
    Fact, FactKind, IPPROTO_TCP, Owner, TcpState, closed::SHUTDOWN_BOTH,
    time_wait_cancel::TIMER_DUE,
};
use tracer_user::{
    kernel::wire::decode_with,
    ledger::{Ledger, Sink},
    model::{
        Addr, Failure, Instant, LeaseEvent, LocalRange, Netns, Port, PortSet, Pressure, Settings,
        TimeWaitReuse, Visibility,
    },
    record::{Body, Cgroup, Record},
    views::{Verbosity, View as _, stream::json::Json},
};
use zerocopy::IntoBytes as _;

/// Live leases.
const SIZES: [u64; 3] = [10_000, 1_000_000, 4_000_000];
/// Connections that are timed at once, and how often that is done.
const ROUND: u64 = 20_000;
const ROUNDS: usize = 25;
/// The agent hands its output over when it has emptied the ring: here, after so many facts.
const DRAINED: usize = 4096;

const NAMESPACES: u64 = 100;
const FIRST_NETNS: u32 = 4_026_531_840;
const FIRST_PORT: u16 = 5000;
const PORTS: u16 = 60_000;
/// Of each namespace.
const DESTINATIONS: u64 = 1000;
const SERVER_PORT: u16 = 443;
/// Between two connections.
const PACE_NS: u64 = 15_000;

fn main() -> Result<()> {
    if let Some(size) = env::args().skip(1).find_map(|argument| argument.parse().ok()) {
        return run(size);
    }
    // A test run of all targets runs this one, too, and means something shorter.
    if !env::args().any(|argument| argument == "--bench") {
        println!("the benchmark is run by cargo bench");
        return Ok(());
    }
    println!(
        "live leases   facts/s   ns/fact  of the least  instructions/fact  of the ledger  \
         instructions/record  bytes/lease"
    );
    let mut least = None;
    for size in SIZES {
        let output = Command::new(env::current_exe()?).arg(size.to_string()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let figures: Vec<f64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [ns_per_fact, per_fact, ledgers, per_record, bytes_per_lease] = *figures else {
            io::stderr().write_all(&output.stderr)?;
            bail!("no figures with {size} leases: {}", output.status);
        };
        let ratio = ns_per_fact / *least.get_or_insert(ns_per_fact);
        let facts_per_s = 1e9 / ns_per_fact;
        println!(
            "{size:11} {facts_per_s:9.0} {ns_per_fact:9.0} {ratio:13.2} {per_fact:18.0} \
             {ledgers:14.0} {per_record:20.0} {bytes_per_lease:12.0}"
        );
    }
    Ok(())
}

/// Measures with so many live leases, and writes the figures to stdout.
#[expect(clippy::cast_precision_loss, reason = "the numbers are far below 2^52")]
fn run(size: u64) -> Result<()> {
    let mut host = Host { live: size, ..Host::default() };
    let mut records = Records {
        output: Json::new(1_700_000_000_000_000_000, Verbosity::Quiet),
        cgroup: Cgroup {
            path: "/system.slice/docker-4b5f1f0e3b1c4e6f8a2d.scope".into(),
            container: Some("4b5f1f0e3b1c4e6f8a2d".into()),
        },
        written: 0,
    };
    let mut ledger = Ledger::new(Visibility {
        ports_chosen: true,
        accepts: true,
        marks_connect: true,
        bound_idle: true,
        since: Instant::BOOT,
    });
    host.serve(&mut ledger);
    host.take_in(&mut ledger, &mut records)?;
    // What needs memory but is no lease has it by now.
    host.connect(ROUND.min(size));
    let before = (resident_bytes()?, ledger.lease_count());
    host.take_in(&mut ledger, &mut Silence)?;
    while host.connections < size {
        host.connect(ROUND.min(size - host.connections));
        host.take_in(&mut ledger, &mut Silence)?;
    }
    let leases = ledger.lease_count();
    let bytes_per_lease = (resident_bytes()? - before.0) as f64 / (leases - before.1) as f64;

    let (mut silent, mut told) = (Cost::default(), Cost::default());
    records.written = 0;
    for _ in 0..ROUNDS {
        host.connect(ROUND);
        silent.of(host.ends.len(), || host.take_in(&mut ledger, &mut Silence))?;
        host.connect(ROUND);
        told.of(host.ends.len(), || host.take_in(&mut ledger, &mut records))?;
    }
    if ledger.lease_count() != leases {
        bail!("{leases} leases have become {}", ledger.lease_count());
    }
    let (ledgers, per_fact) = (silent.instructions_per_fact(), told.instructions_per_fact());
    let per_record = (per_fact - ledgers) * told.facts as f64 / records.written as f64;
    println!("{} {per_fact} {ledgers} {per_record} {bytes_per_lease}", told.ns_per_fact());
    Ok(())
}

/// What rounds of facts have taken.
#[derive(Default)]
struct Cost {
    facts: usize,
    instructions: u64,
    /// Nanoseconds for each fact of a round.
    rounds: Vec<f64>,
}

#[expect(clippy::cast_precision_loss, reason = "the numbers are far below 2^52")]
impl Cost {
    fn of(&mut self, facts: usize, round: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut counter = Builder::new(Hardware::INSTRUCTIONS).build().ok();
        if let Some(counter) = &mut counter {
            counter.enable()?;
        }
        let began = Clock::now();
        round()?;
        self.rounds.push(began.elapsed().as_secs_f64() * 1e9 / facts as f64);
        if let Some(counter) = &mut counter {
            counter.disable()?;
            self.instructions += counter.read()?;
        }
        self.facts += facts;
        Ok(())
    }

    /// Of the median round: others had less of the machine.
    fn ns_per_fact(&mut self) -> f64 {
        self.rounds.sort_by(f64::total_cmp);
        self.rounds[self.rounds.len() / 2]
    }

    fn instructions_per_fact(&self) -> f64 {
        self.instructions as f64 / self.facts as f64
    }
}

fn resident_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.context("no VmRSS")?.parse::<u64>()? * 1024)
}

/// Shows every record, as the agent does without a filter.
struct Records {
    output: Json,
    cgroup: Cgroup,
    written: u64,
}

impl Sink for Records {
    fn lease(&mut self, event: LeaseEvent<'_>, ledger: &Ledger) {
        self.written += 1;
        let body = Body::Lease { event, cgroup: Some(&self.cgroup) };
        self.output.record(&Record { at: event.at, body }, ledger);
    }

    fn failure(&mut self, failure: &Failure<'_>, ledger: &Ledger) {
        let cgroup = Some(&self.cgroup);
        let body = Body::Fail { failure, cgroup, holder_cgroup: cgroup };
        self.output.record(&Record { at: failure.at, body }, ledger);
    }

    fn pressure(&mut self, pressure: &Pressure, ledger: &Ledger) {
        let body = Body::Pressure(pressure);
        self.output.record(&Record { at: pressure.at, body }, ledger);
    }
}

/// What is done between two waits for facts.
trait Drained: Sink {
    fn drained(&mut self);
}

/// Takes nothing: for what the ledger costs by itself.
struct Silence;

impl Sink for Silence {
    fn lease(&mut self, _event: LeaseEvent<'_>, _ledger: &Ledger) {}
    fn failure(&mut self, _failure: &Failure<'_>, _ledger: &Ledger) {}
    fn pressure(&mut self, _pressure: &Pressure, _ledger: &Ledger) {}
}

impl Drained for Silence {
    fn drained(&mut self) {}
}

impl Drained for Records {
    fn drained(&mut self) {
        self.output.buffer().clear();
    }
}

/// What happens on the host, as records of the ring.
#[derive(Default)]
struct Host {
    /// Connections whose client's TIME_WAIT lasts.
    live: u64,
    /// Number of connections so far.
    connections: u64,
    now_ns: u64,
    ring: Vec<u8>,
    /// Where on it each record ends.
    ends: Vec<usize>,
}

/// One end of a connection.
#[derive(Clone, Copy)]
struct End {
    cookie: u64,
    netns: u32,
    local: (Addr, u16),
    peer: (Addr, u16),
    owner: Owner,
}

/// Client and server of the connection with this number. No two that live at once are between the
/// same addresses and ports.
fn ends(number: u64) -> (End, End) {
    let (netns, rest) = (number % NAMESPACES, number / NAMESPACES);
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The kernel's choice jumps about as well; 7919 has no divisor in common with the range.
    let port = rest.wrapping_mul(7919) % u64::from(PORTS);
    let [.., high, low] = ((mixed >> 32) % DESTINATIONS).to_be_bytes();
    let [client, server] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 1, high, low)];
    let port = FIRST_PORT + u16::try_from(port).unwrap_or_default();
    let netns = u32::try_from(netns).unwrap_or_default();
    let (client, server) = ((client.into(), port), (server.into(), SERVER_PORT));
    let netns_inode = FIRST_NETNS + netns;
    let owner = |pid, comm| Owner { pid: pid + 2 * netns, uid: 1000, cgroup_id: 7, comm };
    (
        End {
            cookie: 2 * number + 1000,
            netns: netns_inode,
            local: client,
            peer: server,
            owner: owner(20_000, *b"client\0\0\0\0\0\0\0\0\0\0"),
        },
        End {
            cookie: 2 * number + 1001,
            netns: netns_inode,
            local: server,
            peer: client,
            owner: owner(20_001, *b"server\0\0\0\0\0\0\0\0\0\0"),
        },
    )
}

impl Host {
    /// Listens in every namespace.
    fn serve(&mut self, ledger: &mut Ledger) {
        let (low, high) = (Port(FIRST_PORT), Port(FIRST_PORT + PORTS - 1));
        let settings = Arc::new(Settings {
            range: LocalRange::new(low, high).expect("it is a range"),
            reserved: PortSet::default(),
            step_width: None,
            autobind_reuse: false,
            unprivileged_start: 1024,
            time_wait_reuse: TimeWaitReuse::Loopback,
            time_wait_reuse_delay_ms: Some(1000),
            timestamps: true,
            max_time_waits: u32::MAX,
            fin_timeout_s: 60,
            max_listen_backlog: 4096,
        });
        for number in 0..NAMESPACES {
            let (_, server) = ends(number);
            ledger.set_settings(Netns(server.netns), Arc::clone(&settings));
            let any = (Ipv4Addr::UNSPECIFIED.into(), 0);
            let (addr, port) = (any.0, SERVER_PORT);
            let listener = End { cookie: number + 1, local: (addr, port), peer: any, ..server };
            self.emit(FactKind::Bound, listener, 0);
            self.emit(FactKind::ListenStart, listener, 0);
            self.emit(FactKind::Listening, listener, 0);
        }
    }

    /// So many connections, from connect() to TIME_WAIT, and the ends of as many TIME_WAITs of
    /// older ones, once there are enough.
    fn connect(&mut self, connections: u64) {
        for number in self.connections..self.connections + connections {
            self.now_ns += PACE_NS;
            let (client, server) = ends(number);
            let unbound = End { local: (client.local.0, 0), ..client };
            let let_go = End { local: (server.local.0, 0), ..server };
            self.emit(FactKind::ConnectStart, unbound, 0);
            self.emit(FactKind::PortChosen, client, 0);
            self.emit(FactKind::Established, client, TcpState::SynSent as u8);
            self.emit(FactKind::Established, server, TcpState::SynRecv as u8);
            self.emit(FactKind::Accepted, server, 0);
            self.emit(FactKind::Closing, client, TcpState::FinWait1 as u8);
            self.emit(FactKind::Closing, server, TcpState::CloseWait as u8);
            self.emit(FactKind::TimeWaitStart, client, TcpState::TimeWait as u8);
            self.emit(FactKind::Closed, unbound, TcpState::FinWait2 as u8 | SHUTDOWN_BOTH);
            self.emit(FactKind::Closed, let_go, TcpState::LastAck as u8 | SHUTDOWN_BOTH);
            if let Some(old) = number.checked_sub(self.live) {
                let (old, _) = ends(old);
                self.emit(FactKind::TimeWaitCancel, old, TIMER_DUE);
                self.emit(FactKind::TimeWaitExpire, old, 0);
            }
        }
        self.connections += connections;
    }

    /// Writes a fact, with the state and flags of its kind.
    fn emit(&mut self, kind: FactKind, end: End, event: u8) {
        self.now_ns += 1000;
        let End { cookie, netns, local, peer, owner } = end;
        let fact = Fact {
            time_ns: self.now_ns,
            cookie,
            local_addr: local.0.0,
            peer_addr: peer.0.0,
            netns,
            local_port: local.1,
            peer_port: peer.1,
            kind: kind as u8,
            protocol: IPPROTO_TCP,
            event,
            ..Fact::ZERO
        };
        self.ring.extend(fact.as_bytes());
        if kind.has_owner() {
            self.ring.extend(owner.as_bytes());
        }
        self.ends.push(self.ring.len());
    }

    /// Does with the ring what the agent does.
    #[inline(never)]
    fn take_in(&mut self, ledger: &mut Ledger, sink: &mut impl Drained) -> Result<()> {
        let mut began = 0;
        for drained in self.ends.chunks(DRAINED) {
            let mut now = Instant::BOOT;
            for end in drained {
                decode_with(&self.ring[began..*end], |observation| {
                    ledger.apply(observation, sink);
                    now = observation.at();
                })?;
                began = *end;
            }
            ledger.settle(now, sink);
            sink.drained();
        }
        self.ring.clear();
        self.ends.clear();
        Ok(())
    }
}
