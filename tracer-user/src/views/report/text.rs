//! The report as text, for 120 columns.

use std::fmt::Write as _;

use crate::{
    record::names,
    views::{
        format::{duration, endpoint, number, rate},
        owner_name::OwnerName,
        report::{
            histogram::Histogram,
            model::{FailureRow, Finding, LeakState, Report, SettingsRow, Severity},
        },
        table::{Table, wrap},
    },
};

const WIDTH: usize = 118;
/// Maximum number of rows of tables that are not limited in the report itself.
const MAX_ROWS: usize = 25;
/// Maximum number of characters of a list of reserved ports.
const MAX_RESERVED: usize = 60;

/// Formats the report; with `colour` for a terminal.
#[must_use]
pub fn render(report: &Report, colour: bool) -> String {
    let mut page = Page { text: String::new(), colour };
    page.verdict(report);
    page.failures(report);
    page.namespaces(report);
    page.destinations(report);
    page.owners(report);
    page.leaks(report);
    page.listeners(report);
    page.jumps(report);
    page.histograms(report);
    page.advice(report);
    page.observed(report);
    page.text
}

struct Page {
    text: String,
    colour: bool,
}

impl Page {
    fn verdict(&mut self, report: &Report) {
        let verdict = &report.verdict;
        let (lead, code) = label(verdict.severity);
        let is_one = report.namespaces.len() == 1;
        let sentence = |finding: &Finding| match finding.netns {
            Some(netns) if !is_one => format!("netns {netns}: {}", finding.sentence),
            _ => finding.sentence.clone(),
        };
        let lines = wrap(&sentence(verdict), WIDTH - lead.len() - 2);
        for (at, line) in lines.iter().enumerate() {
            let head = if at == 0 {
                self.styled(&format!("{lead}: "), code)
            } else {
                " ".repeat(lead.len() + 2)
            };
            self.line(&format!("{head}{line}"));
        }
        for finding in &report.findings {
            let (lead, code) = label(finding.severity);
            let lead = format!("  also {}: ", lead.to_lowercase());
            let indent = " ".repeat(lead.len());
            for (at, line) in wrap(&sentence(finding), WIDTH - lead.len()).iter().enumerate() {
                let head = if at == 0 { self.styled(&lead, code) } else { indent.clone() };
                self.line(&format!("{head}{line}"));
            }
        }
    }

    fn failures(&mut self, report: &Report) {
        if report.failures.is_empty() {
            return;
        }
        let total: u64 = report.failures.iter().map(|failure| failure.count).sum();
        self.heading(&format!("Calls that got no port: {}", number(total)));
        let mut table = Table::new(&[
            (">COUNT", 9),
            ("CALL", 7),
            ("ERROR", 13),
            ("CAUSE", 17),
            ("WANTED", 52),
            ("CALLER", 46),
            ("IN THE WAY", 60),
        ]);
        for failure in &report.failures {
            let cause = failure.cause.map(|cause| names::cause(cause).replace('_', " "));
            table.row([
                number(failure.count),
                failure.op.to_owned(),
                failure.error.clone(),
                cause.unwrap_or_else(|| "-".to_owned()),
                wanted(failure),
                callers(failure),
                blocker(failure),
            ]);
        }
        self.table(&table);
        self.more(report.failures.len(), report.failures_total, "kinds of failures");
    }

    fn namespaces(&mut self, report: &Report) {
        if report.namespaces.is_empty() {
            return;
        }
        self.heading("Network namespaces");
        let mut table = Table::new(&[
            (">NETNS", 10),
            ("RANGE", 11),
            (">RESERVED", 8),
            (">PORTS!", 6),
            (">HELD!", 6),
            (">BIND-LOCKED!", 11),
            ("CLIENTS USED", 12),
            (">BOUND", 6),
            (">LISTEN", 6),
            (">CONN", 6),
            (">ESTAB", 7),
            (">CLOSING", 7),
            (">TIME-W", 7),
        ]);
        let shown = report.namespaces.get(..MAX_ROWS).unwrap_or(&report.namespaces);
        for row in shown {
            let settings = row.settings.as_ref();
            let of =
                |shown: fn(&SettingsRow) -> String| settings.map_or_else(|| "?".to_owned(), shown);
            let used = row.client_port_low.zip(row.client_port_high);
            let phases = row.phases;
            table.row([
                row.netns.to_string(),
                of(|settings| format!("{}-{}", settings.range_low, settings.range_high)),
                of(|settings| number(settings.reserved_in_range)),
                of(|settings| number(settings.capacity)),
                number(row.held_in_range),
                number(row.bind_locked),
                used.map_or_else(|| "-".to_owned(), |(low, high)| format!("{low}-{high}")),
                number(phases.bound),
                number(phases.listen),
                number(phases.connecting),
                number(phases.established),
                number(phases.close_wait + phases.closing),
                number(phases.fin_wait2 + phases.time_wait),
            ]);
        }
        self.table(&table);
        self.more(shown.len(), report.namespaces.len(), "namespaces");
        // Most namespaces have the default settings: list equal settings once.
        let mut settings: Vec<(String, Vec<String>)> = Vec::new();
        for row in shown {
            let Some(text) = row.settings.as_ref().map(|s| settings_text(s, row.settings_changes))
            else {
                continue;
            };
            let netns = row.netns.to_string();
            match settings.iter_mut().find(|(other, _)| *other == text) {
                Some((_, namespaces)) => namespaces.push(netns),
                None => settings.push((text, vec![netns])),
            }
        }
        for (text, namespaces) in settings {
            let line = format!("{}: {text}", namespaces.join(", "));
            for (at, line) in wrap(&line, WIDTH - 4).iter().enumerate() {
                self.line(&format!("  {}{line}", if at == 0 { "" } else { "  " }));
            }
        }
    }

    fn destinations(&mut self, report: &Report) {
        if report.destinations.is_empty() {
            return;
        }
        self.heading(
            "Destinations of clients, fullest first (ports in use for each, of all in the range)",
        );
        let mut table = Table::new(&[
            (">NETNS", 10),
            ("SOURCE", 39),
            ("DESTINATION", 47),
            (">USED/OF!", 13),
            (">TIME-W", 7),
            (">LEFT!", 6),
            (">RATE/S", 7),
            (">CEILING/S", 9),
            (">FULL IN", 7),
            (">FAILED", 7),
            ("MOST BY", 42),
        ]);
        let dash = || "-".to_owned();
        // The inode is of no use if there is only one namespace.
        let is_one = report.namespaces.len() == 1;
        for row in &report.destinations {
            let unknown = || "?".to_owned();
            let capacity = row.capacity.map_or_else(unknown, number);
            table.row([
                if is_one { dash() } else { row.netns.to_string() },
                row.source_addr.to_string(),
                endpoint(row.peer_addr, row.peer_port),
                format!("{}/{capacity}", number(row.used)),
                number(row.time_wait),
                row.headroom.map_or_else(unknown, number),
                rate(row.rate_per_s),
                row.ceiling_per_s.map_or_else(dash, rate),
                match row.eta_s {
                    Some(0.0) => "now".to_owned(),
                    Some(eta_s) => duration(eta_s),
                    None => dash(),
                },
                number(row.failed),
                row.owner.as_ref().map_or_else(dash, ToString::to_string),
            ]);
        }
        self.table(&table);
        self.more(report.destinations.len(), report.destinations_total, "destinations");
    }

    fn owners(&mut self, report: &Report) {
        if report.owners.is_empty() {
            return;
        }
        self.heading(
            "Owners, by leases held (a TIME_WAIT counts for the process that left it behind)",
        );
        let mut table = Table::new(&[
            ("OWNER", 42),
            (">HOLDS!", 7),
            (">CONNECT", 7),
            (">BIND0", 6),
            (">BIND", 6),
            (">ACCEPT", 7),
            (">BOUND", 6),
            (">LISTEN", 6),
            (">ESTAB", 7),
            (">CLOSE-W", 7),
            (">FIN-W", 8),
            (">TIME-W", 7),
            (">TAKEN!", 8),
            (">FAILED!", 7),
        ]);
        for row in &report.owners {
            let (kinds, phases) = (row.kinds, row.phases);
            table.row([
                row.owner.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string),
                number(row.leases),
                number(kinds.connect),
                number(kinds.bind_auto + kinds.listen),
                number(kinds.bind),
                number(kinds.accept),
                number(phases.bound),
                number(phases.listen),
                number(phases.established + phases.connecting),
                number(phases.close_wait),
                number(phases.fin_wait2 + phases.closing),
                number(phases.time_wait),
                number(row.taken),
                number(row.failed),
            ]);
        }
        self.table(&table);
        self.more(report.owners.len(), report.owners_total, "owners");
    }

    fn leaks(&mut self, report: &Report) {
        if report.leaks.is_empty() {
            return;
        }
        self.heading("Held but not used");
        let mut table = Table::new(&[
            ("OWNER", 40),
            ("STATE", 36),
            (">COUNT", 7),
            (">OLDEST", 8),
            (">YOUNGEST", 8),
            (">PORT", 5),
            ("PEER", 39),
        ]);
        let shown = report.leaks.get(..MAX_ROWS).unwrap_or(&report.leaks);
        for row in shown {
            let state = match row.state {
                LeakState::CloseWait => "CLOSE-WAIT: the peer has closed",
                LeakState::FinWait2 => "FIN-WAIT-2, or TIME-WAIT by now",
                LeakState::BoundIdle => "bound: not connected or listening",
            };
            table.row([
                row.owner.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string),
                state.to_owned(),
                number(row.count),
                duration(row.oldest_s),
                duration(row.youngest_s),
                row.local_port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
                row.peer_addr.map_or_else(|| "-".to_owned(), |addr| addr.to_string()),
            ]);
        }
        self.table(&table);
        self.more(shown.len(), report.leaks.len(), "owners");
    }

    fn listeners(&mut self, report: &Report) {
        if report.listeners.is_empty() {
            return;
        }
        self.heading("Listeners");
        let mut table = Table::new(&[
            (">NETNS", 10),
            ("ADDRESS", 47),
            ("SERVICE", 16),
            ("CLASS", 10),
            ("OWNER", 42),
            (">ACCEPTED", 9),
            ("", 30),
        ]);
        let is_one = report.namespaces.len() == 1;
        let shown = report.listeners.get(..MAX_ROWS).unwrap_or(&report.listeners);
        for row in shown {
            let notes = [
                row.is_wildcard.then_some("all addresses"),
                row.is_in_range.then_some("in the range, not reserved"),
            ];
            let notes: Vec<_> = notes.into_iter().flatten().collect();
            table.row([
                if is_one { "-".to_owned() } else { row.netns.to_string() },
                endpoint(row.local_addr, row.local_port),
                row.service.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                row.class.replace('_', "-"),
                row.owner.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string),
                number(row.accepted),
                notes.join(", "),
            ]);
        }
        self.table(&table);
        self.more(shown.len(), report.listeners.len(), "listeners");
    }

    fn jumps(&mut self, report: &Report) {
        if report.jumps.is_empty() {
            return;
        }
        self.heading("Processes that took ports far faster than before");
        for row in &report.jumps {
            self.line(&format!(
                "  {}: {} in one second, {} into the observation; {} a second before",
                row.owner,
                number(row.per_s),
                duration(row.at_s),
                rate(row.before_per_s)
            ));
        }
    }

    fn histograms(&mut self, report: &Report) {
        let histograms = &report.histograms;
        self.histogram("Hold times of ports", &histograms.lifetime);
        self.histogram("Durations of TIME_WAITs", &histograms.time_wait);
        self.histogram("Times between release and reuse of a port", &histograms.reuse_interval);
        self.histogram("Search times of connect()", &histograms.search);
    }

    fn histogram(&mut self, title: &str, histogram: &Histogram) {
        const BAR: u64 = 50;
        let Some(most) = histogram.buckets().map(|(_, _, count)| count).max() else { return };
        let of = |part: f64| histogram.quantile_s(part).map(duration).unwrap_or_default();
        self.heading(&format!(
            "{title}: {}, mean {}, p50 {}, p99 {}, max {}",
            match histogram.count() {
                1 => "1 sample".to_owned(),
                several => format!("{} samples", number(several)),
            },
            histogram.mean_s().map(duration).unwrap_or_default(),
            of(0.5),
            of(0.99),
            histogram.max_s().map(duration).unwrap_or_default()
        ));
        for (low, high, count) in histogram.buckets() {
            let range = if high.is_finite() {
                format!("{:>7} to {:<7}", duration(low), duration(high))
            } else {
                format!("{:>7} or longer", duration(low))
            };
            // A bucket that is not empty has a bar.
            let length = if count == 0 { 0 } else { (count * BAR / most).max(1) };
            let bar = "█".repeat(usize::try_from(length).unwrap_or(0));
            self.line(format!("  {range} {:>9} {bar}", number(count)).trim_end());
        }
    }

    fn advice(&mut self, report: &Report) {
        if !report.advice.is_empty() {
            self.heading("What to do, in this order");
        }
        for (at, advice) in report.advice.iter().enumerate() {
            let lead = format!("  {}. ", at + 1);
            self.wrapped(&lead, &advice.what);
            self.wrapped("     because  ", &advice.evidence);
            self.wrapped("     how      ", &advice.command);
            self.wrapped("     gain     ", &advice.gain);
        }
        if !report.folklore.is_empty() {
            self.heading("What does not help");
        }
        for line in &report.folklore {
            self.wrapped("  - ", line);
        }
    }

    fn observed(&mut self, report: &Report) {
        let observed = &report.observed;
        self.text.push('\n');
        let kernel = observed
            .kernel
            .as_ref()
            .map(|kernel| format!(" on Linux {kernel}"))
            .unwrap_or_default();
        let since = observed
            .since
            .as_ref()
            .and_then(|since| since.get(..19))
            .map(|since| format!(" from {since} UTC"))
            .unwrap_or_default();
        let losses = match (observed.lost, observed.lost_for_good) {
            (0, _) => "none lost".to_owned(),
            (lost, 0) => {
                format!("{} facts lost, corrected by comparison with the kernel", number(lost))
            }
            (lost, _) => format!("{} facts lost: what is shown may be incomplete", number(lost)),
        };
        self.line(&format!(
            "Observed{since} for {}{kernel}: {} records, {losses}.",
            duration(observed.duration_s),
            number(observed.records)
        ));
        if observed.dropped > 0 {
            self.wrapped(
                "  not seen: ",
                &format!(
                    "{} records, which the recording lacks because its reader was slow: some ports \
                     that are shown as held may have been released",
                    number(observed.dropped)
                ),
            );
        }
        for shortcoming in &observed.shortcomings {
            self.wrapped("  not seen: ", &shortcoming.shown());
        }
    }

    fn heading(&mut self, text: &str) {
        self.text.push('\n');
        let styled = self.styled(text, "1");
        self.line(&styled);
    }

    fn table(&mut self, table: &Table) {
        for line in table.lines(WIDTH - 2) {
            self.line(&format!("  {line}"));
        }
    }

    fn more(&mut self, shown: usize, total: usize, what: &str) {
        if total > shown {
            self.line(&format!("  and {} more {what}", number(total - shown)));
        }
    }

    /// Writes a text after a lead, wrapped, with further lines indented.
    fn wrapped(&mut self, lead: &str, text: &str) {
        let indent = " ".repeat(lead.chars().count());
        for (at, line) in wrap(text, WIDTH - indent.len()).iter().enumerate() {
            self.line(&format!("{}{line}", if at == 0 { lead } else { &indent }));
        }
    }

    fn line(&mut self, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{text}");
    }

    fn styled(&self, text: &str, code: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn label(severity: Severity) -> (&'static str, &'static str) {
    match severity {
        Severity::Healthy => ("HEALTHY", "1;32"),
        Severity::Note => ("NOTE", "1;36"),
        Severity::Warning => ("WARNING", "1;33"),
        Severity::Critical => ("CRITICAL", "1;31"),
        Severity::Failing => ("FAILING", "1;31"),
    }
}

fn settings_text(settings: &SettingsRow, changes: u32) -> String {
    let delay =
        settings.tw_reuse_delay_ms.map(|delay| format!(" after {delay} ms")).unwrap_or_default();
    let meaning = match (settings.tw_reuse, settings.timestamps) {
        (_, false) => " (no effect without timestamps)".to_owned(),
        (0, _) => " (never)".to_owned(),
        (1, _) => format!(" (always{delay})"),
        _ => format!(" (loopback only{delay})"),
    };
    let reserved = match settings.reserved.get(..MAX_RESERVED) {
        _ if settings.reserved.is_empty() => "none".to_owned(),
        Some(start) => format!("{start}..."),
        None => settings.reserved.clone(),
    };
    let changed = match changes {
        0 => String::new(),
        1 => "; changed once while observed".to_owned(),
        times => format!("; changed {times} times while observed"),
    };
    format!(
        "tcp_tw_reuse {}{meaning}, tcp_timestamps {}, tcp_max_tw_buckets {}, tcp_fin_timeout {} s, \
         somaxconn {}, reserved {reserved}; IANA's range for clients is 49152-65535{changed}",
        settings.tw_reuse,
        u32::from(settings.timestamps),
        settings.max_tw_buckets,
        settings.fin_timeout_s,
        settings.somaxconn,
    )
}

fn wanted(failure: &FailureRow) -> String {
    match (failure.peer_addr.zip(failure.peer_port), failure.requested_port) {
        (Some((addr, port)), 0) => format!("any port to {}", endpoint(addr, port)),
        (Some((addr, port)), own) => format!("{own} to {}", endpoint(addr, port)),
        (None, 0) => format!("any port of {}", failure.local_addr),
        (None, own) => endpoint(failure.local_addr, own),
    }
}

fn callers(failure: &FailureRow) -> String {
    let first = failure.callers.first().and_then(|caller| caller.owner.as_ref());
    let first = first.map_or_else(|| "not known".to_owned(), ToString::to_string);
    match failure.callers.len() {
        0 | 1 => first,
        several => format!("{first} +{}", several - 1),
    }
}

fn blocker(failure: &FailureRow) -> String {
    if let Some(holder) = &failure.holder {
        let who =
            holder.owner.as_ref().map_or_else(|| "not known".to_owned(), OwnerName::to_string);
        return format!("{who} {} ({})", holder.state, holder.kind);
    }
    match (failure.used, failure.bind_locked) {
        (Some(used), Some(0) | None) => format!("{} in use", number(used)),
        (Some(used), Some(locked)) => {
            format!("{} in use, {} bound", number(used), number(locked))
        }
        _ => "-".to_owned(),
    }
}
