//! What the user sees: one file for each form.
//!
//! Invariant: outputs consume lease events and views only; they know nothing of the kernel.

pub mod check;
pub mod report;
pub mod stream;
pub mod why;

use crate::{
    capacity::Forecast,
    ledger::Differences,
    model::{Failure, Instant, Lease, LeaseEvent, Netns, Pressure, Scan, Settings},
    record::{Cgroup, Loss, Start, Summary},
};

/// A form of output. Records are collected until they are [taken](Self::buffer).
pub trait Output {
    /// The tracer sees everything from now on.
    fn start(&mut self, start: &Start);
    /// The settings of a namespace that the records to come name, or what they have become.
    fn namespace(&mut self, at: Instant, netns: Netns, settings: &Settings);
    /// A change of a lease, or a lease that a snapshot found.
    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>);
    /// A call that got no port.
    fn failure(
        &mut self,
        failure: &Failure<'_>,
        cgroup: Option<&Cgroup>,
        holder_cgroup: Option<&Cgroup>,
    );
    /// A destination or a range crossed a level of use.
    fn pressure(&mut self, pressure: &Pressure, forecast: &Forecast);
    /// A source tries closed ports.
    fn scan(&mut self, at: Instant, scan: &Scan);
    /// Facts were lost.
    fn loss(&mut self, at: Instant, loss: &Loss);
    /// The ledger was compared with the kernel.
    fn verify(&mut self, at: Instant, differences: &Differences);
    /// The end.
    fn summary(&mut self, summary: &Summary);
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

    fn list(self, differences: &Differences) {
        if self >= Self::Verbose {
            for difference in differences.descriptions() {
                crate::tell!("portlife: {difference}");
            }
        }
    }
}

/// The name of a process, without its padding.
fn comm(bytes: &[u8; 16]) -> std::borrow::Cow<'_, str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
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
