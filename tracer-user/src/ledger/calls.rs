//! The connect() and listen() calls under way.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracer_ebpf::Owner;

use crate::model::{Cookie, Instant, Netns, Operation, Peer, observation::OwnRange};

/// If a connect() or listen() has no result for this long, the observation of its result was lost:
/// the search of a full range takes milliseconds.
pub(super) const LONGEST_CALL_NS: u64 = 10_000_000_000;

/// Lost results are not searched for below this number of calls under way.
const FEW_CALLS: usize = 1024;

/// A connect() or listen() of a socket that holds no port yet.
#[derive(Debug)]
pub(super) struct Call {
    pub began: Instant,
    pub netns: Netns,
    /// The destination of a connect().
    pub peer: Peer,
    pub operation: Operation,
    pub owner: Option<Arc<Owner>>,
    pub own_range: Option<OwnRange>,
}

/// The calls under way, by the cookie of their socket.
#[derive(Debug)]
pub(super) struct Calls {
    by_cookie: FxHashMap<Cookie, Call>,
    /// The number of calls at which lost results are searched for.
    look_at: usize,
}

impl Default for Calls {
    fn default() -> Self {
        Self { by_cookie: FxHashMap::default(), look_at: FEW_CALLS }
    }
}

impl Calls {
    /// Records that a call begins to search for a port.
    pub fn begin(&mut self, cookie: Cookie, call: Call) {
        if self.by_cookie.len() >= self.look_at {
            self.forget_lost(call.began);
            self.look_at = FEW_CALLS.max(2 * self.by_cookie.len());
        }
        self.by_cookie.insert(cookie, call);
    }

    /// Records that a call ends, with or without a port.
    pub fn end(&mut self, cookie: Cookie) -> Option<Call> {
        self.by_cookie.remove(&cookie)
    }

    /// True if a call of this socket is under way.
    pub fn contains(&self, cookie: Cookie) -> bool {
        self.by_cookie.contains_key(&cookie)
    }

    /// True if a connect() to this destination that began no later than `by` is still under way.
    pub fn connects_to(&self, netns: Netns, peer: Peer, by: Instant) -> bool {
        self.by_cookie.values().any(|call| {
            call.netns == netns
                && call.peer == peer
                && call.began <= by
                && call.operation == Operation::Connect
        })
    }

    /// Forgets calls whose result must have been lost.
    pub fn forget_lost(&mut self, now: Instant) {
        self.by_cookie.retain(|_, call| now.since(call.began) < LONGEST_CALL_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_whose_result_was_lost_are_forgotten() {
        let mut calls = Calls::default();
        let mut most = 0;
        for cookie in 0..1_000_000_u64 {
            let began = Instant::from_ns(cookie * 10_000_000);
            let call = Call {
                began,
                netns: Netns(1),
                peer: Peer::NONE,
                operation: Operation::Connect,
                owner: None,
                own_range: None,
            };
            calls.begin(Cookie(cookie), call);
            most = most.max(calls.by_cookie.len());
        }
        // A thousand of them begin in the longest time that a call may take.
        assert!(most <= 2 * FEW_CALLS, "{most}");
        assert!(calls.contains(Cookie(999_999)));
    }
}
