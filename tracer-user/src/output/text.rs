//! Text for people: one line a record, fixed columns.

use std::{collections::HashSet, fmt::Write as _, net::IpAddr};

use jiff::{Timestamp, tz::TimeZone};
use tracer_ebpf::Owner;

use super::{Cgroup, Loss, Output, Place, Start, Summary, Times, Verbosity, comm, names, seconds};
use crate::{
    exhaustion::{Advice, Forecast, Settings, advice_on, cause_of, free_in_s},
    ledger::{
        Addr, Change, Differences, Failure, Instant, Lease, LeaseEvent, Netns, Phase, Port,
        Pressure, Reuse, Room,
    },
    scans::Scan,
};

/// Writes records as lines of text.
#[derive(Debug)]
pub struct Text {
    realtime_offset_ns: i128,
    zone: TimeZone,
    colour: bool,
    verbosity: Verbosity,
    /// Advice that was given: the same with every failure would hide them.
    given: HashSet<Advice>,
    buffer: Vec<u8>,
}

impl Text {
    /// `realtime_offset_ns` turns monotonic times into the time of day.
    #[must_use]
    pub fn new(realtime_offset_ns: i128, colour: bool, verbosity: Verbosity) -> Self {
        let zone = TimeZone::system();
        Self {
            realtime_offset_ns,
            zone,
            colour,
            verbosity,
            given: HashSet::new(),
            buffer: Vec::new(),
        }
    }

    fn line(&mut self, line: &Line<'_>) {
        let Line { at, event, netns, owner, local, peer, held_s, detail } = line;
        let time = Timestamp::from_nanosecond(i128::from(at.ns()) + self.realtime_offset_ns)
            .unwrap_or_default()
            .to_zoned(self.zone.clone());
        let clock = time.strftime("%H:%M:%S%.3f");
        let (pid, name) = match owner {
            Some(owner) => (owner.pid.to_string(), comm(&owner.comm)),
            None => ("-".to_owned(), "-".into()),
        };
        let held = held_s.map_or_else(|| "-".to_owned(), duration);
        let colour = self.colour.then(|| colour_of(event)).flatten();
        let (on, off) = colour.map_or(("", ""), |code| (code, "\x1b[0m"));
        let mut text = String::with_capacity(160);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{clock} {on}{event:<11}{off} {netns:<10} {pid:>7} {name:<15} {local:<21} \
             {peer:<21} {held:>8} {detail}",
        );
        self.buffer.extend_from_slice(text.trim_end().as_bytes());
        self.buffer.push(b'\n');
    }

    fn of_lease<'a>(lease: &'a Lease, at: Instant, event: &'a str, detail: String) -> Line<'a> {
        Line {
            at,
            event,
            netns: lease.netns.0,
            owner: lease.owner.as_deref(),
            local: endpoint(lease.local_addr, Some(lease.local_port)),
            peer: peer(lease.peer),
            held_s: lease.acquired.map(|acquired| seconds(at.since(acquired))),
            detail,
        }
    }
}

struct Line<'a> {
    at: Instant,
    event: &'a str,
    netns: u32,
    owner: Option<&'a Owner>,
    local: String,
    peer: String,
    held_s: Option<f64>,
    detail: String,
}

impl Output for Text {
    fn start(&mut self, start: &Start) {
        self.verbosity.warn(start);
        if self.verbosity >= Verbosity::Normal {
            crate::tell!(
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
        self.line(&Line {
            at,
            event: "namespace",
            netns: netns.0,
            owner: None,
            local: format!("*:{low}-{high}"),
            peer: "-".to_owned(),
            held_s: None,
            detail: join(&[format!("{} ports", settings.capacity()), reserved.unwrap_or_default()]),
        });
    }

    fn held(&mut self, at: Instant, lease: &Lease, _cgroup: Option<&Cgroup>) {
        let state = names::ss_state(lease.phase, lease.closed_by).to_owned();
        self.line(&Self::of_lease(lease, at, "held", state));
    }

    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) {
        let LeaseEvent { at, lease, change } = *event;
        let mut detail = match change {
            Change::Bind { requested_port, reuse } => {
                let asked = if requested_port == 0 { "any port" } else { "" };
                join(&[asked.to_owned(), reused(reuse)])
            }
            Change::Connect { search_ns, reuse } => join(&[
                search_ns.map(|ns| format!("search {}", duration(seconds(ns)))).unwrap_or_default(),
                reused(reuse),
            ]),
            Change::Established { handshake_ns } => handshake_ns
                .map(|ns| format!("handshake {}", duration(seconds(ns))))
                .unwrap_or_default(),
            Change::Accept { .. } | Change::Listen => String::new(),
            Change::Closing { by } => format!("by {}", names::side(by)),
            Change::TimeWait(substate) => {
                names::ss_state(Phase::TimeWait(substate), None).to_owned()
            }
            Change::Release { reason } => {
                let Times { established_s, time_wait_s, .. } = Times::of(lease, at);
                join(&[
                    names::reason(reason).replace('_', " "),
                    established_s.map(|s| format!("estab {}", duration(s))).unwrap_or_default(),
                    time_wait_s.map(|s| format!("tw {}", duration(s))).unwrap_or_default(),
                ])
            }
        };
        if let Some(container) = cgroup.and_then(|cgroup| cgroup.container.as_deref()) {
            detail = join(&[detail, format!("container {container}")]);
        }
        self.line(&Self::of_lease(lease, at, names::change(&change), detail));
    }

    fn failure(
        &mut self,
        failure: &Failure<'_>,
        _cgroup: Option<&Cgroup>,
        _holder_cgroup: Option<&Cgroup>,
    ) {
        let found = cause_of(failure);
        let cause = found.map(|cause| names::cause(cause).replace('_', " "));
        let range = failure.room.map(|room| {
            let Room { capacity, reserved, used, bind_locked, .. } = room;
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
        let advice = advice.map(names::advice);
        let holder = failure.holder.map(|holder| {
            let who = holder.owner.as_ref().map_or_else(
                || "nobody's".to_owned(),
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
        let detail = join(&[
            format!("{} {}", names::operation(failure.operation), names::errno(failure.errno)),
            cause.unwrap_or_default(),
            range.unwrap_or_default(),
            holder.unwrap_or_default(),
            advice.map(str::to_owned).unwrap_or_default(),
        ]);
        self.line(&Line {
            at: failure.at,
            event: "FAIL",
            netns: failure.netns.0,
            owner: failure.owner.as_ref(),
            local: endpoint(
                failure.local_addr,
                (failure.local_port != 0).then_some(Port(failure.local_port)),
            ),
            peer: peer(failure.peer),
            held_s: None,
            detail,
        });
    }

    fn pressure(&mut self, pressure: &Pressure, forecast: &Forecast) {
        let Pressure { at, netns, destination, level_percent, is_rising, room, rates } = *pressure;
        let verb = if is_rising { "rises to" } else { "falls to" };
        let level = match level_percent {
            0 => "falls back".to_owned(),
            level => format!("{verb} {level}%"),
        };
        let detail = join(&[
            level,
            format!("{} of {} ports used", room.used, room.capacity),
            format!("{} left", room.headroom()),
            format!("{:.1}/s", rates.taken_per_s),
            forecast
                .eta_s
                .filter(|eta_s| *eta_s > 0.0)
                .map(|eta_s| format!("none left in {}", duration(eta_s)))
                .unwrap_or_default(),
        ]);
        let local = destination
            .map_or_else(|| "*:*".to_owned(), |destination| endpoint(destination.source, None));
        self.line(&Line {
            at,
            event: "pressure",
            netns: netns.0,
            owner: None,
            local,
            peer: peer(destination.map(|destination| destination.peer)),
            held_s: None,
            detail,
        });
    }

    fn scan(&mut self, at: Instant, scan: &Scan) {
        let Scan { netns, source, ports, port_low, port_high, tries, first, last } = *scan;
        let detail = join(&[
            format!("{ports} closed ports ({}-{})", port_low.0, port_high.0),
            format!("{tries} tries in {}", duration(seconds(last.since(first)))),
            scan.rate_per_s().map(|rate| format!("{rate:.1}/s")).unwrap_or_default(),
        ]);
        self.line(&Line {
            at,
            event: "scan",
            netns: netns.0,
            owner: None,
            local: "*:*".to_owned(),
            peer: endpoint(source, None),
            held_s: None,
            detail,
        });
    }

    fn loss(&mut self, _at: Instant, loss: &Loss) {
        let Loss { count, place, healed } = *loss;
        let place = match place {
            Place::Ring => "the ring buffer was full (a larger --ring-bytes helps)",
            Place::Recursion => "the kernel skipped programs that interrupted themselves",
            Place::Unseen => "the kernel ran no program for them, and counted no miss",
        };
        let outcome = if healed {
            "the ledger was compared with the kernel since, and agrees"
        } else {
            "what is shown may be incomplete"
        };
        crate::tell!("portlife: {count} facts were lost because {place}; {outcome}");
    }

    fn verify(&mut self, _at: Instant, differences: &Differences) {
        self.verbosity.list(differences);
        if self.verbosity >= Verbosity::Normal || !differences.is_empty() {
            crate::tell!(
                "portlife: verified: {} leases in the ledger, {} in the kernel, missing {}, extra {}, \
                 bind buckets of another class {}",
                differences.leases,
                differences.kernel,
                differences.missing(),
                differences.extra(),
                differences.classes()
            );
        }
    }

    fn summary(&mut self, summary: &Summary) {
        if self.verbosity < Verbosity::Normal {
            return;
        }
        let totals: Vec<_> =
            summary.totals.iter().map(|(name, count)| format!("{count} {name}")).collect();
        crate::tell!(
            "portlife: {} in {}, {} lost",
            if totals.is_empty() { "no events".to_owned() } else { totals.join(", ") },
            duration(summary.duration_s),
            summary.lost
        );
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
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

pub(super) fn endpoint(addr: Addr, port: Option<Port>) -> String {
    let port = port.map_or_else(|| "*".to_owned(), |port| port.0.to_string());
    match addr.ip() {
        ip if ip.is_unspecified() => format!("*:{port}"),
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

pub(super) fn peer(peer: Option<(Addr, Port)>) -> String {
    peer.map_or_else(|| "-".to_owned(), |(addr, port)| endpoint(addr, Some(port)))
}

fn reused(reuse: Option<Reuse>) -> String {
    match reuse {
        None => String::new(),
        Some(Reuse { from_time_wait: true, .. }) => "reuses a TIME-WAIT".to_owned(),
        Some(Reuse { idle_ns, .. }) => format!("idle {}", duration(seconds(idle_ns))),
    }
}

/// A duration in the unit that shows it best, in at most eight characters.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0}us", s * 1e6),
        s if s < 1.0 => format!("{:.1}ms", s * 1e3),
        s if s < 100.0 => format!("{s:.2}s"),
        s if s < 6000.0 => format!("{s:.0}s"),
        s => format!("{:.0}min", s / 60.0),
    }
}

pub(super) fn join(parts: &[String]) -> String {
    let parts: Vec<_> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}
