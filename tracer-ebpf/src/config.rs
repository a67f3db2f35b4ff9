//! Configuration that the agent passes to the programs at load: the offsets of kernel fields.

use zerocopy::{Immutable, IntoBytes};

/// The offset of a field that the running kernel does not have.
///
/// Only optional fields may be absent; a program is not loaded if a field that it needs is missing.
pub const ABSENT: u32 = u32::MAX;

/// Number of network namespaces by which the programs can filter. With more than that they report
/// all, and the agent filters.
pub const MAX_NETNS_WANTED: usize = 4;

/// Number of bytes from the start of a socket that are copied at once where typed loads are not
/// possible. They contain every field of `struct sock_common` that is read.
pub const COMMON_BYTES: u32 = 136;

/// A bitfield within one byte: `(byte at offset >> shift) & mask`.
///
/// A whole byte has `shift = 0` and `mask = 0xff`. None of the fields that portlife reads crosses a
/// byte boundary.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Immutable, IntoBytes)]
pub struct BitField {
    /// Byte offset from the start of the structure.
    pub offset: u32,
    /// Number of low bits to shift out.
    pub shift: u32,
    /// Mask applied after the shift.
    pub mask: u32,
}

/// Byte offsets of kernel fields, resolved from BTF at load.
///
/// Each field is named `structure_member`; anonymous unions and structures are looked through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Immutable, IntoBytes)]
pub struct Layout {
    /// `sock.__sk_common.skc_family` (also at the same place in a timewait socket).
    pub sk_family: u32,
    /// `sock.__sk_common.skc_state`.
    pub sk_state: u32,
    /// `sock.__sk_common.skc_num`: the held port, host byte order; 0 if none is held.
    pub sk_num: u32,
    /// `sock.__sk_common.skc_dport`, network byte order.
    pub sk_dport: u32,
    /// `sock.__sk_common.skc_rcv_saddr`.
    pub sk_rcv_saddr: u32,
    /// `sock.__sk_common.skc_daddr`.
    pub sk_daddr: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`.
    pub sk_v6_rcv_saddr: u32,
    /// `sock.__sk_common.skc_v6_daddr`.
    pub sk_v6_daddr: u32,
    /// `sock.__sk_common.skc_net.net`.
    pub sk_net: u32,
    /// `sock.__sk_common.skc_cookie`.
    pub sk_cookie: u32,
    /// `sock.sk_protocol`, 16 bits since 5.6.
    pub sk_protocol: u32,
    /// `sock.sk_err`.
    pub sk_err: u32,
    /// `sock.sk_shutdown`.
    pub sk_shutdown: BitField,
    /// `sock.sk_userlocks`: four bits up to 6.1, a byte since 6.12.
    pub sk_userlocks: BitField,
    /// `sock.__sk_common.skc_ipv6only`.
    pub sk_ipv6only: BitField,
    /// `sock.sk_socket`: null for a connection that was not accepted yet and for an orphan.
    pub sk_socket: u32,
    /// `tcp_sock.linger2`.
    pub tcp_linger2: u32,
    /// `tcp_sock.inet_conn.icsk_inet.local_port_range`, or absent: a word with the lower end in its
    /// lower half and the upper end in its upper half.
    pub tcp_local_port_range: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// The reference count that is 0 once a namespace is being torn down: `net.ns.__ns_ref`
    /// (6.18), `net.ns.count` (5.11 to 6.17) or `net.count` (5.10).
    pub net_refs: u32,
    /// `net.net_cookie`: 64 bits, unique until reboot (assigned at creation since 5.12).
    pub net_cookie: u32,
    /// `net.ipv4.tcp_death_row`.
    pub net_death_row: u32,
    /// Non-zero if `net_death_row` is the offset of a pointer and not of the structure itself.
    pub net_death_row_is_pointer: u32,
    /// `inet_timewait_death_row.tw_refcount` (since 5.17), which is one more than the number of
    /// TIME_WAITs, or `tw_count` before.
    pub death_row_count: u32,
    /// The number to subtract from that count to get the number of TIME_WAITs.
    pub death_row_bias: u32,
    /// `inet_timewait_death_row.sysctl_max_tw_buckets`.
    pub death_row_max: u32,
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.network_header`, 16 bits: an offset from `skb_head`.
    pub skb_network_header: u32,
    /// `sk_buff.transport_header`, 16 bits: an offset from `skb_head`.
    pub skb_transport_header: u32,
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `net_device.nd_net.net`.
    pub dev_net: u32,
    /// `timer_list.function`.
    pub timer_function: u32,
    /// `timer_list.expires`.
    pub timer_expires: u32,
    /// `inet_timewait_sock.tw_timer`.
    pub tw_timer: u32,
    /// `inet_timewait_sock.tw_substate`.
    pub tw_substate: u32,
    /// `tcp_timewait_sock.tw_ts_recent_stamp`, of which the low 32 bits are read.
    pub tw_ts_recent_stamp: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.group_leader`.
    pub task_group_leader: u32,
    /// `task_struct.comm`.
    pub task_comm: u32,
    /// `task_struct.cred`.
    pub task_cred: u32,
    /// `task_struct.files`.
    pub task_files: u32,
    /// `task_struct.cgroups`.
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`.
    pub css_set_dfl_cgrp: u32,
    /// `cgroup.kn`.
    pub cgroup_kn: u32,
    /// `kernfs_node.id`.
    pub kernfs_id: u32,
    /// `cred.uid`.
    pub cred_uid: u32,
    /// `files_struct.fdt`.
    pub files_fdt: u32,
    /// `fdtable.fd`.
    pub fdtable_fd: u32,
    /// `fdtable.max_fds`.
    pub fdtable_max_fds: u32,
    /// `file.private_data`.
    pub file_private_data: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `inode.i_sb`.
    pub inode_sb: u32,
    /// `inode.i_ino`.
    pub inode_ino: u32,
    /// `super_block.s_magic`.
    pub sb_magic: u32,
    /// `socket.sk`.
    pub socket_sk: u32,
    /// The member of `pt_regs` with the number of the system call.
    pub regs_nr: u32,
    /// The member of `pt_regs` that still has the first argument when the system call returns.
    pub regs_arg0: u32,
    /// The member of `pt_regs` with the second argument.
    pub regs_arg1: u32,
}
