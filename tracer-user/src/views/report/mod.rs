//! The report: what a stream of records amounts to.
//!
//! Records add up in the [`Tally`]; what is held and how many ports are left, the ledger says. A
//! [`Report`] is made of both once, at the end.

mod advice;
mod findings;
mod histogram;
mod model;
mod owners;
mod rows;
mod services;
mod show;
mod survey;
mod table;
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

use crate::{ledger::Ledger, model::Instant, record::filter::Filter};

/// Rows of the longer tables that are shown.
const MOST_ROWS: usize = 15;
/// What is found beside the verdict and shown.
const MOST_FINDINGS: usize = 10;

/// How a report is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text, in colour or not.
    Text {
        /// For a terminal.
        colour: bool,
    },
    /// One JSON object.
    Json,
}

impl Form {
    /// The report in this form.
    #[must_use]
    pub fn write(self, report: &Report) -> String {
        match self {
            Self::Text { colour } => text::render(report, colour),
            // The report is made of what JSON can say.
            Self::Json => serde_json::to_string(&report.record()).unwrap_or_default() + "\n",
        }
    }
}

impl Report {
    /// Of all that was observed.
    fn of(tally: &mut Tally, ledger: &Ledger, services: &Services, filter: &Filter) -> Self {
        let held = rows::held(tally, ledger, filter);
        let failures = rows::failures(tally, ledger);
        let tally = &*tally;
        let mut report = Self {
            observed: observed(tally),
            verdict: findings::nothing(),
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
        found.truncate(MOST_FINDINGS);
        report.findings = found;
        // Where something is wrong comes first.
        let troubled: Vec<_> = std::iter::once(&report.verdict)
            .chain(&report.findings)
            .filter_map(|finding| finding.netns)
            .collect();
        report.namespaces.sort_by_key(|row| !troubled.contains(&row.netns));
        report.advice = advice::give(&report, ledger);
        report.folklore = advice::folklore(&report);
        report.destinations.truncate(MOST_ROWS);
        report.owners.truncate(MOST_ROWS);
        report.failures.truncate(MOST_ROWS);
        report
    }

    /// The report as a record of the interface.
    fn record(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Record<'a> {
            v: u32,
            r#type: &'static str,
            /// Of the last record.
            time: Option<&'a str>,
            #[serde(flatten)]
            report: &'a Report,
        }
        Record { v: 1, r#type: "report", time: self.observed.until.as_deref(), report: self }
    }
}

fn observed(tally: &Tally) -> Observed {
    let mut shortcomings = tally.warnings.clone();
    let mut note = |is_so: bool, what: &str| {
        if is_so {
            shortcomings.push(what.to_owned());
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
