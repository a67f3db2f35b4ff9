//! What the user sees: one file for each form.
//!
//! Invariant: outputs consume lease events and views only; they know nothing of the kernel.

pub mod check;
mod digits;
pub mod json;
mod line;
pub mod names;
mod record_type;
#[cfg(test)]
mod samples;
pub mod text;
pub mod why;
pub mod writer;

use std::collections::BTreeMap;

pub use record_type::{RecordType, Totals};

use crate::{
    exhaustion::{Forecast, Settings},
    ledger::{Differences, Failure, Instant, Lease, LeaseEvent, Netns, Pressure},
    scans::Scan,
};

/// A hook, for the reader: how it is attached, or why it is not.
#[derive(Clone, Debug)]
pub struct HookReport {
    /// The kernel's name of it.
    pub name: &'static str,
    /// How it is attached, or a sentence that says why it is not.
    pub outcome: Result<&'static str, String>,
    /// What is not told because of that.
    pub loss: Option<&'static str>,
}

/// The first record: what happens after it is seen.
#[derive(Clone, Debug)]
pub struct Start {
    /// When.
    pub at: Instant,
    /// The kernel's release.
    pub kernel: String,
    /// Every hook.
    pub hooks: Vec<HookReport>,
    /// Number of `held` records that follow.
    pub held: usize,
    /// What else is not seen, in sentences.
    pub warnings: Vec<String>,
}

/// The last record.
#[derive(Clone, Debug)]
pub struct Summary {
    /// When.
    pub at: Instant,
    /// Number of records of each type that were shown.
    pub totals: BTreeMap<&'static str, u64>,
    /// Facts that the hooks had to report.
    pub facts_seen: u64,
    /// Those of them that the programs dropped because the filter excludes their namespace.
    pub facts_filtered: u64,
    /// Facts that arrived.
    pub facts_received: u64,
    /// Facts that were lost.
    pub lost: u64,
    /// Since the start.
    pub duration_s: f64,
}

/// Facts that did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub count: u64,
    /// Where.
    pub place: Place,
    /// The ledger agrees with the kernel again.
    pub healed: bool,
}

/// Where facts can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The ring buffer had no room.
    Ring,
    /// The kernel skipped a program that had interrupted itself.
    Recursion,
    /// Nobody knows: ledger and kernel differed, and no miss was counted.
    Unseen,
}

/// A cgroup by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Path from the root of the v2 hierarchy.
    pub path: String,
    /// The container that it belongs to, if it is a container runtime's.
    pub container: Option<String>,
}

/// A form of output. Records are collected until they are [taken](Self::buffer).
pub trait Output {
    /// The tracer sees everything from now on.
    fn start(&mut self, start: &Start);
    /// The settings of a namespace that the records to come name, or what they have become.
    fn namespace(&mut self, at: Instant, netns: Netns, settings: &Settings);
    /// A lease of the snapshot.
    fn held(&mut self, at: Instant, lease: &Lease, cgroup: Option<&Cgroup>);
    /// A change of a lease.
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

impl Start {
    /// Everything that is not seen, and why, in sentences.
    pub fn shortcomings(&self) -> impl Iterator<Item = String> {
        let hooks = self.hooks.iter().filter_map(|hook| {
            let (reason, loss) = (hook.outcome.as_ref().err()?, hook.loss?);
            Some(format!("the hook {} is not attached ({reason}): {loss}", hook.name))
        });
        self.warnings.iter().cloned().chain(hooks)
    }
}

/// Seconds of some nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "nanosecond precision is lost after 104 days")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Microseconds of some nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "the precision suffices for a duration")]
fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
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
