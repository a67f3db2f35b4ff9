//! Writes facts to the ring buffer, and counts every firing.

use aya_ebpf::{
    Global,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use tracer_ebpf::{Fact, FactKind, Hook, HookCounters, IPPROTO_TCP, MAX_NETNS_WANTED, OwnedFact};

use crate::kernel::{self, Memory, Sock};

/// The facts, in the order in which the hooks reserved them. The agent sets the size at load.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// One [`HookCounters`] per reporting program and CPU.
#[map]
static COUNTERS: PerCpuArray<HookCounters> = PerCpuArray::with_max_entries(Hook::COUNTER_SLOTS, 0);

/// Non-zero while the agent sleeps in poll() and wants the next fact to wake it.
#[map]
static ASLEEP: Array<u32> = Array::with_max_entries(1, 0);

/// Fill level of the ring, in bytes, at which the agent is woken even if it is not asleep.
#[unsafe(no_mangle)]
static WAKE_BYTES: Global<u64> = Global::new(0);

/// Width in bytes of the band above [`WAKE_BYTES`] in which every fact forces a wakeup: wide enough
/// that the fill level cannot jump over it, narrow enough that a full ring causes no storm of
/// wakeups.
const WAKE_BAND_BYTES: u64 = 4096;

/// Inodes of the network namespaces to report, padded with 0. If all are 0, every namespace is
/// reported.
#[unsafe(no_mangle)]
static NETNS_WANTED: Global<[u32; MAX_NETNS_WANTED]> = Global::new([0; MAX_NETNS_WANTED]);

/// Writes a fact without an owner about a TCP socket, and counts in this slot. `fill` sets the fields
/// that are not in the [common part](Sock::describe).
#[inline(always)]
pub fn fact<M: Memory>(slot: u32, kind: FactKind, sk: Sock, fill: impl FnOnce(&mut Fact)) {
    submit::<M, Fact>(slot, sk, |record| {
        // SAFETY: `record` points to reserved ring memory of the size of a Fact, for which every bit
        // pattern is valid.
        let fact = unsafe { &mut *record };
        start::<M>(fact, kind, sk);
        fill(fact);
    });
}

/// Writes a fact about a TCP socket with the current process as its owner. For programs that run in
/// process context.
#[inline(always)]
pub fn owned_fact<M: Memory>(slot: u32, kind: FactKind, sk: Sock, fill: impl FnOnce(&mut Fact)) {
    submit::<M, OwnedFact>(slot, sk, |record| {
        // SAFETY: as in `fact`, for an OwnedFact.
        let OwnedFact { fact, owner } = unsafe { &mut *record };
        start::<M>(fact, kind, sk);
        fill(fact);
        kernel::current_owner(owner);
    });
}

#[inline(always)]
fn start<M: Memory>(fact: &mut Fact, kind: FactKind, sk: Sock) {
    fact.kind = kind as u8;
    fact.protocol = IPPROTO_TCP;
    sk.describe::<M>(fact);
}

#[inline(always)]
fn submit<M: Memory, R: 'static>(slot: u32, sk: Sock, write: impl FnOnce(*mut R)) {
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: the pointer is this CPU's slot of the array, in which only one program writes. The
    // kernel skips that program in an interrupt that comes while it runs, so plain addition loses
    // no count; except in cgroup programs on a kernel that preempts them (before 6.10) and in all
    // programs on 5.10 (the target has no atomic addition).
    let counters = unsafe { &mut *counters };
    counters.seen += 1;
    if !is_netns_wanted(|| sk.netns::<M>()) {
        counters.filtered += 1;
    } else if let Some(mut entry) = EVENTS.reserve::<R>(0) {
        write(entry.as_mut_ptr());
        entry.submit(wakeup_flags());
        counters.emitted += 1;
    } else {
        counters.ring_full += 1;
    }
}

/// True if this namespace is to be reported.
#[inline(always)]
pub fn is_netns_wanted(netns: impl FnOnce() -> u32) -> bool {
    let wanted = NETNS_WANTED.load();
    // The verifier knows the frozen value, and removes the rest if nothing is filtered.
    if wanted[0] == 0 {
        return true;
    }
    let netns = netns();
    wanted.iter().any(|inode| *inode == netns)
}

/// A wakeup costs eight times as much as the rest of a fact, so a fact only wakes an agent that is
/// asleep, or one that is about to let the ring overflow.
#[inline(always)]
fn wakeup_flags() -> u64 {
    if ASLEEP.get(0).is_some_and(|asleep| *asleep != 0) {
        return u64::from(BPF_RB_FORCE_WAKEUP);
    }
    let fill = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    if fill.wrapping_sub(WAKE_BYTES.load()) < WAKE_BAND_BYTES {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}
