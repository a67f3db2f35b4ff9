//! Typed reads of kernel structures, at the offsets that the agent found in the kernel's BTF.
//!
//! The verifier knows the value of a frozen global, so `base + offset` is to it a field access
//! like that of a C program: a wrong offset that hits no member is refused at load.

use core::{ffi::c_void, mem::MaybeUninit, ptr::read_volatile};

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_get_current_uid_gid, bpf_get_socket_cookie,
        generated::{bpf_probe_read_kernel, bpf_probe_read_user},
    },
};
use tracer_ebpf::{ABSENT, Address, BitField, COMMON_BYTES, Fact, Layout, Owner, flags, mapped};

/// Offsets of the running kernel.
#[unsafe(no_mangle)]
// SAFETY: a Layout is made of integers only.
pub static LAYOUT: Global<Layout> = Global::new(unsafe { core::mem::zeroed() });

/// Non-zero if tracing programs may call `bpf_get_socket_cookie` (5.12). Where they may not, the
/// programs of the cgroup give every socket its cookie before a tracepoint needs it.
#[unsafe(no_mangle)]
pub static COOKIE_HELPER: Global<u32> = Global::new(0);

/// The only port whose holders the iterators list; 0: all.
#[unsafe(no_mangle)]
static PORT_WANTED: Global<u32> = Global::new(0);

/// True if an iterator is to list the holders of this port.
#[inline(always)]
pub fn is_port_wanted(port: u16) -> bool {
    let wanted = PORT_WANTED.load();
    wanted == 0 || wanted == u32::from(port)
}

/// Reads one field of [`LAYOUT`], so that the verifier sees one constant and not a copied struct.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: Global is a transparent wrapper of initialised data; the volatile read keeps
        // the compiler from assuming the zeroes that the loader replaces.
        unsafe {
            ::core::ptr::read_volatile(::core::ptr::addr_of!(
                (*::core::ptr::addr_of!($crate::kernel::LAYOUT).cast::<::tracer_ebpf::Layout>())
                    .$field
            ))
        }
    };
}
pub(crate) use layout;

/// How kernel memory may be read through a pointer.
pub trait Memory {
    /// How the common part of a socket is read.
    type Common: Memory;

    /// Reads a value; zero if the memory cannot be read.
    fn read<T: Copy>(pointer: *const u8) -> T;
}

/// Loads through a pointer whose BTF type the verifier knows. A fault reads as zero.
pub struct Typed;

impl Memory for Typed {
    type Common = Self;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        // SAFETY: the verifier admits this load only if it lies within a member of the pointer's
        // BTF type; the kernel turns a fault into a zero.
        unsafe { read_volatile(pointer.cast::<T>()) }
    }
}

/// Reads by `bpf_probe_read_kernel`, for pointers of no type.
pub struct Probed;

impl Memory for Probed {
    type Common = Self;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // What it returns is not looked at: each branch doubles what the verifier goes through.
        // SAFETY: the helper checks the address, and fills with zeroes what it cannot read
        // (bpf_probe_read_kernel_common, kernel/trace/bpf_trace.c); integers, pointers and arrays
        // of them are all that is read.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, pointer.cast());
            value.assume_init()
        }
    }
}

/// Reads as [`Probed`] does, but the common part of a socket from a [`Common`].
pub struct Copied;

impl Memory for Copied {
    // The verifier knows the stack as it knows a type.
    type Common = Typed;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        Probed::read(pointer)
    }
}

/// Reads memory of the current process.
pub struct User;

impl Memory for User {
    type Common = Self;

    #[inline(always)]
    fn read<T: Copy>(pointer: *const u8) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: as for `Probed` (bpf_probe_read_user_common).
        unsafe {
            bpf_probe_read_user(value.as_mut_ptr().cast(), size_of::<T>() as u32, pointer.cast());
            value.assume_init()
        }
    }
}

/// The field at `offset` of a structure.
#[inline(always)]
pub fn field<M: Memory, T: Copy>(base: *const u8, offset: u32) -> T {
    M::read(base.wrapping_add(offset as usize))
}

/// The value of a bitfield.
#[inline(always)]
pub fn bits<M: Memory>(base: *const u8, place: BitField) -> u8 {
    let byte: u8 = field::<M, u8>(base, place.offset);
    (byte >> place.shift) & place.mask as u8
}

/// The file that an iterator writes to: the first member of its `struct bpf_iter_meta`. To be read
/// once, before the first branch: for every typed load of a pointer from one that it trusts, and
/// for every way that leads there, the verifier searches all types of the kernel by name
/// (`btf_nested_type_is_trusted`, kernel/bpf/btf.c), which takes milliseconds.
///
/// # Safety
/// The pointer must be that of an iterator's context.
#[inline(always)]
pub unsafe fn seq_of(meta: *const *mut c_void) -> *mut c_void {
    // SAFETY: the verifier admits no other; volatile, so that it stays where it is called.
    unsafe { read_volatile(meta) }
}

/// A copy of a `struct sock_common`: one call of the helper instead of a dozen.
pub type Common = MaybeUninit<[u64; COMMON_BYTES as usize / size_of::<u64>()]>;

/// A socket, or whatever begins with a `struct sock_common`.
#[derive(Clone, Copy)]
pub struct Sock {
    /// Where it is.
    pub address: *const u8,
    /// Where its common part is read.
    common: *const u8,
    /// Its network namespace, if that was read already.
    net: Option<*const u8>,
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;

impl Sock {
    /// The socket at this address.
    #[inline(always)]
    pub const fn at(address: *const u8) -> Self {
        Self { address, common: address, net: None }
    }

    /// The same, with its common part copied, to be read as [`Copied`].
    #[inline(always)]
    pub fn copied(address: *const u8, common: &mut Common) -> Self {
        // SAFETY: as for `Probed`.
        unsafe {
            bpf_probe_read_kernel(common.as_mut_ptr().cast(), COMMON_BYTES, address.cast());
        }
        Self { address, common: common.as_ptr().cast(), net: None }
    }

    /// The same, with its namespace read now: before the first branch, see [`seq_of`].
    #[inline(always)]
    pub fn with_net<M: Memory>(self) -> Self {
        Self { net: Some(self.net::<M>()), ..self }
    }

    /// True for a TCP socket over IPv4 or IPv6 (an MPTCP socket is not one; its subflows are).
    #[inline(always)]
    pub fn is_tcp<M: Memory>(self) -> bool {
        let family = self.family::<M>();
        (family == AF_INET || family == AF_INET6)
            && field::<M, u16>(self.address, layout!(sk_protocol)) == IPPROTO_TCP
    }

    #[inline(always)]
    fn family<M: Memory>(self) -> u16 {
        field::<M::Common, u16>(self.common, layout!(sk_family))
    }

    /// The held port, 0 if none. `inet_sport` would be stale after a release.
    #[inline(always)]
    pub fn num<M: Memory>(self) -> u16 {
        field::<M::Common, u16>(self.common, layout!(sk_num))
    }

    /// The cookie that the socket has; 0 if nobody asked for it yet.
    #[inline(always)]
    pub fn existing_cookie<M: Memory>(self) -> u64 {
        field::<M::Common, u64>(self.common, layout!(sk_cookie))
    }

    /// The socket's cookie, made now if need be where the kernel lets a tracing program do so.
    /// The pointer must be one that the verifier knows as a socket.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        let existing = self.existing_cookie::<Typed>();
        if existing != 0 || COOKIE_HELPER.load() == 0 {
            return existing;
        }
        // SAFETY: the verifier checks that this is a socket.
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

    /// Writes time, namespace, addresses, ports and family: all that the common part of a socket
    /// or timewait socket tells. The cookie, `detail`, `state` and `userlocks` are set to 0.
    #[inline(always)]
    pub fn describe<M: Memory>(self, fact: &mut Fact) {
        fact.time_ns = now_ns();
        fact.cookie = 0;
        fact.netns = self.netns::<M>();
        fact.local_port = self.num::<M>();
        fact.peer_port = u16::from_be(field::<M::Common, u16>(self.common, layout!(sk_dport)));
        fact.detail = 0;
        fact.state = 0;
        fact.userlocks = 0;
        if self.family::<M>() == AF_INET6 {
            fact.flags |= flags::IPV6;
            if bits::<M::Common>(self.common, layout!(sk_ipv6only)) != 0 {
                fact.flags |= flags::V6ONLY;
            }
            fact.local_addr = field::<M::Common, Address>(self.common, layout!(sk_v6_rcv_saddr));
            fact.peer_addr = field::<M::Common, Address>(self.common, layout!(sk_v6_daddr));
        } else {
            fact.local_addr = mapped(field::<M::Common, u32>(self.common, layout!(sk_rcv_saddr)));
            fact.peer_addr = mapped(field::<M::Common, u32>(self.common, layout!(sk_daddr)));
        }
    }

    /// `sk_userlocks`. Full sockets only.
    #[inline(always)]
    pub fn userlocks<M: Memory>(self) -> u8 {
        bits::<M>(self.address, layout!(sk_userlocks))
    }

    /// True if the namespace may have no further TIME_WAIT (`inet_twsk_alloc`,
    /// net/ipv4/inet_timewait_sock.c).
    #[inline(always)]
    pub fn has_most_time_waits(self) -> bool {
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

    /// The low half of the namespace's cookie; 0 if the kernel gives it none.
    #[inline(always)]
    pub fn incarnation<M: Memory>(self) -> i32 {
        if layout!(net_cookie) == ABSENT {
            return 0;
        }
        field::<M, u64>(self.net::<M>(), layout!(net_cookie)) as i32
    }

    /// True while the namespace is being torn down.
    #[inline(always)]
    pub fn is_netns_dying<M: Memory>(self) -> bool {
        let refs = layout!(net_refs);
        refs != ABSENT && field::<M, u32>(self.net::<M>(), refs) == 0
    }
}

/// The count of a `struct inet_timewait_death_row`, and its limit.
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

/// Describes the current process. True only in process context.
#[inline(always)]
pub fn current_owner(owner: &mut Owner) {
    // SAFETY: the helpers have no arguments and are allowed in every program type used here.
    let (task, uid_gid, cgroup_id) = unsafe {
        (
            bpf_get_current_task() as *const u8,
            bpf_get_current_uid_gid(),
            bpf_get_current_cgroup_id(),
        )
    };
    let ids = bpf_get_current_pid_tgid();
    let (pid, tgid) = (ids as u32, (ids >> 32) as u32);
    // The main thread's name, which is what ps and ss show; a worker thread may have its own.
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

/// Writes a name as the two words that it is, instead of byte by byte.
#[inline(always)]
pub fn set_comm(owner: &mut Owner, comm: [u64; 2]) {
    // SAFETY: an Owner is aligned to eight bytes and its name, of sixteen, lies at a multiple of
    // eight (asserted where it is defined).
    unsafe { (&raw mut owner.comm).cast::<[u64; 2]>().write(comm) };
}

/// The address of the socket behind a file descriptor of the current process: null if it is not
/// there. The caller must know that the descriptor is a socket.
#[inline(always)]
pub fn current_socket(fd: u32) -> *const u8 {
    const NULL: *const u8 = core::ptr::null();
    // SAFETY: no arguments.
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
