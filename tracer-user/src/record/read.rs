//! The records of the interface, read back from what `-o json` writes.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::Deserialize;
use tracer_ebpf::Owner;

use super::{Body, Cgroup, Loss, Place, Record, Start, Summary, Verify, names};
use crate::model::{
    Cause, Change, Cookie, Destination, Failure, Family, Instant, Kind, Lease, LeaseEvent, LeaseId,
    LocalRange, Netns, Operation, Peer, Phase, Port, PortSet, Pressure, RangeUse, Rates, Reason,
    Reuse, Scan, Settings, Side, Substate, TimeWaitReuse,
};

/// A line that was read.
#[derive(Clone, Debug)]
pub(crate) struct Line<'a> {
    /// Time of day, RFC 3339.
    pub(crate) time: Cow<'a, str>,
    /// The record; `None` for types that are not known.
    pub(crate) record: Option<OwnedRecord>,
}

/// A record that was read back.
#[derive(Clone, Debug)]
pub(crate) struct OwnedRecord {
    at: Instant,
    body: OwnedBody,
}

#[derive(Clone, Debug)]
enum OwnedBody {
    Start(Start),
    Namespace { netns: Netns, settings: Box<Settings> },
    Lease { lease: Box<Lease>, change: Change, cgroup: Option<Cgroup> },
    Fail(Box<OwnedFailure>),
    Pressure(Pressure),
    Scan(Scan),
    Loss(Loss),
    Verify(Verify),
    Summary(Summary),
}

#[derive(Clone, Debug)]
struct OwnedFailure {
    /// Without its holder.
    failure: Failure<'static>,
    cgroup: Option<Cgroup>,
    holder: Option<Lease>,
    holder_cgroup: Option<Cgroup>,
}

impl OwnedRecord {
    /// Passes the record on in the form that views take.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&Record<'_>) -> R) -> R {
        let at = self.at;
        let body = match &self.body {
            OwnedBody::Start(start) => Body::Start(start),
            OwnedBody::Namespace { netns, settings } => Body::Namespace { netns: *netns, settings },
            OwnedBody::Lease { lease, change, cgroup } => Body::Lease {
                event: LeaseEvent { at, lease, change: *change },
                cgroup: cgroup.as_ref(),
            },
            OwnedBody::Fail(owned) => {
                let OwnedFailure { failure, cgroup, holder, holder_cgroup } = &**owned;
                let failure = Failure { holder: holder.as_ref(), ..*failure };
                let (cgroup, holder_cgroup) = (cgroup.as_ref(), holder_cgroup.as_ref());
                let body = Body::Fail { failure: &failure, cgroup, holder_cgroup };
                return f(&Record { at, body });
            }
            OwnedBody::Pressure(pressure) => Body::Pressure(pressure),
            OwnedBody::Scan(scan) => Body::Scan(scan),
            OwnedBody::Loss(loss) => Body::Loss(loss),
            OwnedBody::Verify(verify) => Body::Verify(verify),
            OwnedBody::Summary(summary) => Body::Summary(summary),
        };
        f(&Record { at, body })
    }
}

/// Why a line is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No JSON object with what every record has.
    #[error("expected a record, a JSON object with `v`, `type`, `time` and `mono_ns`: {0}")]
    Malformed(String),
    /// Written for a reader of another version.
    #[error("expected records of version 1, found version {0}")]
    Version(u32),
    /// A record without something that its type has.
    #[error("expected a `{record}` record: {reason}")]
    Incomplete {
        /// The type.
        record: String,
        /// What is wrong.
        reason: String,
    },
}

impl<'a> Line<'a> {
    /// Reads one line.
    ///
    /// # Errors
    /// See [`RecordError`]. Types and fields that are not known are no error.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, RecordError> {
        let Head { v, record, time, mono_ns, netns } =
            serde_json::from_slice(line).map_err(|error| RecordError::Malformed(reason(&error)))?;
        if v != 1 {
            return Err(RecordError::Version(v));
        }
        let at = Instant::from_ns(mono_ns);
        let body = body(&record, line, at, netns.map(Netns))
            .map_err(|reason| RecordError::Incomplete { record: record.to_string(), reason })?;
        Ok(Self { time, record: body.map(|body| OwnedRecord { at, body }) })
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    v: u32,
    #[serde(rename = "type", borrow)]
    record: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    mono_ns: u64,
    netns: Option<u32>,
}

fn body(
    record: &str,
    line: &[u8],
    at: Instant,
    netns: Option<Netns>,
) -> Result<Option<OwnedBody>, String> {
    fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(line).map_err(|error| reason(&error))
    }
    let here = || needed("netns", netns);
    Ok(Some(match record {
        "start" => {
            let StartFields { kernel, warnings, held } = read(line)?;
            let hooks = Vec::new();
            OwnedBody::Start(Start { at, kernel: kernel.into_owned(), hooks, held, warnings })
        }
        "namespace" => OwnedBody::Namespace {
            netns: here()?,
            settings: Box::new(read::<NamespaceFields<'_>>(line)?.settings()?),
        },
        "held" | "bind" | "connect" | "established" | "accept" | "listen" | "closing"
        | "time_wait" | "release" => {
            let fields: LeaseFields<'_> = read(line)?;
            let change = fields.change(record)?;
            let id = needed("lease", fields.lease)?;
            let cgroup = fields.cgroup();
            let lease = Box::new(fields.lease(at, here()?, id, Some(change))?);
            OwnedBody::Lease { lease, change, cgroup }
        }
        "fail" => OwnedBody::Fail(Box::new(read::<LeaseFields<'_>>(line)?.failure(at, here()?)?)),
        "pressure" => OwnedBody::Pressure(read::<PressureFields>(line)?.pressure(at, here()?)),
        "scan" => OwnedBody::Scan(read::<ScanFields>(line)?.scan(at, here()?)),
        "loss" => {
            let LossFields { count, healed } = read(line)?;
            // A report says how many were lost, not where.
            OwnedBody::Loss(Loss { count, place: Place::Ring, healed })
        }
        "verify" => {
            let VerifyFields { leases, kernel, missing, extra, classes } = read(line)?;
            let differences = Vec::new();
            OwnedBody::Verify(Verify { leases, kernel, missing, extra, classes, differences })
        }
        "summary" => {
            let SummaryFields { lost, duration_s } = read(line)?;
            OwnedBody::Summary(Summary {
                at,
                totals: BTreeMap::new(),
                facts_seen: 0,
                facts_filtered: 0,
                facts_received: 0,
                lost,
                duration_s,
            })
        }
        _ => return Ok(None),
    }))
}

#[derive(Deserialize)]
struct StartFields<'a> {
    #[serde(borrow)]
    kernel: Cow<'a, str>,
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(default)]
    held: usize,
}

#[derive(Deserialize)]
struct SummaryFields {
    #[serde(default)]
    lost: u64,
    #[serde(default)]
    duration_s: f64,
}

#[derive(Deserialize)]
struct VerifyFields {
    leases: u64,
    kernel: u64,
    missing: u64,
    extra: u64,
    #[serde(default)]
    classes: u64,
}

#[derive(Deserialize)]
struct PressureFields {
    source_addr: Option<IpAddr>,
    peer_addr: Option<IpAddr>,
    peer_port: Option<u16>,
    level_percent: u8,
    rising: bool,
    #[serde(flatten)]
    range: RangeFields,
    rate_per_s: f64,
    release_per_s: f64,
    hold_s: Option<f64>,
}

impl PressureFields {
    fn pressure(self, at: Instant, netns: Netns) -> Pressure {
        let Self {
            source_addr,
            peer_addr,
            peer_port,
            level_percent,
            rising: is_rising,
            range,
            rate_per_s: taken_per_s,
            release_per_s: released_per_s,
            hold_s,
        } = self;
        let peer = peer_addr.zip(peer_port).map(|(addr, port)| (addr.into(), Port(port)));
        let destination = source_addr.zip(peer).map(|(source, peer)| Destination {
            netns,
            source: source.into(),
            peer,
        });
        Pressure {
            at,
            netns,
            destination,
            level_percent,
            is_rising,
            range: range.into(),
            rates: Rates { taken_per_s, released_per_s, hold_s },
        }
    }
}

#[derive(Deserialize)]
struct ScanFields {
    source_addr: IpAddr,
    ports: u32,
    port_low: u16,
    port_high: u16,
    tries: u64,
    duration_s: f64,
}

impl ScanFields {
    fn scan(self, at: Instant, netns: Netns) -> Scan {
        let Self { source_addr, ports, port_low, port_high, tries, duration_s } = self;
        Scan {
            netns,
            source: source_addr.into(),
            ports,
            port_low: Port(port_low),
            port_high: Port(port_high),
            tries,
            first: earlier(at, duration_s),
            last: at,
        }
    }
}

/// What became of the ports of a range, as the call that failed saw it.
#[derive(Clone, Copy, Deserialize)]
struct RangeFields {
    capacity: u32,
    #[serde(default)]
    reserved: u32,
    used: u32,
    bind_locked: u32,
    #[serde(default)]
    reusable: u32,
}

impl From<RangeFields> for RangeUse {
    fn from(fields: RangeFields) -> Self {
        let RangeFields { capacity, reserved, used, bind_locked, reusable } = fields;
        Self { capacity, reserved, used, bind_locked, reusable }
    }
}

/// An earlier use of the port.
#[derive(Clone, Copy, Deserialize)]
struct ReuseFields {
    #[serde(default)]
    lease: u64,
    idle_s: f64,
    from_time_wait: bool,
}

impl From<ReuseFields> for Reuse {
    fn from(fields: ReuseFields) -> Self {
        let ReuseFields { lease, idle_s, from_time_wait } = fields;
        Self { previous: LeaseId(lease), idle_ns: nanoseconds(idle_s), from_time_wait }
    }
}

#[derive(Deserialize)]
struct LossFields {
    count: u64,
    healed: bool,
}

#[derive(Deserialize)]
struct NamespaceFields<'a> {
    range_low: u16,
    range_high: u16,
    #[serde(borrow)]
    reserved: Cow<'a, str>,
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

impl NamespaceFields<'_> {
    fn settings(self) -> Result<Settings, String> {
        let Self { range_low, range_high, tw_reuse, .. } = self;
        Ok(Settings {
            range: LocalRange::new(Port(range_low), Port(range_high))
                .ok_or_else(|| format!("{range_low} to {range_high} is no range of ports"))?,
            reserved: PortSet::parse(&self.reserved)?,
            step_width: self.step_width,
            autobind_reuse: self.autobind_reuse,
            unprivileged_start: self.unprivileged_start,
            time_wait_reuse: TimeWaitReuse::from_number(tw_reuse)
                .ok_or_else(|| format!("`tw_reuse` is {tw_reuse}, not 0, 1 or 2"))?,
            time_wait_reuse_delay_ms: self.tw_reuse_delay_ms,
            timestamps: self.timestamps,
            max_time_waits: self.max_tw_buckets,
            fin_timeout_s: self.fin_timeout_s,
            max_listen_backlog: self.somaxconn,
        })
    }
}

/// The fields of all records about leases and failures.
#[derive(Deserialize)]
struct LeaseFields<'a> {
    lease: Option<u64>,
    cookie: Option<u64>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    family: Cow<'a, str>,
    local_addr: IpAddr,
    local_port: Option<u16>,
    peer_addr: Option<IpAddr>,
    peer_port: Option<u16>,
    pid: Option<u32>,
    #[serde(borrow)]
    comm: Option<Cow<'a, str>>,
    uid: Option<u32>,
    #[serde(borrow)]
    cgroup: Option<Cow<'a, str>>,
    #[serde(borrow)]
    container: Option<Cow<'a, str>>,
    #[serde(borrow)]
    phase: Option<Cow<'a, str>>,
    #[serde(borrow)]
    substate: Option<Cow<'a, str>>,
    #[serde(borrow)]
    by: Option<Cow<'a, str>>,
    #[serde(borrow)]
    closed_by: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    timestamps: Option<bool>,
    age_s: Option<f64>,
    held_s: Option<f64>,
    time_wait_s: Option<f64>,
    search_us: Option<f64>,
    handshake_us: Option<f64>,
    listener: Option<u64>,
    reuse: Option<ReuseFields>,
    #[serde(borrow)]
    op: Option<Cow<'a, str>>,
    errno: Option<i32>,
    requested_port: Option<u16>,
    #[serde(borrow)]
    cause: Option<Cow<'a, str>>,
    #[serde(borrow)]
    holder: Option<Box<LeaseFields<'a>>>,
    holder_ports: Option<u32>,
    range: Option<RangeFields>,
    own_range: Option<[u16; 2]>,
}

impl LeaseFields<'_> {
    fn change(&self, record: &str) -> Result<Change, String> {
        let microseconds = |us: f64| nanoseconds(us / 1e6);
        Ok(match record {
            "held" => Change::Held,
            "bind" => Change::Bind {
                requested_port: self.requested_port.unwrap_or_default(),
                reuse: self.reuse.map(Into::into),
            },
            "connect" => Change::Connect {
                search_ns: self.search_us.map(microseconds),
                reuse: self.reuse.map(Into::into),
            },
            "established" => {
                Change::Established { handshake_ns: self.handshake_us.map(microseconds) }
            }
            "accept" => Change::Accept { listener: self.listener.map(Cookie) },
            "listen" => Change::Listen,
            "closing" => Change::Closing { by: side(needed("by", self.by.as_deref())?)? },
            "time_wait" => {
                Change::TimeWait(substate(needed("substate", self.substate.as_deref())?)?)
            }
            _ => {
                let name = needed("reason", self.reason.as_deref())?;
                Change::Release { reason: named("reason", name, &Reason::ALL, names::reason)? }
            }
        })
    }

    /// The lease as it is after a change, or as it is in the way of a call.
    fn lease(
        &self,
        at: Instant,
        netns: Netns,
        id: u64,
        change: Option<Change>,
    ) -> Result<Lease, String> {
        let before = |by_s: Option<f64>| by_s.map(|by_s| earlier(at, by_s));
        let phase = match change {
            None | Some(Change::Held) => self.phase()?,
            Some(Change::Bind { .. }) => Phase::Bound,
            Some(Change::Connect { .. }) => Phase::Connecting,
            Some(Change::Established { .. } | Change::Accept { .. }) => Phase::Established,
            Some(Change::Listen) => Phase::Listen,
            Some(Change::Closing { .. } | Change::Release { .. }) => Phase::Closing,
            Some(Change::TimeWait(substate)) => Phase::TimeWait(substate),
        };
        let now = |is_now: bool| is_now.then_some(at);
        let begins = matches!(
            change,
            Some(Change::Bind { .. } | Change::Connect { .. } | Change::Accept { .. })
        );
        let closed_by = match change {
            Some(Change::Closing { by }) => Some(by),
            _ => self.closed_by.as_deref().map(side).transpose()?,
        };
        Ok(Lease {
            id: LeaseId(id),
            cookie: Cookie(self.cookie.unwrap_or_default()),
            netns,
            kind: named("kind", &self.kind, &Kind::ALL, names::kind)?,
            family: self.family()?,
            v6_only: false,
            local_addr: self.local_addr.into(),
            local_port: Port(needed("local_port", self.local_port)?),
            peer: Peer::from(self.peer()),
            phase,
            owner: self.owner().map(Arc::new),
            acquired: now(begins).or(before(self.held_s)).or(before(self.age_s)),
            established: now(phase == Phase::Established && change != Some(Change::Held)),
            closing: now(matches!(change, Some(Change::Closing { .. }))),
            closed_by,
            time_wait: now(matches!(change, Some(Change::TimeWait(_))))
                .or(before(self.time_wait_s)),
            timer_armed: None,
            has_timestamps: self.timestamps,
        })
    }

    fn phase(&self) -> Result<Phase, String> {
        // A TIME_WAIT of unknown substate is most likely in the one that lasts.
        let substate =
            self.substate.as_deref().map(substate).transpose()?.unwrap_or(Substate::TimeWait);
        let phases = [
            Phase::Bound,
            Phase::Listen,
            Phase::Connecting,
            Phase::Established,
            Phase::Closing,
            Phase::TimeWait(substate),
        ];
        named("phase", needed("phase", self.phase.as_deref())?, &phases, names::phase)
    }

    fn family(&self) -> Result<Family, String> {
        named("family", &self.family, &[Family::Ipv4, Family::Ipv6], names::family)
    }

    fn peer(&self) -> Option<(crate::model::Addr, Port)> {
        let (addr, port) = self.peer_addr.zip(self.peer_port)?;
        Some((addr.into(), Port(port)))
    }

    fn owner(&self) -> Option<Owner> {
        let (pid, name) = (self.pid?, self.comm.as_deref()?);
        let mut comm = [0; 16];
        for (to, from) in comm.iter_mut().zip(name.as_bytes()) {
            *to = *from;
        }
        Some(Owner { pid, uid: self.uid.unwrap_or_default(), cgroup_id: 0, comm })
    }

    fn cgroup(&self) -> Option<Cgroup> {
        let path = self.cgroup.as_deref()?.to_owned();
        Some(Cgroup { path, container: self.container.as_deref().map(str::to_owned) })
    }

    fn failure(self, at: Instant, netns: Netns) -> Result<OwnedFailure, String> {
        let holder = self.holder.as_ref();
        let holder_cgroup = holder.and_then(|holder| holder.cgroup());
        let holder = holder
            .map(|holder| holder.lease(at, netns, holder.lease.unwrap_or_default(), None))
            .transpose()?;
        let operations = [Operation::Bind, Operation::Connect, Operation::Listen];
        let cause = self.cause.as_deref().map(|name| {
            // One that a later version added.
            named("cause", name, &Cause::ALL, names::cause).unwrap_or(Cause::Other)
        });
        let failure = Failure {
            at,
            netns,
            cookie: Cookie(self.cookie.unwrap_or_default()),
            family: self.family()?,
            owner: self.owner(),
            operation: named(
                "op",
                needed("op", self.op.as_deref())?,
                &operations,
                names::operation,
            )?,
            errno: needed("errno", self.errno)?,
            local_addr: self.local_addr.into(),
            local_port: self.requested_port.unwrap_or_default(),
            peer: self.peer(),
            cause,
            holder: None,
            holder_ports: self.holder_ports,
            range: self.range.map(Into::into),
            own_range: self.own_range.map(|[low, high]| (Port(low), Port(high))),
            is_of_range: false,
            search_ns: self.search_us.map(|us| nanoseconds(us / 1e6)),
        };
        Ok(OwnedFailure { failure, cgroup: self.cgroup(), holder, holder_cgroup })
    }
}

/// The instant some seconds before this one.
fn earlier(at: Instant, by_s: f64) -> Instant {
    Instant::from_ns(at.ns().saturating_sub(nanoseconds(by_s)))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as casts saturate, and a duration is not negative"
)]
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn side(name: &str) -> Result<Side, String> {
    named("by", name, &[Side::Local, Side::Peer], names::side)
}

fn substate(name: &str) -> Result<Substate, String> {
    named("substate", name, &[Substate::TimeWait, Substate::FinWait2], names::substate)
}

/// The one of `all` that is written so.
fn named<T: Copy>(
    field: &str,
    name: &str,
    all: &[T],
    written: impl Fn(T) -> &'static str,
) -> Result<T, String> {
    let found = all.iter().copied().find(|one| written(*one) == name);
    found.ok_or_else(|| format!("`{field}` is `{name}`, which is not known"))
}

fn needed<T>(field: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("there is no `{field}`"))
}

/// serde's words, without the line: each record is its own text of one line.
fn reason(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT: &str = r#"{"v":1,"type":"connect","time":"2026-01-02T03:04:05.000000006Z","mono_ns":7,"netns":4026531840,"lease":3,"cookie":9,"kind":"connect","family":"ipv4","local_addr":"10.0.0.1","local_port":40000,"peer_addr":"10.0.0.2","peer_port":80,"pid":12,"comm":"curl","uid":0,"cgroup":"/a","container":null,"search_us":4.5,"reuse":{"lease":1,"idle_s":0.5,"from_time_wait":false},"something_new":[1]}"#;

    fn error(line: &str) -> String {
        Line::parse(line.as_bytes()).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_record_is_read() {
        let line = Line::parse(CONNECT.as_bytes()).unwrap();
        line.record.expect("it is known").with(|record| {
            assert_eq!(record.at.ns(), 7);
            let Body::Lease { event, cgroup } = record.body else { panic!("{record:?}") };
            assert_eq!(event.lease.netns, Netns(4_026_531_840));
            assert_eq!(event.lease.local_port, Port(40_000));
            assert_eq!(event.lease.owner.as_ref().map(|owner| owner.pid), Some(12));
            assert_eq!(cgroup.map(|cgroup| cgroup.path.as_str()), Some("/a"));
            let Change::Connect { search_ns, reuse } = event.change else { panic!("{event:?}") };
            assert_eq!(search_ns, Some(4_500));
            assert_eq!(reuse.map(|reuse| reuse.idle_ns), Some(500_000_000));
        });
    }

    #[test]
    fn types_that_are_not_known_are_passed_over() {
        let line = r#"{"v":1,"type":"weather","time":"x","mono_ns":7}"#;
        assert!(Line::parse(line.as_bytes()).unwrap().record.is_none());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let half = &CONNECT[..CONNECT.len() / 2];
        assert!(error(half).starts_with("expected a record, a JSON object"), "{}", error(half));
        assert_eq!(
            error(&CONNECT.replace("\"v\":1", "\"v\":2")),
            "expected records of version 1, found version 2"
        );
        assert_eq!(
            error(&CONNECT.replace("\"lease\":3,", "")),
            "expected a `connect` record: there is no `lease`"
        );
        assert_eq!(
            error(&CONNECT.replace("\"kind\":\"connect\"", "\"kind\":\"x\"")),
            "expected a `connect` record: `kind` is `x`, which is not known"
        );
        assert!(error(&CONNECT.replace("10.0.0.1", "10.0.0")).contains("IP address"));
        assert!(error("").starts_with("expected a record"));
    }
}
