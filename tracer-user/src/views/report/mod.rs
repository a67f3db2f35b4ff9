//! The report: a summary of a stream of records.
//!
//! The `Tally` aggregates records; the ledger knows which ports are held and how many are left. A
//! [`Report`] is made from both once, at the end.

mod advice;
mod findings;
mod histogram;
mod model;
mod owners;
mod rows;
mod services;
mod survey;
mod tally;
#[cfg(test)]
mod tests;
mod text;
mod view;

pub use model::Report;
pub use services::Services;
pub use view::ReportView;

use jiff::Timestamp;
use model::{Histograms, Observed, Severity};
use serde::Serialize;
use tally::Tally;

use crate::{
    ledger::Ledger,
    model::Instant,
    record::{filter::Filter, json::append_json},
};

/// Maximum number of rows in the longer tables.
const MAX_ROWS: usize = 15;
/// Maximum number of findings besides the verdict.
const MAX_FINDINGS: usize = 10;

/// The output format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text for reading.
    Text {
        /// True to use colours, for a terminal.
        colour: bool,
    },
    /// One JSON object.
    Json,
}

impl Form {
    /// Formats the report.
    #[must_use]
    pub fn write(self, report: &Report) -> Vec<u8> {
        match self {
            Self::Text { colour } => text::render(report, colour).into_bytes(),
            // Serialization cannot fail: all keys are strings.
            Self::Json => {
                let mut json = Vec::new();
                let _ = append_json(&mut json, &report.record());
                json.push(b'\n');
                json
            }
        }
    }
}

impl Report {
    /// The report on everything that was observed.
    fn of(tally: &mut Tally, ledger: &Ledger, services: &Services, filter: &Filter) -> Self {
        let held = rows::held(tally, ledger, filter);
        let failures = rows::failures(tally, ledger);
        let tally = &*tally;
        let mut report = Self {
            observed: observed(tally),
            verdict: findings::empty(),
            findings: Vec::new(),
            namespaces: rows::namespaces(tally, ledger, &held),
            destinations: rows::destinations(tally, ledger, &held),
            destinations_total: 0,
            owners: rows::owners(tally, &held),
            owners_total: 0,
            histograms: Histograms {
                lifetime: tally.lifetimes.clone(),
                time_wait: tally.time_waits.clone(),
                reuse_interval: tally.reuse_intervals.clone(),
                search: tally.searches.clone(),
            },
            failures,
            failures_total: tally.failures.len(),
            leaks: rows::leaks(tally, &held),
            listeners: rows::listeners(tally, &held, services),
            jumps: rows::jumps(tally),
            scans: rows::scans(tally),
            advice: Vec::new(),
            folklore: Vec::new(),
        };
        report.owners_total = report.owners.len();
        report.destinations_total = report.destinations.len();
        let mut found = findings::find(&report, tally);
        let is_bad = found.first().is_some_and(|worst| worst.severity > Severity::Note);
        report.verdict = if is_bad { found.remove(0) } else { findings::healthy(&report) };
        found.truncate(MAX_FINDINGS);
        report.findings = found;
        // Namespaces with findings come first.
        let with_findings: Vec<_> = std::iter::once(&report.verdict)
            .chain(&report.findings)
            .filter_map(|finding| finding.netns)
            .collect();
        report.namespaces.sort_by_key(|row| !with_findings.contains(&row.netns));
        report.advice = advice::for_report(&report, ledger);
        report.folklore = advice::folklore(&report);
        report.destinations.truncate(MAX_ROWS);
        report.owners.truncate(MAX_ROWS);
        report.failures.truncate(MAX_ROWS);
        report
    }

    /// The report as a record of the JSON output.
    fn record(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Record<'a> {
            v: u32,
            r#type: &'static str,
            /// Time of day of the last record.
            time: Option<&'a str>,
            #[serde(flatten)]
            report: &'a Report,
        }
        Record { v: 1, r#type: "report", time: self.observed.until.as_deref(), report: self }
    }
}

fn observed(tally: &Tally) -> Observed {
    let mut shortcomings = tally.warnings.clone();
    let mut note = |is_lacking: bool, what: &str| {
        if is_lacking {
            shortcomings.push(what.to_owned().into());
        }
    };
    note(
        tally.records > 0 && !tally.is_begun,
        "the recording begins in mid-stream: what was held before is not known",
    );
    note(
        tally.is_begun && !tally.is_ended,
        "the recording ends without a summary: it was cut off, or is still being written",
    );
    note(
        tally.namespaces.values().any(|namespace| namespace.settings.is_none()),
        "the settings of some namespaces are not known, nor is how many ports they have",
    );
    let time_of_day = |at: Instant| {
        let ns = i128::from(at.ns()) + tally.realtime_offset_ns;
        let time = Timestamp::from_nanosecond(ns).ok()?;
        Some(format!("{time:.9}"))
    };
    Observed {
        since: tally.first.and_then(time_of_day),
        until: tally.first.and(time_of_day(tally.last)),
        duration_s: tally.duration_s(),
        records: tally.records,
        kernel: tally.kernel.clone(),
        lost: tally.lost,
        lost_for_good: tally.lost_for_good,
        dropped: tally.dropped,
        shortcomings,
    }
}
