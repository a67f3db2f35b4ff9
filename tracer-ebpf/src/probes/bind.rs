//! bind(): what was asked for, and what was given.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_socket_cookie,
    macros::{cgroup_sock, cgroup_sock_addr, map},
    maps::LruHashMap,
    programs::{SockAddrContext, SockContext},
};
use tracer_ebpf::{FactKind, Hook, flags};

use crate::{
    emit,
    kernel::{Probed, Sock},
};

/// Sockets, by cookie, whose bind() asked for port 0 and is under way. A failed bind() leaves its
/// entry behind until the next one of that socket, or until it is the least recently used.
#[map]
static AUTOBINDS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(4096, 0);

const ALLOW: i32 = 1;
const IPPROTO_TCP: u32 = 6;

/// The creation of a socket. Loaded only where tracing programs cannot give a socket its cookie
/// (before 5.12): it gets one at birth.
#[cgroup_sock(sock_create)]
fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes this program's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    ALLOW
}

/// Before an IPv4 bind() (`inet_bind_sk`, net/ipv4/af_inet.c).
#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    before_bind(&ctx)
}

/// Before an IPv6 bind() (`inet6_bind_sk`, net/ipv6/af_inet6.c).
#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    before_bind(&ctx)
}

/// After an IPv4 bind() got its port (`__inet_bind`, net/ipv4/af_inet.c).
#[cgroup_sock(post_bind4)]
fn post_bind4(ctx: SockContext) -> i32 {
    after_bind(&ctx, Hook::PostBind4)
}

/// After an IPv6 bind() got its port (`__inet6_bind`, net/ipv6/af_inet6.c).
#[cgroup_sock(post_bind6)]
fn post_bind6(ctx: SockContext) -> i32 {
    after_bind(&ctx, Hook::PostBind6)
}

#[inline(always)]
fn before_bind(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the fields are part of the context's user API; the verifier checks them.
    let (protocol, port) = unsafe { ((*ctx.sock_addr).protocol, (*ctx.sock_addr).user_port) };
    if protocol != IPPROTO_TCP {
        return ALLOW;
    }
    // Also gives the socket its cookie, which a failed bind() is then reported with.
    // SAFETY: the helper takes this program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // If the map refuses, the agent takes the bind for an explicit one until sk_userlocks,
    // which later facts carry, says otherwise.
    let _ = if port == 0 { AUTOBINDS.insert(cookie, 1, 0) } else { AUTOBINDS.remove(cookie) };
    ALLOW
}

#[inline(always)]
fn after_bind(ctx: &SockContext, hook: Hook) -> i32 {
    // SAFETY: part of the context's user API.
    if unsafe { (*ctx.sock).protocol } != IPPROTO_TCP {
        return ALLOW;
    }
    // SAFETY: the helper takes this program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the value is a plain byte, copied out at once.
    let auto = unsafe { AUTOBINDS.get(cookie) }.is_some();
    if auto {
        let _ = AUTOBINDS.remove(cookie);
    }
    emit::owned_fact(hook as u32, FactKind::Bound, |fact| {
        // The kernel runs these programs with the socket itself as the context
        // (__cgroup_bpf_run_filter_sk, kernel/bpf/cgroup.c), so probed reads reach the fields
        // that `struct bpf_sock` does not have, the namespace above all.
        let sk = Sock(ctx.as_ptr().cast_const().cast());
        sk.describe::<Probed>(fact);
        fact.cookie = cookie;
        fact.detail = sk.incarnation::<Probed>();
        if auto {
            fact.flags |= flags::ANY_PORT;
        }
    });
    ALLOW
}
