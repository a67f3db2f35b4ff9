//! Programs that keep their CPU to themselves where the kernel lets them; see [`Stretch`].

use core::mem::{MaybeUninit, transmute};

use tracer_ebpf::{Placeholder, Stretch};

/// A program at a tracepoint, all of it.
#[inline(always)]
pub fn tracepoint(program: impl FnOnce()) -> i32 {
    unpreempted(Stretch::TRACEPOINT, program);
    0
}

/// A program of a function, all of it.
#[inline(always)]
pub fn function(program: impl FnOnce()) -> i32 {
    unpreempted(Stretch::FUNCTION, program);
    0
}

/// A part of a program of a cgroup.
#[inline(always)]
pub fn in_cgroup(part: impl FnOnce()) {
    call(Stretch::IN_CGROUP.preempt_disable);
    part();
    call(Stretch::IN_CGROUP.preempt_enable);
}

#[inline(always)]
fn unpreempted(stretch: Stretch, program: impl FnOnce()) {
    let Stretch { preempt_disable, irq_save, preempt_enable, irq_restore } = stretch;
    call(preempt_disable);
    program();
    let mut interrupts = MaybeUninit::uninit();
    call_with(irq_save, interrupts.as_mut_ptr());
    call(preempt_enable);
    call_with(irq_restore, interrupts.as_mut_ptr());
}

#[inline(always)]
fn call(Placeholder { number }: Placeholder) {
    // SAFETY: never called as it stands: the loader makes it the call of a kernel function of this
    // type, or no call at all.
    unsafe { transmute::<usize, unsafe extern "C" fn()>(number)() }
}

#[inline(always)]
fn call_with(Placeholder { number }: Placeholder, interrupts: *mut u64) {
    // SAFETY: likewise.
    unsafe { transmute::<usize, unsafe extern "C" fn(*mut u64)>(number)(interrupts) }
}
