//! The results of all machines, as a table of kernels and scenarios.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::outcomes::Outcome;

/// A run of the scenarios on one kernel, with one choice of hooks.
pub struct Column {
    /// The kernel, as named on the command line.
    pub kernel: String,
    /// The hooks; `None` if the tracer chose.
    pub hooks: Option<String>,
    /// Release and version of the kernel (`uname -rv`); `None` if it did not boot.
    pub release: Option<String>,
    pub outcomes: BTreeMap<String, Outcome>,
    /// Why the run did not finish; `None` if it did.
    pub broken: Option<String>,
    /// Duration of the scenarios, in seconds.
    pub took_s: f64,
}

impl Column {
    pub fn name(&self) -> String {
        self.titled(&self.kernel)
    }

    /// The column's title with the full version of the kernel, of which Debian's release string
    /// lacks the last number.
    fn title(&self) -> String {
        let debian = self.release.as_deref().and_then(|release| {
            let (_, version) = release.split_once("Debian ")?;
            version.split(['-', ' ']).next()
        });
        self.titled(debian.unwrap_or(&self.kernel))
    }

    fn titled(&self, kernel: &str) -> String {
        match &self.hooks {
            Some(hooks) => format!("{kernel} {hooks}"),
            None => kernel.to_owned(),
        }
    }

    pub fn count(&self) -> Count {
        let mut count = Count::default();
        for outcome in self.outcomes.values() {
            match outcome {
                Outcome::Passed => count.passed += 1,
                Outcome::Skipped(_) => count.skipped += 1,
                Outcome::Failed(_) => count.failed += 1,
            }
        }
        count
    }

    /// True if the run finished and no scenario failed.
    pub fn is_good(&self) -> bool {
        self.broken.is_none() && self.count().failed == 0
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

/// The table for the terminal: a row for each scenario, and notes on those that did not pass.
pub fn table(columns: &[Column]) -> String {
    let names = scenarios(columns);
    let widest = names.iter().map(|name| name.len()).max().unwrap_or_default();
    let width = |column: &Column| column.name().len().max(4);
    let mut table = String::new();
    let mut row = |name: &str, cells: &dyn Fn(&Column) -> String| {
        let _ = write!(table, "{name:<widest$}");
        for column in columns {
            let _ = write!(table, "  {:<1$}", cells(column), width(column));
        }
        let trimmed = table.trim_end().len();
        table.truncate(trimmed);
        table.push('\n');
    };
    row("", &Column::name);
    for name in &names {
        row(name, &|column| cell(column.outcomes.get(*name)).to_owned());
    }
    table.push('\n');
    for column in columns {
        let Count { passed, failed, skipped } = column.count();
        let _ = writeln!(
            table,
            "{}: {passed} passed, {failed} failed, {skipped} n/a, {:.0} s, Linux {}",
            column.name(),
            column.took_s,
            column.release.as_deref().unwrap_or("did not start")
        );
    }
    let notes = notes(columns);
    if !notes.is_empty() {
        let _ = writeln!(table, "\n{}", notes.join("\n"));
    }
    table
}

/// The table for the documentation: a row for each module of scenarios.
pub fn markdown(columns: &[Column]) -> String {
    let mut modules: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in scenarios(columns) {
        modules.entry(name.split("::").next().unwrap_or(name)).or_default().push(name);
    }
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head = |text: &str| std::iter::once(text.to_owned());
    let mut table = String::new();
    let names: Vec<_> = head("scenarios").chain(columns.iter().map(Column::title)).collect();
    table.push_str(&row(&names));
    table.push_str(&"|---".repeat(names.len()));
    table.push_str("|\n");
    for (module, scenarios) in modules {
        let cells: Vec<_> = head(&module.replace('_', " "))
            .chain(columns.iter().map(|column| {
                let mut count = Count::default();
                for scenario in &scenarios {
                    match column.outcomes.get(*scenario) {
                        Some(Outcome::Passed) => count.passed += 1,
                        Some(Outcome::Skipped(_)) => count.skipped += 1,
                        Some(Outcome::Failed(_)) | None => count.failed += 1,
                    }
                }
                let mut cell = format!("{} pass", count.passed);
                if count.failed > 0 {
                    let _ = write!(cell, ", {} fail", count.failed);
                }
                if count.skipped > 0 {
                    let _ = write!(cell, ", {} n/a", count.skipped);
                }
                cell
            }))
            .collect();
        table.push_str(&row(&cells));
    }
    for note in notes(columns) {
        let _ = write!(table, "\n* {note}");
    }
    table
}

fn scenarios(columns: &[Column]) -> Vec<&str> {
    let all = columns.iter().flat_map(|column| column.outcomes.keys().map(String::as_str));
    all.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

fn cell(outcome: Option<&Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Passed) => "pass",
        Some(Outcome::Failed(_)) => "FAIL",
        Some(Outcome::Skipped(_)) => "n/a",
        None => "?",
    }
}

/// Why scenarios did not pass: each reason once, with its kernels and scenarios.
fn notes(columns: &[Column]) -> Vec<String> {
    let mut notes = Vec::new();
    for column in columns {
        if let Some(why) = &column.broken {
            notes.push(format!("{} did not finish: {why}", column.name()));
        }
        for (name, outcome) in &column.outcomes {
            if let Outcome::Failed(why) = outcome {
                notes.push(format!("FAIL {} {name}: {why}", column.name()));
            }
        }
    }
    // Maps reason and scenario to kernels.
    let mut skipped: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for column in columns {
        for (name, outcome) in &column.outcomes {
            if let Outcome::Skipped(why) = outcome {
                skipped.entry((why, name)).or_default().push(column.name());
            }
        }
    }
    // Maps reason and kernels to scenarios.
    let mut grouped: BTreeMap<(&str, Vec<String>), Vec<&str>> = BTreeMap::new();
    for ((why, name), kernels) in skipped {
        grouped.entry((why, kernels)).or_default().push(name);
    }
    for ((why, kernels), names) in grouped {
        notes.push(format!("n/a on {}: {why} ({})", kernels.join(", "), names.join(", ")));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcomes::{Results, parse, tests::PRINTED};

    fn column(name: &str, printed: &str) -> Column {
        let Results { outcomes, took_s } = parse(printed);
        let broken = took_s.is_none().then(|| "it panicked".to_owned());
        let took_s = took_s.unwrap_or_default();
        let release = Some(format!("{name}.0-3-cloud #1 SMP Debian {name}.223-1 (2026-08-10)"));
        let kernel = name.to_owned();
        Column { kernel, hooks: None, release, outcomes, broken, took_s }
    }

    #[test]
    fn an_unfinished_run_is_not_good() {
        let unfinished = "test bind::one ... ok\n";
        let column = column("6.1", unfinished);
        assert_eq!(column.count(), Count { passed: 1, failed: 0, skipped: 0 });
        assert!(!column.is_good());
        assert!(table(&[column]).contains("6.1 did not finish: it panicked"));
    }

    #[test]
    fn the_tables_show_every_kernel_and_every_reason() {
        let columns = [column("5.10", PRINTED), column("7", "test bind::one ... ok\n")];
        let table = table(&columns);
        let row = table.lines().find(|line| line.starts_with("bind::two")).expect("a row");
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["bind::two", "n/a", "?"]);
        assert!(table.contains("n/a on 5.10: the kernel does not destroy sockets (bind::two)"));
        assert!(table.contains("FAIL 5.10 listen::three: tests/listen.rs:3:1: no release came"));
        let markdown = markdown(&columns);
        assert!(markdown.contains("| scenarios | 5.10.223 | 7.223 |\n|---|---|---|\n"));
        assert!(markdown.contains("| bind | 1 pass, 1 n/a | 1 pass, 1 fail |"));
    }
}
