//! Screens of live runs, made comparable: what differs from run to run gives way to a placeholder.
//! Everything else stays as it is, most of all ports, counts, capacities, causes and sentences.

use regex_lite::{Captures, Regex};

/// What differs from run to run in every screen, and what stands in its place.
const PLACEHOLDERS: [(&str, &str); 11] = [
    // Processes: `nginx[4711]`, and in commands.
    (r"\[\d+\]", "[PID]"),
    (r"(nsenter -t )\d+", "${1}PID"),
    (r"/proc/\d+/", "/proc/PID/"),
    // Inode numbers of network namespaces; the first one of a kernel is 0xf0000000.
    (r"\b40265[3-9]\d{4}\b", "NETNS"),
    // Times of day, with or without a date.
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
    (r"\b\d\d:\d\d:\d\d(\.\d+)?\b", "TIME"),
    (r"\bon Linux \d[\w.+-]*", "on Linux RELEASE"),
    // Measured times are written without a blank before the unit, settings with one.
    (r"\b\d[\d,]*(\.\d+)?(ns|us|ms|s|min|h)\b", "DURATION"),
    // Measured rates.
    (r"\b\d[\d,]*(\.\d+)?[kM]? a second(,?)\s+(lately|none are left)", "RATE a second$2 $3"),
    // A FIN_WAIT2 that becomes a TIME_WAIT at once has one record, else two.
    (r"\b\d[\d,]* records\b", "SOME records"),
    // The default depends on the host's memory.
    (r"(tcp_max_tw_buckets( =)?) \d+", "$1 NUMBER"),
];

/// Columns of measured rates.
const RATE_COLUMNS: [&str; 1] = ["RATE/S"];

/// A column that is left out: the names are those of the host's `/etc/services`, if it has one.
const SERVICES: &str = "SERVICE";

/// The widest text that a cut cell can have lost.
const MAX_CUT: usize = 60;

/// What differs from run to run in one screen only.
#[derive(Clone, Copy, Default)]
pub struct Varying {
    /// Columns by their headers. A dash or a zero in them is exact.
    pub columns: &'static [&'static str],
    /// Patterns and what stands in their place.
    pub patterns: &'static [(&'static str, &'static str)],
}

/// Replaces what differs from run to run.
pub fn normalise(screen: &str, varying: Varying) -> String {
    let columns: Vec<_> = RATE_COLUMNS.iter().chain(varying.columns).copied().collect();
    let mut text = without_histograms(&without_measured_cells(screen, &columns));
    for (pattern, placeholder) in varying.patterns.iter().chain(&PLACEHOLDERS) {
        text = regex(pattern).replace_all(&text, *placeholder).into_owned();
    }
    text
}

/// True if two normalised screens say the same. They may be aligned and wrapped differently,
/// because placeholders stand for text of any width; and where a cell is cut off with `…` in one of
/// them, it may have more or less of its text in the other.
pub fn is_same(golden: &str, actual: &str) -> bool {
    let [golden, actual] = [golden, actual].map(|screen| {
        let blocks = screen.trim().split("\n\n");
        blocks
            .map(|block| block.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    });
    golden.len() == actual.len()
        && golden.iter().zip(&actual).all(|(golden, actual)| {
            golden == actual || is_same_when_cut(golden, actual).unwrap_or(false)
        })
}

/// Compares with `…` standing for some text. `None` if neither has one.
fn is_same_when_cut(golden: &str, actual: &str) -> Option<bool> {
    const CUT: char = '…';
    if !golden.contains(CUT) && !actual.contains(CUT) {
        return None;
    }
    let [golden, actual] = [golden, actual].map(|text| text.chars().collect::<Vec<_>>());
    // For each place in `golden`, whether the rest of it matches that of `actual` from each place.
    let mut matches = vec![vec![false; actual.len() + 1]; golden.len() + 1];
    for at in (0..=golden.len()).rev() {
        for other_at in (0..=actual.len()).rev() {
            let (here, there) = (golden.get(at), actual.get(other_at));
            let reach = |from: usize, to: usize| from..=(from + MAX_CUT).min(to);
            matches[at][other_at] = (here.is_none() && there.is_none())
                || (here.is_some() && here == there && matches[at + 1][other_at + 1])
                || (here == Some(&CUT)
                    && reach(other_at, actual.len()).any(|end| matches[at + 1][end]))
                || (there == Some(&CUT)
                    && reach(at, golden.len()).any(|end| matches[end][other_at + 1]));
        }
    }
    Some(matches[0][0])
}

/// Replaces the cells of these columns. A table's header is a line without lower case, and its rows
/// are the lines below it with at least as many cells, two blanks or more apart.
fn without_measured_cells(screen: &str, columns: &[&str]) -> String {
    let cell = regex(r"\S+( \S+)*");
    let mut header: Vec<&str> = Vec::new();
    let mut text = String::new();
    for line in screen.lines() {
        let cells: Vec<_> = cell.find_iter(line).collect();
        if line.trim().is_empty() {
            header.clear();
        } else if cells.len() > 2 && !line.contains(char::is_lowercase) && header.is_empty() {
            header = cells.iter().map(regex_lite::Match::as_str).collect();
        }
        let mut end = 0;
        if cells.len() >= header.len() {
            for (cell, name) in cells.iter().zip(&header) {
                let is_exact = matches!(cell.as_str(), "0" | "-" | "now") || cell.as_str() == *name;
                text.push_str(&line[end..cell.start()]);
                if *name != SERVICES {
                    let measured = columns.contains(name) && !is_exact;
                    text.push_str(if measured { "MEASURED" } else { cell.as_str() });
                }
                end = cell.end();
            }
        }
        text.push_str(&line[end..]);
        text.push('\n');
    }
    text
}

/// Leaves out the bars of histograms: their number depends on the measured times.
fn without_histograms(screen: &str) -> String {
    let bar = regex(r"(?m)^ *[\d.]+(ns|us|ms|s|min|h) to [\d.]+(ns|us|ms|s|min|h) +[\d,]+( █+)?\n");
    bar.replace_all(screen, |_: &Captures<'_>| "").into_owned()
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"))
}
