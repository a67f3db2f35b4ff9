//! The records of the interface, read back from what `-o json` writes.

use std::{borrow::Cow, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    model::{
        Family, Kind, LocalRange, Netns, Operation, Phase, Port, PortSet, Reason, Settings, Side,
        Substate, TimeWaitReuse,
    },
    record::names,
};

/// One record.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Time of day, RFC 3339.
    pub time: Cow<'a, str>,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub mono_ns: u64,
    /// Where; `None` in records about the whole host.
    pub netns: Netns,
    /// What it says.
    pub body: Body<'a>,
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// Tracing begins.
    Start {
        /// The kernel's release.
        kernel: Cow<'a, str>,
        /// What is not seen, in sentences.
        warnings: Vec<String>,
    },
    /// The settings of a namespace.
    Namespace(Box<Settings>),
    /// A lease: as the snapshot found it, or a change of it.
    Lease(Box<Lease<'a>>),
    /// A call that got no port.
    Fail(Box<Fail<'a>>),
    /// A source tries closed ports.
    Scan(Scan),
    /// Facts were lost.
    Loss {
        /// How many.
        count: u64,
        /// The ledger agrees with the kernel again.
        healed: bool,
    },
    /// Tracing ends.
    Summary,
    /// A type that the report does not need, or does not know.
    Other,
}

/// What a source has tried since its first try.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the records")]
pub struct Scan {
    pub source_addr: IpAddr,
    pub ports: u32,
    pub port_low: u16,
    pub port_high: u16,
    pub tries: u64,
    pub rate_per_s: Option<f64>,
    pub duration_s: f64,
}

/// A record about a lease.
#[derive(Clone, Debug)]
pub struct Lease<'a> {
    /// Number of the lease.
    pub id: u64,
    /// Whose, and which port.
    pub who: Who<'a>,
    /// What happened.
    pub event: Event,
}

/// The subject of a record.
#[derive(Clone, Debug)]
pub struct Who<'a> {
    /// How the lease began, or was to begin.
    pub kind: Kind,
    /// The socket's family.
    pub family: Family,
    /// Local address.
    pub local_addr: IpAddr,
    /// Local port; `None` in failures to get one.
    pub local_port: Option<u16>,
    /// The peer.
    pub peer: Option<(IpAddr, u16)>,
    /// The owner.
    pub process: Option<Process<'a>>,
}

/// A process.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the records")]
pub struct Process<'a> {
    pub pid: u32,
    pub comm: Cow<'a, str>,
    pub uid: u32,
    pub cgroup: Option<Cow<'a, str>>,
    pub container: Option<Cow<'a, str>>,
}

/// What happened to a lease.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names are those of the records")]
pub enum Event {
    Held { phase: Phase, closed_by: Option<Side>, age_s: Option<f64>, timestamps: Option<bool> },
    Bind { reuse: Option<Reuse> },
    Connect { search_us: Option<f64>, reuse: Option<Reuse> },
    Established,
    Accept,
    Listen,
    Closing { by: Side },
    TimeWait { substate: Substate, timestamps: Option<bool> },
    Release { reason: Reason, held_s: Option<f64>, time_wait_s: Option<f64> },
}

/// An earlier use of the port.
#[derive(Clone, Copy, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the records")]
pub struct Reuse {
    pub idle_s: f64,
    pub from_time_wait: bool,
}

/// A call that got no port.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the records")]
pub struct Fail<'a> {
    pub who: Who<'a>,
    pub operation: Operation,
    pub errno: i32,
    pub error: Cow<'a, str>,
    pub requested_port: u16,
    pub cause: Option<Cause>,
    pub holder: Option<Holder<'a>>,
    /// The ports of the range at that moment, where the tracer knew them.
    pub range: Option<Range>,
    pub search_us: Option<f64>,
}

/// The lease that is in the way.
#[derive(Clone, Debug)]
pub struct Holder<'a> {
    /// Whose.
    pub who: Who<'a>,
    /// What it does.
    pub phase: Phase,
}

/// What became of the ports of a range, as the call that failed saw it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the records")]
pub struct Range {
    pub capacity: u32,
    pub reserved: u32,
    pub used: u32,
    pub bind_locked: u32,
}

/// Why a call got no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the records")]
pub enum Cause {
    RangeFull,
    RangeBindLocked,
    PortHeld,
    Reserved,
    AddressNotLocal,
    Permission,
    #[serde(other)]
    Other,
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

impl<'a> Record<'a> {
    /// Reads one line.
    ///
    /// # Errors
    /// See [`RecordError`]. Types and fields that are not known are no error.
    pub fn parse(line: &'a [u8]) -> Result<Self, RecordError> {
        let Head { v, record, time, mono_ns, netns } =
            serde_json::from_slice(line).map_err(|error| RecordError::Malformed(reason(&error)))?;
        if v != 1 {
            return Err(RecordError::Version(v));
        }
        let incomplete =
            |reason: String| RecordError::Incomplete { record: record.to_string(), reason };
        let body = body(&record, line).map_err(&incomplete)?;
        if netns.is_none()
            && matches!(body, Body::Namespace(_) | Body::Lease(_) | Body::Fail(_) | Body::Scan(_))
        {
            return Err(incomplete("there is no `netns`".to_owned()));
        }
        Ok(Self { time, mono_ns, netns: Netns(netns.unwrap_or_default()), body })
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

fn body<'a>(record: &str, line: &'a [u8]) -> Result<Body<'a>, String> {
    fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(line).map_err(|error| reason(&error))
    }
    Ok(match record {
        "start" => {
            let StartFields { kernel, warnings } = read(line)?;
            Body::Start { kernel, warnings }
        }
        "namespace" => Body::Namespace(Box::new(read::<NamespaceFields<'_>>(line)?.settings()?)),
        "held" | "bind" | "connect" | "established" | "accept" | "listen" | "closing"
        | "time_wait" | "release" => {
            let fields: LeaseFields<'_> = read(line)?;
            let event = fields.event(record)?;
            let (id, who) = (needed("lease", fields.lease)?, fields.who()?);
            if who.local_port.is_none() {
                return Err("there is no `local_port`".to_owned());
            }
            Body::Lease(Box::new(Lease { id, who, event }))
        }
        "fail" => Body::Fail(Box::new(read::<LeaseFields<'_>>(line)?.fail()?)),
        "scan" => Body::Scan(read(line)?),
        "loss" => {
            let LossFields { count, healed } = read(line)?;
            Body::Loss { count, healed }
        }
        "summary" => Body::Summary,
        _ => Body::Other,
    })
}

#[derive(Deserialize)]
struct StartFields<'a> {
    #[serde(borrow)]
    kernel: Cow<'a, str>,
    #[serde(default)]
    warnings: Vec<String>,
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
    reuse: Option<Reuse>,
    #[serde(borrow)]
    op: Option<Cow<'a, str>>,
    errno: Option<i32>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
    requested_port: Option<u16>,
    cause: Option<Cause>,
    #[serde(borrow)]
    holder: Option<Box<LeaseFields<'a>>>,
    range: Option<Range>,
}

impl<'a> LeaseFields<'a> {
    fn event(&self, record: &str) -> Result<Event, String> {
        Ok(match record {
            "held" => Event::Held {
                phase: self.phase()?,
                closed_by: self.closed_by.as_deref().map(side).transpose()?,
                age_s: self.age_s,
                timestamps: self.timestamps,
            },
            "bind" => Event::Bind { reuse: self.reuse },
            "connect" => Event::Connect { search_us: self.search_us, reuse: self.reuse },
            "established" => Event::Established,
            "accept" => Event::Accept,
            "listen" => Event::Listen,
            "closing" => Event::Closing { by: side(needed("by", self.by.as_deref())?)? },
            "time_wait" => Event::TimeWait {
                substate: substate(needed("substate", self.substate.as_deref())?)?,
                timestamps: self.timestamps,
            },
            _ => Event::Release {
                reason: named(
                    "reason",
                    needed("reason", self.reason.as_deref())?,
                    &Reason::ALL,
                    names::reason,
                )?,
                held_s: self.held_s,
                time_wait_s: self.time_wait_s,
            },
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

    fn who(self) -> Result<Who<'a>, String> {
        let process = match (self.pid, self.comm) {
            (Some(pid), Some(comm)) => Some(Process {
                pid,
                comm,
                uid: self.uid.unwrap_or_default(),
                cgroup: self.cgroup,
                container: self.container,
            }),
            _ => None,
        };
        Ok(Who {
            kind: named("kind", &self.kind, &Kind::ALL, names::kind)?,
            family: named("family", &self.family, &[Family::Ipv4, Family::Ipv6], names::family)?,
            local_addr: self.local_addr,
            local_port: self.local_port,
            peer: self.peer_addr.zip(self.peer_port),
            process,
        })
    }

    fn fail(mut self) -> Result<Fail<'a>, String> {
        let holder = self.holder.take().map(|holder| -> Result<_, String> {
            let phase = holder.phase()?;
            Ok(Holder { who: holder.who()?, phase })
        });
        let operations = [Operation::Bind, Operation::Connect, Operation::Listen];
        Ok(Fail {
            operation: named(
                "op",
                needed("op", self.op.as_deref())?,
                &operations,
                names::operation,
            )?,
            errno: needed("errno", self.errno)?,
            error: needed("error", self.error.take())?,
            requested_port: self.requested_port.unwrap_or_default(),
            cause: self.cause,
            holder: holder.transpose()?,
            range: self.range,
            search_us: self.search_us,
            who: self.who()?,
        })
    }
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
        Record::parse(line.as_bytes()).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_record_is_read() {
        let record = Record::parse(CONNECT.as_bytes()).unwrap();
        assert_eq!((record.mono_ns, record.netns), (7, Netns(4_026_531_840)));
        let Body::Lease(lease) = record.body else { panic!("{:?}", record.body) };
        assert_eq!(lease.who.local_port, Some(40_000));
        assert_eq!(lease.who.process.as_ref().map(|process| process.pid), Some(12));
        assert!(
            matches!(lease.event, Event::Connect { search_us: Some(us), reuse: Some(_) } if us == 4.5)
        );
    }

    #[test]
    fn types_that_are_not_known_are_passed_over() {
        let line = r#"{"v":1,"type":"weather","time":"x","mono_ns":7}"#;
        assert!(matches!(Record::parse(line.as_bytes()).unwrap().body, Body::Other));
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
