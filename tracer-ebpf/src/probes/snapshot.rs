//! The snapshot of open files: every socket that a process has open, in all network namespaces.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_seq_write, bpf_sock_from_file},
    macros::map,
    maps::Array,
};
use tracer_ebpf::{Fact, FactKind, IPPROTO_TCP, OwnedFact, Owner, STATE_MASK, socket};

use crate::kernel::{Probed, Sock, Typed, field, is_port_wanted, layout, now_ns, seq_of, set_comm};

/// The context, `struct bpf_iter__task_file` (kernel/bpf/task_iter.c), which is part of the iterator's
/// API.
#[repr(C)]
struct TaskFile {
    meta: *const *mut c_void,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

/// The magic number of the filesystem of namespace files (`NSFS_MAGIC`, include/uapi/linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The namespace for which [`is_elsewhere`] was called last.
#[map]
static LAST_NETNS: Array<u32> = Array::with_max_entries(1, 0);

/// The kernel calls this for every open file of every process.
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
            write(seq, task, fd, |fact| {
                fact.kind = FactKind::NamespaceFile as u8;
                fact.protocol = IPPROTO_TCP;
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
    // These loads are not typed because of what `seq_of` says.
    let port = sk.num::<Probed>();
    // A socket without a port holds nothing; it is assigned its cookie when it gets one.
    if port != 0 && sk.is_tcp::<Probed>() && (is_port_wanted(port) || is_elsewhere(sk)) {
        write(seq, task, fd, |fact| {
            sk.describe::<Probed>(fact);
            fact.kind = FactKind::Held as u8;
            fact.protocol = IPPROTO_TCP;
            fact.cookie = sk.cookie();
            fact.event = field::<Probed, u8>(sk.address, layout!(sk_state)) & STATE_MASK;
            fact.socket |= sk.userlocks::<Probed>() & socket::USERLOCKS;
        });
    }
    0
}

/// Writes a record about a file that this task has open.
#[inline(always)]
fn write(seq: *mut c_void, task: *const u8, fd: u32, fill: impl FnOnce(&mut Fact)) {
    let mut record = OwnedFact {
        fact: Fact::ZERO,
        owner: Owner { pid: 0, uid: 0, cgroup_id: 0, comm: [0; 16] },
    };
    fill(&mut record.fact);
    record.fact.set_fd(fd);
    describe_task(task, &mut record.owner);
    // SAFETY: `seq` is the iterator's file, and the record is on the stack.
    unsafe {
        bpf_seq_write(seq.cast(), (&raw mut record).cast(), size_of::<OwnedFact>() as u32);
    }
}

/// True if the socket is in another namespace than the one before. At least one socket of every
/// namespace is thus listed whatever its port, by which the agent finds namespaces without
/// processes.
#[inline(always)]
fn is_elsewhere(sk: Sock) -> bool {
    let Some(last) = LAST_NETNS.get_ptr_mut(0) else {
        return true;
    };
    let netns = sk.netns::<Probed>();
    // SAFETY: an element of an array is never freed. Snapshots that are read at the same time make
    // each other list more sockets, which does no harm.
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
