//! The receiver of the ledger's events.

use super::Ledger;
use crate::model::{Failure, LeaseEvent, Pressure};

/// Receives changes of leases, failed calls and crossed levels of use, each with the ledger as it
/// is at that moment.
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
