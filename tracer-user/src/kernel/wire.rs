//! Decodes the records of the eBPF programs: those of the ring into [`Observation`]s, those of the
//! iterator over open files into `OpenFile`s. Nothing else in the agent knows the wire format.

use tracer_ebpf::{
    Fact, FactKind, IPPROTO_TCP, Owner, TcpState, bind_failed, bound, closed, socket,
    time_wait_cancel, time_wait_start,
};
use zerocopy::{CastError, FromBytes as _};

use crate::model::{
    Addr, Cookie, Family, Held, HeldBy, Incarnation, Instant, Netns, Peer, Side, Substate,
    observation::{
        Accepted, Arming, BindFailed, BindRequest, Bound, Cancel, Closed, Closing, ConnectStart,
        Destroyed, Endpoints, Established, ListenStart, Listening, LocalEnd, NoTimeWait,
        Observation, Open, OwnRange, PortChosen, SocketId, TimeWaitCancel, TimeWaitExpire,
        TimeWaitId, TimeWaitStart, Userlocks,
    },
    port,
};

/// A record that this version of the wire format does not contain. The object and the agent do not
/// belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No record of its kind has this number of bytes.
    #[error("a fact of {0} bytes")]
    Size(usize),
    /// The record does not begin at a multiple of eight bytes.
    #[error("a fact that is not aligned to eight bytes")]
    Unaligned,
    /// The kind is unknown, or does not come from this source.
    #[error("a fact of the unknown kind {0}")]
    Kind(u8),
    /// The protocol is unknown, or has no facts of this kind.
    #[error("a fact of the unknown protocol {0}")]
    Protocol(u8),
}

/// A file that a process has open, from the snapshot of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFile<'a> {
    /// A process that has the file open.
    pub(crate) owner: &'a Owner,
    /// The file descriptor in that process.
    pub(crate) fd: i32,
    /// The namespace that the file represents, or in which the socket is.
    pub(crate) netns: Netns,
    /// What the file is.
    pub(crate) content: OpenFileContent,
}

/// What an [`OpenFile`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenFileContent {
    /// A network namespace.
    Namespace,
    /// A socket, with its hold on a port. `None` if it holds none, or is in a state that the kernel
    /// did not have when this was written.
    Socket(Option<Held>),
}

/// Decodes a record of the ring. The owner is borrowed from it.
///
/// # Errors
/// If the bytes are no such record.
// Inlined, so that a caller that matches at once needs no copy of the observation in memory.
#[inline]
pub fn decode_with<R>(
    record: &[u8],
    consume: impl FnOnce(&Observation<'_>) -> R,
) -> Result<R, DecodeError> {
    let (kind, fact, rest) = read(record)?;
    let at = Instant::from_ns(fact.time_ns);
    Ok(match kind {
        FactKind::ConnectStart => consume(&Observation::ConnectStart(ConnectStart {
            at,
            socket: socket_id(fact),
            endpoints: endpoints(fact),
            own_range: own_range(fact),
            userlocks: userlocks(fact),
            owner: owner(record, rest)?,
        })),
        FactKind::PortChosen => consume(&Observation::PortChosen(PortChosen {
            at,
            socket: socket_id(fact),
            endpoints: endpoints(fact),
            incarnation: incarnation(fact),
            userlocks: userlocks(fact),
        })),
        FactKind::Established => consume(&Observation::Established(Established {
            at,
            socket: socket_id(fact),
            endpoints: endpoints(fact),
            incarnation: incarnation(fact),
            open: if fact.state() == TcpState::SynRecv as u8 {
                Open::Passive
            } else {
                Open::Active
            },
        })),
        FactKind::Closing => consume(&Observation::Closing(Closing {
            at,
            socket: socket_id(fact),
            endpoints: endpoints(fact),
            by: if fact.state() == TcpState::FinWait1 as u8 { Side::Local } else { Side::Peer },
            userlocks: userlocks(fact),
        })),
        FactKind::Closed => consume(&Observation::Closed(Closed {
            at,
            socket: socket_id(fact),
            endpoints: endpoints(fact),
            from: TcpState::from_u8(fact.state()),
            error: (fact.errno() != 0).then_some(fact.errno()),
            is_shut_down: fact.event & closed::SHUTDOWN_BOTH != 0,
            is_orphan: fact.event & closed::ORPHAN != 0,
            no_time_wait: no_time_wait(fact),
            userlocks: userlocks(fact),
        })),
        FactKind::Destroyed => {
            consume(&Observation::Destroyed(Destroyed { at, socket: socket_id(fact) }))
        }
        FactKind::ListenStart => consume(&Observation::ListenStart(ListenStart {
            at,
            socket: socket_id(fact),
            local: local_end(fact),
            userlocks: userlocks(fact),
            owner: owner(record, rest)?,
        })),
        FactKind::Listening => consume(&Observation::Listening(Listening {
            at,
            socket: socket_id(fact),
            local: local_end(fact),
            incarnation: incarnation(fact),
        })),
        FactKind::Bound => consume(&Observation::Bound(Bound {
            at,
            socket: socket_id(fact),
            local: local_end(fact),
            request: if fact.event & bound::ANY_PORT == 0 {
                BindRequest::ThisPort
            } else {
                BindRequest::AnyPort
            },
            incarnation: incarnation(fact),
            owner: owner(record, rest)?,
        })),
        FactKind::BindFailed => consume(&Observation::BindFailed(BindFailed {
            at,
            socket: socket_id(fact),
            requested: local_end(fact),
            errno: fact.errno(),
            holds_port: fact.event & bind_failed::NO_PORT == 0,
            owner: owner(record, rest)?,
        })),
        FactKind::Accepted => consume(&Observation::Accepted(Accepted {
            at,
            socket: socket_id(fact),
            endpoints: endpoints(fact),
            owner: owner(record, rest)?,
        })),
        FactKind::TimeWaitStart => consume(&Observation::TimeWaitStart(TimeWaitStart {
            at,
            time_wait: time_wait_id(fact),
            substate: if fact.state() == TcpState::FinWait2 as u8 {
                Substate::FinWait2
            } else {
                Substate::TimeWait
            },
            arming: if fact.event & time_wait_start::REARMED == 0 {
                Arming::FirstOrAgain
            } else {
                Arming::Again
            },
            has_timestamps: fact.event & time_wait_start::NO_TIMESTAMPS == 0,
        })),
        FactKind::TimeWaitCancel => consume(&Observation::TimeWaitCancel(TimeWaitCancel {
            at,
            time_wait: time_wait_id(fact),
            cancel: if fact.event & time_wait_cancel::NETNS_DYING != 0 {
                Cancel::NetnsTeardown
            } else if fact.event & time_wait_cancel::TIMER_DUE != 0 {
                Cancel::WhenDue
            } else {
                Cancel::BeforeDue
            },
        })),
        FactKind::TimeWaitExpire => consume(&Observation::TimeWaitExpire(TimeWaitExpire {
            at,
            time_wait: time_wait_id(fact),
        })),
        FactKind::Held | FactKind::NamespaceFile => return Err(DecodeError::Kind(fact.kind)),
    })
}

/// Decodes a record of the iterator over open files.
///
/// # Errors
/// If the bytes are no such record.
pub(crate) fn decode_open_file(record: &[u8]) -> Result<OpenFile<'_>, DecodeError> {
    let (kind, fact, rest) = read(record)?;
    let is_namespace = match kind {
        FactKind::NamespaceFile => true,
        FactKind::Held => false,
        _ => return Err(DecodeError::Kind(fact.kind)),
    };
    let owner = owner(record, rest)?;
    let content = if is_namespace {
        OpenFileContent::Namespace
    } else {
        OpenFileContent::Socket(held(fact, owner))
    };
    Ok(OpenFile { owner, fd: fact.fd(), netns: Netns(fact.netns), content })
}

/// Reads what every record begins with, in place: copying a fact in parts that are then read as a
/// whole would cost more than all the rest of decoding it.
#[inline]
fn read(record: &[u8]) -> Result<(FactKind, &Fact, &[u8]), DecodeError> {
    let (fact, rest) = Fact::ref_from_prefix(record).map_err(|error| refusal(&error, record))?;
    let kind = FactKind::from_u8(fact.kind).ok_or(DecodeError::Kind(fact.kind))?;
    if fact.protocol != IPPROTO_TCP {
        return Err(DecodeError::Protocol(fact.protocol));
    }
    if !kind.has_owner() && !rest.is_empty() {
        return Err(DecodeError::Size(record.len()));
    }
    Ok((kind, fact, rest))
}

/// Reads the owner, which must be all that follows the fact.
#[inline]
fn owner<'a>(record: &[u8], rest: &'a [u8]) -> Result<&'a Owner, DecodeError> {
    Owner::ref_from_bytes(rest).map_err(|error| refusal(&error, record))
}

fn refusal<T: ?Sized>(error: &CastError<&[u8], T>, record: &[u8]) -> DecodeError {
    match error {
        CastError::Alignment(_) => DecodeError::Unaligned,
        // Every bit pattern is valid.
        CastError::Size(_) | CastError::Validity(_) => DecodeError::Size(record.len()),
    }
}

#[inline]
fn socket_id(fact: &Fact) -> SocketId {
    SocketId { cookie: Cookie(fact.cookie), netns: Netns(fact.netns) }
}

#[inline]
fn time_wait_id(fact: &Fact) -> TimeWaitId {
    TimeWaitId {
        cookie: (fact.cookie != 0).then_some(Cookie(fact.cookie)),
        netns: Netns(fact.netns),
        endpoints: endpoints(fact),
    }
}

#[inline]
fn endpoints(fact: &Fact) -> Endpoints {
    Endpoints { local: local_end(fact), peer: peer(fact) }
}

#[inline]
fn local_end(fact: &Fact) -> LocalEnd {
    LocalEnd {
        family: family(fact),
        v6_only: is_v6_only(fact),
        addr: Addr(fact.local_addr),
        port: port(fact.local_port),
    }
}

#[inline]
fn family(fact: &Fact) -> Family {
    if fact.socket & socket::IPV6 == 0 { Family::Ipv4 } else { Family::Ipv6 }
}

#[inline]
fn is_v6_only(fact: &Fact) -> bool {
    fact.socket & socket::V6ONLY != 0
}

#[inline]
fn peer(fact: &Fact) -> Peer {
    Peer::new(Addr(fact.peer_addr), fact.peer_port)
}

#[inline]
fn userlocks(fact: &Fact) -> Userlocks {
    // A fact has them at the kernel's place.
    Userlocks::from_kernel(fact.socket)
}

#[inline]
fn incarnation(fact: &Fact) -> Option<Incarnation> {
    Incarnation::from_cookie(fact.incarnation())
}

#[inline]
fn own_range(fact: &Fact) -> Option<OwnRange> {
    let (low, high) = fact.own_range();
    let range = OwnRange { low: port(low), high: port(high) };
    (range.low.is_some() || range.high.is_some()).then_some(range)
}

#[inline]
fn no_time_wait(fact: &Fact) -> Option<NoTimeWait> {
    // The kernel looks at TCP_LINGER2 first (tcp_rcv_state_process, net/ipv4/tcp_input.c).
    if fact.event & closed::LINGER2_NEGATIVE != 0 {
        Some(NoTimeWait::NegativeLinger2)
    } else if fact.event & closed::TIME_WAITS_FULL != 0 {
        Some(NoTimeWait::TooMany)
    } else {
        None
    }
}

fn held(fact: &Fact, owner: &Owner) -> Option<Held> {
    Some(Held {
        cookie: Cookie(fact.cookie),
        netns: Netns(fact.netns),
        family: family(fact),
        v6_only: is_v6_only(fact),
        local_addr: Addr(fact.local_addr),
        local_port: port(fact.local_port)?,
        peer: peer(fact).get(),
        by: HeldBy::Socket(TcpState::from_u8(fact.state())?),
        has_timestamps: None,
        userlocks: Some(userlocks(fact)),
        owner: Some(*owner),
    })
}
