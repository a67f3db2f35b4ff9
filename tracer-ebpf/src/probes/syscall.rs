//! System call exits: the errno of a failed bind(), and who accepted a connection.
//!
//! Any program here slows every system call of the host by some tens of nanoseconds, because the
//! kernel then takes its slow path. It is loaded only where no function hook can do the work.

use aya_ebpf::{
    Global, helpers::bpf_get_current_pid_tgid, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tracer_ebpf::Hook;

use crate::{
    kernel::{Common, Copied, Sock, Typed, User, current_socket, field, layout},
    probes::{accept, bind},
    twice::{Again, Copy, First},
    unpreempted,
};

/// The architecture's numbers of the system calls.
#[unsafe(no_mangle)]
static NR_BIND: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static NR_ACCEPT: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static NR_ACCEPT4: Global<u64> = Global::new(u64::MAX);

/// The exit of any system call.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    unpreempted::tracepoint(|| exits::<First>(&ctx))
}

/// The same once more; see [`twice`](crate::twice). Loaded only where another task can take the
/// CPU from the first copy (7.0).
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit_again(ctx: BtfTracePointContext) -> i32 {
    unpreempted::tracepoint(|| exits::<Again>(&ctx))
}

#[inline(always)]
fn exits<C: Copy>(ctx: &BtfTracePointContext) {
    let regs: *const u8 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    let nr: u64 = field::<Typed, u64>(regs, layout!(regs_nr));
    if nr == NR_BIND.load() {
        if result < 0 {
            bind_failed::<C>(regs, result as i32);
        }
    } else if (nr == NR_ACCEPT4.load() || nr == NR_ACCEPT.load())
        && result >= 0
        && C::handles(Hook::SysExit, [bpf_get_current_pid_tgid(), result as u64])
    {
        accepted::<C>(result as u32);
    }
}

#[inline(always)]
fn accepted<C: Copy>(fd: u32) {
    let address = current_socket(fd);
    if address.is_null() {
        return;
    }
    let mut common = Common::uninit();
    let sk = Sock::copied(address, &mut common);
    if sk.is_tcp::<Copied>() {
        accept::accepted::<Copied>(C::slot(Hook::SysExit), sk);
    }
}

#[inline(always)]
fn bind_failed<C: Copy>(regs: *const u8, result: i32) {
    let address = current_socket(field::<Typed, u64>(regs, layout!(regs_arg0)) as u32);
    if address.is_null() {
        return;
    }
    let mut common = Common::uninit();
    let sk = Sock::copied(address, &mut common);
    // The descriptor need not be a socket (bind() then fails with ENOTSOCK) and the words read
    // from elsewhere mean nothing; a file that passes as a TCP socket by chance does not exist:
    // its private data would have to hold a pointer to something that looks like one.
    if !sk.is_tcp::<Copied>() || !C::handles_failure() {
        return;
    }
    let address = field::<Typed, u64>(regs, layout!(regs_arg1)) as *const u8;
    bind::failed::<Copied, User>(C::slot(Hook::SysExit), sk, -result, address);
}
