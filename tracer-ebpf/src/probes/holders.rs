//! The holders of ports with the state of their bind buckets: connected sockets, listeners and
//! TIME_WAITs of one namespace from `iter/tcp`, sockets that are bound but idle from
//! `iter/task_file`.

use core::{ffi::c_void, ptr::addr_of};

use aya_ebpf::{
    Global,
    helpers::{bpf_seq_write, bpf_sock_from_file},
};
use tracer_ebpf::{
    ABSENT, Fact, HolderLayout, HolderRecord, TcpState, holder_flags,
    socket::{self, CONNECT_BIND},
};

use crate::kernel::{Memory, Probed, Sock, Typed, bits, field, is_port_wanted, layout, seq_of};

/// The offsets of the running kernel.
#[unsafe(no_mangle)]
// SAFETY: a HolderLayout is made of integers only.
static HOLDER_LAYOUT: Global<HolderLayout> = Global::new(unsafe { core::mem::zeroed() });

macro_rules! holder_layout {
    ($field:ident) => {
        // SAFETY: as for `layout!`.
        unsafe {
            core::ptr::read_volatile(addr_of!(
                (*addr_of!(HOLDER_LAYOUT).cast::<HolderLayout>()).$field
            ))
        }
    };
}

/// The context, `struct bpf_iter__tcp` (net/ipv4/tcp_ipv4.c), which is part of the iterator's API.
#[repr(C)]
struct TcpContext {
    meta: *const *mut c_void,
    sk_common: *const u8,
    uid: u32,
}

/// The context, `struct bpf_iter__task_file` (kernel/bpf/task_iter.c).
#[repr(C)]
struct TaskFileContext {
    meta: *const *mut c_void,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

const TIME_WAIT: u8 = TcpState::TimeWait as u8;
const CLOSE: u8 = TcpState::Close as u8;
const NEW_SYN_RECV: u8 = TcpState::NewSynRecv as u8;

/// The kernel calls this for every listener, connection and TIME_WAIT in the namespace of the thread
/// that opened the iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
fn tcp_holders(ctx: *const TcpContext) -> i32 {
    // SAFETY: the kernel calls the program with this context; the verifier checks each load.
    let (seq, sk) = unsafe { (seq_of((*ctx).meta), (*ctx).sk_common) };
    if !sk.is_null() && is_port_wanted(Sock::at(sk).num::<Probed>()) {
        // This is one of three structures that have only the beginning in common, so no load is typed.
        let state = field::<Probed, u8>(sk, layout!(sk_state));
        if state == TIME_WAIT {
            write(seq, sk, state, time_wait);
        } else if state != NEW_SYN_RECV {
            write(seq, sk, state, full_socket);
        }
    }
    0
}

/// The kernel calls this for every open file of every process.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
fn idle_holders(ctx: *const TaskFileContext) -> i32 {
    // SAFETY: the kernel calls the program with this context; the verifier checks each load.
    let (seq, file) = unsafe { (seq_of((*ctx).meta), (*ctx).file) };
    if file.is_null() {
        return 0;
    }
    // SAFETY: `file` is the file of the context.
    let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) } as *const u8;
    if socket.is_null() {
        return 0;
    }
    let sk = field::<Typed, *const u8>(socket, layout!(socket_sk));
    if sk.is_null() {
        return 0;
    }
    let port = Sock::at(sk).num::<Typed>();
    if port != 0
        && is_port_wanted(port)
        && field::<Typed, u8>(sk, layout!(sk_state)) == CLOSE
        && Sock::at(sk).is_tcp::<Probed>()
    {
        write(seq, sk, CLOSE, full_socket);
    }
    0
}

fn full_socket(sk: *const u8, record: &mut HolderRecord) {
    record.userlocks = Sock::at(sk).userlocks::<Probed>();
    bucket(field::<Probed, *const u8>(sk, holder_layout!(sk_bind_hash)), record);
}

fn time_wait(tw: *const u8, record: &mut HolderRecord) {
    record.substate = field::<Probed, u8>(tw, layout!(tw_substate));
    record.ts_recent_stamp_s = field::<Probed, u32>(tw, layout!(tw_ts_recent_stamp));
    if holder_layout!(tw_entry_stamp) != ABSENT {
        record.entry_stamp_ms = field::<Probed, u32>(tw, holder_layout!(tw_entry_stamp));
    }
    if bits::<Probed>(tw, holder_layout!(tw_connect_bind)) != 0 {
        record.userlocks = CONNECT_BIND;
    }
    bucket(field::<Probed, *const u8>(tw, holder_layout!(tw_tb)), record);
}

#[inline(always)]
fn bucket(tb: *const u8, record: &mut HolderRecord) {
    if tb.is_null() {
        return;
    }
    record.flags |= holder_flags::BUCKET;
    record.fastreuse = field::<Probed, i8>(tb, holder_layout!(tb_fastreuse));
    record.fastreuseport = field::<Probed, i8>(tb, holder_layout!(tb_fastreuseport));
    record.l3mdev = field::<Probed, u32>(tb, holder_layout!(tb_l3mdev));
}

#[inline(always)]
fn write(
    seq: *mut c_void,
    sk: *const u8,
    state: u8,
    rest: impl FnOnce(*const u8, &mut HolderRecord),
) {
    let mut fact = Fact::ZERO;
    Sock::at(sk).describe::<Probed>(&mut fact);
    let mut record = HolderRecord {
        cookie: Sock::at(sk).existing_cookie::<Probed>(),
        local_addr: fact.local_addr,
        peer_addr: fact.peer_addr,
        netns: fact.netns,
        local_port: fact.local_port,
        peer_port: fact.peer_port,
        device: field::<Probed, u32>(sk, holder_layout!(sk_bound_dev_if)),
        l3mdev: 0,
        entry_stamp_ms: 0,
        ts_recent_stamp_s: 0,
        state,
        substate: 0,
        flags: option_flags::<Probed>(sk, fact.socket),
        fastreuse: 0,
        fastreuseport: 0,
        userlocks: 0,
        pad: [0; 2],
    };
    rest(sk, &mut record);
    // SAFETY: `seq` is the iterator's file, and the record is on the stack.
    unsafe {
        bpf_seq_write(seq.cast(), (&raw mut record).cast(), size_of::<HolderRecord>() as u32);
    }
}

#[inline(always)]
fn option_flags<M: Memory>(sk: *const u8, socket_bits: u8) -> u8 {
    let mut flags = 0;
    if socket_bits & socket::IPV6 != 0 {
        flags |= holder_flags::IPV6;
    }
    if socket_bits & socket::V6ONLY != 0 {
        flags |= holder_flags::V6ONLY;
    }
    if bits::<M>(sk, holder_layout!(sk_reuse)) != 0 {
        flags |= holder_flags::REUSEADDR;
    }
    if bits::<M>(sk, holder_layout!(sk_reuseport)) != 0 {
        flags |= holder_flags::REUSEPORT;
    }
    flags
}
