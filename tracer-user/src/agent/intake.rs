//! From the ring to the ledger.

use super::namespaces::Namespaces;
use crate::{
    kernel::wire::{DecodeError, decode_with},
    ledger::{Ledger, Sink},
    model::{Failure, LeaseEvent, Pressure},
};

/// A sink for events of the ledger that also knows the namespaces.
pub(crate) trait NamespaceSink: Sink {
    /// The namespaces that were seen.
    fn namespaces(&mut self) -> &mut Namespaces;
}

/// Discards events that precede the first record.
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

/// Decodes one record of the ring and applies it to the ledger. An error of decoding is kept in
/// `foreign`.
pub(crate) fn apply(
    record: &[u8],
    ledger: &mut Ledger,
    sink: &mut impl NamespaceSink,
    foreign: &mut Option<DecodeError>,
) {
    let decoded = decode_with(record, |observation| {
        sink.namespaces().refresh_for(observation, ledger);
        ledger.apply(observation, sink);
    });
    if let Err(error) = decoded {
        *foreign = Some(error);
    }
}
