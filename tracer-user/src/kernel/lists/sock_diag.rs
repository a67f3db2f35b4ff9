//! The kernel's own list of TCP sockets, one network namespace at a time (`sock_diag(7)`).

use std::io;

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, connect,
        netlink, recvfrom, send, socket_with,
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
    found.extend(dump(Wanted::All, |message| message.held(netns))?);
    Ok(())
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
    dump(wanted, |message| {
        let held = message.held(netns)?;
        let is_time_wait = matches!(held.by, HeldBy::TimeWait(_));
        Some(Timed { held, time_wait_left_ms: is_time_wait.then_some(message.expires) })
    })
}

fn dump<T>(wanted: Wanted, mut convert: impl FnMut(Message) -> Option<T>) -> io::Result<Vec<T>> {
    /// A list that changes all the time is as exact as it can be.
    const MAX_ATTEMPTS: u32 = 5;
    let mut found = Vec::new();
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // From a connected socket only the kernel's messages are received. Otherwise any process could
    // send some, also from a user namespace of its own (`netlink_getsockbyportid`,
    // net/netlink/af_netlink.c).
    connect(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0; 1 << 16];
    for sequence in 1..=MAX_ATTEMPTS {
        found.clear();
        send(&socket, Request::dump(wanted, sequence).as_bytes(), SendFlags::empty())?;
        let mut is_consistent = true;
        let mut is_complete = false;
        while !is_complete {
            let (received, sender) = match recvfrom(&socket, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other.map(|(received, _, sender)| (received, sender))?,
            };
            if !is_kernel(sender) {
                continue;
            }
            let datagram = buffer.get(..received).unwrap_or_default();
            let end = read_messages(datagram, sequence, |message| found.extend(convert(message)))?;
            is_consistent &= end.is_consistent;
            is_complete = end.is_complete;
        }
        if is_consistent {
            break;
        }
    }
    Ok(found)
}

/// True if a datagram is the kernel's. One that arrived before the socket was connected may not be.
fn is_kernel(sender: Option<SocketAddrAny>) -> bool {
    let sender = sender.and_then(|sender| netlink::SocketAddrNetlink::try_from(sender).ok());
    sender.is_some_and(|sender| sender.pid() == 0)
}

/// What a datagram says about its dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DumpState {
    /// It is the last one.
    is_complete: bool,
    /// The list did not change while it was made, as far as the kernel noticed.
    is_consistent: bool,
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
    fn dump(wanted: Wanted, sequence: u32) -> Self {
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
                sequence,
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

/// Reads the messages of a datagram that belong to the dump with this sequence number.
///
/// # Errors
/// If a message is malformed, or the kernel reports an error.
fn read_messages(
    datagram: &[u8],
    sequence: u32,
    mut each: impl FnMut(Message),
) -> io::Result<DumpState> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const NLM_F_DUMP_INTR: u16 = 0x10;
    let mut state = DumpState { is_complete: false, is_consistent: true };
    let mut rest = datagram;
    while !rest.is_empty() {
        let (header, _) = Header::read_from_prefix(rest).map_err(|_| malformed())?;
        let length = header.length as usize;
        let payload = rest.get(size_of::<Header>()..length).ok_or_else(malformed)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if header.sequence != sequence {
            // The rest of an earlier dump.
            continue;
        }
        state.is_consistent &= header.flags & NLM_F_DUMP_INTR == 0;
        match header.kind {
            NLMSG_DONE => state.is_complete = true,
            NLMSG_ERROR => {
                let errno = i32::read_from_prefix(payload).map_or(libc::EIO, |(errno, _)| -errno);
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => {
                let (message, _) = Message::read_from_prefix(payload).map_err(|_| malformed())?;
                each(message);
            }
        }
    }
    Ok(state)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's list of sockets is malformed")
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(length: u32, kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header { length, kind, flags, sequence, port: 0 };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn the_end_and_a_change_of_the_list_are_noticed() {
        let read = |bytes: &[u8]| read_messages(bytes, 7, |_| panic!("there is no socket"));
        let end = read(&message(20, 3, 0, 7, &[0; 4])).unwrap();
        assert_eq!(end, DumpState { is_complete: true, is_consistent: true });
        let end = read(&message(20, 3, 0x10, 7, &[0; 4])).unwrap();
        assert_eq!(end, DumpState { is_complete: true, is_consistent: false });
        let other = read(&message(20, 3, 0, 6, &[0; 4])).unwrap();
        assert_eq!(other, DumpState { is_complete: false, is_consistent: true });
        let refused = read(&message(36, 2, 0, 7, &[[0xfe, 0xff, 0xff, 0xff]; 5].concat()));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        for length in [0, 15, 17, 1 << 20, u32::MAX] {
            assert!(read_messages(&message(length, 20, 0, 7, &[]), 7, |_| ()).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_messages(&bytes, 7, |_| ());
        }
    }
}
