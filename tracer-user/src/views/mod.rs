//! What the user sees: one file for each form.
//!
//! Invariant: a view takes records and asks the ledger; it knows nothing of the kernel.

pub mod check;
pub mod report;
pub mod stream;
pub mod why;

use crate::{
    ledger::Ledger,
    record::{Record, Start},
};

/// Somebody who looks at records, and at the ledger. What a view has written is collected until it
/// is [taken](Self::buffer).
pub trait View {
    /// Takes a record, with the ledger as it is at that moment.
    fn record(&mut self, record: &Record<'_>, ledger: &Ledger);
    /// What is to be written to stdout.
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
