//! TCP state transitions: `inet_sock_set_state` and `tcp_destroy_sock`.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_ebpf::{ABSENT, Fact, FactKind, Hook, STATE_MASK, TcpState, closed, socket};

use crate::{
    emit,
    kernel::{Probed, Sock, Typed, bits, field, layout},
    non_preemptible,
    recursion::{Backup, Primary, ProgramCopy},
};

/// Every state transition of a TCP socket (`inet_sk_set_state`, net/ipv4/af_inet.c). Only the
/// transitions that the ledger needs become facts.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    non_preemptible::tracepoint(|| state_changes::<Primary>(&ctx))
}

/// The backup; see [`recursion`](crate::recursion).
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state_backup(ctx: BtfTracePointContext) -> i32 {
    non_preemptible::tracepoint(|| state_changes::<Backup>(&ctx))
}

/// The destruction of a TCP socket (`tcp_v4_destroy_sock`, net/ipv4/tcp_ipv4.c), a few instructions
/// before `inet_put_port`. A socket without a port has already released it.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    non_preemptible::tracepoint(|| destroys::<Primary>(&ctx))
}

/// The backup.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock_backup(ctx: BtfTracePointContext) -> i32 {
    non_preemptible::tracepoint(|| destroys::<Backup>(&ctx))
}

#[inline(always)]
fn state_changes<C: ProgramCopy>(ctx: &BtfTracePointContext) {
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
        || !C::claim(Hook::SetState, [sk.address as u64, (old as u64) << 32 | new as u64])
    {
        return;
    }
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(ctx, "port {}: state {} to {}", sk.num::<Typed>(), old, new);
    let slot = C::counter_slot(Hook::SetState);
    // connect() and listen() change the state in the calling process. Every other transition can
    // happen in a softirq, where the current process has nothing to do with it.
    if new == SYN_SENT || new == LISTEN {
        let kind = if new == SYN_SENT { FactKind::ConnectStart } else { FactKind::ListenStart };
        emit::owned_fact::<Typed>(slot, kind, sk, |fact| {
            identify(sk, old, fact);
            if new == SYN_SENT && layout!(tcp_local_port_range) != ABSENT {
                fact.set_own_range(field::<Probed, u32>(sk.address, layout!(tcp_local_port_range)));
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
            ESTABLISHED => fact.set_incarnation(sk.incarnation::<Typed>()),
            CLOSE => describe_end(sk, old, fact),
            _ => {}
        }
    });
}

/// Sets the fields by which the agent finds out why a socket went to CLOSE.
#[inline(always)]
fn describe_end(sk: Sock, old: i32, fact: &mut Fact) {
    fact.set_errno(field::<Typed, i32>(sk.address, layout!(sk_err)));
    if bits::<Typed>(sk.address, layout!(sk_shutdown)) & 3 == 3 {
        fact.event |= closed::SHUTDOWN_BOTH;
    }
    // This load is not typed because of what `seq_of` says.
    if field::<Probed, *const u8>(sk.address, layout!(sk_socket)).is_null() {
        fact.event |= closed::ORPHAN;
    }
    if old == TcpState::FinWait2 as i32 || old == TcpState::Closing as i32 {
        // This field of tcp_sock lies beyond the end of `struct sock`, where no typed load reaches it.
        if field::<Probed, i32>(sk.address, layout!(tcp_linger2)) < 0 {
            fact.event |= closed::LINGER2_NEGATIVE;
        }
        if sk.are_time_waits_full() {
            fact.event |= closed::TIME_WAITS_FULL;
        }
    }
}

#[inline(always)]
fn destroys<C: ProgramCopy>(ctx: &BtfTracePointContext) {
    let sk = Sock::at(ctx.arg::<*const u8>(0));
    if sk.num::<Typed>() != 0
        && sk.is_tcp::<Typed>()
        && C::claim(Hook::DestroySock, [sk.address as u64, 0])
    {
        emit::fact::<Typed>(C::counter_slot(Hook::DestroySock), FactKind::Destroyed, sk, |fact| {
            identify(sk, 0, fact);
        });
    }
}

/// Sets the cookie, the state and the userlocks.
#[inline(always)]
fn identify(sk: Sock, state: i32, fact: &mut Fact) {
    fact.cookie = sk.cookie();
    fact.event = state as u8 & STATE_MASK;
    fact.socket |= sk.userlocks::<Typed>() & socket::USERLOCKS;
}
