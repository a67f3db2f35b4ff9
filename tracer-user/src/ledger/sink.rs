//! Who receives what the ledger finds out.

use super::Ledger;
use crate::model::{Failure, LeaseEvent, Pressure};

/// Receives the changes of leases, the calls that got no port, and the levels that were crossed,
/// each with the ledger as it is at that moment.
pub trait Sink {
    /// A lease changed, or a snapshot found one whose beginning was lost ([`Change::Held`]).
    ///
    /// [`Change::Held`]: crate::model::Change::Held
    fn lease(&mut self, event: LeaseEvent<'_>, ledger: &Ledger);
    /// A bind(), connect() or listen() got no port.
    fn failure(&mut self, failure: &Failure<'_>, ledger: &Ledger);
    /// A destination or a whole range crossed a level of use.
    fn pressure(&mut self, pressure: &Pressure, ledger: &Ledger);
}
