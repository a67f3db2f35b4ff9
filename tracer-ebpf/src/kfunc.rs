//! Calls of kernel functions (kfuncs) that not every kernel has. The object contains a placeholder
//! for each call, and the loader replaces it by the call, or by nothing where the running kernel
//! has no such function.
//!
//! The calls keep a program from being preempted. A program that another task preempts stays marked
//! as running on its CPU, so the kernel's guard against recursion skips it whenever the same hook
//! fires there meanwhile. `bpf_preempt_disable` (6.10, kernel/bpf/helpers.c) alone does not prevent
//! that: the pending preemption then happens in `bpf_preempt_enable`, while the program still runs.
//! With interrupts off at that moment (`bpf_local_irq_save`, 6.14) it is put off
//! (`preempt_schedule`, kernel/sched/core.c) until just after they are restored. Only the few
//! instructions before and after the section remain preemptible.

/// A call in the object that the loader replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KfuncPlaceholder {
    /// The number of a helper that does not exist, which the call seems to want.
    pub helper: usize,
}

/// The calls around a section that is not to be preempted, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonPreemptible {
    /// `void bpf_preempt_disable(void)`
    pub preempt_disable: KfuncPlaceholder,
    /// `void bpf_local_irq_save(unsigned long *)`
    pub irq_save: KfuncPlaceholder,
    /// `void bpf_preempt_enable(void)`
    pub preempt_enable: KfuncPlaceholder,
    /// `void bpf_local_irq_restore(unsigned long *)`
    pub irq_restore: KfuncPlaceholder,
}

impl NonPreemptible {
    /// In a program at a tracepoint, which can be preempted since 7.0.
    pub const TRACEPOINT: Self = Self::numbered(0x7f0f_0000);
    /// In a program at a function's entry or exit, which can be preempted on every preemptible
    /// kernel.
    pub const FUNCTION: Self = Self::numbered(0x7f0f_0010);
    /// In a cgroup program. The kernel has no recursion guard for these: the section protects the
    /// counters only, and has no use for the calls that turn interrupts off.
    pub const CGROUP: Self = Self::numbered(0x7f0f_0020);

    const fn numbered(helper: usize) -> Self {
        Self {
            preempt_disable: KfuncPlaceholder { helper },
            irq_save: KfuncPlaceholder { helper: helper + 1 },
            preempt_enable: KfuncPlaceholder { helper: helper + 2 },
            irq_restore: KfuncPlaceholder { helper: helper + 3 },
        }
    }
}

impl KfuncPlaceholder {
    /// The instruction in the object, as a number in the host's byte order.
    #[must_use]
    pub const fn instruction(self) -> u64 {
        CALL | (self.helper as u64) << 32
    }
}

/// The instruction that calls the kernel function with this BTF id (`BPF_PSEUDO_KFUNC_CALL`,
/// include/uapi/linux/bpf.h).
#[must_use]
pub const fn kfunc_call(btf_id: u32) -> u64 {
    const PSEUDO_KFUNC_CALL: u64 = 2;
    CALL | PSEUDO_KFUNC_CALL << 12 | (btf_id as u64) << 32
}

/// The instruction that does nothing: `goto +0`.
pub const NOP: u64 = 0x05;
/// `BPF_JMP | BPF_CALL`.
const CALL: u64 = 0x85;
