//! Kernel functions that programs may call (kfuncs).

use crate::kernel::types::btf::Btf;

/// The kernel functions that keep a program from being preempted, as BTF ids. `None` where this
/// kernel lacks them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kfuncs {
    /// `bpf_preempt_disable` and `bpf_preempt_enable` (6.10).
    pub(crate) preempt: Option<(u32, u32)>,
    /// `bpf_local_irq_save` and `bpf_local_irq_restore` (6.14). `None` if `preempt` is.
    pub(crate) irq: Option<(u32, u32)>,
}

impl Kfuncs {
    /// Those of the kernel that these types describe.
    pub(crate) fn of(btf: &Btf) -> Self {
        let pair = |first, second| Some((btf.function(first).ok()?, btf.function(second).ok()?));
        let preempt = pair("bpf_preempt_disable", "bpf_preempt_enable");
        // Turning interrupts off is of no use unless preemption can be disabled, too.
        let irq = preempt.and_then(|_| pair("bpf_local_irq_save", "bpf_local_irq_restore"));
        Self { preempt, irq }
    }

    /// These functions if there are all four of them, else none.
    pub(crate) fn all_or_none(self) -> Self {
        if self.irq.is_some() { self } else { Self::default() }
    }
}
