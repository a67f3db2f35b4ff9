//! Protection against the kernel's recursion guard: when an interrupt fires a hook while the hook's
//! program runs on that CPU, the kernel skips the program (`bpf_prog_inc_misses_counter`,
//! kernel/bpf/trampoline.c and kernel/trace/bpf_trace.c). So every program that an interrupt can
//! skip is attached twice. Each firing is reported by whichever copy claims it first: the
//! [`Primary`] leaves a note of the firing, and the [`Backup`], which the kernel runs after it,
//! finds the note and returns, or reports the firing itself.
//!
//! One of the two always runs, because an interrupt only skips the copy that it interrupted. If it
//! comes between the two it overwrites the note, and the interrupted firing is reported twice; the
//! ledger drops a fact that it already knows.
//!
//! The kernel does not define the order of two programs at the same function. There both copies are
//! [`Unordered`]: they do the same, and whichever runs first leaves the note.
//!
//! Programs at functions can be preempted in process context on preemptible kernels, and since 7.0
//! so can those at tracepoints (they run under SRCU, include/linux/tracepoint.h): if another task
//! then fires the hook on that CPU, the program is skipped as for an interrupt. If the other copy
//! is preempted as well, a third firing is skipped by both. Where the kernel lets a program forbid
//! preemption ([`non_preemptible`](crate::non_preemptible), 6.14) that takes two preemptions within
//! a few instructions. The agent learns from the miss counters of both copies that it may have
//! happened, and compares the ledger with the kernel.

use core::marker::PhantomData;

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use tracer_ebpf::Hook;

/// What distinguishes a firing from any that can interrupt it. The first word is never 0.
pub type Firing = [u64; 2];

/// Per hook and CPU: the firing that was claimed last.
#[map]
static CLAIMED: PerCpuArray<Firing> = PerCpuArray::with_max_entries(Hook::COUNT, 0);

/// Tasks (pid and tgid) whose failed call one copy has claimed. Not per CPU: a task can be preempted
/// between the two copies and continue on another CPU, and the ledger cannot tell one failure that
/// is reported twice from two failures.
#[map]
static CLAIMED_FAILURES: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1024, 0);

/// One of the two copies of a program that are attached to the same hook.
pub trait ProgramCopy {
    /// True if this copy is to report the firing.
    fn claim(hook: Hook, firing: Firing) -> bool;

    /// True if this copy is to report the failure of the current task's call.
    fn claim_failure() -> bool;

    /// The slot in which it counts.
    fn counter_slot(hook: Hook) -> u32;
}

/// The copy that is attached first. It reports every firing that it sees, so that it also works
/// alone: if it looked for a note, one that no backup removed would suppress an equal firing later.
pub struct Primary;

impl ProgramCopy for Primary {
    #[inline(always)]
    fn claim(hook: Hook, firing: Firing) -> bool {
        if let Some(claimed) = CLAIMED.get_ptr_mut(hook as u32) {
            // SAFETY: this CPU's slot, in which only the copies at this hook write; see the module
            // for what happens if one interrupts the other.
            unsafe { *claimed = firing };
        }
        true
    }

    #[inline(always)]
    fn claim_failure() -> bool {
        let _ = CLAIMED_FAILURES.insert(bpf_get_current_pid_tgid(), 1, 0);
        true
    }

    #[inline(always)]
    fn counter_slot(hook: Hook) -> u32 {
        hook as u32
    }
}

/// The copy that is attached second. It reports the firings that the primary missed.
pub struct Backup;

impl ProgramCopy for Backup {
    #[inline(always)]
    fn claim(hook: Hook, firing: Firing) -> bool {
        let Some(claimed) = CLAIMED.get_ptr_mut(hook as u32) else {
            return true;
        };
        // SAFETY: as above.
        unsafe {
            let is_claimed = (*claimed)[0] == firing[0] && (*claimed)[1] == firing[1];
            if is_claimed {
                // One word is enough to remove the note. Clearing both would become a call of
                // `memset`, which goes byte by byte.
                (*claimed)[0] = 0;
            }
            !is_claimed
        }
    }

    #[inline(always)]
    fn claim_failure() -> bool {
        CLAIMED_FAILURES.remove(bpf_get_current_pid_tgid()).is_err()
    }

    #[inline(always)]
    fn counter_slot(hook: Hook) -> u32 {
        Hook::COUNT + hook as u32
    }
}

/// Either copy at a function. `C` only decides where it counts.
pub struct Unordered<C>(PhantomData<C>);

impl<C: ProgramCopy> ProgramCopy for Unordered<C> {
    #[inline(always)]
    fn claim(hook: Hook, firing: Firing) -> bool {
        Backup::claim(hook, firing) && Primary::claim(hook, firing)
    }

    #[inline(always)]
    fn claim_failure() -> bool {
        Backup::claim_failure() && Primary::claim_failure()
    }

    #[inline(always)]
    fn counter_slot(hook: Hook) -> u32 {
        C::counter_slot(hook)
    }
}
