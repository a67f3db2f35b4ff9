//! Runs a program, or a part of one, without being preempted where the kernel allows that; see
//! [`NonPreemptible`].

use core::mem::{MaybeUninit, transmute};

use tracer_ebpf::{KfuncPlaceholder, NonPreemptible};

/// Runs all of a program at a tracepoint, and returns the program's result.
#[inline(always)]
pub fn tracepoint(program: impl FnOnce()) -> i32 {
    whole(NonPreemptible::TRACEPOINT, program);
    0
}

/// Runs all of a program at a function's entry or exit, and returns the program's result.
#[inline(always)]
pub fn function(program: impl FnOnce()) -> i32 {
    whole(NonPreemptible::FUNCTION, program);
    0
}

/// Runs a section of a cgroup program.
#[inline(always)]
pub fn cgroup(section: impl FnOnce()) {
    call(NonPreemptible::CGROUP.preempt_disable);
    section();
    call(NonPreemptible::CGROUP.preempt_enable);
}

#[inline(always)]
fn whole(calls: NonPreemptible, program: impl FnOnce()) {
    let NonPreemptible { preempt_disable, irq_save, preempt_enable, irq_restore } = calls;
    call(preempt_disable);
    program();
    let mut irq_flags = MaybeUninit::uninit();
    call_with(irq_save, irq_flags.as_mut_ptr());
    call(preempt_enable);
    call_with(irq_restore, irq_flags.as_mut_ptr());
}

#[inline(always)]
fn call(KfuncPlaceholder { helper }: KfuncPlaceholder) {
    // SAFETY: never called as it is: the loader replaces it by the call of a kernel function of
    // this type, or by an instruction that does nothing.
    unsafe { transmute::<usize, unsafe extern "C" fn()>(helper)() }
}

#[inline(always)]
fn call_with(KfuncPlaceholder { helper }: KfuncPlaceholder, irq_flags: *mut u64) {
    // SAFETY: as above; the pointer leads to a word of the program's stack.
    unsafe { transmute::<usize, unsafe extern "C" fn(*mut u64)>(helper)(irq_flags) }
}
