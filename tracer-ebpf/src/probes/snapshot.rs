//! What was there before us: every socket that a process holds, in all network namespaces.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_seq_write, bpf_sock_from_file},
    macros::map,
    maps::Array,
};
use tracer_ebpf::{Fact, FactKind, OwnedFact, Owner, flags};

use crate::kernel::{Probed, Sock, Typed, field, is_port_wanted, layout, now_ns, seq_of, set_comm};

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c): the context, part of the iterator's API.
#[repr(C)]
struct TaskFile {
    meta: *const *mut c_void,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

/// Magic number of the filesystem of namespace files (`NSFS_MAGIC`, include/uapi/linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

#[map]
static LAST_NETNS: Array<u32> = Array::with_max_entries(1, 0);

/// Called for every open file of every process.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
fn task_file(ctx: *const TaskFile) -> i32 {
    // SAFETY: the kernel calls the program with this context; the verifier checks each load.
    let (seq, task, fd, file) =
        unsafe { (seq_of((*ctx).meta), (*ctx).task, (*ctx).fd, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: `file` is the file of the context.
    let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) } as *const u8;
    if socket.is_null() {
        let inode = field::<Typed, *const u8>(file, layout!(file_inode));
        let sb = field::<Typed, *const u8>(inode, layout!(inode_sb));
        if field::<Typed, u64>(sb, layout!(sb_magic)) == NSFS_MAGIC {
            show(seq, task, fd, |fact| {
                fact.kind = FactKind::NamespaceFile as u8;
                fact.time_ns = now_ns();
                fact.netns = field::<Typed, u64>(inode, layout!(inode_ino)) as u32;
            });
        }
        return 0;
    }
    let sk = Sock::at(field::<Typed, *const u8>(socket, layout!(socket_sk)));
    if sk.address.is_null() {
        return 0;
    }
    // See `seq_of` for why these loads are not typed.
    let port = sk.num::<Probed>();
    // A socket without a port holds nothing. A new one gets its cookie when it binds.
    if port != 0 && sk.is_tcp::<Probed>() && (is_port_wanted(port) || is_elsewhere(sk)) {
        show(seq, task, fd, |fact| {
            sk.describe::<Probed>(fact);
            fact.kind = FactKind::Held as u8;
            fact.cookie = sk.cookie();
            fact.state = field::<Probed, u8>(sk.address, layout!(sk_state));
            fact.userlocks = sk.userlocks::<Probed>();
        });
    }
    0
}

/// Writes a record of a file that this task has open.
#[inline(always)]
fn show(seq: *mut c_void, task: *const u8, fd: u32, fill: impl FnOnce(&mut Fact)) {
    let mut record = OwnedFact {
        fact: Fact {
            time_ns: 0,
            cookie: 0,
            local_addr: [0; 4],
            peer_addr: [0; 4],
            netns: 0,
            local_port: 0,
            peer_port: 0,
            detail: 0,
            kind: 0,
            flags: flags::OWNER,
            state: 0,
            userlocks: 0,
        },
        owner: Owner { pid: 0, uid: 0, cgroup_id: 0, comm: [0; 16] },
    };
    fill(&mut record.fact);
    record.fact.detail = fd as i32;
    describe_task(task, &mut record.owner);
    // SAFETY: the seq_file is the iterator's; the record is on the stack.
    unsafe {
        bpf_seq_write(seq.cast(), (&raw mut record).cast(), size_of::<OwnedFact>() as u32);
    }
}

/// True if the socket is in another namespace than the last for which this was asked: a namespace
/// without processes is found by any of its sockets.
#[inline(always)]
fn is_elsewhere(sk: Sock) -> bool {
    let Some(last) = LAST_NETNS.get_ptr_mut(0) else {
        return true;
    };
    let netns = sk.netns::<Probed>();
    // SAFETY: the element stays in place; lists that are read at the same time only show more.
    unsafe {
        let is_elsewhere = *last != netns;
        *last = netns;
        is_elsewhere
    }
}

#[inline(always)]
fn describe_task(task: *const u8, owner: &mut Owner) {
    let leader = field::<Probed, *const u8>(task, layout!(task_group_leader));
    let cred = field::<Probed, *const u8>(task, layout!(task_cred));
    let css_set = field::<Probed, *const u8>(task, layout!(task_cgroups));
    let cgroup = field::<Probed, *const u8>(css_set, layout!(css_set_dfl_cgrp));
    let node = field::<Probed, *const u8>(cgroup, layout!(cgroup_kn));
    owner.pid = field::<Probed, u32>(task, layout!(task_tgid));
    owner.uid = field::<Probed, u32>(cred, layout!(cred_uid));
    owner.cgroup_id = field::<Probed, u64>(node, layout!(kernfs_id));
    set_comm(owner, field::<Probed, [u64; 2]>(leader, layout!(task_comm)));
}
