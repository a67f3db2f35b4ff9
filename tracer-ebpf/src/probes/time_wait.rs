//! The life of a TIME_WAIT: from the functions that every one passes through, or from the timer
//! that ends it.
//!
//! Every `inet_timewait_sock` has a timer whose function is `tw_timer_handler`
//! (net/ipv4/inet_timewait_sock.c); no other timer has it. Its start, cancellation and expiry are
//! the birth, the re-arming or killing, and the end of the TIME_WAIT.
//!
//! These programs need no second copy (see [`twice`](crate::twice)): the first two hooks fire with
//! the timer wheel locked and interrupts off (`enqueue_timer`, `detach_timer`, kernel/time/timer.c),
//! the third in the timer softirq, which nothing interrupts that fires it.

use aya_ebpf::{
    Global,
    helpers::bpf_jiffies64,
    macros::{btf_tracepoint, fentry, map},
    maps::PerCpuArray,
    programs::{BtfTracePointContext, FEntryContext},
};
use tracer_ebpf::{FactKind, Hook, flags};

use crate::{
    emit,
    kernel::{Common, Copied, Memory, Probed, Sock, Typed, field, layout},
};

/// A TIME_WAIT takes its socket's place: `inet_twsk_hashdance_schedule(tw, sk, ..)`, which was
/// `inet_twsk_hashdance` before 6.12 (net/ipv4/inet_timewait_sock.c).
#[fentry(function = "inet_twsk_hashdance_schedule")]
fn time_wait_hash(ctx: FEntryContext) -> i32 {
    report::<Typed>(Hook::TimeWaitHash as u32, FactKind::TimeWaitStart, Sock::at(ctx.arg(0)), 0);
    0
}

/// `__inet_twsk_schedule(tw, timeo, rearm)`: called to re-arm whenever a segment of the old
/// connection arrives, the peer's FIN above all, which makes a FIN_WAIT2 a TIME_WAIT
/// (`tcp_timewait_state_process`, net/ipv4/tcp_minisocks.c).
#[fentry(function = "__inet_twsk_schedule")]
fn time_wait_schedule(ctx: FEntryContext) -> i32 {
    if ctx.arg::<u8>(2) & 1 != 0 {
        let tw = Sock::at(ctx.arg(0));
        let slot = Hook::TimeWaitSchedule as u32;
        report::<Typed>(slot, FactKind::TimeWaitStart, tw, flags::REARMED);
    }
    0
}

/// The timer whose function runs on this CPU.
#[map]
static DUE_TIMER: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `tw_timer_handler(timer)`: a TIME_WAIT has run its course. It calls `inet_twsk_kill` at once.
#[fentry(function = "tw_timer_handler")]
fn time_wait_due(ctx: FEntryContext) -> i32 {
    if let Some(due) = DUE_TIMER.get_ptr_mut(0) {
        // SAFETY: this CPU's slot; only the timer softirq, which does not nest, and what it calls
        // write to it.
        unsafe { *due = ctx.arg(0) };
    }
    0
}

/// `inet_twsk_kill(tw)`: the TIME_WAIT lets go of its port, for whatever reason.
#[fentry(function = "inet_twsk_kill")]
fn time_wait_kill(ctx: FEntryContext) -> i32 {
    let tw = Sock::at(ctx.arg(0));
    let timer = tw.address.wrapping_add(layout!(tw_timer) as usize);
    // Where the kernel did not run this program for the one before, the mark of that one is still
    // there, and this one may lie in its memory.
    let kind = if takes_due_timer(timer) && is_due(timer) {
        FactKind::TimeWaitExpire
    } else {
        FactKind::TimeWaitCancel
    };
    let ending = if tw.is_netns_dying::<Typed>() { flags::NETNS_DYING } else { 0 };
    report::<Typed>(Hook::TimeWaitKill as u32, kind, tw, ending);
    0
}

/// True once, if this timer's function runs on this CPU.
#[inline(always)]
fn takes_due_timer(timer: *const u8) -> bool {
    let Some(due) = DUE_TIMER.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: as above.
    unsafe {
        let is_due = *due == timer as u64;
        if is_due {
            *due = 0;
        }
        is_due
    }
}

/// Address of `tw_timer_handler`.
#[unsafe(no_mangle)]
static TW_TIMER_HANDLER: Global<u64> = Global::new(0);

/// A timer was armed. For a pending timer that is armed anew, a cancellation comes first.
#[btf_tracepoint(function = "timer_start")]
fn timer_start(ctx: BtfTracePointContext) -> i32 {
    timer(ctx.arg(0), Hook::TimerStart, FactKind::TimeWaitStart)
}

/// A timer left the wheel: to be armed anew, because it expires, or because it is deleted.
#[btf_tracepoint(function = "timer_cancel")]
fn timer_cancel(ctx: BtfTracePointContext) -> i32 {
    timer(ctx.arg(0), Hook::TimerCancel, FactKind::TimeWaitCancel)
}

/// A timer's function is about to run.
#[btf_tracepoint(function = "timer_expire_entry")]
fn timer_expire_entry(ctx: BtfTracePointContext) -> i32 {
    timer(ctx.arg(0), Hook::TimerExpire, FactKind::TimeWaitExpire)
}

#[inline(always)]
fn timer(timer: *const u8, hook: Hook, kind: FactKind) -> i32 {
    if field::<Typed, u64>(timer, layout!(timer_function)) != TW_TIMER_HANDLER.load() {
        return 0;
    }
    let mut common = Common::uninit();
    let tw = Sock::copied(timer.wrapping_sub(layout!(tw_timer) as usize), &mut common);
    let ending = if kind as u8 == FactKind::TimeWaitCancel as u8 { ending(tw, timer) } else { 0 };
    report::<Copied>(hook as u32, kind, tw, ending);
    0
}

/// True once the timer's time has come.
#[inline(always)]
fn is_due(timer: *const u8) -> bool {
    // SAFETY: no arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    let expires = field::<Typed, u64>(timer, layout!(timer_expires));
    jiffies.wrapping_sub(expires) as i64 >= 0
}

/// Why a TIME_WAIT ends, as far as the looks of its timer tell.
#[inline(always)]
fn ending(tw: Sock, timer: *const u8) -> u8 {
    let mut ending = 0;
    if is_due(timer) {
        ending |= flags::TIMER_DUE;
    }
    if tw.is_netns_dying::<Copied>() {
        ending |= flags::NETNS_DYING;
    }
    ending
}

#[inline(always)]
fn report<M: Memory>(slot: u32, kind: FactKind, tw: Sock, flags: u8) {
    emit::fact::<M>(slot, kind, tw, |fact| {
        fact.flags |= flags;
        // `struct tcp_timewait_sock` lies around the structure that a typed load reaches.
        if kind as u8 == FactKind::TimeWaitStart as u8
            && field::<Probed, u32>(tw.address, layout!(tw_ts_recent_stamp)) == 0
        {
            fact.flags |= flags::NO_TIMESTAMPS;
        }
        fact.cookie = tw.existing_cookie::<M>();
        fact.state = field::<M, u8>(tw.address, layout!(tw_substate));
    });
}
