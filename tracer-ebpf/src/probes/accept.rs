//! accept(): which process gets the connection.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::fexit, programs::FExitContext};
use tracer_ebpf::{FactKind, Hook};

use crate::{
    emit,
    kernel::{Memory, Sock, Typed},
    non_preemptible,
    recursion::{Backup, Primary, ProgramCopy, Unordered},
};

/// The exit of `inet_csk_accept` (net/ipv4/inet_connection_sock.c), which every accept() of TCP calls,
/// also that of io_uring. It returns the new socket or null.
///
/// Since 6.10 it takes `(struct sock *, struct proto_accept_arg *)`. The result follows the
/// arguments.
#[fexit(function = "inet_csk_accept")]
fn accept_exit(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| returned::<Unordered<Primary>>(ctx.arg(2)))
}

/// The backup; see [`recursion`](crate::recursion).
#[fexit(function = "inet_csk_accept")]
fn accept_exit_backup(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| returned::<Unordered<Backup>>(ctx.arg(2)))
}

/// Before 6.10: `inet_csk_accept(struct sock *, int flags, int *err, bool kern)`.
#[fexit(function = "inet_csk_accept")]
fn accept_exit_of_four(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| returned::<Unordered<Primary>>(ctx.arg(4)))
}

/// The backup.
#[fexit(function = "inet_csk_accept")]
fn accept_exit_of_four_backup(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| returned::<Unordered<Backup>>(ctx.arg(4)))
}

/// Reports that the current process accepted a connection.
#[inline(always)]
pub fn accepted<M: Memory>(slot: u32, sk: Sock) {
    emit::owned_fact::<M>(slot, FactKind::Accepted, sk, |fact| {
        fact.cookie = sk.existing_cookie::<M>();
    });
}

#[inline(always)]
fn returned<C: ProgramCopy>(sk: *const u8) {
    let sk = Sock::at(sk);
    if !sk.address.is_null()
        && sk.is_tcp::<Typed>()
        && C::claim(Hook::AcceptExit, [sk.address as u64, bpf_get_current_pid_tgid()])
    {
        accepted::<Typed>(C::counter_slot(Hook::AcceptExit), sk);
    }
}
