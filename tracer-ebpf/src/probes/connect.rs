//! The port that connect() or listen() chose: `sockops` at the root of the cgroup v2 hierarchy.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TCP_LISTEN_CB,
    },
    helpers::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock},
    macros::sock_ops,
    programs::SockOpsContext,
};
use tracer_ebpf::{FactKind, Hook, socket};

use crate::{
    emit,
    kernel::{COOKIE_HELPER, Sock, Typed},
    non_preemptible,
};

/// `tcp_connect` (net/ipv4/tcp_output.c) runs this program when the port is held and the SYN is not
/// yet sent, `__inet_listen_sk` (net/ipv4/af_inet.c) when listen() has succeeded.
#[sock_ops]
fn sock_ops(ctx: SockOpsContext) -> u32 {
    const ALLOW: u32 = 1;
    let kind = match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => FactKind::PortChosen,
        BPF_SOCK_OPS_TCP_LISTEN_CB => FactKind::Listening,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if COOKIE_HELPER.load() == 0 => {
            // Assigns the cookie of a new connection just before it becomes ESTABLISHED
            // (tcp_rcv_state_process, net/ipv4/tcp_input.c).
            // SAFETY: the helper takes this program's context.
            unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
            return ALLOW;
        }
        _ => return ALLOW,
    };
    // SAFETY: the field is part of the context's user API since 5.3; the verifier checks it.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return ALLOW;
    }
    // SAFETY: `socket` is the socket of the context, which the helper takes.
    let sk = unsafe { bpf_skc_to_tcp_sock(socket.cast()) } as *const u8;
    if sk.is_null() {
        return ALLOW;
    }
    let sk = Sock::at(sk);
    non_preemptible::cgroup(|| {
        emit::fact::<Typed>(Hook::SockOps as u32, kind, sk, |fact| {
            // SAFETY: the helper takes this program's context.
            fact.cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
            fact.set_incarnation(sk.incarnation::<Typed>());
            fact.socket |= sk.userlocks::<Typed>() & socket::USERLOCKS;
        });
    });
    ALLOW
}
