//! The ledger against a model of the kernel: random lives of sockets yield observations in the order
//! in which the kernel's hooks would report them, and the ledger must hold what the model holds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tracer_ebpf::{Owner, TcpState, mapped};

use crate::{
    ledger::{Differences, Ledger, Sink},
    model::{
        Addr, Change, Cookie, Coverage, Failure, Family, Held, HeldBy, Instant, LeaseEvent,
        LeaseId, Netns, Observation, Peer, Phase, Port, Pressure, Reason, Side, Sight, Substate,
        Unknown,
        observation::{
            Accepted, Arming, BindFailed, BindRequest, Bound, Cancel, Closed, Closing,
            ConnectStart, Destroyed, Endpoints, Established, ListenStart, Listening, LocalEnd,
            Open, PortChosen, SocketId, TimeWaitCancel, TimeWaitExpire, TimeWaitId, TimeWaitStart,
            Userlocks,
        },
        port,
    },
};

const LOCAL: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
const NETNS: u32 = 4_026_531_840;
const SIGHT: Sight = Sight {
    ports_chosen: true,
    accepts: true,
    marks_connect: true,
    bound_idle: true,
    since: Instant::BOOT,
};
static OWNER: Owner = Owner { pid: 1, uid: 0, cgroup_id: 0, comm: [0; 16] };
/// Between two operations: enough for a killed TIME_WAIT to be settled.
const STEP_NS: u64 = 50_000_000;

/// What the kernel holds, and what was observed of it so far.
#[derive(Default)]
struct Kernel {
    now: u64,
    next_cookie: u64,
    next_port: u16,
    sockets: BTreeMap<u64, Socket>,
    time_waits: BTreeSet<TimeWait>,
    observations: Vec<Observation<'static>>,
}

#[derive(Clone, Copy, Debug)]
struct Socket {
    port: u16,
    /// bind() was told this port.
    locked: bool,
    state: TcpState,
    peer: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TimeWait {
    cookie: u64,
    port: u16,
    peer: u16,
}

impl TimeWait {
    fn id(self) -> TimeWaitId {
        let Self { cookie, port, peer } = self;
        let endpoints = endpoints(port, peer);
        TimeWaitId { cookie: Some(Cookie(cookie)), netns: Netns(NETNS), endpoints }
    }
}

/// How a socket went to CLOSE.
#[derive(Clone, Copy, Debug)]
struct End {
    from: TcpState,
    error: Option<i32>,
    is_shut_down: bool,
}

fn socket_id(cookie: u64) -> SocketId {
    SocketId { cookie: Cookie(cookie), netns: Netns(NETNS) }
}

/// The ends of a socket; 0 for no port and no peer.
fn endpoints(local_port: u16, peer_port: u16) -> Endpoints {
    let addr = Addr(mapped(LOCAL));
    let local = LocalEnd { family: Family::Ipv4, v6_only: false, addr, port: port(local_port) };
    Endpoints { local, peer: Peer::new(addr, peer_port) }
}

impl Kernel {
    fn new() -> Self {
        Self { now: 1, next_cookie: 1, next_port: 10_000, ..Self::default() }
    }

    /// Adds what is observed at the next moment.
    fn observe(&mut self, observation: impl FnOnce(Instant) -> Observation<'static>) {
        self.now += 1;
        self.observations.push(observation(Instant::from_ns(self.now)));
    }

    /// `SOCK_BINDPORT_LOCK` of a socket whose bind() was told its port.
    fn userlocks(&self, cookie: u64) -> Userlocks {
        let is_locked = self.sockets.get(&cookie).is_some_and(|socket| socket.locked);
        Userlocks::from_kernel(if is_locked { 8 } else { 0 })
    }

    fn connect_start(&mut self, cookie: u64, port: u16, peer: u16) {
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::ConnectStart(ConnectStart {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                own_range: None,
                userlocks,
                owner: &OWNER,
            })
        });
    }

    fn established(&mut self, cookie: u64, port: u16, peer: u16, open: Open) {
        self.observe(|at| {
            Observation::Established(Established {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                incarnation: None,
                open,
            })
        });
    }

    fn closing(&mut self, cookie: u64, by: Side) {
        let Socket { port, peer, .. } = self.sockets[&cookie];
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::Closing(Closing {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                by,
                userlocks,
            })
        });
    }

    fn closed(&mut self, cookie: u64, port: u16, peer: u16, end: End) {
        let End { from, error, is_shut_down } = end;
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::Closed(Closed {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                from: Some(from),
                error,
                is_shut_down,
                is_orphan: false,
                no_time_wait: None,
                userlocks,
            })
        });
    }

    fn bound(&mut self, cookie: u64, port: u16, request: BindRequest) {
        self.observe(|at| {
            Observation::Bound(Bound {
                at,
                socket: socket_id(cookie),
                local: endpoints(port, 0).local,
                request,
                incarnation: None,
                owner: &OWNER,
            })
        });
    }

    fn time_wait_start(&mut self, tw: TimeWait) {
        self.observe(|at| {
            Observation::TimeWaitStart(TimeWaitStart {
                at,
                time_wait: tw.id(),
                substate: Substate::TimeWait,
                arming: Arming::FirstOrAgain,
                has_timestamps: true,
            })
        });
    }

    fn time_wait_cancel(&mut self, tw: TimeWait, cancel: Cancel) {
        self.observe(|at| {
            Observation::TimeWaitCancel(TimeWaitCancel { at, time_wait: tw.id(), cancel })
        });
    }

    fn cookie(&mut self) -> u64 {
        self.next_cookie += 1;
        self.next_cookie
    }

    fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    fn pick(&self, choice: usize, state: TcpState) -> Option<u64> {
        let candidates: Vec<_> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.state == state)
            .map(|(cookie, _)| *cookie)
            .collect();
        candidates.get(choice % candidates.len().max(1)).copied()
    }

    fn pick_time_wait(&self, choice: usize) -> Option<TimeWait> {
        self.time_waits.iter().nth(choice % self.time_waits.len().max(1)).copied()
    }

    fn bind(&mut self, locked: bool) {
        let (cookie, port) = (self.cookie(), self.port());
        let request = if locked { BindRequest::ThisPort } else { BindRequest::AnyPort };
        self.bound(cookie, port, request);
        self.sockets.insert(cookie, Socket { port, locked, state: TcpState::Close, peer: 0 });
    }

    fn connect(&mut self, cookie: u64, port: u16, peer: u16, reused: Option<TimeWait>) {
        let bound = self.sockets.get(&cookie).map_or(0, |socket| socket.port);
        self.connect_start(cookie, bound, peer);
        if let Some(old) = reused {
            self.time_wait_cancel(old, Cancel::BeforeDue);
            self.time_waits.remove(&old);
        }
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::PortChosen(PortChosen {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                incarnation: None,
                userlocks,
            })
        });
        let locked = self.sockets.get(&cookie).is_some_and(|socket| socket.locked);
        self.sockets.insert(cookie, Socket { port, locked, state: TcpState::SynSent, peer });
    }

    fn establish(&mut self, cookie: u64) {
        let socket = self.sockets[&cookie];
        self.established(cookie, socket.port, socket.peer, Open::Active);
        self.set_state(cookie, TcpState::Established);
    }

    fn accept(&mut self, listener: u64) {
        let (cookie, port, peer) = (self.cookie(), self.sockets[&listener].port, self.port());
        self.established(cookie, port, peer, Open::Passive);
        self.sockets
            .insert(cookie, Socket { port, locked: false, state: TcpState::Established, peer });
        self.observe(|at| {
            Observation::Accepted(Accepted {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                owner: &OWNER,
            })
        });
    }

    /// The socket goes to CLOSE, and lets go of a port that it is not locked to.
    fn close_state(&mut self, cookie: u64, end: End) {
        let socket = self.sockets[&cookie];
        let left = if socket.locked { socket.port } else { 0 };
        self.closed(cookie, left, socket.peer, end);
        if socket.locked {
            self.set_state(cookie, TcpState::Close);
        } else {
            self.sockets.remove(&cookie);
        }
    }

    fn destroy(&mut self, cookie: u64) {
        if self.sockets.remove(&cookie).is_some() {
            self.observe(|at| Observation::Destroyed(Destroyed { at, socket: socket_id(cookie) }));
        }
    }

    fn close_first(&mut self, cookie: u64, keeps_socket: bool) {
        let Socket { port, peer, .. } = self.sockets[&cookie];
        self.closing(cookie, Side::Local);
        let time_wait = TimeWait { cookie, port, peer };
        self.time_wait_start(time_wait);
        self.time_waits.insert(time_wait);
        let end = End { from: TcpState::FinWait2, error: None, is_shut_down: true };
        self.close_state(cookie, end);
        if !keeps_socket {
            self.destroy(cookie);
        }
    }

    fn set_state(&mut self, cookie: u64, state: TcpState) {
        if let Some(socket) = self.sockets.get_mut(&cookie) {
            socket.state = state;
        }
    }

    /// One random step of somebody's life.
    fn step(&mut self, operation: u8, choice: usize) {
        self.now += STEP_NS;
        let peer = 80;
        match operation {
            0 => self.bind(false),
            1 => self.bind(true),
            2 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.connect(cookie, port, peer, None);
                self.establish(cookie);
            }
            3 => {
                // A bound socket connects, unless its own TIME_WAIT to there is in the way.
                let Some(cookie) = self.pick(choice, TcpState::Close) else { return };
                let port = self.sockets[&cookie].port;
                let peer = self.port();
                self.connect(cookie, port, peer, None);
                self.establish(cookie);
            }
            4 => {
                let cookie = self.cookie();
                self.connect_start(cookie, 0, peer);
                let end = End { from: TcpState::SynSent, error: None, is_shut_down: false };
                self.closed(cookie, 0, peer, end);
            }
            5 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.connect(cookie, port, peer, None);
                let error = Some(libc::ECONNREFUSED);
                let end = End { from: TcpState::SynSent, error, is_shut_down: false };
                self.close_state(cookie, end);
            }
            6 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.observe(|at| {
                    Observation::ListenStart(ListenStart {
                        at,
                        socket: socket_id(cookie),
                        local: endpoints(0, 0).local,
                        userlocks: Userlocks::default(),
                        owner: &OWNER,
                    })
                });
                self.observe(|at| {
                    Observation::Listening(Listening {
                        at,
                        socket: socket_id(cookie),
                        local: endpoints(port, 0).local,
                        incarnation: None,
                    })
                });
                let state = TcpState::Listen;
                self.sockets.insert(cookie, Socket { port, locked: false, state, peer: 0 });
            }
            7 => {
                if let Some(listener) = self.pick(choice, TcpState::Listen) {
                    self.accept(listener);
                }
            }
            8 | 9 => {
                if let Some(cookie) = self.pick(choice, TcpState::Established) {
                    self.close_first(cookie, operation == 9);
                }
            }
            10 => {
                let Some(cookie) = self.pick(choice, TcpState::Established) else { return };
                let error = Some(libc::ECONNRESET);
                let end = End { from: TcpState::Established, error, is_shut_down: false };
                self.close_state(cookie, end);
                self.destroy(cookie);
            }
            11 => {
                let Some(cookie) = self.pick(choice, TcpState::Established) else { return };
                self.closing(cookie, Side::Peer);
                let end = End { from: TcpState::LastAck, error: None, is_shut_down: true };
                self.close_state(cookie, end);
                self.destroy(cookie);
            }
            12 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.time_wait_cancel(old, Cancel::WhenDue);
                self.observe(|at| {
                    Observation::TimeWaitExpire(TimeWaitExpire { at, time_wait: old.id() })
                });
                self.time_waits.remove(&old);
            }
            13 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.time_wait_cancel(old, Cancel::BeforeDue);
                self.time_waits.remove(&old);
            }
            14 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.time_wait_cancel(old, Cancel::BeforeDue);
                self.time_wait_start(old);
            }
            15 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                let cookie = self.cookie();
                self.connect(cookie, old.port, old.peer, Some(old));
                self.establish(cookie);
            }
            _ => {
                for state in [TcpState::Close, TcpState::Listen] {
                    if let Some(cookie) = self.pick(choice, state) {
                        self.destroy(cookie);
                    }
                }
            }
        }
    }

    /// Every hold: a socket and its TIME_WAIT on the same connection are one.
    fn holds(&self) -> BTreeSet<(u64, u16)> {
        let sockets = self.sockets.iter().map(|(cookie, socket)| (*cookie, socket.port));
        sockets.chain(self.time_waits.iter().map(|tw| (tw.cookie, tw.port))).collect()
    }

    fn snapshot(&self) -> Vec<Held> {
        let held = |cookie, port, peer, by| Held {
            cookie: Cookie(cookie),
            netns: Netns(NETNS),
            family: Family::Ipv4,
            v6_only: false,
            local_addr: Addr(mapped(LOCAL)),
            local_port: Port(port),
            peer: (peer != 0).then_some((Addr(mapped(LOCAL)), Port(peer))),
            by,
            has_timestamps: None,
            userlocks: Some(self.userlocks(cookie)),
            owner: None,
        };
        let sockets = self.sockets.iter().map(|(cookie, socket)| {
            held(*cookie, socket.port, socket.peer, HeldBy::Socket(socket.state))
        });
        let time_waits = self
            .time_waits
            .iter()
            .map(|tw| held(tw.cookie, tw.port, tw.peer, HeldBy::TimeWait(Substate::TimeWait)));
        sockets.chain(time_waits).collect()
    }
}

/// Checks that every lease's events tell one life: it is born, and ends at most once.
#[derive(Default)]
struct Lives {
    ended: BTreeSet<LeaseId>,
    failures: usize,
    reasons: Vec<Reason>,
}

impl Sink for Lives {
    fn lease(&mut self, event: LeaseEvent<'_>, _ledger: &Ledger) {
        let id = event.lease.id;
        assert!(!self.ended.contains(&id), "{event:?} after the end");
        if let Change::Release { reason } = event.change {
            self.ended.insert(id);
            self.reasons.push(reason);
        }
    }

    fn failure(&mut self, _failure: &Failure<'_>, _ledger: &Ledger) {
        self.failures += 1;
    }

    fn pressure(&mut self, _pressure: &Pressure, _ledger: &Ledger) {}
}

fn apply(ledger: &mut Ledger, observations: &[Observation<'_>], sink: &mut impl Sink) {
    for observation in observations {
        ledger.settle(observation.at(), sink);
        ledger.apply(observation, sink);
    }
}

fn holds(ledger: &Ledger) -> BTreeSet<(u64, u16)> {
    ledger.leases().map(|lease| (lease.cookie.0, lease.local_port.0)).collect()
}

fn steps() -> impl Strategy<Value = Vec<(u8, usize)>> {
    prop::collection::vec((0_u8..17, any::<usize>()), 0..120)
}

proptest! {
    #[test]
    fn the_ledger_holds_what_the_kernel_holds(steps in steps()) {
        let mut kernel = Kernel::new();
        let mut ledger = Ledger::new(SIGHT);
        let mut lives = Lives::default();
        let mut failures = 0;
        for (operation, choice) in steps {
            let seen = kernel.observations.len();
            kernel.step(operation, choice);
            failures += usize::from(operation == 4);
            apply(&mut ledger, &kernel.observations[seen..], &mut lives);
            ledger.settle(Instant::from_ns(kernel.now + STEP_NS), &mut lives);
            prop_assert_eq!(holds(&ledger), kernel.holds());
            for lease in ledger.leases() {
                let mut on_port = ledger.leases_on(lease.netns, lease.local_port);
                prop_assert!(on_port.any(|other| other.id == lease.id));
            }
        }
        prop_assert_eq!(lives.failures, failures);
        ledger.settle(Instant::from_ns(u64::MAX), &mut lives);
        prop_assert!(!ledger.is_unsettled());
    }

    /// The tracer starts in mid-life: it observes some of what happens while its hooks are being
    /// attached, and everything from `began` on; then comes a snapshot of some later moment, and
    /// more observations before the two are merged.
    #[test]
    fn a_snapshot_and_the_observations_around_it_agree(
        steps in steps(),
        cuts in prop::array::uniform3(any::<prop::sample::Index>()),
        is_attached in prop::collection::vec(any::<bool>(), 600),
    ) {
        let mut moments = cuts.map(|cut| cut.index(steps.len() + 1));
        moments.sort_unstable();
        let [began, looked, merged] = moments;
        let mut kernel = Kernel::new();
        let mut ledger = Ledger::new(SIGHT);
        let mut lives = Lives::default();
        let mut snapshot = Vec::new();
        for at in 0..=steps.len() {
            if at == began {
                ledger = Ledger::new(Sight { since: Instant::from_ns(kernel.now + 1), ..SIGHT });
                ledger.begin_snapshot();
                let attached = kernel.observations.iter().zip(is_attached.iter().cycle());
                let early: Vec<_> =
                    attached.filter_map(|(observation, is_attached)| is_attached.then_some(*observation)).collect();
                apply(&mut ledger, &early, &mut lives);
            }
            if at == looked {
                snapshot = kernel.snapshot();
            }
            if at == merged {
                ledger.adopt_all(&snapshot);
                ledger.end_snapshot();
            }
            let Some((operation, choice)) = steps.get(at) else { break };
            let seen = kernel.observations.len();
            kernel.step(*operation, *choice);
            if at >= began {
                apply(&mut ledger, &kernel.observations[seen..], &mut lives);
            }
        }
        ledger.settle(Instant::from_ns(kernel.now + STEP_NS), &mut lives);
        prop_assert_eq!(holds(&ledger), kernel.holds());
    }
}

proptest! {
    /// Whatever observations are lost, a comparison finds the difference and heals it.
    #[test]
    fn losses_are_found_and_healed(
        steps in steps(),
        lost in prop::collection::vec(prop::bool::weighted(0.2), 600),
    ) {
        let mut kernel = Kernel::new();
        for (operation, choice) in &steps {
            kernel.step(*operation, *choice);
        }
        let kept: Vec<_> = kernel
            .observations
            .iter()
            .zip(&lost)
            .filter_map(|(observation, lost)| (!lost).then_some(*observation))
            .collect();
        let mut ledger = Ledger::new(SIGHT);
        let mut lives = Lives::default();
        apply(&mut ledger, &kept, &mut lives);
        let now = Instant::from_ns(kernel.now + 10 * STEP_NS);
        ledger.settle(Instant::from_ns(u64::MAX), &mut lives);
        let whole = whole();
        for _ in 0..2 {
            ledger.begin_snapshot();
            let differences = ledger.compare(&kernel.snapshot(), &whole, Unknown::Believed);
            ledger.end_snapshot();
            ledger.heal(&differences, now, &mut lives);
        }
        prop_assert_eq!(holds(&ledger), kernel.holds());
        ledger.begin_snapshot();
        let differences = ledger.compare(&kernel.snapshot(), &whole, Unknown::Believed);
        let left: Vec<_> = differences.descriptions().collect();
        prop_assert!(left.is_empty(), "{:?}", left);
    }

    /// Without loss no difference is confirmed, however snapshots and observations interleave.
    #[test]
    fn comparisons_in_mid_life_confirm_nothing(
        steps in steps(),
        cuts in prop::array::uniform6(any::<prop::sample::Index>()),
    ) {
        let mut moments = cuts.map(|cut| cut.index(steps.len() + 1));
        moments.sort_unstable();
        let [began, looked, compared, again, looked_again, confirmed] = moments;
        let mut kernel = Kernel::new();
        let mut ledger = Ledger::new(SIGHT);
        let mut lives = Lives::default();
        let mut snapshot = Vec::new();
        let mut first = Differences::default();
        let whole = whole();
        for at in 0..=steps.len() {
            if at == began {
                ledger.begin_snapshot();
            }
            if at == looked {
                snapshot = kernel.snapshot();
            }
            if at == compared {
                first = ledger.compare(&snapshot, &whole, Unknown::Believed);
            }
            if at == again {
                ledger.begin_snapshot();
            }
            if at == looked_again {
                snapshot = kernel.snapshot();
            }
            if at == confirmed {
                let mut second = ledger.compare(&snapshot, &whole, Unknown::Believed);
                second.retain_confirmed(&first);
                let found: Vec<_> = second.descriptions().collect();
                prop_assert!(found.is_empty(), "{:?}", found);
            }
            let Some((operation, choice)) = steps.get(at) else { break };
            let seen = kernel.observations.len();
            kernel.step(*operation, *choice);
            apply(&mut ledger, &kernel.observations[seen..], &mut lives);
            ledger.settle(Instant::from_ns(kernel.now + STEP_NS), &mut lives);
        }
    }
}

/// A snapshot of every namespace.
fn whole() -> Coverage {
    Coverage { listed: BTreeSet::from([Netns(NETNS)]), ..Coverage::default() }
}

#[test]
fn a_namespace_that_no_snapshot_reaches_is_believed_until_observations_are_lost() {
    let mut kernel = Kernel::new();
    kernel.step(2, 0);
    kernel.step(8, 0);
    let mut ledger = Ledger::new(SIGHT);
    apply(&mut ledger, &kernel.observations, &mut Lives::default());
    assert_eq!(kernel.time_waits.len(), 1);
    ledger.begin_snapshot();
    let none = Coverage::default();
    assert!(ledger.compare(&[], &none, Unknown::Believed).is_empty());
    assert_eq!(ledger.compare(&[], &none, Unknown::Gone).extra(), 1);
    let partly = Coverage { unlisted: BTreeSet::from([Netns(NETNS)]), ..none };
    assert!(ledger.compare(&[], &partly, Unknown::Gone).is_empty());
    assert_eq!(ledger.compare(&[], &whole(), Unknown::Believed).extra(), 1);
}

#[test]
fn a_lease_whose_time_wait_was_missed_goes_on() {
    let mut kernel = Kernel::new();
    kernel.step(2, 0);
    let (mut ledger, mut lives) = (Ledger::new(SIGHT), Lives::default());
    apply(&mut ledger, &kernel.observations, &mut lives);
    let before = ledger.leases().next().expect("it connected").clone();
    // Nobody tells of this.
    kernel.step(8, 0);
    ledger.begin_snapshot();
    let differences = ledger.compare(&kernel.snapshot(), &whole(), Unknown::Believed);
    assert_eq!((differences.missing(), differences.extra()), (1, 1));
    ledger.heal(&differences, Instant::from_ns(kernel.now), &mut lives);
    ledger.end_snapshot();
    let after = ledger.leases().next().expect("it waits");
    assert_eq!((ledger.len(), after.id, lives.reasons.len()), (1, before.id, 0));
    assert!(matches!(after.phase, Phase::TimeWait(_)) && after.owner == before.owner);
    ledger.begin_snapshot();
    assert!(ledger.compare(&kernel.snapshot(), &whole(), Unknown::Believed).is_empty());
}

#[test]
fn duplicate_observations_change_nothing() {
    let mut kernel = Kernel::new();
    for operation in [6, 7, 2, 8, 12] {
        kernel.step(operation, 0);
    }
    let twice: Vec<_> =
        kernel.observations.iter().flat_map(|observation| [*observation; 2]).collect();
    let mut ledger = Ledger::new(SIGHT);
    let mut lives = Lives::default();
    apply(&mut ledger, &twice, &mut lives);
    assert_eq!(holds(&ledger), kernel.holds());
    let mut once = Lives::default();
    apply(&mut Ledger::new(SIGHT), &kernel.observations, &mut once);
    assert_eq!(lives.reasons, once.reasons);
}

/// Another program at the hook of bind() may refuse what ours has told already.
#[test]
fn a_bind_that_is_refused_after_all_holds_nothing() {
    let mut kernel = Kernel::new();
    kernel.bound(1, 20_000, BindRequest::ThisPort);
    kernel.observe(|at| {
        Observation::BindFailed(BindFailed {
            at,
            socket: socket_id(1),
            requested: endpoints(20_000, 0).local,
            errno: libc::EPERM,
            holds_port: false,
            owner: &OWNER,
        })
    });
    let (mut ledger, mut lives) = (Ledger::new(SIGHT), Lives::default());
    apply(&mut ledger, &kernel.observations, &mut lives);
    assert!(ledger.is_empty());
    assert_eq!((lives.failures, lives.reasons), (1, vec![Reason::Closed]));
}

#[test]
fn a_snapshot_without_open_files_says_nothing_of_what_only_they_show() {
    let mut kernel = Kernel::new();
    kernel.bound(1, 20_000, BindRequest::ThisPort);
    let mut ledger = Ledger::new(SIGHT);
    apply(&mut ledger, &kernel.observations, &mut Lives::default());
    ledger.begin_snapshot();
    let partly = Coverage { lacks_files: true, ..whole() };
    assert!(ledger.compare(&[], &partly, Unknown::Believed).is_empty());
    let nowhere = Coverage { lacks_files: true, ..Coverage::default() };
    assert!(ledger.compare(&[], &nowhere, Unknown::Gone).is_empty());
}

/// Before 5.11 no snapshot shows a socket that is bound but idle.
#[test]
fn what_a_snapshot_cannot_show_is_not_held_against_the_ledger() {
    let mut kernel = Kernel::new();
    kernel.bound(1, 20_000, BindRequest::ThisPort);
    let extra = [true, false].map(|bound_idle| {
        let mut ledger = Ledger::new(Sight { bound_idle, ..SIGHT });
        apply(&mut ledger, &kernel.observations, &mut Lives::default());
        assert_eq!(ledger.len(), 1);
        ledger.begin_snapshot();
        ledger.compare(&[], &Coverage::default(), Unknown::Gone).extra()
    });
    assert_eq!(extra, [1, 0]);
}
