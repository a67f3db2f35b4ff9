//! The ledger against a model of the kernel: random lives of sockets yield observations in the order
//! in which the kernel's hooks would report them, and the ledger must hold what the model holds.

mod kernel;

use std::collections::BTreeSet;

use proptest::prelude::*;

use self::kernel::{Kernel, NETNS, OWNER, STEP_NS, endpoints, socket_id};
use crate::{
    ledger::{Differences, Ledger, Sink},
    model::{
        Change, Coverage, Failure, Instant, LeaseEvent, LeaseId, Netns, Observation, Phase,
        Pressure, Reason, UnreachedNamespaces, Visibility,
        observation::{BindFailed, BindRequest, ConnectStart, Userlocks},
    },
};

const SIGHT: Visibility = Visibility {
    ports_chosen: true,
    accepts: true,
    marks_connect: true,
    bound_idle: true,
    since: Instant::BOOT,
};

/// Checks that the events of each lease are consistent: it begins once, and ends at most once.
#[derive(Default)]
struct Lives {
    ended: BTreeSet<LeaseId>,
    failures: usize,
    updates: usize,
    reasons: Vec<Reason>,
}

impl Sink for Lives {
    fn lease(&mut self, event: LeaseEvent<'_>, _ledger: &Ledger) {
        let id = event.lease.id;
        assert!(!self.ended.contains(&id), "{event:?} after the end");
        self.updates += usize::from(matches!(event.change, Change::Update { .. }));
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
                ledger = Ledger::new(Visibility { since: Instant::from_ns(kernel.now + 1), ..SIGHT });
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
            let differences = ledger.compare(&kernel.snapshot(), &whole, UnreachedNamespaces::KeepLeases);
            ledger.end_snapshot();
            ledger.heal(&differences, now, &mut lives);
        }
        prop_assert_eq!(holds(&ledger), kernel.holds());
        ledger.begin_snapshot();
        let differences = ledger.compare(&kernel.snapshot(), &whole, UnreachedNamespaces::KeepLeases);
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
                first = ledger.compare(&snapshot, &whole, UnreachedNamespaces::KeepLeases);
            }
            if at == again {
                ledger.begin_snapshot();
            }
            if at == looked_again {
                snapshot = kernel.snapshot();
            }
            if at == confirmed {
                let mut second = ledger.compare(&snapshot, &whole, UnreachedNamespaces::KeepLeases);
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
    assert!(ledger.compare(&[], &none, UnreachedNamespaces::KeepLeases).is_empty());
    assert_eq!(ledger.compare(&[], &none, UnreachedNamespaces::AssumeEmpty).extra(), 1);
    let partly = Coverage { unlisted: BTreeSet::from([Netns(NETNS)]), ..none };
    assert!(ledger.compare(&[], &partly, UnreachedNamespaces::AssumeEmpty).is_empty());
    assert_eq!(ledger.compare(&[], &whole(), UnreachedNamespaces::KeepLeases).extra(), 1);
}

#[test]
fn a_lease_whose_time_wait_was_missed_goes_on() {
    let mut kernel = Kernel::new();
    kernel.step(2, 0);
    let (mut ledger, mut lives) = (Ledger::new(SIGHT), Lives::default());
    apply(&mut ledger, &kernel.observations, &mut lives);
    let before = ledger.leases().next().expect("it connected").clone();
    // No observation reports this.
    kernel.step(8, 0);
    ledger.begin_snapshot();
    let differences = ledger.compare(&kernel.snapshot(), &whole(), UnreachedNamespaces::KeepLeases);
    assert_eq!((differences.missing(), differences.extra()), (1, 1));
    ledger.heal(&differences, Instant::from_ns(kernel.now), &mut lives);
    ledger.end_snapshot();
    let after = ledger.leases().next().expect("it waits");
    assert_eq!((ledger.lease_count(), after.id, lives.reasons.len()), (1, before.id, 0));
    assert!(matches!(after.phase, Phase::TimeWait(_)) && after.owner == before.owner);
    ledger.begin_snapshot();
    assert!(
        ledger.compare(&kernel.snapshot(), &whole(), UnreachedNamespaces::KeepLeases).is_empty()
    );
}

#[test]
fn duplicate_observations_change_nothing() {
    let mut kernel = Kernel::new();
    for operation in [6, 7, 2, 8, 12] {
        kernel.step(operation, 0);
    }
    kernel.bound(100, 20_000, BindRequest::ThisPort);
    kernel.observe(|at| {
        Observation::ConnectStart(ConnectStart {
            at,
            socket: socket_id(100),
            endpoints: endpoints(20_000, 9_000),
            own_range: None,
            userlocks: Userlocks::default(),
            owner: &OWNER,
        })
    });
    let twice: Vec<_> =
        kernel.observations.iter().flat_map(|observation| [*observation; 2]).collect();
    let mut ledger = Ledger::new(SIGHT);
    let mut lives = Lives::default();
    apply(&mut ledger, &twice, &mut lives);
    let mut expected = kernel.holds();
    expected.insert((100, 20_000));
    assert_eq!(holds(&ledger), expected);
    let mut once = Lives::default();
    apply(&mut Ledger::new(SIGHT), &kernel.observations, &mut once);
    assert_eq!((lives.updates, lives.reasons), (once.updates, once.reasons));
    assert!(once.updates > 0);
}

/// Another program at the hook of bind() may refuse a bind that ours has reported already.
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
    assert_eq!(ledger.lease_count(), 0);
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
    assert!(ledger.compare(&[], &partly, UnreachedNamespaces::KeepLeases).is_empty());
    let nowhere = Coverage { lacks_files: true, ..Coverage::default() };
    assert!(ledger.compare(&[], &nowhere, UnreachedNamespaces::AssumeEmpty).is_empty());
}

/// Before 5.11 no snapshot shows a socket that is bound but idle.
#[test]
fn what_a_snapshot_cannot_show_is_not_held_against_the_ledger() {
    let mut kernel = Kernel::new();
    kernel.bound(1, 20_000, BindRequest::ThisPort);
    let extra = [true, false].map(|bound_idle| {
        let mut ledger = Ledger::new(Visibility { bound_idle, ..SIGHT });
        apply(&mut ledger, &kernel.observations, &mut Lives::default());
        assert_eq!(ledger.lease_count(), 1);
        ledger.begin_snapshot();
        ledger.compare(&[], &Coverage::default(), UnreachedNamespaces::AssumeEmpty).extra()
    });
    assert_eq!(extra, [1, 0]);
}
