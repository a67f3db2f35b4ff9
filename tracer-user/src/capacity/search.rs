//! Which ports a search for a free one visits.

use super::reuse::ReuseRule;
use crate::model::{LocalRange, Port, Settings};

/// How the running kernel searches for ports. Determined from its features, not from its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelRules {
    /// When connect() may take a port over from a TIME_WAIT.
    pub reuse: ReuseRule,
    /// `IP_LOCAL_PORT_RANGE`.
    pub socket_range: SocketRangeRule,
}

/// How the socket option `IP_LOCAL_PORT_RANGE` affects a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRangeRule {
    /// The kernel does not have the option (before 6.3, unless it was backported).
    Absent,
    /// connect() searches the narrower range by parity, as it would the whole range.
    ByParity,
    /// connect() visits every port of it in turn (6.8).
    InTurn,
}

/// The ports that a search visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// The range from which it chooses.
    pub range: LocalRange,
    /// The port of the range that it does not visit.
    pub blind_spot: BlindSpot,
}

/// The port that a search by parity does not visit.
///
/// The kernel rounds an odd number of ports down to an even one and visits half of that number for
/// each parity, starting at a random port. There is one more port of the lowest port's parity than it
/// visits. It misses the last one if it started at the first, and the first one otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlindSpot {
    /// It visits every port.
    None,
    /// It never visits this one.
    Port(Port),
    /// It does not visit one of these two, at random.
    OneOf(Port, Port),
}

/// The namespace's range, narrowed by a socket's `IP_LOCAL_PORT_RANGE`: each end is ignored unless it
/// lies within the namespace's range (`inet_sk_get_local_port_range`, net/ipv4/inet_connection_sock.c).
#[must_use]
pub fn narrowed(range: LocalRange, own: Option<LocalRange>) -> LocalRange {
    own.map_or(range, |own| narrowed_by_ends(range, (own.low().0, own.high().0)))
}

/// Like [`narrowed`], for the two ends of `IP_LOCAL_PORT_RANGE`; 0 for an end that is not set.
#[must_use]
pub fn narrowed_by_ends(range: LocalRange, (low, high): (u16, u16)) -> LocalRange {
    let within = |own: Port, otherwise: Port| if range.contains(own) { own } else { otherwise };
    LocalRange::new(within(Port(low), range.low()), within(Port(high), range.high()))
        .unwrap_or(range)
}

/// connect()'s search (`__inet_hash_connect`, net/ipv4/inet_hashtables.c).
#[must_use]
pub fn of_connect(settings: &Settings, rules: KernelRules, own: Option<LocalRange>) -> Search {
    let range = narrowed(settings.range, own);
    let blind_spot = if own.is_some() && rules.socket_range == SocketRangeRule::InTurn {
        BlindSpot::None
    } else {
        blind_spot(range)
    };
    Search { range, blind_spot }
}

/// The search of bind() to port 0 (`inet_csk_find_open_port`, net/ipv4/inet_connection_sock.c).
/// With `SO_REUSEADDR` it searches the lower half of the range first, then the upper one.
#[must_use]
pub fn of_bind(settings: &Settings, own: Option<LocalRange>, reuse_addr: bool) -> Search {
    let range = narrowed(settings.range, own);
    const MIN_TO_HALVE: u32 = 4;
    if !reuse_addr || range.len() < MIN_TO_HALVE {
        return Search { range, blind_spot: blind_spot(range) };
    }
    // The lower half has an even number of ports, and so no blind spot.
    let ports = range.high().0 - range.low().0 + 1;
    let half = Port(range.low().0 + ((ports >> 2) << 1));
    let upper = LocalRange::new(half, range.high());
    Search { range, blind_spot: upper.map_or(BlindSpot::None, blind_spot) }
}

fn blind_spot(range: LocalRange) -> BlindSpot {
    match range.len() {
        1 => BlindSpot::None,
        // Rounded down to two ports, so the search always starts at the first.
        3 => BlindSpot::Port(range.high()),
        even if even % 2 == 0 => BlindSpot::None,
        _ => BlindSpot::OneOf(range.low(), range.high()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn range(low: u16, high: u16) -> LocalRange {
        LocalRange::new(Port(low), Port(high)).expect("it is a range")
    }

    /// The ports that the kernel's loop visits from each possible starting point
    /// (`__inet_hash_connect`, net/ipv4/inet_hashtables.c).
    fn visits(low: u16, high: u16) -> Vec<BTreeSet<u16>> {
        let high = high + 1;
        let mut remaining = high - low;
        if remaining > 1 {
            remaining &= !1;
        }
        (0..remaining)
            .map(|random| {
                let mut visited = BTreeSet::new();
                let mut offset = random & !1;
                loop {
                    let mut port = low + offset;
                    for _ in (0..remaining).step_by(2) {
                        if port >= high {
                            port -= remaining;
                        }
                        visited.insert(port);
                        port += 2;
                    }
                    offset += 1;
                    if offset & 1 == 0 || remaining <= 1 {
                        return visited;
                    }
                }
            })
            .collect()
    }

    #[test]
    fn the_blind_spot_is_what_the_kernels_loop_skips() {
        for low in [1000, 1001] {
            for ports in 1..40 {
                let high = low + ports - 1;
                let all: BTreeSet<u16> = (low..=high).collect();
                let left_out: BTreeSet<BTreeSet<u16>> =
                    visits(low, high).iter().map(|visited| &all - visited).collect();
                let expected = match blind_spot(range(low, high)) {
                    BlindSpot::None => vec![vec![]],
                    BlindSpot::Port(port) => vec![vec![port.0]],
                    BlindSpot::OneOf(one, other) => vec![vec![one.0], vec![other.0]],
                };
                let expected: BTreeSet<BTreeSet<u16>> =
                    expected.into_iter().map(|ports| ports.into_iter().collect()).collect();
                assert_eq!(left_out, expected, "{low} to {high}");
            }
        }
    }

    #[test]
    fn an_end_outside_the_range_is_ignored() {
        let of = |low, high| {
            let narrowed = narrowed(range(100, 200), Some(range(low, high)));
            (narrowed.low().0, narrowed.high().0)
        };
        assert_eq!(of(120, 130), (120, 130));
        assert_eq!(of(1, 130), (100, 130));
        assert_eq!(of(120, 300), (120, 200));
        assert_eq!(of(1, 99), (100, 200));
        assert_eq!(of(100, 200), (100, 200));
    }
}
