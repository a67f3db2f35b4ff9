//! The names of things in the records.

use std::borrow::Cow;

use crate::{
    capacity::Advice,
    model::{Cause, Family, Kind, Operation, Phase, Reason, Side, Substate},
    record::Place,
};

/// `kind` in JSON.
#[must_use]
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Connect => "connect",
        Kind::Bind => "bind",
        Kind::BindAuto => "bind_auto",
        Kind::Listen => "listen",
        Kind::Accept => "accept",
    }
}

/// `family` in JSON.
#[must_use]
pub fn family(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}

/// `phase` in JSON.
#[must_use]
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Bound => "bound",
        Phase::Listen => "listen",
        Phase::Connecting => "connecting",
        Phase::Established => "established",
        Phase::Closing => "closing",
        Phase::TimeWait(_) => "time_wait",
    }
}

/// A phase as `ss` would write the state.
#[must_use]
pub fn ss_state(phase: Phase, closed_by: Option<Side>) -> &'static str {
    match phase {
        Phase::Bound => "BOUND",
        Phase::Listen => "LISTEN",
        Phase::Connecting => "SYN-SENT",
        Phase::Established => "ESTAB",
        Phase::Closing => match closed_by {
            Some(Side::Peer) => "CLOSE-WAIT",
            _ => "FIN-WAIT",
        },
        Phase::TimeWait(Substate::TimeWait) => "TIME-WAIT",
        Phase::TimeWait(Substate::FinWait2) => "FIN-WAIT-2",
    }
}

/// `substate` in JSON.
#[must_use]
pub fn substate(substate: Substate) -> &'static str {
    match substate {
        Substate::TimeWait => "time_wait",
        Substate::FinWait2 => "fin_wait2",
    }
}

/// `by` and `closed_by` in JSON.
#[must_use]
pub fn side(side: Side) -> &'static str {
    match side {
        Side::Local => "local",
        Side::Peer => "peer",
    }
}

/// `reason` in JSON.
#[must_use]
pub fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Closed => "closed",
        Reason::ResetIn => "reset_in",
        Reason::ResetOut => "reset_out",
        Reason::Refused => "refused",
        Reason::TimedOut => "timeout",
        Reason::Aborted => "aborted",
        Reason::Disconnected => "disconnected",
        Reason::TimeWaitExpired => "time_wait_expired",
        Reason::TimeWaitReused => "time_wait_reused",
        Reason::TimeWaitKilled => "time_wait_killed",
        Reason::TimeWaitOverflow => "time_wait_overflow",
        Reason::NetnsGone => "netns_gone",
        Reason::Failed => "failed",
        Reason::Unseen => "unseen",
    }
}

/// `where` of a loss in JSON.
#[must_use]
pub fn place(place: Place) -> &'static str {
    match place {
        Place::Ring => "ring",
        Place::Recursion => "recursion",
        Place::Unseen => "unseen",
    }
}

/// `op` in JSON.
#[must_use]
pub fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Bind => "bind",
        Operation::Connect => "connect",
        Operation::Listen => "listen",
    }
}

/// `cause` in JSON.
#[must_use]
pub fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::RangeFull => "range_full",
        Cause::RangeBindLocked => "range_bind_locked",
        Cause::Reserved => "reserved",
        Cause::PortHeld => "port_held",
        Cause::AddressNotLocal => "address_not_local",
        Cause::Permission => "permission",
        Cause::Other => "other",
    }
}

/// `advice` in JSON.
#[must_use]
pub fn advice(advice: Advice) -> &'static str {
    match advice {
        Advice::BindWithoutPort => {
            "bind() before connect() takes a port for all destinations: set \
             IP_BIND_ADDRESS_NO_PORT before bind()"
        }
        Advice::ListenersInRange => {
            "listeners have their ports in ip_local_port_range: move the range or the listeners"
        }
        Advice::PoisonedBuckets => {
            "somebody bound ports that connections share, and has left: they are lost until these \
             connections end; set IP_BIND_ADDRESS_NO_PORT where clients bind()"
        }
        Advice::SpreadDestination => {
            "use more source or destination addresses, keep connections alive, widen \
             ip_local_port_range, or set tcp_tw_reuse=1 (of use if the peer sends timestamps)"
        }
        Advice::ReserveLess => {
            "all of ip_local_port_range is in ip_local_reserved_ports: reserve less, or widen it"
        }
        Advice::ReservePort => {
            "the port is one that connect() and bind() to port 0 choose from: add it to \
             ip_local_reserved_ports"
        }
        Advice::ReuseAddress => "set SO_REUSEADDR before bind()",
    }
}

/// The symbol of an errno that bind(), connect() or listen() can give.
#[must_use]
pub fn errno(errno: i32) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        libc::EACCES => "EACCES",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EAGAIN => "EAGAIN",
        libc::EBADF => "EBADF",
        libc::EFAULT => "EFAULT",
        libc::EINVAL => "EINVAL",
        libc::ENOBUFS => "ENOBUFS",
        libc::ENODEV => "ENODEV",
        libc::ENOMEM => "ENOMEM",
        libc::ENOTSOCK => "ENOTSOCK",
        libc::EPERM => "EPERM",
        other => return Cow::Owned(format!("errno {other}")),
    })
}

impl serde::Serialize for Cause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(cause(*self))
    }
}
