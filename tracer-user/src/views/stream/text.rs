//! The stream as text: one line a record, in columns of fixed width.

mod format;

use std::collections::HashSet;

use jiff::tz::TimeZone;
use tracer_ebpf::Owner;

use self::format::{End, append_duration, append_name, duration, join, left, right};
pub(crate) use self::format::{endpoint, peer};

use crate::{
    capacity::{Advice, Forecast, advice_on, free_in_s},
    ledger::Ledger,
    model::{
        Change, Failure, Instant, Lease, LeaseEvent, Netns, Phase, Port, Pressure, RangeUse, Reuse,
        Scan, Settings, Side,
    },
    record::{
        Body, Cgroup, Loss, LostAt, Record, RecordType, Start, Summary, Verify, comm,
        digits::append_decimal,
        durations::Durations,
        names::{self, Named as _},
        time_of_day::Second,
    },
    views::{Verbosity, View},
};

/// Writes records as lines of text.
#[derive(Debug)]
pub struct Text {
    realtime_offset_ns: i128,
    zone: TimeZone,
    colour: bool,
    verbosity: Verbosity,
    /// The second of the latest line, in that zone.
    second: Second,
    /// Advice that was printed. It is not repeated, so that the failures remain readable.
    given: HashSet<Advice>,
    buffer: Vec<u8>,
}

impl Text {
    /// `realtime_offset_ns` is the time of day minus the monotonic time. Times are printed in the
    /// time zone that `TZ` names, or the system's.
    #[must_use]
    pub fn new(realtime_offset_ns: i128, colour: bool, verbosity: Verbosity) -> Self {
        let zone = match std::env::var_os("TZ") {
            Some(name) => zone_named(&name.to_string_lossy()),
            None => TimeZone::system(),
        };
        Self {
            realtime_offset_ns,
            zone,
            second: Second::default(),
            colour,
            verbosity,
            given: HashSet::new(),
            buffer: Vec::new(),
        }
    }

    /// Writes a line, whose last column `detail` fills.
    fn line(&mut self, line: &Line<'_>, detail: impl FnOnce(&mut Details<'_>)) {
        let Self { realtime_offset_ns, zone, second, colour, buffer, .. } = self;
        let Line { at, event, netns, owner, local, peer, held_ns } = *line;
        let (clock, fraction_ns) = second.of(i128::from(at.ns()) + *realtime_offset_ns, |began| {
            began.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string()
        });
        buffer.extend_from_slice(clock.as_bytes());
        // The leading 1 is where the decimal point goes.
        let point = buffer.len();
        append_decimal(u64::from(1000 + fraction_ns / 1_000_000), buffer);
        buffer[point] = b'.';
        buffer.push(b' ');
        let colour = colour.then(|| colour_of(event)).flatten();
        buffer.extend_from_slice(colour.unwrap_or_default().as_bytes());
        left(buffer, 11, |column| column.extend_from_slice(event.as_bytes()));
        if colour.is_some() {
            buffer.extend_from_slice(b"\x1b[0m");
        }
        buffer.push(b' ');
        left(buffer, 10, |column| append_decimal(netns.into(), column));
        buffer.push(b' ');
        match owner {
            Some(owner) => {
                right(buffer, 7, |column| append_decimal(owner.pid.into(), column));
                buffer.push(b' ');
                left(buffer, 15, |column| append_name(owner, column));
            }
            None => buffer.extend_from_slice(b"      - -              "),
        }
        buffer.push(b' ');
        left(buffer, 21, |column| local.append(column));
        buffer.push(b' ');
        left(buffer, 21, |column| peer.append(column));
        buffer.push(b' ');
        right(buffer, 8, |column| match held_ns {
            Some(held_ns) => append_duration(held_ns, column),
            None => column.push(b'-'),
        });
        detail(&mut Details { buffer, is_first: true });
        buffer.push(b'\n');
    }

    fn of_lease<'a>(lease: &'a Lease, at: Instant, event: &'a str) -> Line<'a> {
        Line {
            at,
            event,
            netns: lease.netns.0,
            owner: lease.owner.as_deref(),
            local: End::At(lease.local_addr, Some(lease.local_port)),
            peer: End::of_peer(lease.peer.get()),
            held_ns: lease.acquired.map(|acquired| at.since(acquired)),
        }
    }
}

/// The columns of a line, without the details.
#[derive(Clone, Copy)]
struct Line<'a> {
    at: Instant,
    event: &'a str,
    netns: u32,
    owner: Option<&'a Owner>,
    local: End<'a>,
    peer: End<'a>,
    held_ns: Option<u64>,
}

/// The last column of a line: what the others do not show, separated by commas.
struct Details<'a> {
    buffer: &'a mut Vec<u8>,
    is_first: bool,
}

impl Details<'_> {
    /// Adds a detail; nothing if the text is empty.
    fn add(&mut self, text: impl AsRef<str>) {
        if !text.as_ref().is_empty() {
            self.begin().extend_from_slice(text.as_ref().as_bytes());
        }
    }

    /// Adds a name from [`names`] with blanks for underscores.
    fn words(&mut self, name: &str) {
        let letters = name.bytes().map(|letter| if letter == b'_' { b' ' } else { letter });
        self.begin().extend(letters);
    }

    /// Adds a duration after the name of what took it; nothing if it is not known.
    fn duration(&mut self, name: &str, ns: Option<u64>) {
        if let Some(ns) = ns {
            let buffer = self.begin();
            buffer.extend_from_slice(name.as_bytes());
            buffer.push(b' ');
            append_duration(ns, buffer);
        }
    }

    /// Adds how the port was used before.
    fn reuse(&mut self, reuse: Option<Reuse>) {
        match reuse {
            None => {}
            Some(Reuse { from_time_wait: true, .. }) => self.add("reuses a TIME-WAIT"),
            Some(Reuse { idle_ns, .. }) => self.duration("idle", Some(idle_ns)),
        }
    }

    /// Adds a note if the peer of a TIME_WAIT sent no timestamps.
    fn timestamps(&mut self, lease: &Lease) {
        if lease.has_timestamps == Some(false) {
            self.add("no timestamps");
        }
    }

    /// Begins a detail, whose text the caller appends to the buffer that is returned.
    fn begin(&mut self) -> &mut Vec<u8> {
        let separator: &[u8] = if std::mem::take(&mut self.is_first) { b" " } else { b", " };
        self.buffer.extend_from_slice(separator);
        self.buffer
    }
}

impl View for Text {
    fn record(&mut self, record: &Record<'_>, _ledger: &Ledger) {
        let Record { at, body } = *record;
        match body {
            Body::Start(start) => self.start(start),
            Body::Namespace { netns, settings, is_new: _ } => self.namespace(at, netns, settings),
            Body::Lease { event, cgroup } => self.lease(&event, cgroup),
            Body::Fail { failure, cgroup, holder_cgroup } => {
                self.failure(failure, cgroup, holder_cgroup);
            }
            Body::Pressure(pressure) => self.pressure(pressure),
            Body::Scan(scan) => self.scan(at, scan),
            Body::Loss(loss) => self.loss(at, loss),
            Body::Verify(verify) => self.verify(at, verify),
            Body::Summary(summary) => self.summary(summary),
        }
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

impl Text {
    fn start(&mut self, start: &Start) {
        self.verbosity.warn(start);
        if self.verbosity >= Verbosity::Normal {
            crate::stderr::write_line!(
                "portlife: tracing on Linux {}, leases held: {}; Ctrl-C ends it",
                start.kernel,
                start.held,
            );
        }
        self.buffer.extend_from_slice(
            format!(
                "{:<12} {:<11} {:<10} {:>7} {:<15} {:<21} {:<21} {:>8} DETAIL\n",
                "TIME", "EVENT", "NETNS", "PID", "COMM", "LOCAL", "PEER", "HELD"
            )
            .as_bytes(),
        );
    }

    fn namespace(&mut self, at: Instant, netns: Netns, settings: &Settings) {
        let (low, high) = (settings.range.low().0, settings.range.high().0);
        let reserved = settings.reserved.count_within(settings.range);
        let reserved = (reserved > 0).then(|| format!("{reserved} reserved"));
        let line = Line {
            at,
            event: "namespace",
            netns: netns.0,
            owner: None,
            local: End::Text(&format!("*:{low}-{high}")),
            peer: End::NONE,
            held_ns: None,
        };
        self.line(&line, |details| {
            details.add(format!("{} ports", settings.capacity()));
            details.add(reserved.unwrap_or_default());
        });
    }

    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) {
        let LeaseEvent { at, lease, change } = *event;
        self.line(&Self::of_lease(lease, at, RecordType::of(&change).name()), |details| {
            match change {
                Change::Held { .. } => {
                    details.add(names::ss_state(lease.phase, lease.closed_by));
                    if let Phase::TimeWait(_) = lease.phase {
                        details.timestamps(lease);
                    }
                }
                Change::Bind { requested_port, reuse } => {
                    details.add(if requested_port == 0 { "any port" } else { "" });
                    details.reuse(reuse);
                }
                Change::Connect { search_ns, reuse } => {
                    details.duration("search", search_ns);
                    details.reuse(reuse);
                }
                Change::Established { handshake_ns } => {
                    details.duration("handshake", handshake_ns);
                }
                Change::Accept { .. } | Change::Listen => {}
                Change::Update { .. } => details.add(names::ss_state(lease.phase, lease.closed_by)),
                Change::Closing { by } => details.add(match by {
                    Side::Local => "by local",
                    Side::Peer => "by peer",
                }),
                Change::TimeWait(substate) => {
                    details.add(names::ss_state(Phase::TimeWait(substate), None));
                    details.timestamps(lease);
                }
                Change::Release { reason } => {
                    let Durations { established_ns, time_wait_ns, .. } = Durations::of(lease, at);
                    details.words(names::reason(reason));
                    details.duration("estab", established_ns);
                    details.duration("tw", time_wait_ns);
                }
            }
            if let Some(container) = cgroup.and_then(|cgroup| cgroup.container.as_ref()) {
                let buffer = details.begin();
                buffer.extend_from_slice(b"container ");
                buffer.extend_from_slice(container.shown().as_bytes());
            }
        });
    }

    fn failure(
        &mut self,
        failure: &Failure<'_>,
        _cgroup: Option<&Cgroup>,
        _holder_cgroup: Option<&Cgroup>,
    ) {
        let found = failure.cause;
        let cause = found.map(|cause| names::cause(cause).replace('_', " "));
        let range = failure.range.map(|range| {
            let RangeUse { capacity, reserved, used, bind_locked, .. } = range;
            let of = |count: u32, what: &str| {
                if count == 0 { String::new() } else { format!("{count} {what}") }
            };
            join(&[
                format!("{used} of {capacity} ports used"),
                of(bind_locked, "bound by others"),
                of(reserved, "reserved"),
            ])
        });
        let advice = advice_on(failure, found).filter(|advice| self.given.insert(*advice));
        let advice = advice.map(format::short_advice);
        let holder = failure.holder.map(|holder| {
            let who = holder.owner.as_ref().map_or_else(
                || "unknown".to_owned(),
                |owner| format!("{}/{}", owner.pid, comm(&owner.comm)),
            );
            let ports =
                failure.holder_ports.map(|ports| format!(" ({ports} ports)")).unwrap_or_default();
            let free = free_in_s(holder, failure.at)
                .map(|free| format!(", free in {}", duration(free)))
                .unwrap_or_default();
            let state = names::ss_state(holder.phase, holder.closed_by);
            format!("by {who} {state}{ports}{free}")
        });
        let port = (failure.local_port != 0).then_some(Port(failure.local_port));
        let line = Line {
            at: failure.at,
            event: "FAIL",
            netns: failure.netns.0,
            owner: failure.owner.as_ref(),
            local: End::At(failure.local_addr, port),
            peer: End::of_peer(failure.peer),
            held_ns: None,
        };
        self.line(&line, |details| {
            let (operation, errno) =
                (names::operation(failure.operation), names::errno(failure.errno));
            details.add(format!("{operation} {errno}"));
            details.add(cause.unwrap_or_default());
            details.add(range.unwrap_or_default());
            details.add(holder.unwrap_or_default());
            details.add(advice.unwrap_or_default());
        });
    }

    fn pressure(&mut self, pressure: &Pressure) {
        let forecast = Forecast::of(&pressure.range, &pressure.rates);
        let Pressure { at, netns, destination, level_percent, is_rising, range, rates } = *pressure;
        let verb = if is_rising { "rises to" } else { "falls to" };
        let level = match level_percent {
            0 => "falls back".to_owned(),
            level => format!("{verb} {level}%"),
        };
        let line = Line {
            at,
            event: "pressure",
            netns: netns.0,
            owner: None,
            local: destination.map_or(End::ANY, |destination| End::At(destination.source, None)),
            peer: End::of_peer(destination.map(|destination| destination.peer)),
            held_ns: None,
        };
        self.line(&line, |details| {
            details.add(level);
            details.add(format!("{} of {} ports used", range.used, range.capacity));
            details.add(format!("{} left", range.headroom()));
            details.add(format!("{:.1}/s", rates.taken_per_s));
            if let Some(eta_s) = forecast.eta_s.filter(|eta_s| *eta_s > 0.0) {
                details.add(format!("none left in {}", duration(eta_s)));
            }
        });
    }

    fn scan(&mut self, at: Instant, scan: &Scan) {
        let Scan { netns, source, ports, port_low, port_high, tries, first, last } = *scan;
        let line = Line {
            at,
            event: "scan",
            netns: netns.0,
            owner: None,
            local: End::ANY,
            peer: End::At(source, None),
            held_ns: None,
        };
        self.line(&line, |details| {
            details.add(format!("{ports} closed ports ({}-{})", port_low.0, port_high.0));
            details.duration(&format!("{tries} tries in"), Some(last.since(first)));
            details.add(scan.rate_per_s().map(|rate| format!("{rate:.1}/s")).unwrap_or_default());
        });
    }

    fn loss(&mut self, _at: Instant, loss: &Loss) {
        let Loss { count, lost_at, healed } = *loss;
        let reason = match lost_at {
            LostAt::Ring => "the ring buffer was full (a larger --ring-bytes helps)",
            LostAt::Recursion => "the kernel skipped programs that interrupted themselves",
            LostAt::Unseen => "the kernel ran no program for them, and counted no miss",
            LostAt::Reader => {
                crate::stderr::write_line!(
                    "portlife: {count} records were dropped because the reader of stdout is slow; \
                     failures are dropped last"
                );
                return;
            }
        };
        let outcome = if healed {
            "the ledger was compared with the kernel since, and agrees"
        } else {
            "what is shown may be incomplete"
        };
        crate::stderr::write_line!("portlife: {count} facts were lost because {reason}; {outcome}");
    }

    fn verify(&mut self, _at: Instant, verify: &Verify) {
        let Verify { leases, kernel, missing, extra, classes, unlisted, differences } = verify;
        self.verbosity.list(differences);
        let incomplete = match unlisted {
            0 => String::new(),
            some => format!("; network namespaces that could not be listed: {some}"),
        };
        if self.verbosity >= Verbosity::Normal || missing + extra + classes + unlisted > 0 {
            crate::stderr::write_line!(
                "portlife: verified: {leases} leases in the ledger, {kernel} in the kernel, missing \
                 {missing}, extra {extra}, bind buckets of another class {classes}{incomplete}"
            );
        }
    }

    fn summary(&mut self, summary: &Summary) {
        if self.verbosity < Verbosity::Normal {
            return;
        }
        let totals: Vec<_> =
            summary.totals.iter().map(|(name, count)| format!("{count} {name}")).collect();
        crate::stderr::write_line!(
            "portlife: {} in {}, {} lost",
            if totals.is_empty() { "no events".to_owned() } else { totals.join(", ") },
            duration(summary.duration_s),
            summary.lost
        );
    }
}

/// The time zone with this name, such as `Europe/Berlin`; UTC for anything else. `TZ` may also be a
/// path, but root should not open a file just because the environment names it.
fn zone_named(name: &str) -> TimeZone {
    let name = name.strip_prefix(':').unwrap_or(name);
    let is_name = name.split('/').all(|part| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+".contains(&byte);
        !part.is_empty() && part.bytes().all(is_letter)
    });
    let zone = is_name.then(|| TimeZone::get(name).ok()).flatten();
    zone.unwrap_or(TimeZone::UTC)
}

fn colour_of(event: &str) -> Option<&'static str> {
    Some(match event {
        "FAIL" => "\x1b[1;31m",
        "connect" | "accept" | "bind" | "listen" => "\x1b[32m",
        "release" => "\x1b[34m",
        "time_wait" | "pressure" | "scan" => "\x1b[33m",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
