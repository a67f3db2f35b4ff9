//! Who receives what the ledger finds out.

use crate::model::{Failure, Instant, Lease, LeaseEvent, Pressure};

/// Takes what the ledger tells.
pub trait Sink {
    /// A lease changed.
    fn lease(&mut self, event: LeaseEvent<'_>);
    /// A call got no port.
    fn failure(&mut self, failure: Failure<'_>);
    /// A snapshot found a lease whose beginning was lost.
    fn found(&mut self, at: Instant, lease: &Lease);
    /// A destination or a range crossed a level of use.
    fn pressure(&mut self, pressure: Pressure);
}
