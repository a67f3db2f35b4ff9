//! Compares predicted headroom with the running kernel: in namespaces in random states, exactly as
//! many connect() and bind() calls must succeed as predicted.
//!
//! `PORTLIFE_HEADROOM_CASES` sets the number of namespaces and `PORTLIFE_HEADROOM_SEED` the first seed.
//! A failing case prints its seed.

mod random;
mod state;
#[path = "../scenarios/support.rs"]
#[expect(dead_code, reason = "the scenarios use the rest of it")]
mod support;
mod traced;

use std::{
    env, io,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use serde_json::Value;
use socket2::Socket;
use tracer_user::{
    capacity::{
        BindAny, Connect, Headroom, KernelRules, KernelTime, NamespaceState, ReuseRule,
        SocketRangeRule,
    },
    kernel::{
        host::clock,
        lists::holders::{HolderLists, HolderView},
        namespace::{
            sandbox::{Sandbox, set_local_port_range},
            settings::SettingsFiles,
        },
    },
    model::{Family, HolderBy, Port, Settings},
};

use random::Random;
use state::State;

const USUAL_CASES: u64 = 60;

#[test]
fn exactly_as_many_calls_succeed_as_predicted() {
    let Some(lists) = lists() else { return };
    let (first, cases) = seeds(USUAL_CASES);
    let next = AtomicU64::new(0);
    let total = Mutex::new(Totals::default());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= cases {
                        return;
                    }
                    let seed = first.wrapping_add(index);
                    let lists = &lists;
                    // A thread cannot leave its namespace, so each case has a thread of its own.
                    let case = scope.spawn(move || Case::new(lists, seed).run());
                    let Ok(totals) = case.join() else { panic!("the case of seed {seed} failed") };
                    total.lock().expect("the thread does not panic").add(&totals);
                }
            });
        }
    });
    let Totals { checks, calls, ambiguous, locked, reusing, commands } =
        total.into_inner().expect("the thread does not panic");
    println!(
        "{cases} namespaces, {checks} predictions, {calls} calls; bound buckets mattered {locked} \
         times, reusable TIME_WAITs {reusing} times; {ambiguous} predictions left one port to chance; \
         {commands} were the same in `portlife why`"
    );
}

/// The first seed, and the number of seeds.
fn seeds(usual_cases: u64) -> (u64, u64) {
    let number = |name: &str, usual: u64| {
        env::var(name).ok().map_or(usual, |text| text.parse().expect("a number"))
    };
    let cases = number("PORTLIFE_HEADROOM_CASES", usual_cases);
    let first = number("PORTLIFE_HEADROOM_SEED", clock::monotonic_ns());
    println!("seeds {first} to {}", first.wrapping_add(cases - 1));
    (first, cases)
}

fn lists() -> Option<HolderLists> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: comparing headroom with the kernel needs root");
        return None;
    }
    match HolderLists::load() {
        Ok(lists) if lists.lists_idle() => Some(lists),
        Ok(_) => {
            println!("skipped: this kernel does not list sockets that are bound but idle");
            None
        }
        Err(error) => {
            println!("skipped: cannot list the holders of ports: {:#}", anyhow::Error::from(error));
            None
        }
    }
}

#[derive(Default)]
struct Totals {
    checks: u64,
    calls: u64,
    ambiguous: u64,
    /// Number of predictions in which bound buckets, or the reuse of TIME_WAITs, made a difference.
    locked: u64,
    reusing: u64,
    /// Number of predictions that were compared with the command's.
    commands: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        let Self { checks, calls, ambiguous, locked, reusing, commands } = other;
        self.commands += commands;
        self.checks += checks;
        self.calls += calls;
        self.ambiguous += ambiguous;
        self.locked += locked;
        self.reusing += reusing;
    }
}

struct Case<'a> {
    lists: &'a HolderLists,
    seed: u64,
    random: Random,
    settings: SettingsFiles,
    sandbox: Sandbox,
    totals: Totals,
}

impl<'a> Case<'a> {
    fn new(lists: &'a HolderLists, seed: u64) -> Self {
        let sandbox = Sandbox::enter_new().expect("root can make a namespace");
        let settings = SettingsFiles::open().expect("the settings can be opened");
        Self {
            lists,
            seed,
            random: Random::new(seed),
            settings,
            sandbox,
            totals: Totals::default(),
        }
    }

    fn run(mut self) -> Totals {
        let state = State::make(&mut self.random, &self.sandbox, true);
        // Each question changes the state for the later ones.
        let mut kept = Vec::new();
        for _ in 0..4 {
            if self.random.chance(3, 5) {
                self.ask_connect(&state, &mut kept);
            } else {
                self.ask_bind(&state, &mut kept);
            }
        }
        self.totals
    }

    /// Settings and holders, read when no TIME_WAIT is about to become reusable.
    fn read_state(&self) -> (Settings, HolderView) {
        state::wait_until_settled(self.sandbox.netns());
        loop {
            let settings = self.settings.read().expect("the namespace is there");
            let view = self.lists.of_this_thread().expect("the holders can be listed");
            if is_stable(&settings, self.lists.rules(), &view) {
                return (settings, view);
            }
            thread::yield_now();
        }
    }

    fn ask_connect(&mut self, state: &State, kept: &mut Vec<Socket>) {
        let (client, destination) = state.ends(&mut self.random);
        let own_range = self.own_range(state);
        let (settings, view) = self.read_state();
        let moment = self.moment(&settings, &view);
        let query = Connect {
            source: client.source.into(),
            destination: (destination.ip().into(), Port(destination.port())),
            device: client.device,
            own_range,
        };
        let predicted = moment.connect(&query);
        if own_range.is_none() && self.random.chance(1, 4) {
            self.compare_with_command(&query, predicted.headroom);
        }
        // The bounds differ by the port that a search of an odd number of ports skips.
        assert!(predicted.headroom.max <= predicted.range.headroom());
        self.totals.locked += u64::from(predicted.range.bind_locked > 0);
        self.totals.reusing += u64::from(predicted.range.reusable > 0);
        let mut succeeded = 0;
        let limit = predicted.headroom.max + 3;
        while succeeded <= limit {
            let socket = client.socket();
            if let Some(range) = own_range {
                set_local_port_range(&socket, range.low().0, range.high().0)
                    .expect("the setting can be written");
            }
            client.bind_without_port(&socket);
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            match socket.connect(&client.form(destination).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => break,
                // It has a port, whether or not the connection succeeds.
                Ok(()) => succeeded += 1,
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => succeeded += 1,
                Err(error) => panic!("seed {}: {error}", self.seed),
            }
            kept.push(socket);
        }
        let headroom = predicted.headroom;
        self.count(u64::from(succeeded), headroom.min != headroom.max);
        assert!(
            (headroom.min..=headroom.max).contains(&succeeded),
            "seed {}: {succeeded} connect()s succeeded, predicted {predicted:?}\n{query:?}\n{settings:?}\n{:#?}",
            self.seed,
            view.holders
        );
    }

    /// `portlife why ADDR:PORT` must show the same headroom.
    fn compare_with_command(&mut self, query: &Connect, headroom: Headroom) {
        let Connect { source, destination: (addr, port), device, own_range: _ } = *query;
        let output = Command::new(env!("CARGO_BIN_EXE_portlife"))
            .args(["why", &SocketAddr::new(addr.ip(), port.0).to_string(), "-o", "json"])
            .args(["-n", &self.sandbox.netns().0.to_string()])
            .output()
            .expect("portlife runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON");
        let sources = answer["namespaces"][0]["sources"].as_array().expect("a list");
        let shown = sources.iter().find(|shown| {
            shown["source_addr"] == source.to_string()
                && shown["interface"].as_u64().unwrap_or(0) == u64::from(device)
        });
        // It is listed if it is used already, or if the routing table chooses it.
        let Some(shown) = shown else { return };
        assert_eq!(
            (shown["headroom"].as_u64(), shown["headroom_max"].as_u64()),
            (Some(headroom.min.into()), Some(headroom.max.into())),
            "seed {}: {query:?}\n{answer:#}",
            self.seed
        );
        self.totals.commands += 1;
    }

    fn ask_bind(&mut self, state: &State, kept: &mut Vec<Socket>) {
        let bind = state::Bind::random(&mut self.random, true);
        let own_range = self.own_range(state);
        let (settings, view) = self.read_state();
        let moment = self.moment(&settings, &view);
        let query = BindAny {
            addr: bind.addr.into(),
            family: if bind.is_v6() { Family::Ipv6 } else { Family::Ipv4 },
            v6_only: bind.v6_only,
            device: bind.device,
            reuse_addr: bind.reuse_addr,
            own_range,
        };
        let predicted = moment.bind_any(&query);
        let mut succeeded = 0;
        // Three more than predicted; where there is no limit, three more than a limit could be.
        let limit = predicted.headroom.max.min(2 * predicted.capacity) + 3;
        while succeeded < limit {
            let socket = bind.socket();
            if let Some(range) = own_range {
                set_local_port_range(&socket, range.low().0, range.high().0)
                    .expect("the setting can be written");
            }
            match socket.bind(&SocketAddr::new(bind.addr, 0).into()) {
                Ok(()) => succeeded += 1,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => break,
                Err(error) => panic!("seed {}: {error}", self.seed),
            }
            kept.push(socket);
        }
        let headroom = predicted.headroom;
        self.count(u64::from(succeeded), headroom.min != headroom.max);
        let is_right = (headroom.min.min(limit)..=headroom.max).contains(&succeeded);
        assert!(
            is_right,
            "seed {}: {succeeded} bind()s succeeded, predicted {predicted:?}\n{query:?}\n{settings:?}\n{:#?}",
            self.seed, view.holders
        );
    }

    /// Sometimes a range for IP_LOCAL_PORT_RANGE, whose bounds may lie outside the namespace's
    /// range.
    fn own_range(&mut self, state: &State) -> Option<tracer_user::model::LocalRange> {
        let has_option = self.lists.rules().socket_range != SocketRangeRule::Absent;
        if !has_option || !self.random.chance(1, 4) {
            return None;
        }
        let at = |random: &mut Random| Port(state.low - 3 + random.below(state.size + 6));
        let (one, other) = (at(&mut self.random), at(&mut self.random));
        tracer_user::model::LocalRange::new(one.min(other), one.max(other))
    }

    fn moment<'m>(&self, settings: &'m Settings, view: &'m HolderView) -> NamespaceState<'m> {
        NamespaceState { settings, rules: self.lists.rules(), holders: &view.holders, now: view.at }
    }

    fn count(&mut self, calls: u64, is_ambiguous: bool) {
        self.totals.checks += 1;
        self.totals.calls += calls;
        self.totals.ambiguous += u64::from(is_ambiguous);
    }
}

/// True if connect() could reuse exactly the same TIME_WAITs a minute from now.
fn is_stable(settings: &Settings, rules: KernelRules, view: &HolderView) -> bool {
    view.holders.iter().all(|holder| match holder.by {
        HolderBy::TimeWait { entry_stamp_ms, ts_recent_stamp_s, .. } => match rules.reuse {
            ReuseRule::Delay => {
                let delay = settings.time_wait_reuse_delay_ms.unwrap_or(1000);
                delay == state::NEVER_MS
                    || entry_stamp_ms.is_none_or(|began| view.at.ms.wrapping_sub(began) > delay)
            }
            ReuseRule::NextSecond | ReuseRule::NextSecondNotFinWait2 => {
                // The kernel counts these seconds in ticks, which are late on an emulated machine.
                const LATEST_TICK_MS: u32 = 200;
                view.at.ms.saturating_sub(LATEST_TICK_MS) / 1000 > ts_recent_stamp_s
            }
        },
        _ => true,
    })
}

#[test]
fn a_time_wait_becomes_reusable_when_its_delay_is_over() {
    let Some(lists) = lists() else { return };
    if lists.rules().reuse != ReuseRule::Delay {
        println!("skipped: this kernel counts the delay in whole seconds");
        return;
    }
    let sandbox = Sandbox::enter_new().expect("root can make a namespace");
    sandbox.set("ipv4/ip_local_port_range", "50000 50000").expect("the setting can be written");
    sandbox.set("ipv4/tcp_tw_reuse_delay", "300").expect("the setting can be written");
    let settings = SettingsFiles::open().and_then(|files| files.read()).expect("settings");
    let destination = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_001));
    let listener = state::listener(destination);
    let client = state::socket(false);
    client.connect(&destination.into()).expect("there is one port");
    let (server, _) = listener.accept().expect("accept() succeeds");
    drop(client);
    state::read_to_end(&server);
    drop(server);
    state::wait_until_settled(sandbox.netns());
    let view = lists.of_this_thread().expect("the holders can be listed");
    let query = Connect {
        source: Ipv4Addr::LOCALHOST.into(),
        destination: (Ipv4Addr::LOCALHOST.into(), Port(10_001)),
        device: 0,
        own_range: None,
    };
    let at = |ms: u32| {
        let now = KernelTime { ms, s: ms / 1000 };
        NamespaceState { settings: &settings, rules: lists.rules(), holders: &view.holders, now }
            .connect(&query)
            .headroom
            .max
    };
    let stamps: Vec<u32> = view
        .holders
        .iter()
        .filter_map(|holder| match holder.by {
            HolderBy::TimeWait { entry_stamp_ms, .. } => entry_stamp_ms,
            _ => None,
        })
        .collect();
    let [began] = stamps[..] else { panic!("one TIME_WAIT, not {:?}", view.holders) };
    assert_eq!((at(began.wrapping_add(300)), at(began.wrapping_add(301))), (0, 1));
    // The kernel agrees, as precisely as a test can measure.
    loop {
        let before = KernelTime::from_ns(clock::monotonic_ns()).ms;
        let outcome = state::socket(false).connect(&destination.into());
        let after = KernelTime::from_ns(clock::monotonic_ns()).ms;
        match outcome {
            Err(_) => assert_eq!(at(before), 0, "{} ms old", before.wrapping_sub(began)),
            Ok(()) => {
                assert_eq!(at(after), 1, "{} ms old", after.wrapping_sub(began));
                return;
            }
        }
    }
}
