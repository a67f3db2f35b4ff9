//! Counts of leases by phase.

use serde::Serialize;

use crate::model::{Lease, Phase, Side, Substate};

/// Number of leases by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phases {
    pub bound: u32,
    pub listen: u32,
    pub connecting: u32,
    pub established: u32,
    pub close_wait: u32,
    pub closing: u32,
    pub fin_wait2: u32,
    pub time_wait: u32,
}

impl Phases {
    /// Counts a lease.
    pub fn count(&mut self, lease: &Lease) {
        *match lease.phase {
            Phase::Bound => &mut self.bound,
            Phase::Listen => &mut self.listen,
            Phase::Connecting => &mut self.connecting,
            Phase::Established => &mut self.established,
            Phase::Closing if is_close_wait(lease) => &mut self.close_wait,
            Phase::Closing => &mut self.closing,
            Phase::TimeWait(Substate::FinWait2) => &mut self.fin_wait2,
            Phase::TimeWait(Substate::TimeWait) => &mut self.time_wait,
        } += 1;
    }

    /// Each phase as `ss` names the state, with its number.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let Self {
            bound,
            listen,
            connecting,
            established,
            close_wait,
            closing,
            fin_wait2,
            time_wait,
        } = *self;
        [
            ("LISTEN", listen),
            ("BOUND", bound),
            ("SYN-SENT", connecting),
            ("ESTAB", established),
            ("CLOSE-WAIT", close_wait),
            ("FIN-WAIT", closing),
            ("FIN-WAIT-2", fin_wait2),
            ("TIME-WAIT", time_wait),
        ]
        .into_iter()
    }
}

/// True if the peer has closed the connection, and the owner has not.
pub fn is_close_wait(lease: &Lease) -> bool {
    lease.phase == Phase::Closing && lease.closed_by == Some(Side::Peer)
}
