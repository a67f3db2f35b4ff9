//! Why a call got no port, and what helps.

use crate::model::{
    Cause, Failure, Instant, Kind, Lease, Operation, Phase, RangeUse, Substate, TIME_WAIT_S,
    seconds,
};

/// The remedy for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Clients bind before they connect, which makes each port unavailable to other destinations:
    /// they should set `IP_BIND_ADDRESS_NO_PORT`.
    BindWithoutPort,
    /// The ports of listeners are in the range: move the range, or reserve these ports.
    ListenersInRange,
    /// A process bound the port and is gone, but the bucket stays in class B as long as connections
    /// share the port (before 6.18).
    PoisonedBuckets,
    /// One destination uses all ports: use more source addresses, a wider range, longer-lived
    /// connections, or `tcp_tw_reuse`.
    SpreadDestination,
    /// Nearly the whole range is reserved.
    ReserveLess,
    /// An outgoing connection got the port from the range: reserve it for its listener in
    /// `ip_local_reserved_ports`.
    ReservePort,
    /// A TIME_WAIT holds the port: `SO_REUSEADDR`, set before bind(), ignores it.
    ReuseAddress,
}

/// Why the call got no port. `None` if the settings of its namespace are not known, or have changed
/// since the call.
///
/// A connect() fails if every port is either in use for its destination or in a bucket of class B.
/// The cause is whichever accounts for more ports; if both are equal, the bound ports.
#[must_use]
pub fn cause_of(failure: &Failure<'_>) -> Option<Cause> {
    if failure.cause.is_some() {
        return failure.cause;
    }
    let range = failure.range?;
    if is_another_range(range.headroom(), range.capacity, range.reserved) {
        return None;
    }
    Some(shortage_of(failure.operation, &range))
}

/// Why a call finds no port in a range that has none left.
#[must_use]
pub fn shortage_of(operation: Operation, range: &RangeUse) -> Cause {
    match operation {
        _ if range.capacity == 0 => Cause::Reserved,
        Operation::Connect if range.bind_locked > 0 && range.bind_locked >= range.used => {
            Cause::RangeBindLocked
        }
        Operation::Connect | Operation::Bind | Operation::Listen => Cause::RangeFull,
    }
}

/// True if the call must have searched another range, because most of this one is free. If the number
/// of ports is odd and not 1, the kernel may skip one of them, which does not count
/// (`__inet_hash_connect`, net/ipv4/inet_hashtables.c).
#[must_use]
pub fn is_another_range(free: u32, capacity: u32, reserved: u32) -> bool {
    let ports = capacity + reserved;
    let left_out = if ports > 1 { ports % 2 } else { 0 };
    free.saturating_sub(left_out) > capacity / 2
}

/// The remedy for a failure. `None` if there is none, or if the cause is not known.
#[must_use]
pub fn advice_on(failure: &Failure<'_>, cause: Option<Cause>) -> Option<Advice> {
    let holder = failure.holder;
    match cause? {
        Cause::RangeBindLocked => Some(advice_on_bind_lock(holder)),
        Cause::RangeFull => Some(match failure.operation {
            Operation::Connect => Advice::SpreadDestination,
            Operation::Bind | Operation::Listen => Advice::BindWithoutPort,
        }),
        Cause::Reserved => Some(Advice::ReserveLess),
        Cause::PortHeld => match (failure.operation, holder?) {
            (Operation::Connect, _) => None,
            (_, Lease { kind: Kind::Connect | Kind::BindAuto, .. }) if failure.is_of_range => {
                Some(Advice::ReservePort)
            }
            (_, Lease { phase: Phase::TimeWait(_), .. }) => Some(Advice::ReuseAddress),
            _ => None,
        },
        Cause::AddressNotLocal | Cause::Permission | Cause::Other => None,
    }
}

/// The remedy for bind-locked ports, of which this lease holds one.
#[must_use]
pub fn advice_on_bind_lock(holder: Option<&Lease>) -> Advice {
    match holder {
        Some(Lease { kind: Kind::Connect, .. }) => Advice::PoisonedBuckets,
        Some(Lease { phase: Phase::Listen, .. } | Lease { kind: Kind::Accept, .. }) => {
            Advice::ListenersInRange
        }
        _ => Advice::BindWithoutPort,
    }
}

/// Seconds until a holder releases its port, up to the rounding of its timer. `None` unless it is in
/// TIME_WAIT.
#[must_use]
pub fn free_in_s(holder: &Lease, now: Instant) -> Option<f64> {
    let armed = match holder.phase {
        Phase::TimeWait(Substate::TimeWait) => holder.timer_armed?,
        _ => return None,
    };
    Some((f64::from(TIME_WAIT_S) - seconds(now.since(armed))).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Addr, Cookie, Family, Netns, Port};

    fn failure(operation: Operation, range: RangeUse) -> Failure<'static> {
        Failure {
            at: Instant::BOOT,
            netns: Netns(1),
            cookie: Cookie(1),
            family: Family::Ipv4,
            owner: None,
            operation,
            errno: 0,
            local_addr: Addr::unspecified(Family::Ipv4),
            local_port: 0,
            peer: Some((Addr::unspecified(Family::Ipv4), Port(1))),
            cause: None,
            holder: None,
            holder_ports: None,
            range: Some(range),
            own_range: None,
            is_of_range: false,
            search_ns: None,
        }
    }

    #[test]
    fn the_cause_is_what_uses_most_of_the_range() {
        let range =
            |used, bind_locked| RangeUse { capacity: 10, used, bind_locked, ..RangeUse::default() };
        let connect = |used, locked| cause_of(&failure(Operation::Connect, range(used, locked)));
        assert_eq!(connect(10, 0), Some(Cause::RangeFull));
        assert_eq!(connect(8, 2), Some(Cause::RangeFull));
        assert_eq!(connect(5, 5), Some(Cause::RangeBindLocked));
        assert_eq!(connect(3, 1), None, "that range was not full");
        assert_eq!(connect(0, 10), Some(Cause::RangeBindLocked));
        assert_eq!(cause_of(&failure(Operation::Bind, range(10, 0))), Some(Cause::RangeFull));
        let of_few = |capacity, reserved| {
            let range = RangeUse { capacity, reserved, ..RangeUse::default() };
            cause_of(&failure(Operation::Connect, range))
        };
        assert_eq!(of_few(1, 2), Some(Cause::RangeFull), "of three one is left out");
        assert_eq!(of_few(2, 2), None);
        assert_eq!(of_few(1, 0), None, "a single one is not");
        let reserved = RangeUse { reserved: 10, ..RangeUse::default() };
        for operation in [Operation::Bind, Operation::Connect, Operation::Listen] {
            assert_eq!(cause_of(&failure(operation, reserved)), Some(Cause::Reserved));
            let unknown = Failure { range: None, ..failure(operation, reserved) };
            assert_eq!(cause_of(&unknown), None);
        }
    }
}
