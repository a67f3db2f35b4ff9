//! bind(): what was asked for, and what was given.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_socket_cookie,
    macros::{cgroup_sock, cgroup_sock_addr, fexit, map},
    maps::Array,
    programs::{FExitContext, SockAddrContext, SockContext},
};
use tracer_ebpf::{Address, Fact, FactKind, Hook, flags, mapped};

use crate::{
    emit,
    kernel::{Common, Copied, Memory, Probed, Sock, Typed, field, layout},
    twice::{Copy, One, Other},
    unpreempted,
};

/// For each place, the socket whose bind() came by last: its cookie, doubled, and one more if it
/// asked for port 0. Cookies follow one another, so that two sockets in one place at a time are
/// rare: the agent then takes the bind() for an explicit one until `sk_userlocks`, which later
/// facts carry, says otherwise.
#[map]
static BINDS: Array<u64> = Array::with_max_entries(BIND_PLACES, 0);

const BIND_PLACES: u32 = 4096;

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

/// The end of an IPv4 bind() (`inet_bind`, net/ipv4/af_inet.c), which returns 0 or -errno.
#[fexit(function = "inet_bind")]
fn bind4_exit(ctx: FExitContext) -> i32 {
    unpreempted::function(|| bind_returned::<One>(&ctx, Hook::Bind4Exit))
}

/// The same once more; see [`twice`](crate::twice).
#[fexit(function = "inet_bind")]
fn bind4_exit_again(ctx: FExitContext) -> i32 {
    unpreempted::function(|| bind_returned::<Other>(&ctx, Hook::Bind4Exit))
}

/// The end of an IPv6 bind() (`inet6_bind`, net/ipv6/af_inet6.c).
#[fexit(function = "inet6_bind")]
fn bind6_exit(ctx: FExitContext) -> i32 {
    unpreempted::function(|| bind_returned::<One>(&ctx, Hook::Bind6Exit))
}

/// The same once more.
#[fexit(function = "inet6_bind")]
fn bind6_exit_again(ctx: FExitContext) -> i32 {
    unpreempted::function(|| bind_returned::<Other>(&ctx, Hook::Bind6Exit))
}

/// Writes that bind() failed in the current process. `M` reads the socket, `A` the address that
/// was asked for.
#[inline(always)]
pub fn failed<M: Memory, A: Memory>(slot: u32, sk: Sock, errno: i32, address: *const u8) {
    emit::owned_fact::<M>(slot, FactKind::BindFailed, sk, |fact| {
        fact.cookie = sk.existing_cookie::<M>();
        fact.detail = errno;
        if fact.local_port == 0 {
            fact.flags |= flags::NO_PORT;
        }
        requested::<A>(address, fact);
    });
}

/// Replaces the local address and port by the requested ones: after a failure the kernel has
/// already cleared what it had stored.
#[inline(always)]
fn requested<A: Memory>(address: *const u8, fact: &mut Fact) {
    const AF_INET6: u16 = 10;
    // struct sockaddr_in: family, port, address.
    let family = field::<A, u16>(address, 0);
    fact.local_port = u16::from_be(field::<A, u16>(address, 2));
    if family == AF_INET6 {
        // struct sockaddr_in6: family, port, flow information, address.
        fact.flags |= flags::IPV6;
        fact.local_addr = field::<A, Address>(address, 8);
    } else {
        fact.local_addr = mapped(field::<A, u32>(address, 4));
    }
}

#[inline(always)]
fn bind_returned<C: Copy>(ctx: &FExitContext, hook: Hook) {
    // int inet_bind(struct socket *sock, struct sockaddr *uaddr, int addr_len): the result stands
    // behind the arguments.
    let result: i32 = ctx.arg(3);
    if result < 0 {
        let socket: *const u8 = ctx.arg(0);
        let sk = Sock::at(field::<Typed, *const u8>(socket, layout!(socket_sk)));
        if sk.is_tcp::<Typed>() && C::handles_failure() {
            failed::<Typed, Probed>(C::slot(hook), sk, -result, ctx.arg(1));
        }
    }
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
    if let Some(place) = BINDS.get_ptr_mut(cookie as u32 % BIND_PLACES) {
        // SAFETY: the place is that of the map; whoever else writes a word to it writes it whole.
        unsafe { place.write_volatile(note_of(cookie, port == 0)) };
    }
    ALLOW
}

#[inline(always)]
fn note_of(cookie: u64, is_for_any_port: bool) -> u64 {
    cookie << 1 | u64::from(is_for_any_port)
}

#[inline(always)]
fn after_bind(ctx: &SockContext, hook: Hook) -> i32 {
    // SAFETY: part of the context's user API.
    if unsafe { (*ctx.sock).protocol } != IPPROTO_TCP {
        return ALLOW;
    }
    // SAFETY: the helper takes this program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let note = BINDS.get(cookie as u32 % BIND_PLACES);
    let auto = note.is_some_and(|note| *note == note_of(cookie, true));
    // The kernel runs these programs with the socket itself as the context
    // (__cgroup_bpf_run_filter_sk, kernel/bpf/cgroup.c), so probed reads reach the fields that
    // `struct bpf_sock` does not have, the namespace above all.
    let mut common = Common::uninit();
    let sk = Sock::copied(ctx.as_ptr().cast_const().cast(), &mut common);
    unpreempted::in_cgroup(|| {
        emit::owned_fact::<Copied>(hook as u32, FactKind::Bound, sk, |fact| {
            fact.cookie = cookie;
            fact.detail = sk.incarnation::<Copied>();
            if auto {
                fact.flags |= flags::ANY_PORT;
            }
        });
    });
    ALLOW
}
