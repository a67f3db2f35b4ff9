//! From the ring to the ledger.

use super::namespaces::Namespaces;
use crate::{
    kernel::wire::{DecodeError, decode_with},
    ledger::{Ledger, Sink},
    model::{Failure, LeaseEvent, Pressure},
};

/// Receives what the ledger finds out, and knows the namespaces in which it happens.
pub(crate) trait NamespaceSink: Sink {
    /// The namespaces that were seen.
    fn namespaces(&mut self) -> &mut Namespaces;
}

/// Discards what precedes the first record.
#[derive(Default)]
pub(crate) struct Discard {
    pub namespaces: Namespaces,
}

impl NamespaceSink for Discard {
    fn namespaces(&mut self) -> &mut Namespaces {
        &mut self.namespaces
    }
}

impl Sink for Discard {
    fn lease(&mut self, _event: LeaseEvent<'_>, _ledger: &Ledger) {}
    fn failure(&mut self, _failure: &Failure<'_>, _ledger: &Ledger) {}
    fn pressure(&mut self, _pressure: &Pressure, _ledger: &Ledger) {}
}

/// Decodes one record of the ring and applies it to the ledger. What cannot be decoded is kept in
/// `foreign`.
pub(crate) fn apply(
    record: &[u8],
    ledger: &mut Ledger,
    sink: &mut impl NamespaceSink,
    foreign: &mut Option<DecodeError>,
) {
    let decoded = decode_with(record, |observation| {
        sink.namespaces().prepare(observation, ledger);
        ledger.apply(observation, sink);
    });
    if let Err(error) = decoded {
        *foreign = Some(error);
    }
}
