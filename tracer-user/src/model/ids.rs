//! Identifiers: namespaces, ports, sockets, leases, addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tracer_ebpf::Address;

/// A network namespace, by its inode (`readlink /proc/PID/ns/net`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Netns(pub u32);

/// A local or remote TCP port. Never 0 in a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u16);

/// The kernel's socket cookie (`ss -e` shows it as `sk:`). A socket keeps it for life and passes
/// it on to its TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// Distinguishes namespaces that had the same inode at different times: the low half of the
/// namespace's cookie (`net.net_cookie`), never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation(u32);

impl Incarnation {
    /// From the low half of the namespace's cookie. `None` if the kernel assigns none (before 5.12).
    #[must_use]
    pub fn from_cookie(cookie: u32) -> Option<Self> {
        (cookie != 0).then_some(Self(cookie))
    }
}

/// The number of a lease, unique in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// An IP address as the kernel's sockets store it: IPv4 addresses are IPv4-mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addr(pub Address);

impl Addr {
    /// The wildcard address of a family.
    #[must_use]
    pub fn unspecified(family: Family) -> Self {
        match family {
            Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::Ipv6 => IpAddr::from(Ipv6Addr::UNSPECIFIED).into(),
        }
    }

    /// True for an IPv4 address, which includes IPv4-mapped IPv6 addresses.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.ip().is_ipv4()
    }

    /// True for 0.0.0.0 and ::.
    #[must_use]
    pub fn is_unspecified(self) -> bool {
        self.ip().is_unspecified()
    }

    /// The address; an IPv4-mapped one is converted to IPv4.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(bytes).to_canonical()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let bytes = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = chunk.try_into().map_or(0, u32::from_ne_bytes);
        }
        Self(words)
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        IpAddr::V4(ip).into()
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// The address family of a socket; an IPv6 socket may use IPv4-mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// The port with this number. `None` for 0.
pub(crate) fn port(number: u16) -> Option<Port> {
    (number != 0).then_some(Port(number))
}
