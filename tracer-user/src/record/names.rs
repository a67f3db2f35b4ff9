//! The names in records: one table for each enum, from which names are written and read.
//!
//! A table is checked by the compiler: a value without a row does not compile. As reading uses the
//! same rows, no name can be written that cannot be read.

use std::borrow::Cow;

use crate::{
    capacity::Advice,
    model::{
        BucketClass, Cause, Family, Kind, Operation, Phase, PortClass, Reason, Side, Substate,
    },
    record::{LostAt, RecordType},
};

pub use super::named::Named;

/// Declares the table of an enum, and a function that gives the name of a value.
///
/// A row is `Variant => "name"`. `Variant(_ or VALUE) => "name"` is the row of a variant whose
/// content is a field of its own; a reader that lacks this field assumes `VALUE`.
macro_rules! named {
    (
        $(#[$doc:meta])*
        $function:ident: $enum:ident in $field:literal {
            $($variant:ident $((_ or $assumed:expr))? => $name:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[must_use]
        pub const fn $function(value: $enum) -> &'static str {
            match value {
                $($enum::$variant $((named!(any $assumed)))? => $name,)+
            }
        }

        impl Named for $enum {
            const FIELD: &'static str = $field;
            const ALL: &'static [Self] = &[$($enum::$variant $(($assumed))?),+];

            #[inline]
            fn name(self) -> &'static str {
                $function(self)
            }
        }
    };
    (any $assumed:expr) => { _ };
}

named! {
    /// The `type` of a record.
    record_type: RecordType in "type" {
        Start => "start",
        Namespace => "namespace",
        Held => "held",
        Bind => "bind",
        Connect => "connect",
        Established => "established",
        Accept => "accept",
        Listen => "listen",
        Update => "update",
        Closing => "closing",
        TimeWait => "time_wait",
        Release => "release",
        Fail => "fail",
        Pressure => "pressure",
        Scan => "scan",
        Loss => "loss",
        Verify => "verify",
        Summary => "summary",
    }
}

named! {
    /// The `kind` of a lease.
    kind: Kind in "kind" {
        Connect => "connect",
        Bind => "bind",
        BindAuto => "bind_auto",
        Listen => "listen",
        Accept => "accept",
    }
}

named! {
    /// The `family` of a socket.
    family: Family in "family" {
        Ipv4 => "ipv4",
        Ipv6 => "ipv6",
    }
}

named! {
    /// The `phase` of a lease. That of a TIME_WAIT leaves out the substate; one of unknown substate
    /// is most likely in the longer one.
    phase: Phase in "phase" {
        Bound => "bound",
        Listen => "listen",
        Connecting => "connecting",
        Established => "established",
        Closing => "closing",
        TimeWait(_ or Substate::TimeWait) => "time_wait",
    }
}

named! {
    /// The class of a port's `bucket`.
    bucket_class: BucketClass in "bucket" {
        Connect => "connect",
        Bind => "bind",
    }
}

named! {
    /// The `substate` of a TIME_WAIT.
    substate: Substate in "substate" {
        TimeWait => "time_wait",
        FinWait2 => "fin_wait2",
    }
}

named! {
    /// The side of a connection that sent the first FIN, in `by` and `closed_by`.
    side: Side in "by" {
        Local => "local",
        Peer => "peer",
    }
}

named! {
    /// The `reason` of a release.
    reason: Reason in "reason" {
        Closed => "closed",
        ResetIn => "reset_in",
        ResetOut => "reset_out",
        Refused => "refused",
        TimedOut => "timeout",
        Aborted => "aborted",
        Disconnected => "disconnected",
        TimeWaitExpired => "time_wait_expired",
        TimeWaitReused => "time_wait_reused",
        TimeWaitKilled => "time_wait_killed",
        TimeWaitOverflow => "time_wait_overflow",
        NetnsGone => "netns_gone",
        Failed => "failed",
        Unseen => "unseen",
    }
}

named! {
    /// The place where facts or records were lost, in `where`.
    lost_at: LostAt in "where" {
        Ring => "ring",
        Recursion => "recursion",
        Unseen => "unseen",
        Reader => "reader",
    }
}

named! {
    /// The system call that failed, in `op`.
    operation: Operation in "op" {
        Bind => "bind",
        Connect => "connect",
        Listen => "listen",
    }
}

named! {
    /// The `cause` of a failure.
    cause: Cause in "cause" {
        RangeFull => "range_full",
        RangeBindLocked => "range_bind_locked",
        Reserved => "reserved",
        PortHeld => "port_held",
        AddressNotLocal => "address_not_local",
        Permission => "permission",
        Other => "other",
    }
}

named! {
    /// The `class` of a port, IANA's.
    port_class: PortClass in "class" {
        WellKnown => "well_known",
        Registered => "registered",
        Dynamic => "dynamic",
    }
}

named! {
    /// The `advice` on a failure, a sentence.
    advice: Advice in "advice" {
        BindWithoutPort =>
            "bind() before connect() takes a port for all destinations: set \
             IP_BIND_ADDRESS_NO_PORT before bind()",
        ListenersInRange =>
            "listeners have their ports in ip_local_port_range: move the range or the listeners",
        PoisonedBuckets =>
            "a process that is gone had bound ports that connections share: no other destination can \
             use them until these connections end; set IP_BIND_ADDRESS_NO_PORT where clients bind()",
        SpreadDestination =>
            "use more source or destination addresses, keep connections alive, widen \
             ip_local_port_range, or set tcp_tw_reuse=1 (of use if the peer sends timestamps)",
        ReserveLess =>
            "all of ip_local_port_range is in ip_local_reserved_ports: reserve less, or widen it",
        ReservePort =>
            "the port is one that connect() and bind() to port 0 choose from: add it to \
             ip_local_reserved_ports",
        ReuseAddress => "set SO_REUSEADDR before bind()",
    }
}

/// The symbol of an errno that bind(), connect() or listen() can give; `errno N` for others.
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

/// A phase as `ss` names the state; text only.
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

impl serde::Serialize for Cause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Debug};

    use super::*;

    /// Every name is its own value's only, and needs no escape.
    fn assert_names_are_read_back<T: Named + PartialEq + Debug>() {
        let names: BTreeSet<_> = T::ALL.iter().map(|value| value.name()).collect();
        assert_eq!(names.len(), T::ALL.len(), "{} has a name twice", T::FIELD);
        for value in T::ALL {
            assert_eq!(T::from_name(value.name()), Some(*value));
            let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
            assert!(value.name().bytes().all(is_plain), "{}", value.name());
        }
        assert_eq!(T::from_name("no such name"), None);
    }

    #[test]
    fn every_name_that_is_written_is_read_back() {
        assert_names_are_read_back::<RecordType>();
        assert_names_are_read_back::<Kind>();
        assert_names_are_read_back::<Family>();
        assert_names_are_read_back::<Phase>();
        assert_names_are_read_back::<Substate>();
        assert_names_are_read_back::<Side>();
        assert_names_are_read_back::<Reason>();
        assert_names_are_read_back::<LostAt>();
        assert_names_are_read_back::<Operation>();
        assert_names_are_read_back::<Cause>();
        assert_names_are_read_back::<PortClass>();
        assert_names_are_read_back::<Advice>();
    }
}
