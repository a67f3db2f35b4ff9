//! The report as a view, which prints nothing until the end.

use super::{Form, Report, Services, tally::Tally};
use crate::{
    ledger::Ledger,
    record::{Body, Record, filter::Filter},
    views::{Delivery, Verbosity, View},
};

/// Aggregates records, and writes the report after the last one.
///
/// A recording is read back into the same records and the same ledger, so a report on it cannot
/// differ from the live one.
#[derive(Debug)]
pub struct ReportView {
    tally: Tally,
    services: Services,
    filter: Filter,
    form: Form,
    verbosity: Verbosity,
    buffer: Vec<u8>,
}

impl ReportView {
    /// `realtime_offset_ns` is added to a monotonic time to get the time of day. `filter` is the one
    /// that the records have passed.
    #[must_use]
    pub fn new(
        realtime_offset_ns: i128,
        form: Form,
        services: Services,
        filter: Filter,
        verbosity: Verbosity,
    ) -> Self {
        Self {
            tally: Tally::new(realtime_offset_ns),
            services,
            filter,
            form,
            verbosity,
            buffer: Vec::new(),
        }
    }

    /// Sets the offset from monotonic time to the time of day, once it is known from the recording.
    pub fn set_realtime_offset(&mut self, realtime_offset_ns: i128) {
        self.tally.realtime_offset_ns = realtime_offset_ns;
    }

    /// The report on the records so far.
    #[must_use]
    pub fn report(&mut self, ledger: &Ledger) -> Report {
        Report::of(&mut self.tally, ledger, &self.services, &self.filter)
    }
}

impl View for ReportView {
    fn record(&mut self, record: &Record<'_>, ledger: &Ledger) {
        self.tally.add(record, ledger);
        match record.body {
            Body::Start(start) if self.verbosity >= Verbosity::Normal => {
                crate::stderr::write_line!(
                    "portlife: observing on Linux {}, leases held: {}; Ctrl-C stops and prints the \
                     report",
                    start.kernel,
                    start.held
                );
            }
            Body::Summary(_) => {
                let report = self.report(ledger);
                self.buffer.extend_from_slice(&self.form.write(&report));
            }
            _ => {}
        }
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    fn delivery(&self) -> Delivery {
        Delivery::Whole
    }
}
