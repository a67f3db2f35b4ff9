//! Applies observations, and decides what waits for time to pass.

use super::{Ledger, Sink};
use crate::model::{Instant, Observation};

impl Ledger {
    /// Applies one observation. Observations from before all hooks were attached are ignored,
    /// because those before or after them may be missing.
    pub fn apply(&mut self, observation: &Observation<'_>, sink: &mut impl Sink) {
        let at = observation.at();
        if at < self.visibility.since {
            return;
        }
        self.table.set_time(at);
        match observation {
            Observation::ConnectStart(start) => self.connect_start(start, sink),
            Observation::PortChosen(chosen) => self.port_chosen(chosen, sink),
            Observation::Established(established) => self.established(established, sink),
            Observation::Closing(closing) => self.closing(closing, sink),
            Observation::Closed(closed) => self.closed(closed, sink),
            Observation::Destroyed(destroyed) => self.destroyed(destroyed, sink),
            Observation::ListenStart(start) => self.listen_start(start, sink),
            Observation::Listening(listening) => self.listening(listening, sink),
            Observation::Bound(bound) => self.bound(bound, sink),
            Observation::BindFailed(failed) => self.bind_failed(failed, sink),
            Observation::Accepted(accepted) => self.accepted(accepted, sink),
            Observation::TimeWaitStart(start) => self.time_wait_start(start, sink),
            Observation::TimeWaitCancel(cancel) => self.time_wait_cancel(cancel),
            Observation::TimeWaitExpire(expire) => self.time_wait_expire(expire, sink),
        }
        self.emit_pressure(sink);
    }

    /// Decides everything that has waited long enough. Every observation up to `now` must have been
    /// applied.
    pub fn settle(&mut self, now: Instant, sink: &mut impl Sink) {
        // The end of a run settles everything, whatever the time.
        if now != Instant::from_ns(u64::MAX) {
            self.table.set_time(now);
        }
        self.settle_timers(now, sink);
        self.settle_unaccepted(now, sink);
        self.settle_shut_down(now, sink);
        self.emit_pressure(sink);
    }
}
