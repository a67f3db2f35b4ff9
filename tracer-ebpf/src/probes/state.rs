//! TCP state transitions: `inet_sock_set_state` and `tcp_destroy_sock`.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_ebpf::{ABSENT, Fact, FactKind, Hook, TcpState, flags};

use crate::{
    emit,
    kernel::{Probed, Sock, Typed, bits, field, layout},
    twice::{Again, Copy, First},
    unpreempted,
};

/// Every state change of a TCP socket (`inet_sk_set_state`, net/ipv4/af_inet.c). Only the
/// transitions that the ledger needs become facts.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    unpreempted::tracepoint(|| state_changes::<First>(&ctx))
}

/// The same once more; see [`twice`](crate::twice).
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state_again(ctx: BtfTracePointContext) -> i32 {
    unpreempted::tracepoint(|| state_changes::<Again>(&ctx))
}

/// The end of a TCP socket (`tcp_v4_destroy_sock`, net/ipv4/tcp_ipv4.c), a few instructions
/// before `inet_put_port`. A socket without a port has already let go.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    unpreempted::tracepoint(|| destroys::<First>(&ctx))
}

/// The same once more.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock_again(ctx: BtfTracePointContext) -> i32 {
    unpreempted::tracepoint(|| destroys::<Again>(&ctx))
}

#[inline(always)]
fn state_changes<C: Copy>(ctx: &BtfTracePointContext) {
    let sk = Sock::at(ctx.arg::<*const u8>(0)).with_net::<Typed>();
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    const ESTABLISHED: i32 = TcpState::Established as i32;
    const SYN_SENT: i32 = TcpState::SynSent as i32;
    const FIN_WAIT1: i32 = TcpState::FinWait1 as i32;
    const CLOSE: i32 = TcpState::Close as i32;
    const CLOSE_WAIT: i32 = TcpState::CloseWait as i32;
    const LISTEN: i32 = TcpState::Listen as i32;
    if !matches!(new, ESTABLISHED | SYN_SENT | FIN_WAIT1 | CLOSE | CLOSE_WAIT | LISTEN)
        || !sk.is_tcp::<Typed>()
        || !C::handles(Hook::SetState, [sk.address as u64, (old as u64) << 32 | new as u64])
    {
        return;
    }
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(ctx, "port {}: state {} to {}", sk.num::<Typed>(), old, new);
    let slot = C::slot(Hook::SetState);
    // connect() and listen() change the state in the calling process; everything else may happen
    // in a softirq, where the current process is a bystander.
    if new == SYN_SENT || new == LISTEN {
        let kind = if new == SYN_SENT { FactKind::ConnectStart } else { FactKind::ListenStart };
        emit::owned_fact::<Typed>(slot, kind, sk, |fact| {
            identify(sk, old, fact);
            if new == SYN_SENT && layout!(tcp_local_port_range) != ABSENT {
                fact.detail = field::<Probed, i32>(sk.address, layout!(tcp_local_port_range));
            }
        });
        return;
    }
    let (kind, state) = match new {
        ESTABLISHED => (FactKind::Established, old),
        CLOSE => (FactKind::Closed, old),
        _ => (FactKind::Closing, new),
    };
    emit::fact::<Typed>(slot, kind, sk, |fact| {
        identify(sk, state, fact);
        match new {
            ESTABLISHED => fact.detail = sk.incarnation::<Typed>(),
            CLOSE => describe_end(sk, old, fact),
            _ => {}
        }
    });
}

/// What tells how a connection ended.
#[inline(always)]
fn describe_end(sk: Sock, old: i32, fact: &mut Fact) {
    fact.detail = field::<Typed, i32>(sk.address, layout!(sk_err));
    if bits::<Typed>(sk.address, layout!(sk_shutdown)) & 3 == 3 {
        fact.flags |= flags::SHUTDOWN_BOTH;
    }
    // Not typed: see `seq_of`.
    if field::<Probed, *const u8>(sk.address, layout!(sk_socket)).is_null() {
        fact.flags |= flags::ORPHAN;
    }
    if old == TcpState::FinWait2 as i32 || old == TcpState::Closing as i32 {
        // tcp_sock lies beyond the end of `struct sock`, so no typed load reaches it.
        if field::<Probed, i32>(sk.address, layout!(tcp_linger2)) < 0 {
            fact.flags |= flags::LINGER2_NEGATIVE;
        }
        if sk.has_most_time_waits() {
            fact.flags |= flags::TIME_WAITS_FULL;
        }
    }
}

#[inline(always)]
fn destroys<C: Copy>(ctx: &BtfTracePointContext) {
    let sk = Sock::at(ctx.arg::<*const u8>(0));
    if sk.num::<Typed>() != 0
        && sk.is_tcp::<Typed>()
        && C::handles(Hook::DestroySock, [sk.address as u64, 0])
    {
        emit::fact::<Typed>(C::slot(Hook::DestroySock), FactKind::Destroyed, sk, |fact| {
            identify(sk, 0, fact);
        });
    }
}

#[inline(always)]
fn identify(sk: Sock, state: i32, fact: &mut Fact) {
    fact.cookie = sk.cookie();
    fact.state = state as u8;
    fact.userlocks = sk.userlocks::<Typed>();
}
