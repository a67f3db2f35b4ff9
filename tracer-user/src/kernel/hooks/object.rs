//! The embedded eBPF object, and the calls in it that depend on the kernel.

use tracer_ebpf::{NOP, NonPreemptible, kfunc_call};
use zerocopy::IntoBytes as _;

use crate::kernel::types::kfuncs::Kfuncs;

/// The object that `cargo xtask build-ebpf` made. Only programs without placeholders can be loaded
/// from it as it is: those of lists.
pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portlife.bpf.o"));

/// The object for a kernel.
pub(crate) struct Object {
    /// Of eight bytes each, as are the instructions, which the ELF file aligns so.
    words: Vec<u64>,
}

impl Object {
    /// The object with its placeholders replaced: at tracepoints only where these can be preempted.
    #[must_use]
    pub(crate) fn for_kernel(calls: Kfuncs, has_preemptible_tracepoints: bool) -> Self {
        let mut words = vec![0; OBJECT.len().div_ceil(size_of::<u64>())];
        if let Some(object) = words.as_mut_bytes().get_mut(..OBJECT.len()) {
            object.copy_from_slice(OBJECT);
        }
        let complete = calls.all_or_none();
        let at_tracepoints = if has_preemptible_tracepoints { complete } else { Kfuncs::default() };
        let replacements = [
            replacements(NonPreemptible::TRACEPOINT, at_tracepoints),
            replacements(NonPreemptible::FUNCTION, complete),
            replacements(NonPreemptible::CGROUP, calls),
        ];
        // No other instruction calls a helper of these numbers, and nothing else in the file looks
        // like one.
        for word in &mut words {
            let replacement =
                replacements.as_flattened().iter().find(|(call, _)| *call == u64::from_le(*word));
            if let Some((_, replacement)) = replacement {
                *word = replacement.to_le();
            }
        }
        Self { words }
    }

    /// The ELF file, and perhaps some zeroes behind it.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.words.as_bytes()
    }
}

/// Each instruction to be replaced, and by what.
fn replacements(section: NonPreemptible, calls: Kfuncs) -> [(u64, u64); 4] {
    let NonPreemptible { preempt_disable, irq_save, preempt_enable, irq_restore } = section;
    let Kfuncs { preempt, irq } = calls;
    [
        (preempt_disable, preempt.map(|(disable, _)| disable)),
        (irq_save, irq.map(|(save, _)| save)),
        (preempt_enable, preempt.map(|(_, enable)| enable)),
        (irq_restore, irq.map(|(_, restore)| restore)),
    ]
    .map(|(call, function)| (call.instruction(), function.map_or(NOP, kfunc_call)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREEMPT: (u32, u32) = (77_001, 77_002);
    const IRQ: (u32, u32) = (77_003, 77_004);

    fn count(words: &[u64], instruction: u64) -> usize {
        words.iter().filter(|word| u64::from_le(**word) == instruction).count()
    }

    fn calls(words: &[u64], section: NonPreemptible) -> [usize; 4] {
        let NonPreemptible { preempt_disable, irq_save, preempt_enable, irq_restore } = section;
        [preempt_disable, irq_save, preempt_enable, irq_restore]
            .map(|call| count(words, call.instruction()))
    }

    #[test]
    fn no_placeholder_is_left_and_each_section_has_both_ends() {
        let embedded: Vec<u64> = OBJECT
            .chunks_exact(8)
            .filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes))
            .collect();
        let all = [NonPreemptible::TRACEPOINT, NonPreemptible::FUNCTION, NonPreemptible::CGROUP];
        let [at_tracepoints, of_functions, in_cgroups] = all.map(|section| {
            let [disables, saves, enables, restores] = calls(&embedded, section);
            assert!(disables > 0);
            assert_eq!((enables, restores), (disables, saves));
            assert_eq!(saves, if section == NonPreemptible::CGROUP { 0 } else { disables });
            disables
        });
        let full = Kfuncs { preempt: Some(PREEMPT), irq: Some(IRQ) };
        let half = Kfuncs { irq: None, ..full };
        let cases = [
            (Kfuncs::default(), true, 0, 0),
            (half, true, in_cgroups, 0),
            (full, false, of_functions + in_cgroups, of_functions),
            (full, true, at_tracepoints + of_functions + in_cgroups, at_tracepoints + of_functions),
        ];
        for (kernel, has_preemptible_tracepoints, preempts, saves) in cases {
            let Object { words } = Object::for_kernel(kernel, has_preemptible_tracepoints);
            for section in all {
                assert_eq!(calls(&words, section), [0; 4]);
            }
            for function in [PREEMPT.0, PREEMPT.1] {
                assert_eq!(count(&words, kfunc_call(function)), preempts, "{kernel:?}");
            }
            for function in [IRQ.0, IRQ.1] {
                assert_eq!(count(&words, kfunc_call(function)), saves, "{kernel:?}");
            }
            let changed = embedded.iter().zip(&words).filter(|(old, new)| old != new).count();
            assert_eq!(changed, 4 * (at_tracepoints + of_functions) + 2 * in_cgroups);
        }
    }

    #[test]
    fn calls_are_encoded_as_the_kernel_reads_them() {
        // include/uapi/linux/bpf.h: code, registers (source above destination), offset, immediate.
        assert_eq!(kfunc_call(0x1234).to_le_bytes(), [0x85, 0x20, 0, 0, 0x34, 0x12, 0, 0]);
        assert_eq!(NOP.to_le_bytes(), [0x05, 0, 0, 0, 0, 0, 0, 0]);
    }
}
