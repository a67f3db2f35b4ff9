//! Calls that got no port.

use tracer_ebpf::Owner;

use super::{Addr, Cookie, Family, Instant, Kind, Lease, Netns, Port, RangeUse};

/// The call that got no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operation {
    Bind,
    Connect,
    Listen,
}

/// Why there was no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Every port of the range is in use for the destination.
    RangeFull,
    /// Ports of the range are not in use for the destination, but somebody bound them, so that
    /// connect() leaves them out.
    RangeBindLocked,
    /// Every port of the range is reserved.
    Reserved,
    /// Somebody else holds it.
    PortHeld,
    /// The address is not one of this namespace.
    AddressNotLocal,
    /// Not permitted.
    Permission,
    /// None of the above.
    Other,
}

/// A call that got no port.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// When.
    pub at: Instant,
    /// Where.
    pub netns: Netns,
    /// The socket.
    pub cookie: Cookie,
    /// Its family.
    pub family: Family,
    /// Who called.
    pub owner: Option<Owner>,
    /// What was called.
    pub operation: Operation,
    /// The errno that the caller got.
    pub errno: i32,
    /// The local address that the caller wanted, or that the route gave.
    pub local_addr: Addr,
    /// The port that the caller wanted, 0 for any.
    pub local_port: u16,
    /// Where connect() was to go.
    pub peer: Option<(Addr, Port)>,
    /// Why, where the ledger can tell.
    pub cause: Option<Cause>,
    /// The lease that is in the way. If a range is: one lease of the process that has bound most
    /// of it.
    pub holder: Option<&'a Lease>,
    /// Of a range that is in the way: how many of its ports that process has bound.
    pub holder_ports: Option<u32>,
    /// The ports of the range, where one was searched and its settings are known.
    pub range: Option<RangeUse>,
    /// The range that was searched, if the socket had one of its own (`IP_LOCAL_PORT_RANGE`).
    pub own_range: Option<(Port, Port)>,
    /// The port that was asked for is one of those that connect() chooses from.
    pub is_of_range: bool,
    /// How long connect() searched.
    pub search_ns: Option<u64>,
}

impl Failure<'_> {
    /// The kind that the lease would have had if the call had got a port.
    #[must_use]
    pub fn wanted_kind(&self) -> Kind {
        match self.operation {
            Operation::Bind if self.local_port == 0 => Kind::BindAuto,
            Operation::Bind => Kind::Bind,
            Operation::Connect => Kind::Connect,
            Operation::Listen => Kind::Listen,
        }
    }
}
