//! The report: what a stream of records amounts to.
//!
//! Records go in, live or recorded, and add up in the [`Aggregate`]; a [`Report`] is made of it
//! once, at the end. Invariant: pure, but for [`recording`], which reads lines.

mod advice;
pub mod aggregate;
pub mod crowd;
mod findings;
pub mod histogram;
pub mod live;
pub mod model;
pub mod recording;
pub mod services;
mod show;
mod table;
mod tables;
#[cfg(test)]
mod tests;
pub mod text;

pub use aggregate::Aggregate;
pub use model::Report;
pub use services::Services;

use std::time::Duration;

use jiff::Timestamp;
use model::{Histograms, Observed, Severity};
use serde::Serialize;

/// Rows of the longer tables that are shown.
const MOST_ROWS: usize = 15;
/// What is found beside the verdict and shown.
const MOST_FINDINGS: usize = 10;

impl Report {
    /// Of all that was observed.
    #[must_use]
    pub fn of(aggregate: &Aggregate, services: &Services) -> Self {
        let mut report = Self {
            observed: observed(aggregate),
            verdict: findings::nothing(),
            findings: Vec::new(),
            namespaces: tables::namespaces(aggregate),
            destinations: tables::destinations(aggregate),
            destinations_total: aggregate.destinations.len(),
            owners: tables::owners(aggregate),
            owners_total: 0,
            histograms: Histograms {
                lifetime: aggregate.lifetimes.clone(),
                time_wait: aggregate.time_waits.clone(),
                reuse_interval: aggregate.reuse_intervals.clone(),
                search: aggregate.searches.clone(),
            },
            failures: tables::failures(aggregate),
            failures_total: aggregate.failures.len(),
            leaks: tables::leaks(aggregate),
            listeners: tables::listeners(aggregate, services),
            jumps: tables::jumps(aggregate),
            scans: tables::scans(aggregate),
            advice: Vec::new(),
            folklore: Vec::new(),
        };
        report.owners_total = report.owners.len();
        let mut found = findings::find(&report, aggregate);
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
        report.advice = advice::give(&report, aggregate);
        report.folklore = advice::folklore(&report);
        report.destinations.truncate(MOST_ROWS);
        report.owners.truncate(MOST_ROWS);
        report.failures.truncate(MOST_ROWS);
        report
    }
}

impl Report {
    /// The report as a record of the interface.
    #[must_use]
    pub fn record(&self) -> impl Serialize {
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

fn observed(aggregate: &Aggregate) -> Observed {
    let mut shortcomings = aggregate.warnings.clone();
    let mut say = |is_so: bool, what: &str| {
        if is_so {
            shortcomings.push(what.to_owned());
        }
    };
    say(
        aggregate.records > 0 && !aggregate.is_begun,
        "the records begin in the middle: what was held before them is not known",
    );
    say(
        aggregate.is_begun && !aggregate.is_ended,
        "the records end without a summary: they were cut off, or go on",
    );
    say(
        aggregate.namespaces.values().any(|namespace| namespace.settings.is_none()),
        "the settings of some namespaces are not known: how many ports they have cannot be said",
    );
    let until = aggregate.first.as_ref().and_then(|(time, first_ns)| {
        let elapsed = Duration::from_nanos(aggregate.last_ns.saturating_sub(*first_ns));
        let until = time.parse::<Timestamp>().ok()?.checked_add(elapsed).ok()?;
        Some(format!("{until:.9}"))
    });
    Observed {
        until,
        since: aggregate.first.as_ref().map(|(time, _)| time.clone()),
        duration_s: aggregate.duration_s(),
        records: aggregate.records,
        kernel: aggregate.kernel.clone(),
        lost: aggregate.lost,
        lost_for_good: aggregate.lost_for_good,
        shortcomings,
    }
}
