//! The contents of a report: rows of tables, ready to be printed or serialized.

use std::net::IpAddr;

use serde::Serialize;

use crate::{
    foreign::Foreign,
    model::{Cause, LocalRange},
    views::{
        owner_name::OwnerName,
        phases::Phases,
        report::{histogram::Histogram, survey::Survey},
    },
};

/// A report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the report is based on.
    pub observed: Observed,
    /// The most severe finding.
    pub verdict: Finding,
    /// Further findings, the most severe first.
    pub findings: Vec<Finding>,
    /// Namespaces in which ports are or were held.
    pub namespaces: Vec<NamespaceRow>,
    /// Destinations of clients, fullest first.
    pub destinations: Vec<DestinationRow>,
    /// Number of destinations, including those without a row.
    pub destinations_total: usize,
    /// Owners, by number of leases.
    pub owners: Vec<OwnerRow>,
    /// Number of owners, including those without a row.
    pub owners_total: usize,
    /// Histograms of durations.
    pub histograms: Histograms,
    /// Calls that got no port, by call and cause.
    pub failures: Vec<FailureRow>,
    /// Number of kinds of failures, including those without a row.
    pub failures_total: usize,
    /// Ports that are held but not used.
    pub leaks: Vec<LeakRow>,
    /// Listeners, by namespace and port.
    pub listeners: Vec<ListenerRow>,
    /// Processes that began to acquire ports far faster than before.
    pub jumps: Vec<JumpRow>,
    /// Sources that tried many closed ports, by number of attempts.
    pub scans: Vec<ScanRow>,
    /// What to do, most urgent first.
    pub advice: Vec<Advice>,
    /// What does not help, although it is often recommended.
    pub folklore: Vec<String>,
}

/// What a report is based on.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    /// Time of day of the first record, RFC 3339. `None` if there is no record.
    pub since: Option<String>,
    /// Time of day of the last record, RFC 3339. `None` if there is no record.
    pub until: Option<String>,
    /// Time between the first and the last record, in seconds.
    pub duration_s: f64,
    /// Number of records.
    pub records: u64,
    /// Release of the kernel. `None` without a `start` record.
    pub kernel: Option<Foreign<'static>>,
    /// Facts that were lost, and how many of them no comparison has healed.
    pub lost: u64,
    pub lost_for_good: u64,
    /// Records that a recording lacks because its reader was slow.
    pub dropped: u64,
    /// What could not be observed, in sentences.
    pub shortcomings: Vec<Foreign<'static>>,
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is wrong.
    Healthy,
    /// Worth knowing; no call fails because of it.
    Note,
    /// Ports become scarce, or are wasted.
    Warning,
    /// Ports are about to run out.
    Critical,
    /// Calls fail.
    Failing,
}

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Nothing is wrong.
    Healthy,
    /// All ports are in use for a destination.
    DestinationExhausted,
    /// All ports are in use for a destination, most of them in TIME_WAIT.
    TimeWaitPileUp,
    /// Clients bind before they connect, which makes each port unavailable to other destinations.
    BindBeforeConnect,
    /// A process bound ports that connections share.
    PoisonedPort,
    /// All ports are held.
    RangeExhausted,
    /// All ports are reserved.
    RangeReserved,
    /// A client's connection holds the port of a listener.
    ListenerBlocked,
    /// Another holder has the requested port.
    PortHeld,
    /// A call failed for another reason than a lack of ports.
    CallFailed,
    /// A process does not close connections that its peers have closed.
    CloseWaitLeak,
    /// A process binds ports and does not use them.
    BoundIdle,
    /// connect() takes long to find a port.
    SlowConnect,
    /// The ports for a destination are nearly used up.
    Filling,
    /// Connections end without TIME_WAIT because `tcp_max_tw_buckets` is reached.
    TimeWaitOverflow,
    /// connect() may take a listener's port while the listener restarts.
    ListenerInRange,
    /// A process acquires ports far faster than before.
    RateJump,
    /// A source tries many closed ports.
    Scan,
}

/// A finding.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub kind: FindingKind,
    pub sentence: String,
    pub netns: Option<u32>,
    pub cause: Option<Cause>,
    /// The process that caused it. `None` if it is not known.
    pub owner: Option<OwnerName>,
    /// Calls that failed because of it.
    pub failed: u64,
    /// Indexes of the rows that it is about, in the report's tables.
    #[serde(skip)]
    pub failure_row: Option<usize>,
    #[serde(skip)]
    pub destination_row: Option<usize>,
}

/// Number of leases by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kinds {
    pub connect: u32,
    pub bind_auto: u32,
    pub bind: u32,
    pub listen: u32,
    pub accept: u32,
}

/// A row of the table of network namespaces.
#[derive(Clone, Debug, Serialize)]
pub struct NamespaceRow {
    pub netns: u32,
    /// `None` if the settings could not be read.
    pub settings: Option<SettingsRow>,
    /// How often the settings changed during the observation.
    pub settings_changes: u32,
    pub leases: u32,
    pub phases: Phases,
    /// Ports of the range that are held.
    pub held_in_range: u32,
    /// Ports of the range that connect() does not choose because they are bound.
    pub bind_locked: u32,
    pub taken: u64,
    /// The lowest and the highest port that a client got. `None` if there was none.
    pub client_port_low: Option<u16>,
    pub client_port_high: Option<u16>,
}

/// The settings of a namespace.
#[derive(Clone, Debug, Serialize)]
pub struct SettingsRow {
    pub range_low: u16,
    pub range_high: u16,
    pub reserved: String,
    pub reserved_in_range: u32,
    pub capacity: u32,
    pub tw_reuse: u32,
    pub tw_reuse_delay_ms: Option<u32>,
    pub timestamps: bool,
    pub max_tw_buckets: u32,
    pub fin_timeout_s: u32,
    pub somaxconn: u32,
}

/// A row of the table of destinations.
#[derive(Clone, Debug, Serialize)]
pub struct DestinationRow {
    pub netns: u32,
    pub source_addr: IpAddr,
    pub peer_addr: IpAddr,
    pub peer_port: u16,
    /// Ports of the range in use for this destination.
    pub used: u32,
    pub peak: u32,
    pub capacity: Option<u32>,
    /// Ports that are not in use for this destination, but bound.
    pub bind_locked: u32,
    /// How many of the used ports are in TIME_WAIT.
    pub time_wait: u32,
    /// How many of these have a peer that sent no timestamps, so connect() cannot reuse them.
    pub without_timestamps: u32,
    /// How many of the used ports connect() would take over from a TIME_WAIT now.
    pub reusable: u32,
    /// How many more connect()s will get a port. `None` if the range is not known.
    pub headroom: Option<u32>,
    pub rate_per_s: f64,
    pub release_per_s: f64,
    pub mean_hold_s: Option<f64>,
    /// True if `mean_hold_s` includes TIME_WAITs that have not ended yet, whose length is known.
    pub is_hold_estimated: bool,
    /// Connections a second that the ports allow: capacity over mean hold time.
    pub ceiling_per_s: Option<f64>,
    /// Seconds until no port is left; 0 if none is left, `None` if that is not foreseeable.
    pub eta_s: Option<f64>,
    pub taken: u64,
    pub failed: u64,
    /// The process that uses most of the ports.
    pub owner: Option<OwnerName>,
    pub owner_ports: u32,
    pub search: Histogram,
}

impl DestinationRow {
    /// Fraction of the ports that are unavailable. `None` if the range is not known or empty.
    #[must_use]
    pub fn fill(&self) -> Option<f64> {
        let capacity = self.capacity.filter(|capacity| *capacity > 0)?;
        let headroom = self.headroom?;
        Some(1.0 - f64::from(headroom) / f64::from(capacity))
    }
}

/// A row of the table of owners.
#[derive(Clone, Debug, Serialize)]
pub struct OwnerRow {
    /// `None` for leases without a known owner, such as TIME_WAITs from before the start.
    pub owner: Option<OwnerName>,
    pub uid: Option<u32>,
    pub cgroup: Option<Foreign<'static>>,
    pub leases: u32,
    pub kinds: Kinds,
    pub phases: Phases,
    pub taken: u64,
    pub failed: u64,
}

/// Histograms of durations.
#[derive(Clone, Debug, Serialize)]
pub struct Histograms {
    /// Hold times of ports.
    pub lifetime: Histogram,
    /// Durations of TIME_WAITs.
    pub time_wait: Histogram,
    /// Times between the release and the reuse of a port.
    pub reuse_interval: Histogram,
    /// Search times of the connect()s that found a port.
    pub search: Histogram,
}

/// A row of the table of failures: the failures of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct FailureRow {
    pub netns: u32,
    pub op: &'static str,
    pub error: String,
    pub cause: Option<Cause>,
    pub local_addr: IpAddr,
    /// 0 for any port.
    pub requested_port: u16,
    pub peer_addr: Option<IpAddr>,
    pub peer_port: Option<u16>,
    pub count: u64,
    /// First and last failure, in seconds since the start of the observation.
    pub first_s: f64,
    pub last_s: f64,
    pub callers: Vec<Caller>,
    pub holder: Option<HolderRow>,
    pub used: Option<u32>,
    pub bind_locked: Option<u32>,
    /// The owner of most of the ports in the way when the call failed, and how many it had.
    pub held_by: Option<OwnerName>,
    pub held_ports: u32,
    /// The namespace's range at the latest failure.
    #[serde(skip)]
    pub local_range: Option<LocalRange>,
    #[serde(skip)]
    pub(super) survey: Survey,
}

/// A caller, and how often it failed.
#[derive(Clone, Debug, Serialize)]
pub struct Caller {
    pub owner: Option<OwnerName>,
    pub count: u64,
}

/// The holder of the requested port.
#[derive(Clone, Debug, Serialize)]
pub struct HolderRow {
    pub owner: Option<OwnerName>,
    pub kind: &'static str,
    pub state: &'static str,
    pub local_addr: IpAddr,
    pub local_port: Option<u16>,
    pub peer_addr: Option<IpAddr>,
    pub peer_port: Option<u16>,
}

/// A row of the table of ports that are held but not used.
#[derive(Clone, Debug, Serialize)]
pub struct LeakRow {
    pub netns: u32,
    pub state: LeakState,
    pub owner: Option<OwnerName>,
    pub count: u32,
    /// Lower bound: what was there at the start may be older.
    pub oldest_s: f64,
    pub youngest_s: f64,
    /// The most frequent peer. `local_port` is `None` unless all have the same.
    pub peer_addr: Option<IpAddr>,
    pub local_port: Option<u16>,
    /// Connections that the owner did close after their peers.
    pub closed_otherwise: u64,
}

/// The state of unused ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeakState {
    /// The peer has closed, the owner has not.
    CloseWait,
    /// Closed by this side, not by the peer.
    FinWait2,
    /// Bound, and neither connected nor listening.
    BoundIdle,
}

/// A row of the table of listeners.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerRow {
    pub netns: u32,
    pub local_addr: IpAddr,
    pub local_port: u16,
    /// The port's class according to IANA.
    pub class: &'static str,
    pub service: Option<Foreign<'static>>,
    /// True if it listens on all addresses.
    pub is_wildcard: bool,
    pub owner: Option<OwnerName>,
    /// Connections accepted during the observation.
    pub accepted: u64,
    /// True if connect() may choose the port while the listener restarts.
    pub is_in_range: bool,
}

/// A process that began to acquire ports far faster than before.
#[derive(Clone, Debug, Serialize)]
pub struct JumpRow {
    pub owner: OwnerName,
    /// Seconds since the start of the observation.
    pub at_s: f64,
    pub per_s: u64,
    pub before_per_s: f64,
}

/// A source that tried many closed ports.
#[derive(Clone, Debug, Serialize)]
pub struct ScanRow {
    pub netns: u32,
    pub source_addr: IpAddr,
    /// Number of different ports: a lower bound, at most 1,024.
    pub ports: u32,
    pub port_low: u16,
    pub port_high: u16,
    pub tries: u64,
    pub rate_per_s: Option<f64>,
    pub duration_s: f64,
}

/// A piece of advice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// What to do, in a sentence.
    pub what: String,
    /// The observed figures behind it.
    pub evidence: String,
    /// The exact command, socket option or code change.
    pub command: String,
    /// The expected gain.
    pub gain: String,
}
