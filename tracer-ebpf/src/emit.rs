//! From a hook to the ring buffer, with every firing accounted for.

use aya_ebpf::Global;
use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use tracer_ebpf::{Fact, FactKind, Hook, HookCounters, NETNS_WANTED_MOST, OwnedFact, flags};

use crate::kernel::{self, Memory, Sock};

/// Facts, in the order in which the hooks reserved them. The agent sets the size at load.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// One [`HookCounters`] for each program that reports, and CPU.
#[map]
static COUNTERS: PerCpuArray<HookCounters> = PerCpuArray::with_max_entries(Hook::COUNTER_SLOTS, 0);

/// Non-zero while the agent sleeps in poll and wants to be woken by the next fact.
#[map]
static ASLEEP: Array<u32> = Array::with_max_entries(1, 0);

/// Fill of the ring, in bytes, beyond which the agent is woken whatever it does.
#[unsafe(no_mangle)]
static WAKE_BYTES: Global<u64> = Global::new(0);

/// Bytes above [`WAKE_BYTES`] in which a fact still forces a wakeup: wide enough that no CPU can
/// step over it, narrow enough that a full ring is not a storm of wakeups.
const WAKE_BAND_BYTES: u64 = 4096;

/// Inodes of the network namespaces that the user wants to hear of, zero-padded. None: all.
#[unsafe(no_mangle)]
static NETNS_WANTED: Global<[u32; NETNS_WANTED_MOST]> = Global::new([0; NETNS_WANTED_MOST]);

/// Writes a fact about a socket, without an owner, counted in this slot. `fill` adds what the
/// [common part](Sock::describe) does not tell.
#[inline(always)]
pub fn fact<M: Memory>(slot: u32, kind: FactKind, sk: Sock, fill: impl FnOnce(&mut Fact)) {
    submit::<M, Fact>(slot, sk, |record| {
        // SAFETY: `record` points to reserved ring memory of the size of a Fact, in which every
        // bit pattern is a Fact.
        let fact = unsafe { &mut *record };
        fact.kind = kind as u8;
        fact.flags = 0;
        sk.describe::<M>(fact);
        fill(fact);
    });
}

/// Writes a fact about a socket, and the process in whose context it arose.
#[inline(always)]
pub fn owned_fact<M: Memory>(slot: u32, kind: FactKind, sk: Sock, fill: impl FnOnce(&mut Fact)) {
    submit::<M, OwnedFact>(slot, sk, |record| {
        // SAFETY: as above, for an OwnedFact.
        let OwnedFact { fact, owner } = unsafe { &mut *record };
        fact.kind = kind as u8;
        fact.flags = flags::OWNER;
        sk.describe::<M>(fact);
        fill(fact);
        kernel::current_owner(owner);
    });
}

#[inline(always)]
fn submit<M: Memory, R: 'static>(slot: u32, sk: Sock, write: impl FnOnce(*mut R)) {
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: the pointer is this CPU's slot of the array, which only one program writes to. The
    // kernel skips that program in an interrupt that comes while it runs, so that the plain way to
    // add loses nothing; except for programs of cgroups on a kernel that preempts them (before
    // 6.10), and for all on 5.10, where a count can be lost (the target has no atomic addition).
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

/// True if the user wants to hear of this namespace.
#[inline(always)]
pub fn is_netns_wanted(netns: impl FnOnce() -> u32) -> bool {
    let wanted = NETNS_WANTED.load();
    // The verifier knows the value, and removes the rest where there is nothing to filter.
    if wanted[0] == 0 {
        return true;
    }
    let netns = netns();
    wanted.iter().any(|inode| *inode == netns)
}

/// A wakeup costs eight times as much as all the rest of a fact, so there is one only if the
/// agent sleeps, or if it is about to be late.
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
