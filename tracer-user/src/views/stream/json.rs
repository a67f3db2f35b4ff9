//! NDJSON: one object a line.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use tracer_ebpf::Owner;

use crate::{
    capacity::{Forecast, advice_on, free_in_s},
    ledger::Ledger,
    model::{
        Addr, Change, Failure, Instant, Kind, Lease, LeaseEvent, LeaseId, Netns, Operation, Phase,
        Pressure, RangeUse, Reuse, Scan, Settings, seconds,
    },
    record::{Body, Cgroup, Loss, Record, RecordType, Start, Summary, Verify, comm, names},
    views::{
        Times, Verbosity, View,
        stream::line::{AsSerde, Microseconds, Name, Owners, Seconds, TimeOfDay, Value, append},
    },
};

/// Writes records as JSON.
#[derive(Debug)]
pub struct Json {
    realtime_offset_ns: i128,
    verbosity: Verbosity,
    buffer: Vec<u8>,
    time: TimeOfDay,
    owners: Owners,
}

impl Json {
    /// `realtime_offset_ns` turns monotonic times into the time of day.
    #[must_use]
    pub fn new(realtime_offset_ns: i128, verbosity: Verbosity) -> Self {
        Self {
            realtime_offset_ns,
            verbosity,
            buffer: Vec::new(),
            time: TimeOfDay::default(),
            owners: Owners::default(),
        }
    }

    pub(crate) fn write<D: Serialize>(
        &mut self,
        kind: &'static str,
        at: Instant,
        netns: Option<u32>,
        rest: D,
    ) {
        let time = jiff::Timestamp::from_nanosecond(i128::from(at.ns()) + self.realtime_offset_ns)
            .unwrap_or_default();
        let record =
            Line { v: 1, kind, time: format_args!("{time:.9}"), mono_ns: at.ns(), netns, rest };
        // Writing to memory cannot fail, and the records are made of what JSON can say.
        if serde_json::to_writer(&mut self.buffer, &record).is_ok() {
            self.buffer.push(b'\n');
        }
    }

    /// Writes a record of a kind that is frequent. What [`write`](Self::write) would write.
    fn write_fast(
        &mut self,
        kind: &'static str,
        at: Instant,
        netns: Netns,
        who: &Who<'_>,
        rest: impl FnOnce(&mut Vec<u8>),
    ) {
        let Self { realtime_offset_ns, verbosity: _, buffer, time, owners } = self;
        buffer.extend_from_slice(b"{\"v\":1");
        append!(buffer, "type": Name(kind));
        buffer.extend_from_slice(b",\"time\":");
        time.append(i128::from(at.ns()) + *realtime_offset_ns, buffer);
        append!(buffer, "mono_ns": at.ns(), "netns": netns.0);
        let Who {
            lease,
            cookie,
            kind,
            family,
            local_addr,
            local_port,
            peer_addr,
            peer_port,
            process: Process { owner, cgroup },
        } = *who;
        append!(
            buffer,
            "lease": lease,
            "cookie": cookie,
            "kind": Name(kind),
            "family": Name(family),
            "local_addr": local_addr,
            "local_port": local_port,
            "peer_addr": peer_addr,
            "peer_port": peer_port,
        );
        owners.append(owner, cgroup, buffer);
        rest(buffer);
        buffer.extend_from_slice(b"}\n");
    }
}

impl View for Json {
    fn record(&mut self, record: &Record<'_>, _ledger: &Ledger) {
        let Record { at, body } = *record;
        match body {
            Body::Start(start) => self.start(start),
            Body::Namespace { netns, settings } => self.namespace(at, netns, settings),
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

impl Json {
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

    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) {
        let LeaseEvent { at, lease, change } = *event;
        let kind = RecordType::of(&change).name();
        self.write_fast(kind, at, lease.netns, &Who::of(lease, cgroup), |buffer| match change {
            Change::Held => {
                let substate = match lease.phase {
                    Phase::TimeWait(substate) => Some(names::substate(substate)),
                    _ => None,
                };
                append!(
                    buffer,
                    "phase": Name(names::phase(lease.phase)),
                    "substate": substate.map(Name),
                    "closed_by": lease.closed_by.map(names::side).map(Name),
                    "age_s": lease.acquired.map(|acquired| Seconds(at.since(acquired))),
                    "timestamps": lease.has_timestamps,
                );
            }
            Change::Bind { requested_port, reuse } => {
                append!(buffer, "requested_port": requested_port, "reuse": reuse);
            }
            Change::Connect { search_ns, reuse } => {
                append!(buffer, "search_us": search_ns.map(Microseconds), "reuse": reuse);
            }
            Change::Established { handshake_ns } => {
                append!(buffer, "handshake_us": handshake_ns.map(Microseconds));
            }
            Change::Accept { listener } => {
                append!(buffer, "listener": listener.map(|cookie| cookie.0));
            }
            Change::Listen => {}
            Change::Closing { by } => append!(buffer, "by": Name(names::side(by))),
            Change::TimeWait(substate) => {
                append!(
                    buffer,
                    "substate": Name(names::substate(substate)),
                    "timestamps": lease.has_timestamps,
                );
            }
            Change::Release { reason } => {
                let Times { held_ns, established_ns, time_wait_ns } = Times::of(lease, at);
                append!(
                    buffer,
                    "reason": Name(names::reason(reason)),
                    "held_s": held_ns.map(Seconds),
                    "established_s": established_ns.map(Seconds),
                    "time_wait_s": time_wait_ns.map(Seconds),
                    "closed_by": lease.closed_by.map(names::side).map(Name),
                );
            }
        });
    }

    fn failure(
        &mut self,
        failure: &Failure<'_>,
        cgroup: Option<&Cgroup>,
        holder_cgroup: Option<&Cgroup>,
    ) {
        let advice = advice_on(failure, failure.cause);
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
            cause,
            holder,
            holder_ports,
            range,
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
            local_addr,
            local_port: (local_port != 0).then_some(local_port),
            peer_addr: peer.map(|(addr, _)| addr),
            peer_port: peer.map(|(_, port)| port.0),
            process: Process { owner: owner.as_ref(), cgroup },
        };
        self.write_fast("fail", at, netns, &who, |buffer| {
            append!(
                buffer,
                "op": Name(names::operation(operation)),
                "errno": errno,
                "error": AsSerde(names::errno(errno)),
                "requested_addr": local_addr,
                "requested_port": local_port,
                "cause": cause.map(names::cause).map(Name),
                "holder": holder.map(|lease| {
                    AsSerde(Holder::of(lease, holder_cgroup, free_in_s(lease, at)))
                }),
                "holder_ports": holder_ports,
                "range": range.map(|range| AsSerde(Range::from(range))),
                "own_range": own_range.map(|(low, high)| AsSerde([low.0, high.0])),
                "advice": advice.map(names::advice).map(Name),
                "search_us": search_ns.map(Microseconds),
            );
        });
    }

    fn pressure(&mut self, pressure: &Pressure) {
        let forecast = Forecast::of(&pressure.range, &pressure.rates);
        #[derive(Serialize)]
        struct Details {
            source_addr: Option<Addr>,
            peer_addr: Option<Addr>,
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
        let Pressure { at, netns, destination, level_percent, is_rising, range, rates } = *pressure;
        let peer = destination.map(|destination| destination.peer);
        let details = Details {
            source_addr: destination.map(|destination| destination.source),
            peer_addr: peer.map(|(addr, _)| addr),
            peer_port: peer.map(|(_, port)| port.0),
            level_percent,
            rising: is_rising,
            range: range.into(),
            headroom: range.headroom(),
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

    fn verify(&mut self, at: Instant, verify: &Verify) {
        #[derive(Serialize)]
        struct Details {
            leases: u64,
            kernel: u64,
            missing: u64,
            extra: u64,
            classes: u64,
        }
        let Verify { leases, kernel, missing, extra, classes, differences } = verify;
        let details = Details {
            leases: *leases,
            kernel: *kernel,
            missing: *missing,
            extra: *extra,
            classes: *classes,
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
}

/// What every record has.
#[derive(Serialize)]
struct Line<'a, D> {
    v: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    time: std::fmt::Arguments<'a>,
    mono_ns: u64,
    netns: Option<u32>,
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
    local_addr: Addr,
    local_port: Option<u16>,
    peer_addr: Option<Addr>,
    peer_port: Option<u16>,
    #[serde(flatten)]
    process: Process<'a>,
}

impl<'a> Who<'a> {
    fn of(lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Self {
        Self {
            lease: Some(lease.id.0),
            cookie: lease.cookie.0,
            kind: names::kind(lease.kind),
            family: names::family(lease.family),
            local_addr: lease.local_addr,
            local_port: Some(lease.local_port.0),
            peer_addr: lease.peer.get().map(|(addr, _)| addr),
            peer_port: lease.peer.get().map(|(_, port)| port.0),
            process: Process { owner: lease.owner.as_deref(), cgroup },
        }
    }
}

#[derive(Clone, Copy)]
struct Process<'a> {
    owner: Option<&'a Owner>,
    cgroup: Option<&'a Cgroup>,
}

impl Serialize for Process<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { owner, cgroup } = *self;
        let mut process = serializer.serialize_struct("Process", 5)?;
        process.serialize_field("pid", &owner.map(|owner| owner.pid))?;
        process.serialize_field("comm", &owner.map(|owner| comm(&owner.comm)))?;
        process.serialize_field("uid", &owner.map(|owner| owner.uid))?;
        process.serialize_field("cgroup", &cgroup.map(|cgroup| &cgroup.path))?;
        let container = cgroup.and_then(|cgroup| cgroup.container.as_ref());
        process.serialize_field("container", &container)?;
        process.end()
    }
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.ip().serialize(serializer)
    }
}

/// The lease that is in the way of another.
#[derive(Serialize)]
pub(crate) struct Holder<'a> {
    #[serde(flatten)]
    who: Who<'a>,
    phase: &'static str,
    free_in_s: Option<f64>,
}

impl<'a> Holder<'a> {
    pub(crate) fn of(lease: &'a Lease, cgroup: Option<&'a Cgroup>, free_in_s: Option<f64>) -> Self {
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

impl From<RangeUse> for Range {
    fn from(range: RangeUse) -> Self {
        let RangeUse { capacity, reserved, used, bind_locked, reusable } = range;
        Self { capacity, reserved, used, bind_locked, reusable }
    }
}

impl Value for Reuse {
    fn append(self, bytes: &mut Vec<u8>) {
        let Self { previous: LeaseId(lease), idle_ns, from_time_wait } = self;
        bytes.extend_from_slice(b"{\"lease\":");
        lease.append(bytes);
        append!(bytes, "idle_s": Seconds(idle_ns), "from_time_wait": from_time_wait);
        bytes.push(b'}');
    }
}

#[cfg(test)]
mod tests;
