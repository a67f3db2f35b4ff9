//! Reads kernel structures, at the offsets that the agent found in the kernel's BTF.
//!
//! The verifier knows the value of a frozen global, so it treats `base + offset` like a field access
//! of a C program, and rejects an offset that hits no member.

use core::{ffi::c_void, mem::MaybeUninit, ptr::read_volatile};

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_get_current_uid_gid, bpf_get_socket_cookie,
        generated::{bpf_probe_read_kernel, bpf_probe_read_user},
    },
};
use tracer_ebpf::{
    ABSENT, Address, BitField, COMMON_BYTES, Fact, IPPROTO_TCP, Layout, Owner, mapped, socket,
};

/// The offsets of the running kernel.
#[unsafe(no_mangle)]
// SAFETY: a Layout is made of integers only.
pub static LAYOUT: Global<Layout> = Global::new(unsafe { core::mem::zeroed() });

/// Non-zero if tracing programs may call `bpf_get_socket_cookie` (5.12). Otherwise the cgroup
/// programs assign every socket its cookie before a tracing program needs it.
#[unsafe(no_mangle)]
pub static COOKIE_HELPER: Global<u32> = Global::new(0);

/// The only port whose holders the iterators list; 0 for all ports.
#[unsafe(no_mangle)]
static PORT_WANTED: Global<u32> = Global::new(0);

/// True if the iterators are to list the holders of this port.
#[inline(always)]
pub fn is_port_wanted(port: u16) -> bool {
    let wanted = PORT_WANTED.load();
    wanted == 0 || wanted == u32::from(port)
}

/// Reads one field of [`LAYOUT`]. The verifier then sees a constant instead of a copied structure.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: Global is a transparent wrapper of initialised data. The volatile read keeps the
        // compiler from assuming the zeroes that the loader replaces.
        unsafe {
            ::core::ptr::read_volatile(::core::ptr::addr_of!(
                (*::core::ptr::addr_of!($crate::kernel::LAYOUT).cast::<::tracer_ebpf::Layout>())
                    .$field
            ))
        }
    };
}
pub(crate) use layout;

/// A way to read kernel or user memory through a pointer.
pub trait Memory {
    /// How the common part of a socket is read: see [`Sock::copied`].
    type Common: Memory;

    /// Reads a value; 0 if the memory cannot be read.
    fn read<T: Copy>(pointer: *const u8) -> T;
}

/// Plain loads through a pointer whose BTF type the verifier knows. A fault reads as 0.
pub struct Typed;

impl Memory for Typed {
    type Common = Self;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        // SAFETY: the verifier accepts this load only if it lies within a member of the pointer's BTF
        // type, and the kernel makes a fault read as 0.
        unsafe { read_volatile(pointer.cast::<T>()) }
    }
}

/// Reads with `bpf_probe_read_kernel`, through pointers without a BTF type.
pub struct Probed;

impl Memory for Probed {
    type Common = Self;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // The result is ignored, because every branch doubles the paths that the verifier follows.
        // SAFETY: the helper checks the address and writes zeroes if it cannot be read
        // (bpf_probe_read_kernel_common, kernel/trace/bpf_trace.c). All types that are read are
        // integers, pointers, or arrays of them, for which every bit pattern is valid.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, pointer.cast());
            value.assume_init()
        }
    }
}

/// Reads like [`Probed`], except for the common part of a socket, of which there is a copy.
pub struct Copied;

impl Memory for Copied {
    // The copy is on the stack, where plain loads are allowed.
    type Common = Typed;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        Probed::read(pointer)
    }
}

/// Reads with `bpf_probe_read_user`: memory of the current process.
pub struct User;

impl Memory for User {
    type Common = Self;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: as for `Probed` (bpf_probe_read_user_common, kernel/trace/bpf_trace.c).
        unsafe {
            bpf_probe_read_user(value.as_mut_ptr().cast(), size_of::<T>() as u32, pointer.cast());
            value.assume_init()
        }
    }
}

/// Reads the field at `offset` of a structure.
#[inline(always)]
pub fn field<M: Memory, T: Copy>(base: *const u8, offset: u32) -> T {
    M::read(base.wrapping_add(offset as usize))
}

/// Reads a bitfield of a structure.
#[inline(always)]
pub fn bits<M: Memory>(base: *const u8, place: BitField) -> u8 {
    let byte: u8 = field::<M, u8>(base, place.offset);
    (byte >> place.shift) & place.mask as u8
}

/// The file that an iterator writes to: the first member of its `struct bpf_iter_meta`.
///
/// Read it once, before the first branch: for every typed load of a pointer through a trusted
/// pointer, and on every path that leads there, the verifier searches all types of the kernel by
/// name (`btf_nested_type_is_trusted`, kernel/bpf/btf.c), which takes milliseconds.
///
/// # Safety
/// The pointer must be the `meta` member of an iterator's context.
#[inline(always)]
pub unsafe fn seq_of(meta: *const *mut c_void) -> *mut c_void {
    // Volatile, so that the compiler does not move it behind a branch.
    // SAFETY: the caller passes the pointer of the context, and the verifier accepts no other.
    unsafe { read_volatile(meta) }
}

/// A copy of a `struct sock_common`, made by one call of the helper instead of a dozen.
pub type Common = MaybeUninit<[u64; COMMON_BYTES as usize / size_of::<u64>()]>;

/// A socket, or another structure that begins with a `struct sock_common`.
#[derive(Clone, Copy)]
pub struct Sock {
    /// Its address in the kernel.
    pub address: *const u8,
    /// The address at which its common part is read.
    common: *const u8,
    /// Its network namespace, if [`Sock::with_net`] has read that already.
    net: Option<*const u8>,
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

impl Sock {
    /// The socket at this address.
    #[inline(always)]
    pub const fn at(address: *const u8) -> Self {
        Self { address, common: address, net: None }
    }

    /// The socket at this address, with its common part copied. To be read as [`Copied`].
    #[inline(always)]
    pub fn copied(address: *const u8, common: &mut Common) -> Self {
        // SAFETY: as for `Probed`.
        unsafe {
            bpf_probe_read_kernel(common.as_mut_ptr().cast(), COMMON_BYTES, address.cast());
        }
        Self { address, common: common.as_ptr().cast(), net: None }
    }

    /// The same socket, with its namespace read now: before the first branch, as [`seq_of`] says.
    #[inline(always)]
    pub fn with_net<M: Memory>(self) -> Self {
        Self { net: Some(self.net::<M>()), ..self }
    }

    /// True for a TCP socket over IPv4 or IPv6. An MPTCP socket is not one, but its subflows are.
    #[inline(always)]
    pub fn is_tcp<M: Memory>(self) -> bool {
        let family = self.family::<M>();
        (family == AF_INET || family == AF_INET6)
            && field::<M, u16>(self.address, layout!(sk_protocol)) == u16::from(IPPROTO_TCP)
    }

    #[inline(always)]
    fn family<M: Memory>(self) -> u16 {
        field::<M::Common, u16>(self.common, layout!(sk_family))
    }

    /// The held port, host byte order; 0 if none. (`inet_sport` is stale after a release.)
    #[inline(always)]
    pub fn num<M: Memory>(self) -> u16 {
        field::<M::Common, u16>(self.common, layout!(sk_num))
    }

    /// The socket's cookie; 0 if none has been assigned yet.
    #[inline(always)]
    pub fn existing_cookie<M: Memory>(self) -> u64 {
        field::<M::Common, u64>(self.common, layout!(sk_cookie))
    }

    /// The socket's cookie, which is assigned now if the kernel lets a tracing program do so. 0 if
    /// there is none. The verifier must know the address as that of a socket.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        let existing = self.existing_cookie::<Typed>();
        if existing != 0 || COOKIE_HELPER.load() == 0 {
            return existing;
        }
        // SAFETY: the verifier accepts only the address of a socket.
        unsafe { bpf_get_socket_cookie(self.address.cast_mut().cast()) }
    }

    /// The inode of the network namespace.
    #[inline(always)]
    pub fn netns<M: Memory>(self) -> u32 {
        field::<M, u32>(self.net::<M>(), layout!(net_inum))
    }

    #[inline(always)]
    fn net<M: Memory>(self) -> *const u8 {
        match self.net {
            Some(net) => net,
            None => field::<M::Common, *const u8>(self.common, layout!(sk_net)),
        }
    }

    /// Sets the time, and everything that the common part of a socket or timewait socket contains:
    /// namespace, addresses, ports and family. Sets the cookie, `detail` and `event` to 0; leaves
    /// `kind` and `protocol`.
    #[inline(always)]
    pub fn describe<M: Memory>(self, fact: &mut Fact) {
        fact.time_ns = now_ns();
        fact.cookie = 0;
        fact.netns = self.netns::<M>();
        fact.local_port = self.num::<M>();
        fact.peer_port = u16::from_be(field::<M::Common, u16>(self.common, layout!(sk_dport)));
        fact.detail = 0;
        fact.event = 0;
        if self.family::<M>() == AF_INET6 {
            fact.socket = socket::IPV6;
            if bits::<M::Common>(self.common, layout!(sk_ipv6only)) != 0 {
                fact.socket |= socket::V6ONLY;
            }
            fact.local_addr = field::<M::Common, Address>(self.common, layout!(sk_v6_rcv_saddr));
            fact.peer_addr = field::<M::Common, Address>(self.common, layout!(sk_v6_daddr));
        } else {
            fact.socket = 0;
            fact.local_addr = mapped(field::<M::Common, u32>(self.common, layout!(sk_rcv_saddr)));
            fact.peer_addr = mapped(field::<M::Common, u32>(self.common, layout!(sk_daddr)));
        }
    }

    /// `sk_userlocks`. For full sockets only.
    #[inline(always)]
    pub fn userlocks<M: Memory>(self) -> u8 {
        bits::<M>(self.address, layout!(sk_userlocks))
    }

    /// True if the namespace has reached `tcp_max_tw_buckets`, so that the kernel creates no further
    /// TIME_WAIT (`inet_twsk_alloc`, net/ipv4/inet_timewait_sock.c).
    #[inline(always)]
    pub fn are_time_waits_full(self) -> bool {
        if layout!(net_death_row) == ABSENT {
            return false;
        }
        let net = self.net::<Typed>();
        let (count, max) = if layout!(net_death_row_is_pointer) != 0 {
            death_row::<Probed>(field::<Probed, *const u8>(net, layout!(net_death_row)))
        } else {
            death_row::<Typed>(net.wrapping_add(layout!(net_death_row) as usize))
        };
        count.wrapping_sub(layout!(death_row_bias) as i32) >= max
    }

    /// The low half of the namespace's cookie; 0 if the kernel assigns none.
    #[inline(always)]
    pub fn incarnation<M: Memory>(self) -> u32 {
        if layout!(net_cookie) == ABSENT {
            return 0;
        }
        field::<M, u64>(self.net::<M>(), layout!(net_cookie)) as u32
    }

    /// True while the namespace is being torn down.
    #[inline(always)]
    pub fn is_netns_dying<M: Memory>(self) -> bool {
        let refs = layout!(net_refs);
        refs != ABSENT && field::<M, u32>(self.net::<M>(), refs) == 0
    }
}

/// The count in a `struct inet_timewait_death_row`, and its limit.
#[inline(always)]
fn death_row<M: Memory>(row: *const u8) -> (i32, i32) {
    (field::<M, i32>(row, layout!(death_row_count)), field::<M, i32>(row, layout!(death_row_max)))
}

/// `CLOCK_MONOTONIC`, nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() }
}

/// Describes the current process. Only valid in process context.
#[inline(always)]
pub fn current_owner(owner: &mut Owner) {
    // SAFETY: the helpers have no arguments; the verifier checks that the program may call them.
    let (task, uid_gid, cgroup_id) = unsafe {
        (
            bpf_get_current_task() as *const u8,
            bpf_get_current_uid_gid(),
            bpf_get_current_cgroup_id(),
        )
    };
    let ids = bpf_get_current_pid_tgid();
    let (pid, tgid) = (ids as u32, (ids >> 32) as u32);
    // The name of the main thread, as ps and ss show it; a worker thread may have its own.
    let leader = if pid == tgid {
        task
    } else {
        field::<Probed, *const u8>(task, layout!(task_group_leader))
    };
    owner.pid = tgid;
    owner.uid = uid_gid as u32;
    owner.cgroup_id = cgroup_id;
    set_comm(owner, field::<Probed, [u64; 2]>(leader, layout!(task_comm)));
}

/// Sets the name as two words; the eBPF backend would copy bytes one at a time.
#[inline(always)]
pub fn set_comm(owner: &mut Owner, comm: [u64; 2]) {
    // SAFETY: an Owner is aligned to eight bytes, and its name has sixteen bytes at a multiple of
    // eight (asserted where Owner is defined).
    unsafe { (&raw mut owner.comm).cast::<[u64; 2]>().write(comm) };
}

/// The address of the socket behind a file descriptor of the current process, or null if there is no
/// such descriptor. Meaningless if the descriptor is not that of a socket.
#[inline(always)]
pub fn current_socket(fd: u32) -> *const u8 {
    const NULL: *const u8 = core::ptr::null();
    // SAFETY: the helper has no arguments.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    let files = field::<Probed, *const u8>(task, layout!(task_files));
    let table = field::<Probed, *const u8>(files, layout!(files_fdt));
    if fd >= field::<Probed, u32>(table, layout!(fdtable_max_fds)) {
        return NULL;
    }
    let slots = field::<Probed, *const u8>(table, layout!(fdtable_fd));
    let file = Probed::read::<*const u8>(slots.wrapping_add(fd as usize * size_of::<usize>()));
    if file.is_null() {
        return NULL;
    }
    let socket = field::<Probed, *const u8>(file, layout!(file_private_data));
    field::<Probed, *const u8>(socket, layout!(socket_sk))
}
