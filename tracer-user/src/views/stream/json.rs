//! The stream as JSON, one object a line.

use serde::Serialize;

use crate::{
    ledger::Ledger,
    model::Instant,
    record::{Body, Record, json::Writer},
    views::{Verbosity, View},
};

/// Writes every record as JSON.
#[derive(Debug)]
pub struct Json {
    writer: Writer,
    verbosity: Verbosity,
}

impl Json {
    /// `realtime_offset_ns` is the time of day minus the monotonic time.
    #[must_use]
    pub fn new(realtime_offset_ns: i128, verbosity: Verbosity) -> Self {
        Self { writer: Writer::new(realtime_offset_ns), verbosity }
    }

    /// Writes the answer of a command, a record of a type of its own.
    pub(crate) fn write<D: Serialize>(&mut self, record_type: &'static str, at: Instant, rest: D) {
        self.writer.write(record_type, at, None, rest);
    }
}

impl View for Json {
    fn record(&mut self, record: &Record<'_>, _ledger: &Ledger) {
        match record.body {
            Body::Start(start) => self.verbosity.warn(start),
            Body::Verify(verify) => self.verbosity.list(&verify.differences),
            _ => {}
        }
        self.writer.record(record);
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        self.writer.buffer()
    }
}
