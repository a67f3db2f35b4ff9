//! The end of connections and sockets.

use tracer_ebpf::TcpState;

use crate::{
    ledger::{
        Ledger, Sink,
        tables::{Awaited, Hold},
        timers::DueLease,
    },
    model::{
        Addr, Change, Instant, Phase, Reason,
        observation::{Closed, Closing, Destroyed, NoTimeWait, SocketId},
    },
};

/// close() shuts a socket down microseconds before it destroys it; shutdown() does not destroy it.
const CLOSE_SETTLES_NS: u64 = 40_000_000;

impl Ledger {
    pub(in crate::ledger) fn closing(&mut self, closing: &Closing, sink: &mut impl Sink) {
        let Closing { at, socket, endpoints, by, userlocks } = *closing;
        let index = match self.table.leases().of_socket(socket.cookie) {
            Some(index) => index,
            // The connection was established before the tracer started.
            None => match self.discover(socket, endpoints, userlocks, Phase::Established) {
                Some(index) => index,
                None => return,
            },
        };
        let lease = &mut self.table[index].lease;
        lease.phase = Phase::Closing;
        if lease.closed_by.is_none() {
            lease.closed_by = Some(by);
            lease.closing = Some(at);
            self.emit(index, at, Change::Closing { by }, sink);
        }
    }

    pub(in crate::ledger) fn closed(&mut self, closed: &Closed, sink: &mut impl Sink) {
        let Closed { at, socket, endpoints, from, error, is_shut_down, userlocks, .. } = *closed;
        let SocketId { cookie, .. } = socket;
        if let Some(call) = self.calls.end(cookie) {
            self.call_failed(closed, &call, sink);
            return;
        }
        let Some(index) = self.table.leases().of_socket(cookie) else {
            self.window.end(|| Some(Hold::Socket(cookie)));
            // If it holds a port, the socket is older than the tracer.
            if let Some(index) = self.discover(socket, endpoints, userlocks, Phase::Bound) {
                let bucket = self.bucket_of(index);
                self.emit(index, at, Change::Held { bucket }, sink);
            }
            return;
        };
        let reason = close_reason(closed);
        let is_failure = error.is_none() && !is_shut_down;
        if self.table[index].awaited == Some(Awaited::CallResult) {
            self.table[index].awaited = None;
            if self.visibility.ports_chosen && is_failure {
                self.bound_call_failed(index, at, from, sink);
            }
        }
        if from == Some(TcpState::Listen) {
            self.table.leases_mut().remove_listener(index);
        }
        if endpoints.local.port.is_none() {
            self.end_socket_hold(index, at, reason, sink);
            return;
        }
        let entry = &mut self.table[index];
        entry.changed = self.window.number();
        if entry.holders.has_time_wait() {
            return;
        }
        entry.close_reason = Some(reason);
        let before = (entry.lease.phase, entry.lease.local_addr);
        if !userlocks.has_bound_addr() {
            // connect() had chosen the address (tcp_disconnect, net/ipv4/tcp.c).
            let unspecified = Addr::unspecified(entry.lease.family);
            self.table.set_address(index, unspecified);
        }
        self.table.change(index, |entry| {
            let lease = &mut entry.lease;
            lease.phase = Phase::Bound;
            lease.closing = lease.closing.or(lease.established.map(|_| at));
        });
        let lease = &self.table[index].lease;
        if (lease.phase, lease.local_addr) == before {
            return;
        }
        if is_shut_down {
            let id = lease.id;
            self.shut_down.push_back(DueLease { since: at, index, id });
        } else {
            self.emit_update(index, at, sink);
        }
    }

    /// Emits an update for sockets that were shut down, and for which no release has followed: they
    /// are only bound.
    pub(in crate::ledger) fn settle_shut_down(&mut self, now: Instant, sink: &mut impl Sink) {
        while let Some(DueLease { since, index, id }) =
            self.shut_down.pop_front_if(|due| now.since(due.since) >= CLOSE_SETTLES_NS)
        {
            let entry = self.table.leases().live(index, id);
            if entry.is_some_and(|entry| entry.lease.phase == Phase::Bound) {
                self.emit_update(index, since, sink);
            }
        }
    }

    pub(in crate::ledger) fn destroyed(&mut self, destroyed: &Destroyed, sink: &mut impl Sink) {
        let Destroyed { at, socket: SocketId { cookie, netns: _ } } = *destroyed;
        self.calls.end(cookie);
        let Some(index) = self.table.leases().of_socket(cookie) else {
            self.window.end(|| Some(Hold::Socket(cookie)));
            return;
        };
        let reason = self.table[index].close_reason.unwrap_or(Reason::Closed);
        self.end_socket_hold(index, at, reason, sink);
    }
}

/// Why a socket went to CLOSE (kernel-side order of events: net/ipv4/tcp.c, tcp_input.c).
fn close_reason(closed: &Closed) -> Reason {
    let Closed { from, error, is_shut_down, is_orphan, no_time_wait, .. } = *closed;
    match error {
        Some(libc::ECONNREFUSED) => return Reason::Refused,
        Some(libc::ETIMEDOUT) => return Reason::TimedOut,
        Some(libc::ECONNRESET | libc::EPIPE) => return Reason::ResetIn,
        Some(libc::ECONNABORTED) => return Reason::Aborted,
        None => {}
        Some(_) => return Reason::Failed,
    }
    // tcp_disconnect and __tcp_close store the state before they send the reset and before they set
    // the error; only a close() has shut both halves by then. A connection that nobody has accepted
    // is reset with its listener (inet_csk_listen_stop).
    let abandoned = if is_shut_down || is_orphan { Reason::ResetOut } else { Reason::Disconnected };
    match from {
        Some(TcpState::Established | TcpState::CloseWait | TcpState::FinWait1) => abandoned,
        Some(TcpState::SynSent) if !is_shut_down => Reason::Disconnected,
        // With a TIME_WAIT the lease goes on, and this reason is not used.
        Some(TcpState::FinWait2 | TcpState::Closing) => match no_time_wait {
            Some(NoTimeWait::NegativeLinger2) => Reason::ResetOut,
            Some(NoTimeWait::TooMany) => Reason::TimeWaitOverflow,
            None => abandoned,
        },
        _ => Reason::Closed,
    }
}
