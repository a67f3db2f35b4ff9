//! What the user sees: one file for each form.
//!
//! Invariant: a view receives records and asks the ledger; it knows nothing of the kernel.

pub mod check;
mod format;
pub mod owner_name;
mod phases;
pub mod report;
pub mod stream;
mod table;
pub mod why;

use crate::{
    ledger::Ledger,
    record::{Record, Start},
};

/// Shows records, and what the ledger says about them.
///
/// A view selects, sorts and formats; numbers about ports come from the ledger. It writes into a
/// buffer of its own, so that it never waits for a reader.
///
/// # Examples
///
/// A view that prints a line for each call that got no port, and the records of a recording to try
/// it with:
///
/// ```
/// use std::io::Write as _;
/// use tracer_user::{
///     ledger::Ledger,
///     record::{Body, Record, filter::Filter, names},
///     sources::replay::Recording,
///     views::View,
/// };
///
/// #[derive(Default)]
/// struct Failures(Vec<u8>);
///
/// impl View for Failures {
///     fn record(&mut self, record: &Record<'_>, ledger: &Ledger) {
///         let Body::Fail { failure, .. } = record.body else { return };
///         let operation = names::operation(failure.operation);
///         let error = names::errno(failure.errno);
///         let left = ledger.range(failure.netns).map_or(0, |range| range.headroom());
///         writeln!(self.0, "{operation}() failed with {error}: {left} ports left").unwrap();
///     }
///
///     fn buffer(&mut self) -> &mut Vec<u8> {
///         &mut self.0
///     }
/// }
///
/// let recording = br#"
/// {"v":1,"type":"namespace","time":"2026-01-02T03:04:05.000000001Z","mono_ns":1,"netns":7,"range_low":40000,"range_high":40009,"reserved":"40002","step_width":null,"autobind_reuse":false,"unprivileged_start":1024,"tw_reuse":2,"tw_reuse_delay_ms":1000,"timestamps":true,"max_tw_buckets":131072,"fin_timeout_s":60,"somaxconn":4096}
/// {"v":1,"type":"fail","time":"2026-01-02T03:04:05.000000002Z","mono_ns":2,"netns":7,"cookie":9,"kind":"bind","family":"ipv4","local_addr":"10.0.0.1","local_port":80,"op":"bind","errno":98,"requested_port":80}
/// "#;
/// let mut view = Failures::default();
/// Recording::default().read(&recording[..], "example", &Filter::default(), |record, ledger| {
///     view.record(record, ledger);
/// })?;
/// assert_eq!(view.buffer(), b"bind() failed with EADDRINUSE: 9 ports left\n");
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait View {
    /// Receives a record. `ledger` is the state at that moment; a lease that is released is still
    /// in it.
    fn record(&mut self, record: &Record<'_>, ledger: &Ledger);

    /// What was written and is not yet on stdout. The agent takes it out from time to time, and
    /// once more after the last record.
    fn buffer(&mut self) -> &mut Vec<u8>;

    /// What to do for a reader that is slow.
    fn delivery(&self) -> Delivery {
        Delivery::Stream
    }
}

/// What to do for a reader that is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Drop records, count them and say so: the reader of a stream can go on without them.
    Stream,
    /// Wait for the reader: a document is of use only if it is whole.
    Whole,
}

/// How much is printed on stderr beside the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and losses.
    Quiet,
    /// Also the events that are not seen, and a message at the beginning and at the end.
    Normal,
    /// Also each difference that a comparison with the kernel finds.
    Verbose,
}

impl Verbosity {
    fn warn(self, start: &Start) {
        if self >= Self::Normal {
            for warning in &start.warnings {
                crate::stderr::write_line!("portlife: {warning}");
            }
        }
    }

    fn list(self, differences: &[String]) {
        if self >= Self::Verbose {
            for difference in differences {
                crate::stderr::write_line!("portlife: {difference}");
            }
        }
    }
}
