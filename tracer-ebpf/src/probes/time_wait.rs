//! The life of a TIME_WAIT, from the functions that handle every one of them, or from the tracepoints
//! of its timer.
//!
//! Every `inet_timewait_sock` has a timer whose function is `tw_timer_handler`
//! (net/ipv4/inet_timewait_sock.c), and no other timer has that function. The timer is started when
//! the TIME_WAIT begins, cancelled when it is armed again or the TIME_WAIT is killed, and expires when
//! the TIME_WAIT has run its course.
//!
//! The programs at tracepoints need no backup (see [`recursion`](crate::recursion)): `timer_start` and
//! `timer_cancel` fire with the timer wheel locked and interrupts off (`enqueue_timer`,
//! `detach_timer`, kernel/time/timer.c), `timer_expire_entry` in the timer softirq, and nothing that
//! fires it interrupts that.

use aya_ebpf::{
    Global,
    helpers::bpf_jiffies64,
    macros::{btf_tracepoint, fentry, map},
    maps::PerCpuArray,
    programs::{BtfTracePointContext, FEntryContext},
};
use tracer_ebpf::{FactKind, Hook, STATE_MASK, time_wait_cancel, time_wait_start};

use crate::{
    emit,
    kernel::{Common, Copied, Memory, Probed, Sock, Typed, field, layout},
};

/// `inet_twsk_hashdance_schedule(tw, sk, ..)`, which was `inet_twsk_hashdance` before 6.12
/// (net/ipv4/inet_timewait_sock.c): a TIME_WAIT replaces its socket.
#[fentry(function = "inet_twsk_hashdance_schedule")]
fn time_wait_hash(ctx: FEntryContext) -> i32 {
    report::<Typed>(Hook::TimeWaitHash as u32, FactKind::TimeWaitStart, Sock::at(ctx.arg(0)), 0);
    0
}

/// `__inet_twsk_schedule(tw, timeo, rearm)`. It arms the timer again whenever a segment of the old
/// connection arrives: above all the peer's FIN, which moves the substate from FIN_WAIT2 to TIME_WAIT
/// (`tcp_timewait_state_process`, net/ipv4/tcp_minisocks.c).
#[fentry(function = "__inet_twsk_schedule")]
fn time_wait_schedule(ctx: FEntryContext) -> i32 {
    if ctx.arg::<u8>(2) & 1 != 0 {
        let tw = Sock::at(ctx.arg(0));
        let slot = Hook::TimeWaitSchedule as u32;
        report::<Typed>(slot, FactKind::TimeWaitStart, tw, time_wait_start::REARMED);
    }
    0
}

/// The timer of the TIME_WAIT that expires on this CPU, until [`time_wait_kill`] takes it.
#[map]
static DUE_TIMER: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `tw_timer_handler(timer)`: a TIME_WAIT has run its course. The function calls `inet_twsk_kill`
/// immediately.
#[fentry(function = "tw_timer_handler")]
fn time_wait_due(ctx: FEntryContext) -> i32 {
    if let Some(due) = DUE_TIMER.get_ptr_mut(0) {
        // SAFETY: this CPU's slot, in which only the timer softirq, which does not nest, and the
        // functions that it calls write.
        unsafe { *due = ctx.arg(0) };
    }
    0
}

/// `inet_twsk_kill(tw)`: the TIME_WAIT releases its port, for whatever reason.
#[fentry(function = "inet_twsk_kill")]
fn time_wait_kill(ctx: FEntryContext) -> i32 {
    let tw = Sock::at(ctx.arg(0));
    let timer = tw.address.wrapping_add(layout!(tw_timer) as usize);
    // If the kernel skipped this program for an earlier TIME_WAIT, the timer of that one is still
    // noted, and this TIME_WAIT may have been allocated in its place. So the time is checked as well.
    let kind = if takes_due_timer(timer) && is_due(timer) {
        FactKind::TimeWaitExpire
    } else {
        FactKind::TimeWaitCancel
    };
    let flags = if tw.is_netns_dying::<Typed>() { time_wait_cancel::NETNS_DYING } else { 0 };
    report::<Typed>(Hook::TimeWaitKill as u32, kind, tw, flags);
    0
}

/// True if this timer's function runs on this CPU. Removes the note of it.
#[inline(always)]
fn takes_due_timer(timer: *const u8) -> bool {
    let Some(due) = DUE_TIMER.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: as in `time_wait_due`.
    unsafe {
        let is_due = *due == timer as u64;
        if is_due {
            *due = 0;
        }
        is_due
    }
}

/// The address of `tw_timer_handler`.
#[unsafe(no_mangle)]
static TW_TIMER_HANDLER: Global<u64> = Global::new(0);

/// A timer was armed. If it was pending, a cancellation comes first.
#[btf_tracepoint(function = "timer_start")]
fn timer_start(ctx: BtfTracePointContext) -> i32 {
    timer(ctx.arg(0), Hook::TimerStart, FactKind::TimeWaitStart)
}

/// A timer was removed from the wheel: to arm it again, because it expires, or because it is deleted.
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
    let flags = if kind as u8 == FactKind::TimeWaitCancel as u8 { cause(tw, timer) } else { 0 };
    report::<Copied>(hook as u32, kind, tw, flags);
    0
}

/// True if the timer's time has come.
#[inline(always)]
fn is_due(timer: *const u8) -> bool {
    // SAFETY: the helper has no arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    let expires = field::<Typed, u64>(timer, layout!(timer_expires));
    jiffies.wrapping_sub(expires) as i64 >= 0
}

/// Why a timer is cancelled, as flags of [`time_wait_cancel`].
#[inline(always)]
fn cause(tw: Sock, timer: *const u8) -> u8 {
    let mut flags = 0;
    if is_due(timer) {
        flags |= time_wait_cancel::TIMER_DUE;
    }
    if tw.is_netns_dying::<Copied>() {
        flags |= time_wait_cancel::NETNS_DYING;
    }
    flags
}

#[inline(always)]
fn report<M: Memory>(slot: u32, kind: FactKind, tw: Sock, flags: u8) {
    emit::fact::<M>(slot, kind, tw, |fact| {
        fact.event = field::<M, u8>(tw.address, layout!(tw_substate)) & STATE_MASK | flags;
        // `struct tcp_timewait_sock` extends beyond the structure that a typed load reaches.
        if kind as u8 == FactKind::TimeWaitStart as u8
            && field::<Probed, u32>(tw.address, layout!(tw_ts_recent_stamp)) == 0
        {
            fact.event |= time_wait_start::NO_TIMESTAMPS;
        }
        fact.cookie = tw.existing_cookie::<M>();
    });
}
