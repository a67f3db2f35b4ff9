//! accept(): who takes the connection.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::fexit, programs::FExitContext};
use tracer_ebpf::{FactKind, Hook};

use crate::{
    emit,
    kernel::{Memory, Sock, Typed},
    twice::{Copy, One, Other},
    unpreempted,
};

/// The end of `inet_csk_accept` (net/ipv4/inet_connection_sock.c), by which every accept() of TCP
/// goes, io_uring's included. It returns the new socket, or null.
///
/// Since 6.10 it takes `(struct sock *, struct proto_accept_arg *)`; the result stands behind the
/// arguments.
#[fexit(function = "inet_csk_accept")]
fn accept_exit(ctx: FExitContext) -> i32 {
    unpreempted::function(|| returned::<One>(ctx.arg(2)))
}

/// The same once more; see [`twice`](crate::twice).
#[fexit(function = "inet_csk_accept")]
fn accept_exit_again(ctx: FExitContext) -> i32 {
    unpreempted::function(|| returned::<Other>(ctx.arg(2)))
}

/// The same before 6.10: `(struct sock *, int flags, int *err, bool kern)`.
#[fexit(function = "inet_csk_accept")]
fn accept_exit_of_four(ctx: FExitContext) -> i32 {
    unpreempted::function(|| returned::<One>(ctx.arg(4)))
}

/// The same once more.
#[fexit(function = "inet_csk_accept")]
fn accept_exit_of_four_again(ctx: FExitContext) -> i32 {
    unpreempted::function(|| returned::<Other>(ctx.arg(4)))
}

/// Writes that the current process accepted a connection.
#[inline(always)]
pub fn accepted<M: Memory>(slot: u32, sk: Sock) {
    emit::owned_fact::<M>(slot, FactKind::Accepted, sk, |fact| {
        fact.cookie = sk.existing_cookie::<M>();
    });
}

#[inline(always)]
fn returned<C: Copy>(sk: *const u8) {
    let sk = Sock::at(sk);
    if !sk.address.is_null()
        && sk.is_tcp::<Typed>()
        && C::handles(Hook::AcceptExit, [sk.address as u64, bpf_get_current_pid_tgid()])
    {
        accepted::<Typed>(C::slot(Hook::AcceptExit), sk);
    }
}
