//! bind(): what was requested, and the result.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_socket_cookie,
    macros::{cgroup_sock, cgroup_sock_addr, fexit, map},
    maps::Array,
    programs::{FExitContext, SockAddrContext, SockContext},
};
use tracer_ebpf::{Address, Fact, FactKind, Hook, IPPROTO_TCP, bind_failed, bound, mapped, socket};

use crate::{
    emit,
    kernel::{Common, Copied, Memory, Probed, Sock, Typed, field, layout},
    non_preemptible,
    recursion::{Backup, Primary, ProgramCopy, Unordered},
};

/// The bind()s under way, in the slot of their socket's cookie: see [`bind_note`]. Cookies are
/// consecutive, so two sockets share a slot only if one of them is preempted during its bind() while
/// others make tens of thousands. Then the agent takes the bind() for one that asked for its port,
/// until the userlocks of a later fact say otherwise. 256 KB.
#[map]
static BINDS: Array<u64> = Array::with_max_entries(BIND_SLOTS, 0);

const BIND_SLOTS: u32 = 1 << 15;

const ALLOW: i32 = 1;

/// The creation of a socket, which assigns its cookie. Loaded only where tracing programs cannot do
/// that (before 5.12).
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

/// The exit of an IPv4 bind() (`inet_bind`, net/ipv4/af_inet.c), which returns 0 or -errno.
#[fexit(function = "inet_bind")]
fn bind4_exit(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| bind_returned::<Unordered<Primary>>(&ctx, Hook::Bind4Exit))
}

/// The backup; see [`recursion`](crate::recursion).
#[fexit(function = "inet_bind")]
fn bind4_exit_backup(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| bind_returned::<Unordered<Backup>>(&ctx, Hook::Bind4Exit))
}

/// The exit of an IPv6 bind() (`inet6_bind`, net/ipv6/af_inet6.c), which returns 0 or -errno.
#[fexit(function = "inet6_bind")]
fn bind6_exit(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| bind_returned::<Unordered<Primary>>(&ctx, Hook::Bind6Exit))
}

/// The backup.
#[fexit(function = "inet6_bind")]
fn bind6_exit_backup(ctx: FExitContext) -> i32 {
    non_preemptible::function(|| bind_returned::<Unordered<Backup>>(&ctx, Hook::Bind6Exit))
}

/// Reports that bind() failed in the current process. `M` reads the socket, `A` the requested
/// address.
#[inline(always)]
pub fn failed<M: Memory, A: Memory>(slot: u32, sk: Sock, errno: i32, address: *const u8) {
    emit::owned_fact::<M>(slot, FactKind::BindFailed, sk, |fact| {
        fact.cookie = sk.existing_cookie::<M>();
        fact.set_errno(errno);
        if fact.local_port == 0 {
            fact.event |= bind_failed::NO_PORT;
        }
        requested::<A>(address, fact);
    });
}

/// Replaces the local address and port by the requested ones. After a failure the kernel has already
/// cleared those of the socket.
#[inline(always)]
fn requested<A: Memory>(address: *const u8, fact: &mut Fact) {
    const AF_INET6: u16 = 10;
    // struct sockaddr_in: family, port, address.
    let family = field::<A, u16>(address, 0);
    fact.local_port = u16::from_be(field::<A, u16>(address, 2));
    if family == AF_INET6 {
        // struct sockaddr_in6: family, port, flow information, address.
        fact.socket |= socket::IPV6;
        fact.local_addr = field::<A, Address>(address, 8);
    } else {
        fact.local_addr = mapped(field::<A, u32>(address, 4));
    }
}

#[inline(always)]
fn bind_returned<C: ProgramCopy>(ctx: &FExitContext, hook: Hook) {
    // int inet_bind(struct socket *sock, struct sockaddr *uaddr, int addr_len): the result follows
    // the arguments.
    let result: i32 = ctx.arg(3);
    if result < 0 {
        let socket: *const u8 = ctx.arg(0);
        let sk = Sock::at(field::<Typed, *const u8>(socket, layout!(socket_sk)));
        if sk.is_tcp::<Typed>() && C::claim_failure() {
            failed::<Typed, Probed>(C::counter_slot(hook), sk, -result, ctx.arg(1));
        }
    }
}

#[inline(always)]
fn before_bind(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the fields are part of the context's user API; the verifier checks them.
    let (protocol, port) = unsafe { ((*ctx.sock_addr).protocol, (*ctx.sock_addr).user_port) };
    if protocol != u32::from(IPPROTO_TCP) {
        return ALLOW;
    }
    // Also assigns the cookie, with which a failed bind() is then reported.
    // SAFETY: the helper takes this program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if let Some(slot) = BINDS.get_ptr_mut(cookie as u32 % BIND_SLOTS) {
        // SAFETY: the pointer is a slot of the map, and every writer writes the whole word at once.
        unsafe { slot.write_volatile(bind_note(cookie, port == 0)) };
    }
    ALLOW
}

/// The cookie of the socket, shifted left, and whether bind() asked for port 0 in the lowest bit.
#[inline(always)]
fn bind_note(cookie: u64, is_for_any_port: bool) -> u64 {
    cookie << 1 | u64::from(is_for_any_port)
}

#[inline(always)]
fn after_bind(ctx: &SockContext, hook: Hook) -> i32 {
    // SAFETY: the field is part of the context's user API; the verifier checks it.
    if unsafe { (*ctx.sock).protocol } != u32::from(IPPROTO_TCP) {
        return ALLOW;
    }
    // SAFETY: the helper takes this program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let note = BINDS.get(cookie as u32 % BIND_SLOTS);
    let is_for_any_port = note.is_some_and(|note| *note == bind_note(cookie, true));
    // The kernel runs these programs with the socket itself as the context
    // (__cgroup_bpf_run_filter_sk, kernel/bpf/cgroup.c), so probed reads reach fields that
    // `struct bpf_sock` does not have, such as the namespace.
    let mut common = Common::uninit();
    let sk = Sock::copied(ctx.as_ptr().cast_const().cast(), &mut common);
    non_preemptible::cgroup(|| {
        emit::owned_fact::<Copied>(hook as u32, FactKind::Bound, sk, |fact| {
            fact.cookie = cookie;
            fact.set_incarnation(sk.incarnation::<Copied>());
            if is_for_any_port {
                fact.event |= bound::ANY_PORT;
            }
        });
    });
    ALLOW
}
