//! Resolves the fields that the programs read, and what the kernel can do, from the running
//! kernel's BTF.
//!
//! Fields come in groups, by the hooks that need them. A missing field costs the hooks of its
//! group, not the tracer.

use tracer_ebpf::{ABSENT, COMMON_BYTES, HolderLayout, Layout};

use crate::kernel::types::{
    bind_buckets::{self, BucketFeatures},
    btf::{Btf, BtfError, Struct},
    fields::{bitfield, pointed, scalar},
    kfuncs::Kfuncs,
};

/// What the kernel's types say.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The offsets of the groups that were found; the others are [`ABSENT`] or 0.
    pub(crate) layout: Layout,
    /// Sockets and network namespaces, without which nothing can be traced.
    pub(crate) sock: Result<(), BtfError>,
    pub(crate) groups: FieldGroups,
    /// Bind buckets and their owners.
    pub(crate) bind_buckets: Result<(HolderLayout, BucketFeatures), BtfError>,
    /// The kernel functions that keep a program from being preempted.
    pub(crate) kfuncs: Kfuncs,
    pub(crate) features: KernelFeatures,
}

/// For each further group of fields, whether all of them were found, or the first that was not.
#[derive(Debug)]
pub(crate) struct FieldGroups {
    /// Timers and TIME_WAIT sockets.
    pub(crate) time_wait: Result<(), BtfError>,
    /// The current task, which names the owner.
    pub(crate) task: Result<(), BtfError>,
    /// File descriptors and their sockets.
    pub(crate) files: Result<(), BtfError>,
    /// The registers of a system call.
    pub(crate) syscall: Result<(), BtfError>,
    /// A segment that is answered by a reset.
    pub(crate) segment: Result<(), BtfError>,
}

/// Differences between kernels that their types show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelFeatures {
    /// Tracing programs may ask for a socket's cookie (5.12).
    pub(crate) has_cookie_helper: bool,
    /// Sockets whose port connect() chose are marked (`SOCK_CONNECT_BIND`, 6.18 and where it was
    /// backported).
    pub(crate) marks_connect: bool,
    /// Programs at tracepoints can be preempted, because they run under SRCU (7.0).
    pub(crate) has_preemptible_tracepoints: bool,
    /// The number of parameters of `inet_csk_accept`: a program at its return finds the result
    /// behind them. `None` if this kernel has no such function.
    pub(crate) accept_parameters: Option<u32>,
}

/// Looks up every field.
pub(crate) fn resolve(btf: &Btf) -> Resolved {
    let mut layout = Layout::default();
    let sock = resolve_sock(btf, &mut layout);
    let groups = FieldGroups {
        time_wait: resolve_time_wait(btf, &mut layout),
        task: resolve_task(btf, &mut layout),
        files: resolve_files(btf, &mut layout),
        syscall: resolve_syscall(btf, &mut layout),
        segment: resolve_segment(btf, &mut layout),
    };
    Resolved {
        layout,
        sock,
        groups,
        bind_buckets: bind_buckets::resolve(btf),
        kfuncs: Kfuncs::of(btf),
        features: features_of(btf),
    }
}

fn features_of(btf: &Btf) -> KernelFeatures {
    KernelFeatures {
        has_cookie_helper: btf.has_function("bpf_get_socket_ptr_cookie"),
        // The flag itself has no type. The bit that passes it on to the TIME_WAIT came with it.
        marks_connect: btf
            .function_parameter("inet_twsk_put", 0)
            .is_ok_and(|tw| tw.field("tw_connect_bind").is_ok()),
        // The guard of `__DO_TRACE_CALL` (include/linux/tracepoint.h).
        has_preemptible_tracepoints: btf.has_typedef("class_srcu_fast_notrace_t"),
        accept_parameters: btf.function_parameters("inet_csk_accept").ok(),
    }
}

fn resolve_sock(btf: &Btf, layout: &mut Layout) -> Result<(), BtfError> {
    let sock = btf.tracepoint_argument("inet_sock_set_state", 0)?;
    layout.sk_family = scalar(&sock, "__sk_common.skc_family", 16)?;
    layout.sk_state = scalar(&sock, "__sk_common.skc_state", 8)?;
    layout.sk_num = scalar(&sock, "__sk_common.skc_num", 16)?;
    layout.sk_dport = scalar(&sock, "__sk_common.skc_dport", 16)?;
    layout.sk_rcv_saddr = scalar(&sock, "__sk_common.skc_rcv_saddr", 32)?;
    layout.sk_daddr = scalar(&sock, "__sk_common.skc_daddr", 32)?;
    layout.sk_v6_rcv_saddr = scalar(&sock, "__sk_common.skc_v6_rcv_saddr", 128)?;
    layout.sk_v6_daddr = scalar(&sock, "__sk_common.skc_v6_daddr", 128)?;
    layout.sk_cookie = scalar(&sock, "__sk_common.skc_cookie", 64)?;
    layout.sk_protocol = scalar(&sock, "sk_protocol", 16)?;
    layout.sk_err = scalar(&sock, "sk_err", 32)?;
    layout.sk_shutdown = bitfield(&sock, "sk_shutdown")?;
    layout.sk_userlocks = bitfield(&sock, "sk_userlocks")?;
    let net = sock.field("__sk_common.skc_net.net")?;
    layout.sk_net = net.offset();
    let net = pointed(&sock, net, "__sk_common.skc_net.net")?;
    layout.net_inum = scalar(&net, "ns.inum", 32)?;
    layout.net_refs = ["ns.__ns_ref", "ns.count", "count"]
        .into_iter()
        .find_map(|name| scalar(&net, name, 32).ok())
        .unwrap_or(ABSENT);
    layout.net_cookie = scalar(&net, "net_cookie", 64).unwrap_or(ABSENT);
    layout.sk_ipv6only = bitfield(&sock, "__sk_common.skc_ipv6only")?;
    check_common(&sock, layout)?;
    layout.sk_socket = sock.field("sk_socket")?.offset();
    if resolve_death_row(&net, layout).is_err() {
        layout.net_death_row = ABSENT;
    }
    let tcp_sock = btf.function_parameter("tcp_mstamp_refresh", 0)?;
    layout.tcp_linger2 = scalar(&tcp_sock, "linger2", 32)?;
    layout.tcp_local_port_range = tcp_sock
        .field("inet_conn.icsk_inet.local_port_range")
        .map_or(ABSENT, |field| field.offset());
    Ok(())
}

/// The count of TIME_WAITs and its limit, which show why there is none where one was due.
fn resolve_death_row(net: &Struct<'_>, layout: &mut Layout) -> Result<(), BtfError> {
    let row = net.field("ipv4.tcp_death_row")?;
    layout.net_death_row = row.offset();
    layout.net_death_row_is_pointer = u32::from(row.bits() == usize::BITS);
    let row = pointed(net, row, "ipv4.tcp_death_row")?;
    match scalar(&row, "tw_refcount", 32) {
        Ok(offset) => (layout.death_row_count, layout.death_row_bias) = (offset, 1),
        Err(_) => layout.death_row_count = scalar(&row, "tw_count", 32)?,
    }
    layout.death_row_max = scalar(&row, "sysctl_max_tw_buckets", 32)?;
    Ok(())
}

/// The programs read the common part in one piece, which must include every field that they use.
fn check_common(sock: &Struct<'_>, layout: &Layout) -> Result<(), BtfError> {
    let ends = [
        layout.sk_family + 2,
        layout.sk_state + 1,
        layout.sk_num + 2,
        layout.sk_dport + 2,
        layout.sk_rcv_saddr + 4,
        layout.sk_daddr + 4,
        layout.sk_v6_rcv_saddr + 16,
        layout.sk_v6_daddr + 16,
        layout.sk_cookie + 8,
        layout.sk_net + 8,
        layout.sk_ipv6only.offset + 1,
    ];
    if ends.iter().any(|end| *end > COMMON_BYTES) {
        return Err(BtfError::NoField {
            container: sock.name(),
            field: format!("__sk_common within {COMMON_BYTES} bytes"),
        });
    }
    Ok(())
}

fn resolve_time_wait(btf: &Btf, layout: &mut Layout) -> Result<(), BtfError> {
    let timer = btf.tracepoint_argument("timer_start", 0)?;
    layout.timer_function = timer.field("function")?.offset();
    layout.timer_expires = scalar(&timer, "expires", usize::BITS)?;
    let tw = btf.function_parameter("inet_twsk_put", 0)?;
    layout.tw_timer = tw.field("tw_timer")?.offset();
    layout.tw_substate = scalar(&tw, "tw_substate", 8)?;
    // A long before 6.x; on a little-endian machine the programs read its low half.
    let tcp_tw = btf.structure("tcp_timewait_sock")?;
    layout.tw_ts_recent_stamp = tcp_tw.field("tw_ts_recent_stamp")?.offset();
    Ok(())
}

fn resolve_task(btf: &Btf, layout: &mut Layout) -> Result<(), BtfError> {
    let iterator = btf.structure("bpf_iter__task_file")?;
    let task = pointed(&iterator, iterator.field("task")?, "task")?;
    layout.task_tgid = scalar(&task, "tgid", 32)?;
    layout.task_group_leader = task.field("group_leader")?.offset();
    layout.task_comm = task.field("comm")?.offset();
    let cred = task.field("cred")?;
    layout.task_cred = cred.offset();
    layout.cred_uid = scalar(&pointed(&task, cred, "cred")?, "uid", 32)?;
    let css_set = task.field("cgroups")?;
    layout.task_cgroups = css_set.offset();
    let css_set = pointed(&task, css_set, "cgroups")?;
    let cgroup = css_set.field("dfl_cgrp")?;
    layout.css_set_dfl_cgrp = cgroup.offset();
    let cgroup = pointed(&css_set, cgroup, "dfl_cgrp")?;
    let node = cgroup.field("kn")?;
    layout.cgroup_kn = node.offset();
    layout.kernfs_id = scalar(&pointed(&cgroup, node, "kn")?, "id", 64)?;
    Ok(())
}

fn resolve_files(btf: &Btf, layout: &mut Layout) -> Result<(), BtfError> {
    let iterator = btf.structure("bpf_iter__task_file")?;
    let task = pointed(&iterator, iterator.field("task")?, "task")?;
    let files = task.field("files")?;
    layout.task_files = files.offset();
    let files = pointed(&task, files, "files")?;
    let table = files.field("fdt")?;
    layout.files_fdt = table.offset();
    let table = pointed(&files, table, "fdt")?;
    layout.fdtable_fd = table.field("fd")?.offset();
    layout.fdtable_max_fds = scalar(&table, "max_fds", 32)?;
    let file = pointed(&iterator, iterator.field("file")?, "file")?;
    layout.file_private_data = file.field("private_data")?.offset();
    let inode = file.field("f_inode")?;
    layout.file_inode = inode.offset();
    let inode = pointed(&file, inode, "f_inode")?;
    layout.inode_ino = scalar(&inode, "i_ino", 64)?;
    let sb = inode.field("i_sb")?;
    layout.inode_sb = sb.offset();
    layout.sb_magic = scalar(&pointed(&inode, sb, "i_sb")?, "s_magic", usize::BITS)?;
    let socket = btf.function_result("sock_from_file")?;
    layout.socket_sk = socket.field("sk")?.offset();
    Ok(())
}

fn resolve_segment(btf: &Btf, layout: &mut Layout) -> Result<(), BtfError> {
    // Since it has a reason for its third argument, the tracepoint fires without a socket, too
    // (6.10).
    if btf.tracepoint_arguments("tcp_send_reset")? < 3 {
        return Err(BtfError::NoType("tcp_send_reset with a reason".to_owned()));
    }
    let skb = btf.tracepoint_argument("tcp_send_reset", 1)?;
    layout.skb_head = skb.field("head")?.offset();
    layout.skb_network_header = scalar(&skb, "network_header", 16)?;
    layout.skb_transport_header = scalar(&skb, "transport_header", 16)?;
    let dev = skb.field("dev")?;
    layout.skb_dev = dev.offset();
    layout.dev_net = pointed(&skb, dev, "dev")?.field("nd_net.net")?.offset();
    Ok(())
}

fn resolve_syscall(btf: &Btf, layout: &mut Layout) -> Result<(), BtfError> {
    let regs = btf.tracepoint_argument("sys_exit", 0)?;
    #[cfg(target_arch = "x86_64")]
    {
        layout.regs_nr = scalar(&regs, "orig_ax", 64)?;
        layout.regs_arg0 = scalar(&regs, "di", 64)?;
        layout.regs_arg1 = scalar(&regs, "si", 64)?;
    }
    #[cfg(target_arch = "aarch64")]
    {
        // The first argument's register holds the result by now; the kernel keeps the original.
        layout.regs_nr = scalar(&regs, "syscallno", 32)?;
        layout.regs_arg0 = scalar(&regs, "orig_x0", 64)?;
        layout.regs_arg1 = regs.field("regs")?.offset() + 8;
    }
    Ok(())
}
