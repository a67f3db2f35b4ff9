//! The exits of system calls: the errno of a failed bind(), and which process accepted a connection.
//!
//! A program at this tracepoint slows every system call of the host by some tens of nanoseconds,
//! because the kernel then takes its slow path. It is loaded only where the hooks at functions cannot
//! be used.

use aya_ebpf::{
    Global, helpers::bpf_get_current_pid_tgid, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tracer_ebpf::Hook;

use crate::{
    kernel::{Common, Copied, Sock, Typed, User, current_socket, field, layout},
    non_preemptible,
    probes::{accept, bind},
    recursion::{Backup, Primary, ProgramCopy},
};

/// The number of bind() on this architecture.
#[unsafe(no_mangle)]
static NR_BIND: Global<u64> = Global::new(u64::MAX);
/// The number of accept(), if the architecture has it.
#[unsafe(no_mangle)]
static NR_ACCEPT: Global<u64> = Global::new(u64::MAX);
/// The number of accept4().
#[unsafe(no_mangle)]
static NR_ACCEPT4: Global<u64> = Global::new(u64::MAX);

/// The exit of every system call.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    non_preemptible::tracepoint(|| exits::<Primary>(&ctx))
}

/// The backup; see [`recursion`](crate::recursion). Loaded only where another task can preempt the
/// primary (7.0): the system calls of one task do not interrupt each other.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit_backup(ctx: BtfTracePointContext) -> i32 {
    non_preemptible::tracepoint(|| exits::<Backup>(&ctx))
}

#[inline(always)]
fn exits<C: ProgramCopy>(ctx: &BtfTracePointContext) {
    let regs: *const u8 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    let nr: u64 = field::<Typed, u64>(regs, layout!(regs_nr));
    if nr == NR_BIND.load() {
        if result < 0 {
            bind_failed::<C>(regs, result as i32);
        }
    } else if (nr == NR_ACCEPT4.load() || nr == NR_ACCEPT.load())
        && result >= 0
        && C::claim(Hook::SysExit, [bpf_get_current_pid_tgid(), result as u64])
    {
        accepted::<C>(result as u32);
    }
}

#[inline(always)]
fn accepted<C: ProgramCopy>(fd: u32) {
    let address = current_socket(fd);
    if address.is_null() {
        return;
    }
    let mut common = Common::uninit();
    let sk = Sock::copied(address, &mut common);
    if sk.is_tcp::<Copied>() {
        accept::accepted::<Copied>(C::counter_slot(Hook::SysExit), sk);
    }
}

#[inline(always)]
fn bind_failed<C: ProgramCopy>(regs: *const u8, result: i32) {
    let address = current_socket(field::<Typed, u64>(regs, layout!(regs_arg0)) as u32);
    if address.is_null() {
        return;
    }
    let mut common = Common::uninit();
    let sk = Sock::copied(address, &mut common);
    // The descriptor may not be that of a socket (bind() then fails with ENOTSOCK), and what was read
    // is then meaningless. Such a file does not pass for a TCP socket by chance: its private data
    // would have to point to something that looks like one.
    if !sk.is_tcp::<Copied>() || !C::claim_failure() {
        return;
    }
    let address = field::<Typed, u64>(regs, layout!(regs_arg1)) as *const u8;
    bind::failed::<Copied, User>(C::counter_slot(Hook::SysExit), sk, -result, address);
}
