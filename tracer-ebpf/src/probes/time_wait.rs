//! The life of a TIME_WAIT, from the timer that ends it.
//!
//! Every `inet_timewait_sock` has a timer whose function is `tw_timer_handler`
//! (net/ipv4/inet_timewait_sock.c); no other timer has it. Its start, cancellation and expiry are
//! the birth, the re-arming or killing, and the end of the TIME_WAIT.

use aya_ebpf::{
    Global, helpers::bpf_jiffies64, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use tracer_ebpf::{FactKind, Hook, flags};

use crate::{
    emit,
    kernel::{Probed, Sock, Typed, field, layout},
    twice::{Again, Copy, First},
};

/// Address of `tw_timer_handler`.
#[unsafe(no_mangle)]
static TW_TIMER_HANDLER: Global<u64> = Global::new(0);

/// A timer was armed. For a pending timer that is armed anew, a cancellation comes first.
#[btf_tracepoint(function = "timer_start")]
fn timer_start(ctx: BtfTracePointContext) -> i32 {
    report::<First>(ctx.arg(0), Hook::TimerStart, FactKind::TimeWaitStart)
}

/// The same once more; see [`twice`](crate::twice).
#[btf_tracepoint(function = "timer_start")]
fn timer_start_again(ctx: BtfTracePointContext) -> i32 {
    report::<Again>(ctx.arg(0), Hook::TimerStart, FactKind::TimeWaitStart)
}

/// A timer left the wheel: to be armed anew, because it expires, or because it is deleted.
#[btf_tracepoint(function = "timer_cancel")]
fn timer_cancel(ctx: BtfTracePointContext) -> i32 {
    report::<First>(ctx.arg(0), Hook::TimerCancel, FactKind::TimeWaitCancel)
}

/// The same once more.
#[btf_tracepoint(function = "timer_cancel")]
fn timer_cancel_again(ctx: BtfTracePointContext) -> i32 {
    report::<Again>(ctx.arg(0), Hook::TimerCancel, FactKind::TimeWaitCancel)
}

/// A timer's function is about to run. Only the timer softirq runs it, which nothing interrupts
/// that fires this hook: one copy suffices.
#[btf_tracepoint(function = "timer_expire_entry")]
fn timer_expire_entry(ctx: BtfTracePointContext) -> i32 {
    report::<First>(ctx.arg(0), Hook::TimerExpire, FactKind::TimeWaitExpire)
}

#[inline(always)]
fn report<C: Copy>(timer: *const u8, hook: Hook, kind: FactKind) -> i32 {
    if field::<Typed, u64>(timer, layout!(timer_function)) != TW_TIMER_HANDLER.load()
        || !C::handles(hook, [timer as u64, 1])
    {
        return 0;
    }
    emit::fact(C::slot(hook), kind, |fact| {
        let tw = Sock(timer.wrapping_sub(layout!(tw_timer) as usize));
        tw.describe::<Probed>(fact);
        fact.cookie = tw.existing_cookie::<Probed>();
        fact.state = field::<Probed, u8>(tw.0, layout!(tw_substate));
        if kind as u8 == FactKind::TimeWaitCancel as u8 {
            // SAFETY: no arguments.
            let jiffies = unsafe { bpf_jiffies64() };
            let expires: u64 = field::<Typed, u64>(timer, layout!(timer_expires));
            if jiffies.wrapping_sub(expires) as i64 >= 0 {
                fact.flags |= flags::TIMER_DUE;
            }
            if tw.is_netns_dying::<Probed>() {
                fact.flags |= flags::NETNS_DYING;
            }
        }
    });
    0
}
