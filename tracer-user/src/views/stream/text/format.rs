//! How text shows addresses, durations and names, and fills columns.

use tracer_ebpf::{Owner, mapped};

use crate::{
    capacity::Advice,
    model::{Addr, Port},
    record::{
        comm,
        digits::{append_decimal, append_ipv4},
    },
};

/// An end of a connection, for its column.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    /// An address and a port; `*` for a wildcard address, and for a port that is `None`.
    At(Addr, Option<Port>),
    /// Text in the column of an end.
    Text(&'a str),
}

impl End<'_> {
    /// There is no such end.
    pub(super) const NONE: Self = Self::Text("-");
    /// Any address and port.
    pub(super) const ANY: Self = Self::Text("*:*");

    /// The end of a peer, [`NONE`](Self::NONE) if there is none.
    pub(super) fn of_peer(peer: Option<(Addr, Port)>) -> Self {
        peer.map_or(Self::NONE, |(addr, port)| Self::At(addr, Some(port)))
    }

    /// Appends `ADDR:PORT`, IPv6 addresses in brackets.
    pub(super) fn append(self, bytes: &mut Vec<u8>) {
        let (addr, port) = match self {
            Self::At(addr, port) => (addr, port),
            Self::Text(text) => return bytes.extend_from_slice(text.as_bytes()),
        };
        let [.., v4] = addr.0;
        if addr.is_unspecified() {
            bytes.push(b'*');
        } else if addr.0 == mapped(v4) {
            append_ipv4(v4, bytes);
        } else {
            bytes.extend_from_slice(format!("[{addr}]").as_bytes());
        }
        bytes.push(b':');
        match port {
            Some(port) => append_decimal(port.0.into(), bytes),
            None => bytes.push(b'*'),
        }
    }
}

/// The remedy in a few words. [`names::advice`](crate::record::names::advice) says more.
pub(super) fn short_advice(advice: Advice) -> &'static str {
    match advice {
        Advice::BindWithoutPort => "set IP_BIND_ADDRESS_NO_PORT before bind()",
        Advice::ListenersInRange => "move the range or the listeners",
        Advice::PoisonedBuckets => "set IP_BIND_ADDRESS_NO_PORT where clients bind()",
        Advice::SpreadDestination => "reuse connections, or use more addresses or a wider range",
        Advice::ReserveLess => "reserve fewer ports, or widen the range",
        Advice::ReservePort => "add it to ip_local_reserved_ports",
        Advice::ReuseAddress => "set SO_REUSEADDR before bind()",
    }
}

/// `ADDR:PORT`, as in the columns.
pub(crate) fn endpoint(addr: Addr, port: Option<Port>) -> String {
    let mut bytes = Vec::new();
    End::At(addr, port).append(&mut bytes);
    String::from_utf8(bytes).unwrap_or_default()
}

/// The peer as in the columns, `-` if there is none.
pub(crate) fn peer(peer: Option<(Addr, Port)>) -> String {
    peer.map_or_else(|| "-".to_owned(), |(addr, port)| endpoint(addr, Some(port)))
}

/// A duration in seconds, as [`append_duration`] writes it.
pub(super) fn duration(seconds: f64) -> String {
    let mut bytes = Vec::new();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as casts saturate: below at 0, above at centuries"
    )]
    append_duration((seconds * 1e9).round() as u64, &mut bytes);
    String::from_utf8(bytes).unwrap_or_default()
}

/// Appends a duration in the unit that suits its size, in at most eight characters.
pub(super) fn append_duration(ns: u64, bytes: &mut Vec<u8>) {
    /// Appends the duration in this unit, rounded to `digits` after the decimal point.
    fn append(ns: u64, unit_ns: u64, digits: u32, unit: &str, bytes: &mut Vec<u8>) {
        let parts = 10_u64.pow(digits);
        let step_ns = unit_ns / parts;
        let rounded = ns.saturating_add(step_ns / 2) / step_ns;
        append_decimal(rounded / parts, bytes);
        if digits > 0 {
            // The leading 1 is where the decimal point goes.
            let point = bytes.len();
            append_decimal(parts + rounded % parts, bytes);
            bytes[point] = b'.';
        }
        bytes.extend_from_slice(unit.as_bytes());
    }
    const SECOND_NS: u64 = 1_000_000_000;
    match ns {
        ns if ns < 1_000_000 => append(ns, 1000, 0, "us", bytes),
        ns if ns < SECOND_NS => append(ns, 1_000_000, 1, "ms", bytes),
        ns if ns < 100 * SECOND_NS => append(ns, SECOND_NS, 2, "s", bytes),
        ns if ns < 6000 * SECOND_NS => append(ns, SECOND_NS, 0, "s", bytes),
        ns => append(ns, 60 * SECOND_NS, 0, "min", bytes),
    }
}

/// Appends the name of a process.
pub(super) fn append_name(owner: &Owner, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(comm(&owner.comm).shown().as_bytes());
}

/// Writes a column of at least this width, aligned to the left.
pub(super) fn left(bytes: &mut Vec<u8>, width: usize, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    write(bytes);
    let missing = width.saturating_sub(characters(&bytes[start..]));
    bytes.resize(bytes.len() + missing, b' ');
}

/// Writes a column of at least this width, aligned to the right. The text must be ASCII.
pub(super) fn right(bytes: &mut Vec<u8>, width: usize, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    write(bytes);
    let length = bytes.len() - start;
    if length < width {
        bytes.resize(start + width, b' ');
        bytes[start..].rotate_right(width - length);
    }
}

/// The number of characters of a UTF-8 text: its bytes without continuation bytes.
fn characters(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// The texts that are not empty, separated by commas.
pub(super) fn join(parts: &[String]) -> String {
    let parts: Vec<_> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}
