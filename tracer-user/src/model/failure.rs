//! bind(), connect() and listen() calls that got no port.

use tracer_ebpf::Owner;

use super::{Addr, Cookie, Family, Instant, Kind, Lease, Netns, Port, RangeUse};

/// The system call that got no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operation {
    Bind,
    Connect,
    Listen,
}

/// Why a call got no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Every port of the range is in use for the destination.
    RangeFull,
    /// Ports of the range are not in use for the destination, but they are bound, so connect() does
    /// not choose them.
    RangeBindLocked,
    /// Every port of the range is reserved.
    Reserved,
    /// Another holder has the requested port.
    PortHeld,
    /// The address does not belong to this namespace.
    AddressNotLocal,
    /// The process may not bind this port (`EACCES`).
    Permission,
    /// None of the above.
    Other,
}

/// A call that got no port.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// When the call failed.
    pub at: Instant,
    /// The network namespace.
    pub netns: Netns,
    /// The socket's cookie.
    pub cookie: Cookie,
    /// The socket's family.
    pub family: Family,
    /// The calling process. `None` if it was not observed.
    pub owner: Option<Owner>,
    /// The call.
    pub operation: Operation,
    /// The errno that the caller got, positive.
    pub errno: i32,
    /// The requested local address, or the one that the route determined.
    pub local_addr: Addr,
    /// The requested port, 0 for any.
    pub local_port: u16,
    /// The peer of a connect(). `None` for other calls.
    pub peer: Option<(Addr, Port)>,
    /// The cause. `None` if the ledger does not know it; see
    /// [`cause_of`](crate::capacity::cause_of).
    pub cause: Option<Cause>,
    /// The lease that holds the requested port. If a range is bound: one lease of the process that
    /// has bound most of it. `None` if there is none or it is not known.
    pub holder: Option<&'a Lease>,
    /// How many ports of the range that process has bound. `None` if a single port was requested.
    pub holder_ports: Option<u32>,
    /// The use of the range that was searched. `None` if none was, or if the settings are not known.
    pub range: Option<RangeUse>,
    /// The socket's own range (`IP_LOCAL_PORT_RANGE`). `None` if it has none.
    pub own_range: Option<(Port, Port)>,
    /// True if the requested port is one that connect() may choose.
    pub is_of_range: bool,
    /// How long connect() searched, in nanoseconds. `None` for other calls, or if its start was not
    /// observed.
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
