//! Calls that stand in the object where a program wants to keep its CPU to itself, for the loader
//! to replace: the object cannot name kernel functions that not every kernel has.
//!
//! A program that another task preempts keeps its CPU as far as the kernel's guard against
//! recursion is concerned: whatever fires the same hook there meanwhile is skipped.
//! `bpf_preempt_disable` (6.10, kernel/bpf/helpers.c) alone does not help, because the task is then
//! preempted at the end of that stretch, in the program still. It is not if interrupts are off at
//! that moment (`preempt_schedule`, kernel/sched/core.c; `bpf_local_irq_save`, 6.14), but soon
//! after. What is left are the few instructions before and behind.

/// A call of a function that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// The number of the helper that the call seems to want.
    pub number: usize,
}

/// The calls around what a program does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// `void bpf_preempt_disable(void)`
    pub preempt_disable: Placeholder,
    /// `void bpf_local_irq_save(unsigned long *)`
    pub irq_save: Placeholder,
    /// `void bpf_preempt_enable(void)`
    pub preempt_enable: Placeholder,
    /// `void bpf_local_irq_restore(unsigned long *)`
    pub irq_restore: Placeholder,
}

impl Stretch {
    /// A program at a tracepoint, which can be preempted since 7.0.
    pub const TRACEPOINT: Self = Self::numbered(0x7f0f_0000);
    /// A program of a function, which always can where the kernel can be.
    pub const FUNCTION: Self = Self::numbered(0x7f0f_0010);
    /// A part of a program of a cgroup. These know no recursion: this is for its counters only, and
    /// without the calls that turn interrupts off.
    pub const IN_CGROUP: Self = Self::numbered(0x7f0f_0020);

    const fn numbered(number: usize) -> Self {
        Self {
            preempt_disable: Placeholder { number },
            irq_save: Placeholder { number: number + 1 },
            preempt_enable: Placeholder { number: number + 2 },
            irq_restore: Placeholder { number: number + 3 },
        }
    }
}

impl Placeholder {
    /// The call as it stands in the object, as a number of the host's byte order.
    #[must_use]
    pub const fn instruction(self) -> u64 {
        CALL | (self.number as u64) << 32
    }
}

/// The call of a kernel function by the number of its type (`BPF_PSEUDO_KFUNC_CALL`,
/// include/uapi/linux/bpf.h).
#[must_use]
pub const fn kernel_call(function: u32) -> u64 {
    const PSEUDO_KFUNC_CALL: u64 = 2;
    CALL | PSEUDO_KFUNC_CALL << 12 | (function as u64) << 32
}

/// `goto +0`: nothing.
pub const NO_CALL: u64 = 0x05;
/// `BPF_JMP | BPF_CALL`.
const CALL: u64 = 0x85;
