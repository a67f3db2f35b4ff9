//! What the user sees: one file for each form.
//!
//! Invariant: a view takes records and asks the ledger; it knows nothing of the kernel.

pub mod check;
pub mod report;
pub mod stream;
pub mod why;

use crate::{
    ledger::Ledger,
    model::{Instant, Lease},
    record::{Record, Start},
};

/// Somebody who looks at records, and at the ledger. What a view has written is collected until it
/// is [taken](Self::buffer).
pub trait View {
    /// Takes a record, with the ledger as it is at that moment.
    fn record(&mut self, record: &Record<'_>, ledger: &Ledger);
    /// What is to be written to stdout.
    fn buffer(&mut self) -> &mut Vec<u8>;
}

/// How much goes to stderr beside the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and losses.
    Quiet,
    /// Also what is not seen, and a word at the beginning and the end.
    Normal,
    /// Also each difference that a comparison with the kernel finds.
    Verbose,
}

impl Verbosity {
    fn warn(self, start: &Start) {
        if self >= Self::Normal {
            for shortcoming in start.shortcomings() {
                crate::tell!("portlife: {shortcoming}");
            }
        }
    }

    fn list(self, differences: &[String]) {
        if self >= Self::Verbose {
            for difference in differences {
                crate::tell!("portlife: {difference}");
            }
        }
    }
}

/// The times of a lease that has ended, in nanoseconds; `None` where the beginning was not seen.
struct Times {
    held_ns: Option<u64>,
    established_ns: Option<u64>,
    time_wait_ns: Option<u64>,
}

impl Times {
    fn of(lease: &Lease, end: Instant) -> Self {
        let since = |begin: Option<Instant>, end: Instant| begin.map(|begin| end.since(begin));
        Self {
            held_ns: since(lease.acquired, end),
            established_ns: since(
                lease.established,
                lease.closing.or(lease.time_wait).unwrap_or(end),
            ),
            time_wait_ns: since(lease.time_wait, end),
        }
    }
}
