//! NDJSON: one object a line.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use serde::Serialize;
use tracer_ebpf::Owner;

use super::{Cgroup, Loss, Output, Start, Summary, Times, Verbosity, comm, names, seconds};
use crate::{
    exhaustion::{Forecast, Settings, advice_on, cause_of, free_in_s},
    ledger::{
        Addr, Change, Differences, Failure, Instant, Kind, Lease, LeaseEvent, LeaseId, Netns,
        Operation, Phase, Port, Pressure, Reuse, Room,
    },
    scans::Scan,
};

/// Writes records as JSON.
#[derive(Debug)]
pub struct Json {
    realtime_offset_ns: i128,
    verbosity: Verbosity,
    buffer: Vec<u8>,
}

impl Json {
    /// `realtime_offset_ns` turns monotonic times into the time of day.
    #[must_use]
    pub fn new(realtime_offset_ns: i128, verbosity: Verbosity) -> Self {
        Self { realtime_offset_ns, verbosity, buffer: Vec::new() }
    }

    pub(super) fn write<D: Serialize>(
        &mut self,
        kind: &'static str,
        at: Instant,
        netns: Option<u32>,
        rest: D,
    ) {
        let time = jiff::Timestamp::from_nanosecond(i128::from(at.0) + self.realtime_offset_ns)
            .unwrap_or_default();
        let record =
            Record { v: 1, kind, time: format_args!("{time:.9}"), mono_ns: at.0, netns, rest };
        // Writing to memory cannot fail, and the records are made of what JSON can say.
        if serde_json::to_writer(&mut self.buffer, &record).is_ok() {
            self.buffer.push(b'\n');
        }
    }

    fn write_lease<D: Serialize>(
        &mut self,
        kind: &'static str,
        at: Instant,
        lease: &Lease,
        cgroup: Option<&Cgroup>,
        rest: D,
    ) {
        let subject = Subject { who: Who::of(lease, cgroup), rest };
        self.write(kind, at, Some(lease.netns.0), subject);
    }
}

impl Output for Json {
    fn start(&mut self, start: &Start) {
        self.verbosity.warn(start);
        #[derive(Serialize)]
        struct Details<'a> {
            version: &'static str,
            kernel: &'a str,
            hooks: BTreeMap<&'static str, Cow<'a, str>>,
            held: usize,
            warnings: &'a [String],
        }
        let hooks = start.hooks.iter().map(|hook| {
            let outcome = match &hook.outcome {
                Ok(how) => Cow::Borrowed(*how),
                Err(reason) => Cow::Owned(match hook.loss {
                    Some(loss) => format!("not attached: {reason}; {loss}"),
                    None => format!("not attached: {reason}"),
                }),
            };
            (hook.name, outcome)
        });
        let details = Details {
            version: env!("CARGO_PKG_VERSION"),
            kernel: &start.kernel,
            hooks: hooks.collect(),
            held: start.held,
            warnings: &start.warnings,
        };
        self.write("start", start.at, None, details);
    }

    fn namespace(&mut self, at: Instant, netns: Netns, settings: &Settings) {
        #[derive(Serialize)]
        struct Details {
            range_low: u16,
            range_high: u16,
            reserved: String,
            capacity: u32,
            step_width: Option<u32>,
            autobind_reuse: bool,
            unprivileged_start: u16,
            tw_reuse: u32,
            tw_reuse_delay_ms: Option<u32>,
            timestamps: bool,
            max_tw_buckets: u32,
            fin_timeout_s: u32,
            somaxconn: u32,
        }
        let Settings {
            range,
            reserved,
            step_width,
            autobind_reuse,
            unprivileged_start,
            time_wait_reuse,
            time_wait_reuse_delay_ms,
            timestamps,
            max_time_waits,
            fin_timeout_s,
            max_listen_backlog,
        } = settings;
        let details = Details {
            range_low: range.low().0,
            range_high: range.high().0,
            reserved: reserved.to_string(),
            capacity: settings.capacity(),
            step_width: *step_width,
            autobind_reuse: *autobind_reuse,
            unprivileged_start: *unprivileged_start,
            tw_reuse: time_wait_reuse.number(),
            tw_reuse_delay_ms: *time_wait_reuse_delay_ms,
            timestamps: *timestamps,
            max_tw_buckets: *max_time_waits,
            fin_timeout_s: *fin_timeout_s,
            somaxconn: *max_listen_backlog,
        };
        self.write("namespace", at, Some(netns.0), details);
    }

    fn held(&mut self, at: Instant, lease: &Lease, cgroup: Option<&Cgroup>) {
        #[derive(Serialize)]
        struct Details {
            phase: &'static str,
            substate: Option<&'static str>,
            closed_by: Option<&'static str>,
            age_s: Option<f64>,
        }
        let details = Details {
            phase: names::phase(lease.phase),
            substate: match lease.phase {
                Phase::TimeWait(substate) => Some(names::substate(substate)),
                _ => None,
            },
            closed_by: lease.closed_by.map(names::side),
            age_s: lease.acquired.map(|acquired| seconds(at.since(acquired))),
        };
        self.write_lease("held", at, lease, cgroup, details);
    }

    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) {
        let LeaseEvent { at, lease, change } = *event;
        let details = match change {
            Change::Bind { requested_port, reuse } => {
                Details::Bind { requested_port, reuse: reuse.map(Into::into) }
            }
            Change::Connect { search_ns, reuse } => Details::Connect {
                search_us: search_ns.map(microseconds),
                reuse: reuse.map(Into::into),
            },
            Change::Established { handshake_ns } => {
                Details::Established { handshake_us: handshake_ns.map(microseconds) }
            }
            Change::Accept { listener } => {
                Details::Accept { listener: listener.map(|cookie| cookie.0) }
            }
            Change::Listen => Details::Listen {},
            Change::Closing { by } => Details::Closing { by: names::side(by) },
            Change::TimeWait(substate) => Details::TimeWait { substate: names::substate(substate) },
            Change::Release { reason } => {
                let Times { held_s, established_s, time_wait_s } = Times::of(lease, at);
                Details::Release {
                    reason: names::reason(reason),
                    held_s,
                    established_s,
                    time_wait_s,
                    closed_by: lease.closed_by.map(names::side),
                }
            }
        };
        self.write_lease(names::change(&change), at, lease, cgroup, details);
    }

    fn failure(
        &mut self,
        failure: &Failure<'_>,
        cgroup: Option<&Cgroup>,
        holder_cgroup: Option<&Cgroup>,
    ) {
        #[derive(Serialize)]
        struct Details<'a> {
            op: &'static str,
            errno: i32,
            error: Cow<'static, str>,
            requested_addr: IpAddr,
            requested_port: u16,
            cause: Option<&'static str>,
            holder: Option<Holder<'a>>,
            holder_ports: Option<u32>,
            range: Option<Range>,
            own_range: Option<[u16; 2]>,
            advice: Option<&'static str>,
            search_us: Option<f64>,
        }
        let cause = cause_of(failure);
        let advice = advice_on(failure, cause);
        let Failure {
            at,
            netns,
            cookie,
            family,
            owner,
            operation,
            errno,
            local_addr,
            local_port,
            peer,
            cause: _,
            holder,
            holder_ports,
            room,
            own_range,
            is_of_range: _,
            search_ns,
        } = *failure;
        let who = Who {
            lease: None,
            cookie: cookie.0,
            kind: match operation {
                Operation::Bind if local_port == 0 => names::kind(Kind::BindAuto),
                Operation::Bind => names::kind(Kind::Bind),
                Operation::Connect => names::kind(Kind::Connect),
                Operation::Listen => names::kind(Kind::Listen),
            },
            family: names::family(family),
            local_addr: local_addr.ip(),
            local_port: (local_port != 0).then_some(local_port),
            peer: Peer::of(peer),
            owner: Process::of(owner.as_ref(), cgroup),
        };
        let rest = Details {
            op: names::operation(operation),
            errno,
            error: names::errno(errno),
            requested_addr: local_addr.ip(),
            requested_port: local_port,
            cause: cause.map(names::cause),
            holder: holder.map(|lease| Holder::of(lease, holder_cgroup, free_in_s(lease, at))),
            holder_ports,
            range: room.map(Into::into),
            own_range: own_range.map(|(low, high)| [low.0, high.0]),
            advice: advice.map(names::advice),
            search_us: search_ns.map(microseconds),
        };
        self.write("fail", at, Some(netns.0), Subject { who, rest });
    }

    fn pressure(&mut self, pressure: &Pressure, forecast: &Forecast) {
        #[derive(Serialize)]
        struct Details {
            source_addr: Option<IpAddr>,
            peer_addr: Option<IpAddr>,
            peer_port: Option<u16>,
            level_percent: u8,
            rising: bool,
            #[serde(flatten)]
            range: Range,
            headroom: u32,
            rate_per_s: f64,
            release_per_s: f64,
            hold_s: Option<f64>,
            eta_s: Option<f64>,
        }
        let Pressure { at, netns, destination, level_percent, is_rising, room, rates } = *pressure;
        let peer = destination.map(|destination| destination.peer);
        let details = Details {
            source_addr: destination.map(|destination| destination.source.ip()),
            peer_addr: peer.map(|(addr, _)| addr.ip()),
            peer_port: peer.map(|(_, port)| port.0),
            level_percent,
            rising: is_rising,
            range: room.into(),
            headroom: room.headroom(),
            rate_per_s: rates.taken_per_s,
            release_per_s: rates.released_per_s,
            hold_s: rates.hold_s,
            eta_s: forecast.eta_s,
        };
        self.write("pressure", at, Some(netns.0), details);
    }

    fn scan(&mut self, at: Instant, scan: &Scan) {
        #[derive(Serialize)]
        struct Details {
            source_addr: IpAddr,
            ports: u32,
            port_low: u16,
            port_high: u16,
            tries: u64,
            rate_per_s: Option<f64>,
            duration_s: f64,
        }
        let Scan { netns, source, ports, port_low, port_high, tries, first, last } = *scan;
        let details = Details {
            source_addr: source.ip(),
            ports,
            port_low: port_low.0,
            port_high: port_high.0,
            tries,
            rate_per_s: scan.rate_per_s(),
            duration_s: seconds(last.since(first)),
        };
        self.write("scan", at, Some(netns.0), details);
    }

    fn loss(&mut self, at: Instant, loss: &Loss) {
        #[derive(Serialize)]
        struct Details {
            count: u64,
            r#where: &'static str,
            healed: bool,
        }
        let Loss { count, place, healed } = *loss;
        self.write("loss", at, None, Details { count, r#where: names::place(place), healed });
    }

    fn verify(&mut self, at: Instant, differences: &Differences) {
        #[derive(Serialize)]
        struct Details {
            leases: usize,
            kernel: usize,
            missing: usize,
            extra: usize,
            classes: usize,
        }
        let details = Details {
            leases: differences.leases,
            kernel: differences.kernel,
            missing: differences.missing(),
            extra: differences.extra(),
            classes: differences.classes(),
        };
        self.verbosity.list(differences);
        self.write("verify", at, None, details);
    }

    fn summary(&mut self, summary: &Summary) {
        #[derive(Serialize)]
        struct Details<'a> {
            totals: &'a BTreeMap<&'static str, u64>,
            facts_seen: u64,
            facts_filtered: u64,
            facts_received: u64,
            lost: u64,
            duration_s: f64,
        }
        let Summary { at, totals, facts_seen, facts_filtered, facts_received, lost, duration_s } =
            summary;
        let details = Details {
            totals,
            facts_seen: *facts_seen,
            facts_filtered: *facts_filtered,
            facts_received: *facts_received,
            lost: *lost,
            duration_s: *duration_s,
        };
        self.write("summary", *at, None, details);
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

/// What every record has.
#[derive(Serialize)]
struct Record<'a, D> {
    v: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    time: std::fmt::Arguments<'a>,
    mono_ns: u64,
    netns: Option<u32>,
    #[serde(flatten)]
    rest: D,
}

#[derive(Serialize)]
struct Subject<'a, D> {
    #[serde(flatten)]
    who: Who<'a>,
    #[serde(flatten)]
    rest: D,
}

/// The identity of a lease.
#[derive(Serialize)]
struct Who<'a> {
    lease: Option<u64>,
    cookie: u64,
    kind: &'static str,
    family: &'static str,
    local_addr: IpAddr,
    local_port: Option<u16>,
    #[serde(flatten)]
    peer: Peer,
    #[serde(flatten)]
    owner: Process<'a>,
}

impl<'a> Who<'a> {
    fn of(lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Self {
        Self {
            lease: Some(lease.id.0),
            cookie: lease.cookie.0,
            kind: names::kind(lease.kind),
            family: names::family(lease.family),
            local_addr: lease.local_addr.ip(),
            local_port: Some(lease.local_port.0),
            peer: Peer::of(lease.peer),
            owner: Process::of(lease.owner.as_ref(), cgroup),
        }
    }
}

#[derive(Serialize)]
struct Peer {
    peer_addr: Option<IpAddr>,
    peer_port: Option<u16>,
}

impl Peer {
    fn of(peer: Option<(Addr, Port)>) -> Self {
        Self { peer_addr: peer.map(|(addr, _)| addr.ip()), peer_port: peer.map(|(_, port)| port.0) }
    }
}

#[derive(Serialize)]
struct Process<'a> {
    pid: Option<u32>,
    comm: Option<Cow<'a, str>>,
    uid: Option<u32>,
    cgroup: Option<&'a str>,
    container: Option<&'a str>,
}

impl<'a> Process<'a> {
    fn of(owner: Option<&'a Owner>, cgroup: Option<&'a Cgroup>) -> Self {
        Self {
            pid: owner.map(|owner| owner.pid),
            comm: owner.map(|owner| comm(&owner.comm)),
            uid: owner.map(|owner| owner.uid),
            cgroup: cgroup.map(|cgroup| cgroup.path.as_str()),
            container: cgroup.and_then(|cgroup| cgroup.container.as_deref()),
        }
    }
}

/// The lease that is in the way of another.
#[derive(Serialize)]
pub(super) struct Holder<'a> {
    #[serde(flatten)]
    who: Who<'a>,
    phase: &'static str,
    free_in_s: Option<f64>,
}

impl<'a> Holder<'a> {
    pub(super) fn of(lease: &'a Lease, cgroup: Option<&'a Cgroup>, free_in_s: Option<f64>) -> Self {
        Self { who: Who::of(lease, cgroup), phase: names::phase(lease.phase), free_in_s }
    }
}

/// What became of the ports of a range.
#[derive(Serialize)]
struct Range {
    capacity: u32,
    reserved: u32,
    used: u32,
    bind_locked: u32,
    reusable: u32,
}

impl From<Room> for Range {
    fn from(room: Room) -> Self {
        let Room { capacity, reserved, used, bind_locked, reusable } = room;
        Self { capacity, reserved, used, bind_locked, reusable }
    }
}

#[derive(Serialize)]
struct ReuseRecord {
    lease: u64,
    idle_s: f64,
    from_time_wait: bool,
}

impl From<Reuse> for ReuseRecord {
    fn from(reuse: Reuse) -> Self {
        let Reuse { previous: LeaseId(lease), idle_ns, from_time_wait } = reuse;
        Self { lease, idle_s: seconds(idle_ns), from_time_wait }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Details {
    Bind {
        requested_port: u16,
        reuse: Option<ReuseRecord>,
    },
    Connect {
        search_us: Option<f64>,
        reuse: Option<ReuseRecord>,
    },
    Established {
        handshake_us: Option<f64>,
    },
    Accept {
        listener: Option<u64>,
    },
    Listen {},
    Closing {
        by: &'static str,
    },
    TimeWait {
        substate: &'static str,
    },
    Release {
        reason: &'static str,
        held_s: Option<f64>,
        established_s: Option<f64>,
        time_wait_s: Option<f64>,
        closed_by: Option<&'static str>,
    },
}

#[expect(clippy::cast_precision_loss, reason = "the precision suffices for a duration")]
fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}
