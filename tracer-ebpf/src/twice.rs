//! The door of recursion, closed: when an interrupt fires a hook while the hook's program runs on
//! that CPU, the kernel skips the program (`bpf_prog_inc_misses_counter`, kernel/bpf/trampoline.c
//! and kernel/trace/bpf_trace.c). So each program that can be interrupted by itself is attached
//! twice. The first copy leaves a note of what it handles; the second, which the kernel runs after
//! it, finds the note and returns, or does the work itself.
//!
//! One of the two always runs: an interrupt skips the copy that it interrupted, not the other. If
//! it comes between the two it takes the note away, and the outer firing is handled twice; the
//! ledger drops a fact that it has seen.
//!
//! Of two programs at a function nobody says which the kernel runs first: [`One`] and [`Other`] do
//! the same, and whichever comes first leaves the note.
//!
//! The programs of functions can be preempted in process context on kernels that preempt at all,
//! and since 7.0 those of tracepoints, too (they run under SRCU, include/linux/tracepoint.h):
//! another task that fires the hook on that CPU is skipped like an interrupt. If then the other
//! copy is preempted as well, a third firing is skipped by both. Where the kernel lets a program
//! keep its CPU ([`unpreempted`](crate::unpreempted), 6.14) that takes two preemptions within a few
//! instructions. That it may have happened is known by the misses of both, and the agent looks.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use tracer_ebpf::Hook;

/// What distinguishes a firing from any that can interrupt it.
pub type Firing = [u64; 2];

#[map]
static HANDLED: PerCpuArray<Firing> = PerCpuArray::with_max_entries(Hook::COUNT, 0);

/// Tasks in whose context the first copy has handled a call that failed. A task can lose its CPU,
/// and even go to another, between the two copies, and a failure that is told twice is not one that
/// the ledger can tell from two.
#[map]
static HANDLED_FAILURES: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1024, 0);

/// Which of the two copies runs.
pub trait Copy {
    /// True if this copy is to handle the firing.
    fn handles(hook: Hook, firing: Firing) -> bool;

    /// True if this copy is to handle the failure of the current task's call.
    fn handles_failure() -> bool;

    /// Where it counts.
    fn slot(hook: Hook) -> u32;
}

/// The copy that is attached first. It asks for no note, so that it also does alone: where the
/// same firing comes twice, a note that nobody took away would say that the second is done.
pub struct First;

impl Copy for First {
    #[inline(always)]
    fn handles(hook: Hook, firing: Firing) -> bool {
        if let Some(handled) = HANDLED.get_ptr_mut(hook as u32) {
            // SAFETY: this CPU's slot; see the module for who else writes to it.
            unsafe { *handled = firing };
        }
        true
    }

    #[inline(always)]
    fn handles_failure() -> bool {
        let _ = HANDLED_FAILURES.insert(bpf_get_current_pid_tgid(), 1, 0);
        true
    }

    #[inline(always)]
    fn slot(hook: Hook) -> u32 {
        hook as u32
    }
}

/// The copy that is attached second.
pub struct Again;

impl Copy for Again {
    #[inline(always)]
    fn handles(hook: Hook, firing: Firing) -> bool {
        let Some(handled) = HANDLED.get_ptr_mut(hook as u32) else {
            return true;
        };
        // SAFETY: as above.
        unsafe {
            let is_done = (*handled)[0] == firing[0] && (*handled)[1] == firing[1];
            if is_done {
                // No firing begins with a zero. Both words at once would be a call of `memset`, which
                // goes byte by byte.
                (*handled)[0] = 0;
            }
            !is_done
        }
    }

    #[inline(always)]
    fn handles_failure() -> bool {
        HANDLED_FAILURES.remove(bpf_get_current_pid_tgid()).is_err()
    }

    #[inline(always)]
    fn slot(hook: Hook) -> u32 {
        Hook::COUNT + hook as u32
    }
}

/// Either copy of a function's program.
pub struct One;

/// The other.
pub struct Other;

impl Copy for One {
    #[inline(always)]
    fn handles(hook: Hook, firing: Firing) -> bool {
        First::handles_if_first(hook, firing)
    }

    #[inline(always)]
    fn handles_failure() -> bool {
        Again::handles_failure() && First::handles_failure()
    }

    #[inline(always)]
    fn slot(hook: Hook) -> u32 {
        First::slot(hook)
    }
}

impl Copy for Other {
    #[inline(always)]
    fn handles(hook: Hook, firing: Firing) -> bool {
        First::handles_if_first(hook, firing)
    }

    #[inline(always)]
    fn handles_failure() -> bool {
        Again::handles_failure() && First::handles_failure()
    }

    #[inline(always)]
    fn slot(hook: Hook) -> u32 {
        Again::slot(hook)
    }
}

impl First {
    /// True, and leaves the note, if the other copy has not.
    #[inline(always)]
    fn handles_if_first(hook: Hook, firing: Firing) -> bool {
        Again::handles(hook, firing) && Self::handles(hook, firing)
    }
}
