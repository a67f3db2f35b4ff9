//! The ledger against a model of the kernel: random lives of sockets yield facts in the order in
//! which the kernel's hooks would report them, and the ledger must hold what the model holds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tracer_ebpf::{Fact, FactKind, Owner, TcpState, flags, mapped};

use crate::{
    ledger::{Differences, Ledger, Sink},
    model::{
        Addr, Change, Cookie, Coverage, Failure, Family, Held, HeldBy, Instant, LeaseEvent,
        LeaseId, Netns, Phase, Port, Pressure, Reason, Sight, Substate, Unknown,
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
/// Between two operations: enough for a killed TIME_WAIT to be settled.
const STEP_NS: u64 = 50_000_000;

/// What the kernel holds, and the facts that it has reported so far.
#[derive(Default)]
struct Kernel {
    now: u64,
    next_cookie: u64,
    next_port: u16,
    sockets: BTreeMap<u64, Socket>,
    time_waits: BTreeSet<TimeWait>,
    facts: Vec<Fact>,
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

impl Kernel {
    fn new() -> Self {
        Self { now: 1, next_cookie: 1, next_port: 10_000, ..Self::default() }
    }

    fn fact(&mut self, kind: FactKind, cookie: u64, port: u16, peer: u16) -> &mut Fact {
        self.now += 1;
        let userlocks = self.userlocks(cookie);
        self.facts.push(Fact {
            time_ns: self.now,
            cookie,
            local_addr: mapped(LOCAL),
            peer_addr: mapped(LOCAL),
            netns: NETNS,
            local_port: port,
            peer_port: peer,
            detail: 0,
            kind: kind as u8,
            flags: 0,
            state: 0,
            userlocks,
        });
        self.facts.last_mut().expect("it was just pushed")
    }

    /// `SOCK_BINDPORT_LOCK` of a socket whose bind() was told its port.
    fn userlocks(&self, cookie: u64) -> u8 {
        if self.sockets.get(&cookie).is_some_and(|socket| socket.locked) { 8 } else { 0 }
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
        self.fact(FactKind::Bound, cookie, port, 0).flags =
            if locked { 0 } else { flags::ANY_PORT };
        self.sockets.insert(cookie, Socket { port, locked, state: TcpState::Close, peer: 0 });
    }

    fn connect(&mut self, cookie: u64, port: u16, peer: u16, reused: Option<TimeWait>) {
        let bound = self.sockets.get(&cookie).map_or(0, |socket| socket.port);
        self.fact(FactKind::ConnectStart, cookie, bound, peer);
        if let Some(old) = reused {
            self.fact(FactKind::TimeWaitCancel, old.cookie, old.port, old.peer);
            self.time_waits.remove(&old);
        }
        self.fact(FactKind::PortChosen, cookie, port, peer);
        let locked = self.sockets.get(&cookie).is_some_and(|socket| socket.locked);
        self.sockets.insert(cookie, Socket { port, locked, state: TcpState::SynSent, peer });
    }

    fn establish(&mut self, cookie: u64) {
        let socket = self.sockets[&cookie];
        self.fact(FactKind::Established, cookie, socket.port, socket.peer).state =
            TcpState::SynSent as u8;
        self.set_state(cookie, TcpState::Established);
    }

    fn accept(&mut self, listener: u64) {
        let (cookie, port, peer) = (self.cookie(), self.sockets[&listener].port, self.port());
        self.fact(FactKind::Established, cookie, port, peer).state = TcpState::SynRecv as u8;
        self.sockets
            .insert(cookie, Socket { port, locked: false, state: TcpState::Established, peer });
        self.fact(FactKind::Accepted, cookie, port, peer);
    }

    /// The socket goes to CLOSE, and lets go of a port that it is not locked to.
    fn close_state(&mut self, cookie: u64, old: TcpState, err: i32, flags: u8) {
        let socket = self.sockets[&cookie];
        let left = if socket.locked { socket.port } else { 0 };
        let fact = self.fact(FactKind::Closed, cookie, left, socket.peer);
        fact.state = old as u8;
        fact.detail = err;
        fact.flags = flags;
        if socket.locked {
            self.set_state(cookie, TcpState::Close);
        } else {
            self.sockets.remove(&cookie);
        }
    }

    fn destroy(&mut self, cookie: u64) {
        if let Some(socket) = self.sockets.remove(&cookie) {
            self.fact(FactKind::Destroyed, cookie, socket.port, socket.peer);
        }
    }

    fn close_first(&mut self, cookie: u64, keeps_socket: bool) {
        let Socket { port, peer, .. } = self.sockets[&cookie];
        self.fact(FactKind::Closing, cookie, port, peer).state = TcpState::FinWait1 as u8;
        self.fact(FactKind::TimeWaitStart, cookie, port, peer).state = TcpState::TimeWait as u8;
        self.time_waits.insert(TimeWait { cookie, port, peer });
        self.close_state(cookie, TcpState::FinWait2, 0, flags::SHUTDOWN_BOTH);
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
                self.fact(FactKind::ConnectStart, cookie, 0, peer);
                self.fact(FactKind::Closed, cookie, 0, peer).state = TcpState::SynSent as u8;
            }
            5 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.connect(cookie, port, peer, None);
                self.close_state(cookie, TcpState::SynSent, libc::ECONNREFUSED, 0);
            }
            6 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.fact(FactKind::ListenStart, cookie, 0, 0);
                self.fact(FactKind::Listening, cookie, port, 0);
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
                self.close_state(cookie, TcpState::Established, libc::ECONNRESET, 0);
                self.destroy(cookie);
            }
            11 => {
                let Some(cookie) = self.pick(choice, TcpState::Established) else { return };
                let Socket { port, peer, .. } = self.sockets[&cookie];
                self.fact(FactKind::Closing, cookie, port, peer).state = TcpState::CloseWait as u8;
                self.close_state(cookie, TcpState::LastAck, 0, flags::SHUTDOWN_BOTH);
                self.destroy(cookie);
            }
            12 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.fact(FactKind::TimeWaitCancel, old.cookie, old.port, old.peer).flags =
                    flags::TIMER_DUE;
                self.fact(FactKind::TimeWaitExpire, old.cookie, old.port, old.peer);
                self.time_waits.remove(&old);
            }
            13 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.fact(FactKind::TimeWaitCancel, old.cookie, old.port, old.peer);
                self.time_waits.remove(&old);
            }
            14 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.fact(FactKind::TimeWaitCancel, old.cookie, old.port, old.peer);
                self.fact(FactKind::TimeWaitStart, old.cookie, old.port, old.peer).state =
                    TcpState::TimeWait as u8;
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

fn apply(ledger: &mut Ledger, facts: &[Fact], sink: &mut impl Sink) {
    for fact in facts {
        let kind = FactKind::from_u8(fact.kind).expect("the model knows its kinds");
        let owner = Owner { pid: 1, ..Owner::default() };
        ledger.settle(Instant::from_ns(fact.time_ns), sink);
        ledger.apply(kind, fact, Some(&owner), sink);
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
            let seen = kernel.facts.len();
            kernel.step(operation, choice);
            failures += usize::from(operation == 4);
            apply(&mut ledger, &kernel.facts[seen..], &mut lives);
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

    /// The tracer starts in mid-life: some of the facts while its hooks are being attached, all
    /// from `began` on, a snapshot of some later moment, and more facts before the two are merged.
    #[test]
    fn a_snapshot_and_the_facts_around_it_agree(
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
                let attached = kernel.facts.iter().zip(is_attached.iter().cycle());
                let early: Vec<_> =
                    attached.filter_map(|(fact, is_attached)| is_attached.then_some(*fact)).collect();
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
            let seen = kernel.facts.len();
            kernel.step(*operation, *choice);
            if at >= began {
                apply(&mut ledger, &kernel.facts[seen..], &mut lives);
            }
        }
        ledger.settle(Instant::from_ns(kernel.now + STEP_NS), &mut lives);
        prop_assert_eq!(holds(&ledger), kernel.holds());
    }
}

proptest! {
    /// Whatever facts are lost, a comparison finds the difference and heals it.
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
            .facts
            .iter()
            .zip(&lost)
            .filter_map(|(fact, lost)| (!lost).then_some(*fact))
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

    /// Without loss no difference is confirmed, however snapshots and facts interleave.
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
            let seen = kernel.facts.len();
            kernel.step(*operation, *choice);
            apply(&mut ledger, &kernel.facts[seen..], &mut lives);
            ledger.settle(Instant::from_ns(kernel.now + STEP_NS), &mut lives);
        }
    }
}

/// A snapshot of every namespace.
fn whole() -> Coverage {
    Coverage { listed: BTreeSet::from([Netns(NETNS)]), ..Coverage::default() }
}

#[test]
fn a_namespace_that_no_snapshot_reaches_is_believed_until_facts_are_lost() {
    let mut kernel = Kernel::new();
    kernel.step(2, 0);
    kernel.step(8, 0);
    let mut ledger = Ledger::new(SIGHT);
    apply(&mut ledger, &kernel.facts, &mut Lives::default());
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
    apply(&mut ledger, &kernel.facts, &mut lives);
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
fn duplicate_facts_change_nothing() {
    let mut kernel = Kernel::new();
    for operation in [6, 7, 2, 8, 12] {
        kernel.step(operation, 0);
    }
    let twice: Vec<_> = kernel.facts.iter().flat_map(|fact| [*fact, *fact]).collect();
    let mut ledger = Ledger::new(SIGHT);
    let mut lives = Lives::default();
    apply(&mut ledger, &twice, &mut lives);
    assert_eq!(holds(&ledger), kernel.holds());
    let mut once = Lives::default();
    apply(&mut Ledger::new(SIGHT), &kernel.facts, &mut once);
    assert_eq!(lives.reasons, once.reasons);
}

/// Another program at the hook of bind() may refuse what ours has told already.
#[test]
fn a_bind_that_is_refused_after_all_holds_nothing() {
    let mut kernel = Kernel::new();
    kernel.fact(FactKind::Bound, 1, 20_000, 0);
    let failed = kernel.fact(FactKind::BindFailed, 1, 20_000, 0);
    failed.detail = libc::EPERM;
    failed.flags = flags::NO_PORT;
    let (mut ledger, mut lives) = (Ledger::new(SIGHT), Lives::default());
    apply(&mut ledger, &kernel.facts, &mut lives);
    assert!(ledger.is_empty());
    assert_eq!((lives.failures, lives.reasons), (1, vec![Reason::Closed]));
}

#[test]
fn a_snapshot_without_open_files_says_nothing_of_what_only_they_show() {
    let mut kernel = Kernel::new();
    kernel.fact(FactKind::Bound, 1, 20_000, 0);
    let mut ledger = Ledger::new(SIGHT);
    apply(&mut ledger, &kernel.facts, &mut Lives::default());
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
    kernel.fact(FactKind::Bound, 1, 20_000, 0);
    let extra = [true, false].map(|bound_idle| {
        let mut ledger = Ledger::new(Sight { bound_idle, ..SIGHT });
        apply(&mut ledger, &kernel.facts, &mut Lives::default());
        assert_eq!(ledger.len(), 1);
        ledger.begin_snapshot();
        ledger.compare(&[], &Coverage::default(), Unknown::Gone).extra()
    });
    assert_eq!(extra, [1, 0]);
}
