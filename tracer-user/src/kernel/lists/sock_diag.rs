//! The kernel's own list of TCP sockets, one network namespace at a time (`sock_diag(7)`).

use std::{fs, io};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    },
};
use tracer_ebpf::{TcpState, mapped};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::model::{Addr, Cookie, Family, Held, HeldBy, Netns, Port, Substate};

/// Lists the TCP sockets and TIME_WAITs of the calling thread's namespace, whose inode is given.
/// Connection requests are not listed: they hold no port of their own. Every socket listed gets
/// its cookie, if it had none.
///
/// # Errors
/// If the kernel has no sock_diag for TCP, or the dump fails.
pub fn list(netns: Netns, found: &mut Vec<Held>) -> io::Result<()> {
    dump(Wanted::All, |message| found.extend(message.held(netns)))
}

/// A hold on a port, and the time that is left on its timer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    /// The hold.
    pub(crate) held: Held,
    /// Milliseconds until a TIME_WAIT's timer is due. It runs when the timer wheel reaches its
    /// slot, up to two seconds later (four seconds with `CONFIG_HZ=1000`). `None` for sockets.
    pub(crate) time_wait_left_ms: Option<u32>,
}

/// What to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything.
    All,
    /// The holders of this local port. The kernel skips the others.
    LocalPort(Port),
    /// Connections to this port, of any address. The kernel skips the others.
    PeerPort(Port),
}

/// Lists what is wanted, with the time that is left on the timers of TIME_WAITs.
///
/// # Errors
/// As [`list`].
pub(crate) fn list_timed(netns: Netns, wanted: Wanted) -> io::Result<Vec<Timed>> {
    let mut found = Vec::new();
    dump(wanted, |message| {
        found.extend(message.held(netns).map(|held| {
            let is_time_wait = matches!(held.by, HeldBy::TimeWait(_));
            Timed { held, time_wait_left_ms: is_time_wait.then_some(message.expires) }
        }));
    })?;
    Ok(found)
}

fn dump(wanted: Wanted, mut each: impl FnMut(Message)) -> io::Result<()> {
    if holds_nothing() {
        return Ok(());
    }
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut buffer = vec![0; 1 << 16];
    let request = Request::dump(wanted);
    send(&socket, request.as_bytes(), SendFlags::empty())?;
    while !receive(&socket, &mut buffer, &mut each)? {}
    Ok(())
}

/// True if the calling thread's namespace has neither a TCP socket that is connected or listens,
/// nor a TIME_WAIT. The kernel would go through the host's whole table to find none.
fn holds_nothing() -> bool {
    let count = |file: &str| -> Option<u64> {
        // TCP: inuse 5 orphan 0 tw 2 alloc 6 mem 1 (sockstat_seq_show, net/ipv4/proc.c; orphans
        // and what follows `tw` are the whole host's).
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("TCP"))?;
        let words: Vec<_> = line.split_whitespace().collect();
        let named = words.windows(2).filter(|pair| matches!(pair[0], "inuse" | "tw"));
        named.map(|pair| pair[1].parse::<u64>().ok()).sum()
    };
    // Without IPv6 there is no second file.
    let has_v6 = fs::exists("/proc/thread-self/net/sockstat6").unwrap_or(true);
    count("sockstat") == Some(0) && (!has_v6 || count("sockstat6") == Some(0)) && !holds_mptcp()
}

/// True unless the calling thread's namespace has no MPTCP socket: some kernels (6.18.15) count its
/// subflows over IPv6 for another protocol.
fn holds_mptcp() -> bool {
    // protocol  size sockets  memory ... (proto_seq_printf, net/core/sock.c)
    let Ok(text) = fs::read_to_string("/proc/thread-self/net/protocols") else { return true };
    text.lines()
        .filter(|line| line.starts_with("MPTCP"))
        .any(|line| line.split_whitespace().nth(2).is_none_or(|sockets| sockets != "0"))
}

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct nlmsghdr` (include/uapi/linux/netlink.h).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_sockid` (include/uapi/linux/inet_diag.h); ports and addresses are in network
/// byte order.
#[repr(C)]
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct SocketId {
    local_port: [u8; 2],
    peer_port: [u8; 2],
    local_addr: [u32; 4],
    peer_addr: [u32; 4],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req`, after its netlink header. The kernel goes through the sockets of the
/// whole host for each dump in each namespace, and this older request is the one that takes both
/// families together (`inet_diag_dump_compat`, net/ipv4/inet_diag.c).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Request {
    header: Header,
    family: u8,
    prefix_lengths: [u8; 2],
    extensions: u8,
    id: SocketId,
    states: u32,
    tables: u32,
}

/// `struct inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
struct Message {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
    expires: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
}

impl Request {
    fn dump(wanted: Wanted) -> Self {
        const TCPDIAG_GETSOCK: u16 = 18;
        const NLM_F_REQUEST_DUMP: u16 = 0x301;
        // Bound-but-idle sockets are listed since 6.8; older kernels ignore the bit.
        const STATES: u32 = !(1 << TcpState::SynRecv as u32 | 1 << TcpState::NewSynRecv as u32);
        // Zero is any port.
        let (local_port, peer_port) = match wanted {
            Wanted::All => (0, 0),
            Wanted::LocalPort(port) => (port.0, 0),
            Wanted::PeerPort(port) => (0, port.0),
        };
        Self {
            header: Header {
                length: size_of::<Self>() as u32,
                kind: TCPDIAG_GETSOCK,
                flags: NLM_F_REQUEST_DUMP,
                sequence: 0,
                port: 0,
            },
            family: AF_UNSPEC,
            prefix_lengths: [0; 2],
            extensions: 0,
            id: SocketId {
                local_port: local_port.to_be_bytes(),
                peer_port: peer_port.to_be_bytes(),
                ..SocketId::default()
            },
            states: STATES,
            tables: 0,
        }
    }
}

/// Receives one datagram of messages. True if it ends the dump.
fn receive(
    socket: impl std::os::fd::AsFd,
    buffer: &mut [u8],
    each: &mut impl FnMut(Message),
) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    let (received, _) = match recv(socket, &mut *buffer, RecvFlags::empty()) {
        Err(Errno::INTR) => return Ok(false),
        other => other?,
    };
    let mut rest = buffer.get(..received).unwrap_or_default();
    while let Ok((header, payload)) = Header::read_from_prefix(rest) {
        let length = header.length as usize;
        match header.kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = i32::read_from_prefix(payload).map_or(libc::EIO, |(errno, _)| -errno);
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => {
                if let Ok((message, _)) = Message::read_from_prefix(payload) {
                    each(message);
                }
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

impl Message {
    fn held(self, netns: Netns) -> Option<Held> {
        /// The timer of a TIME_WAIT (`idiag_timer`, net/ipv4/inet_diag.c).
        const TIME_WAIT_TIMER: u8 = 3;
        let family = match self.family {
            AF_INET => Family::Ipv4,
            AF_INET6 => Family::Ipv6,
            _ => return None,
        };
        let port = |bytes| match u16::from_be_bytes(bytes) {
            0 => None,
            number => Some(Port(number)),
        };
        let address = |words: [u32; 4]| {
            let [v4, ..] = words;
            Addr(if family == Family::Ipv4 { mapped(v4) } else { words })
        };
        let state = TcpState::from_u8(self.state)?;
        let by = if self.timer == TIME_WAIT_TIMER {
            HeldBy::TimeWait(if state == TcpState::FinWait2 {
                Substate::FinWait2
            } else {
                Substate::TimeWait
            })
        } else {
            HeldBy::Socket(state)
        };
        let [low, high] = self.id.cookie;
        Some(Held {
            cookie: Cookie(u64::from(high) << 32 | u64::from(low)),
            netns,
            family,
            v6_only: false,
            local_addr: address(self.id.local_addr),
            local_port: port(self.id.local_port)?,
            peer: port(self.id.peer_port).map(|port| (address(self.id.peer_addr), port)),
            by,
            has_timestamps: None,
            userlocks: None,
            owner: None,
        })
    }
}

const _: () = assert!(size_of::<Request>() == 76 && size_of::<Message>() == 72);
