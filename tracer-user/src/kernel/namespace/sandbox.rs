//! A separate network namespace, for tests and demonstrations that must not touch the host.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd as _},
    path::PathBuf,
};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::{kernel::namespace::netns, model::Netns};

/// A new network namespace, with its loopback interface up. It ends when no thread is in it, no
/// socket of it is open, and no handle to it is left.
#[derive(Debug)]
pub struct Sandbox {
    handle: File,
    netns: Netns,
}

impl Sandbox {
    /// Moves the calling thread, for the rest of its life, into a new namespace.
    ///
    /// # Errors
    /// If `CAP_SYS_ADMIN` is missing.
    pub fn enter_new() -> io::Result<Self> {
        // SAFETY: a network namespace of its own takes nothing from this thread that another
        // thread relies on; file descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
        raise_loopback()?;
        let handle = File::open("/proc/thread-self/ns/net")?;
        let netns = Netns(netns::inode_of(&handle)?);
        Ok(Self { handle, netns })
    }

    /// The namespace's inode.
    #[must_use]
    pub fn netns(&self) -> Netns {
        self.netns
    }

    /// Moves the calling thread into this namespace, too.
    ///
    /// # Errors
    /// If `CAP_SYS_ADMIN` is missing.
    pub fn enter(&self) -> io::Result<()> {
        netns::enter(&self.handle)
    }

    /// Writes a setting of the calling thread's namespace, such as `ipv4/ip_local_port_range`.
    ///
    /// # Errors
    /// If there is no such setting, or it does not take the value.
    pub fn set(&self, setting: &str, value: &str) -> io::Result<()> {
        fs::write(PathBuf::from("/proc/sys/net").join(setting), value)
    }

    /// Gives the loopback interface of the calling thread's namespace one more address, and with
    /// it, as an address of that interface, the whole network of its class.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_loopback_address(&self, addr: Ipv4Addr) -> io::Result<()> {
        let mut request = interface(b"lo:1");
        // SAFETY: sockaddr_in is what an address of the family AF_INET is read as, and fits into
        // the sockaddr of the union.
        unsafe {
            let to = (&raw mut request.ifr_ifru.ifru_addr).cast::<libc::sockaddr_in>();
            (*to).sin_family = libc::AF_INET as libc::sa_family_t;
            (*to).sin_addr.s_addr = u32::from_ne_bytes(addr.octets());
        }
        configure(libc::SIOCSIFADDR, &request)
    }
}

/// Narrows the range from which the socket's port is chosen (`IP_LOCAL_PORT_RANGE`, Linux 6.3).
///
/// # Errors
/// If the kernel refuses the option.
pub fn set_local_port_range(socket: impl AsFd, low: u16, high: u16) -> io::Result<()> {
    /// include/uapi/linux/in.h.
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    let range = u32::from(high) << 16 | u32::from(low);
    set_option(socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range.cast_signed())
}

/// Lets connect() choose the port of a socket that bind() gives an address only
/// (`IP_BIND_ADDRESS_NO_PORT`, Linux 4.2).
///
/// # Errors
/// If the kernel refuses the option.
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Sets a socket option whose value is an int, by the kernel's numbers of its level and name.
///
/// # Errors
/// If the kernel does not know the option or refuses the value.
pub fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn raise_loopback() -> io::Result<()> {
    let mut request = interface(b"lo");
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    configure(libc::SIOCSIFFLAGS, &request)
}

fn interface(name: &[u8]) -> libc::ifreq {
    // SAFETY: all fields of the structure are integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request
}

fn configure(what: libc::Ioctl, request: &libc::ifreq) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request is valid for the duration of the call, and names an interface.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_ref(request)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
