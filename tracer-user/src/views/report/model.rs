//! What a report consists of: rows of tables, ready to be shown or written as JSON.

use std::net::IpAddr;

use serde::Serialize;

use crate::{
    model::{Cause, LocalRange},
    views::report::{histogram::Histogram, owners::OwnerName, survey::Survey},
};

/// A report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was observed.
    pub observed: Observed,
    /// The worst of what was found, in a sentence.
    pub verdict: Finding,
    /// What else was found, the worst first.
    pub findings: Vec<Finding>,
    /// Namespaces in which ports are or were held.
    pub namespaces: Vec<NamespaceRow>,
    /// The fullest first.
    pub destinations: Vec<DestinationRow>,
    /// How many there are.
    pub destinations_total: usize,
    /// Those that hold most first.
    pub owners: Vec<OwnerRow>,
    /// How many there are.
    pub owners_total: usize,
    /// Distributions.
    pub histograms: Histograms,
    /// Calls that got no port, by cause.
    pub failures: Vec<FailureRow>,
    /// How many kinds there are.
    pub failures_total: usize,
    /// Ports that are held for nothing.
    pub leaks: Vec<LeakRow>,
    /// Who listens.
    pub listeners: Vec<ListenerRow>,
    /// Processes that take ports far faster than they did.
    pub jumps: Vec<JumpRow>,
    /// Sources that tried many closed ports, those that tried most first.
    pub scans: Vec<ScanRow>,
    /// What to do, in this order.
    pub advice: Vec<Advice>,
    /// What does not help, though it is often said to.
    pub folklore: Vec<String>,
}

/// What was observed.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    /// Time of day of the first record, RFC 3339.
    pub since: Option<String>,
    /// Of the last.
    pub until: Option<String>,
    /// Seconds.
    pub duration_s: f64,
    /// Records.
    pub records: u64,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// Facts that were lost, and those that were lost for good.
    pub lost: u64,
    pub lost_for_good: u64,
    /// Records that a recording lacks because its reader was slow.
    pub dropped: u64,
    /// What is missing, in sentences.
    pub shortcomings: Vec<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is wrong.
    Healthy,
    /// Worth knowing; nothing fails because of it now.
    Note,
    /// Ports run short, or are wasted.
    Warning,
    /// Ports run out very soon.
    Critical,
    /// Calls fail.
    Failing,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Nothing.
    Healthy,
    /// All ports are in use for a destination.
    DestinationExhausted,
    /// They are, mostly by TIME_WAITs.
    TimeWaitPileUp,
    /// Clients bind an address before they connect, and take a port for all destinations with it.
    BindBeforeConnect,
    /// Somebody bound ports that connections share.
    PoisonedPort,
    /// All ports are taken, by whatever.
    RangeExhausted,
    /// All ports are reserved.
    RangeReserved,
    /// A client's connection holds the port of a listener.
    ListenerBlocked,
    /// Somebody else holds the port.
    PortHeld,
    /// A call failed for another reason than a lack of ports.
    CallFailed,
    /// A process does not close what its peers have closed.
    CloseWaitLeak,
    /// A process binds ports and does nothing with them.
    BoundIdle,
    /// connect() searches for long.
    SlowConnect,
    /// A destination's ports are nearly used up.
    Filling,
    /// `tcp_max_tw_buckets` cuts TIME_WAITs short.
    TimeWaitOverflow,
    /// A listener's port is one that connect() may take while it restarts.
    ListenerInRange,
    /// A process takes ports far faster than it did.
    RateJump,
    /// Somebody tries closed ports.
    Scan,
}

/// One thing that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub kind: FindingKind,
    pub sentence: String,
    pub netns: Option<u32>,
    pub cause: Option<Cause>,
    /// Who brought it about.
    pub owner: Option<OwnerName>,
    /// Calls that failed because of it.
    pub failed: u64,
    /// Places of the rows that it is about, in the report's tables.
    #[serde(skip)]
    pub failure_row: Option<usize>,
    #[serde(skip)]
    pub destination_row: Option<usize>,
}

/// Leases by what their holders do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phases {
    pub bound: u32,
    pub listen: u32,
    pub connecting: u32,
    pub established: u32,
    pub close_wait: u32,
    pub closing: u32,
    pub fin_wait2: u32,
    pub time_wait: u32,
}

/// Leases by how they began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kinds {
    pub connect: u32,
    pub bind_auto: u32,
    pub bind: u32,
    pub listen: u32,
    pub accept: u32,
}

/// A namespace.
#[derive(Clone, Debug, Serialize)]
pub struct NamespaceRow {
    pub netns: u32,
    /// `None` where the settings could not be read.
    pub settings: Option<SettingsRow>,
    /// How often they changed while observed.
    pub settings_changes: u32,
    pub leases: u32,
    pub phases: Phases,
    /// Ports of the range that somebody holds.
    pub held_in_range: u32,
    /// Ports of the range that connect() leaves out because somebody bound them.
    pub bind_locked: u32,
    pub taken: u64,
    /// The ports that clients got while observed.
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

/// A destination.
#[derive(Clone, Debug, Serialize)]
pub struct DestinationRow {
    pub netns: u32,
    pub source_addr: IpAddr,
    pub peer_addr: IpAddr,
    pub peer_port: u16,
    /// Ports of the range in use for it.
    pub used: u32,
    pub peak: u32,
    pub capacity: Option<u32>,
    /// Ports that are not in use for it, but bound.
    pub bind_locked: u32,
    /// Of those in use.
    pub time_wait: u32,
    /// Of those in TIME_WAIT: the peer sent no timestamps, so that no connect() takes them over.
    pub without_timestamps: u32,
    /// Of those in use: a connect() takes them over now.
    pub reusable: u32,
    /// connect()s that will still get a port.
    pub headroom: Option<u32>,
    pub rate_per_s: f64,
    pub release_per_s: f64,
    pub mean_hold_s: Option<f64>,
    /// Some of the holds go on, in TIME_WAITs whose end is foreseeable.
    pub is_hold_estimated: bool,
    /// Connections a second that the ports allow for: capacity over mean hold time.
    pub ceiling_per_s: Option<f64>,
    /// Seconds to exhaustion; 0 if it has come.
    pub eta_s: Option<f64>,
    pub taken: u64,
    pub failed: u64,
    /// Who uses most of it.
    pub owner: Option<OwnerName>,
    pub owner_ports: u32,
    pub search: Histogram,
}

impl DestinationRow {
    /// Part of the ports that cannot be had.
    #[must_use]
    pub fn fill(&self) -> Option<f64> {
        let capacity = self.capacity.filter(|capacity| *capacity > 0)?;
        let headroom = self.headroom?;
        Some(1.0 - f64::from(headroom) / f64::from(capacity))
    }
}

/// An owner.
#[derive(Clone, Debug, Serialize)]
pub struct OwnerRow {
    /// `None` for ports whose owner nobody knows, such as TIME_WAITs from before the start.
    pub owner: Option<OwnerName>,
    pub uid: Option<u32>,
    pub cgroup: Option<String>,
    pub leases: u32,
    pub kinds: Kinds,
    pub phases: Phases,
    pub taken: u64,
    pub failed: u64,
}

/// Distributions.
#[derive(Clone, Debug, Serialize)]
pub struct Histograms {
    /// How long ports were held.
    pub lifetime: Histogram,
    /// How long TIME_WAITs lasted.
    pub time_wait: Histogram,
    /// How long ports were free before they were used again.
    pub reuse_interval: Histogram,
    /// How long connect() searched, of those that found a port.
    pub search: Histogram,
}

/// Failures of a kind.
#[derive(Clone, Debug, Serialize)]
pub struct FailureRow {
    pub netns: u32,
    pub op: &'static str,
    pub error: String,
    pub cause: Option<Cause>,
    pub local_addr: IpAddr,
    /// 0 for any.
    pub requested_port: u16,
    pub peer_addr: Option<IpAddr>,
    pub peer_port: Option<u16>,
    pub count: u64,
    /// Seconds since the start of the observation.
    pub first_s: f64,
    pub last_s: f64,
    pub callers: Vec<Caller>,
    pub holder: Option<HolderRow>,
    pub used: Option<u32>,
    pub bind_locked: Option<u32>,
    /// Who held most of what was wanted when the call failed, and how many.
    pub held_by: Option<OwnerName>,
    pub held_ports: u32,
    /// The namespace's range at the last of them.
    #[serde(skip)]
    pub local_range: Option<LocalRange>,
    #[serde(skip)]
    pub(super) survey: Survey,
}

/// Who called.
#[derive(Clone, Debug, Serialize)]
pub struct Caller {
    pub owner: Option<OwnerName>,
    pub count: u64,
}

/// Who is in the way.
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

/// Ports that are held for nothing.
#[derive(Clone, Debug, Serialize)]
pub struct LeakRow {
    pub netns: u32,
    pub state: LeakState,
    pub owner: Option<OwnerName>,
    pub count: u32,
    /// At least; what was there at the start may be older.
    pub oldest_s: f64,
    pub youngest_s: f64,
    /// The peer of most of them, and the local port.
    pub peer_addr: Option<IpAddr>,
    pub local_port: Option<u16>,
    /// The owner does close some, but not these.
    pub closed_otherwise: u64,
}

/// What they are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeakState {
    /// The peer has closed, the owner has not.
    CloseWait,
    /// Closed here, not by the peer.
    FinWait2,
    /// Bound, and neither connected nor listening.
    BoundIdle,
}

/// A listener.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerRow {
    pub netns: u32,
    pub local_addr: IpAddr,
    pub local_port: u16,
    /// IANA's.
    pub class: &'static str,
    pub service: Option<String>,
    /// Listens on all addresses.
    pub is_wildcard: bool,
    pub owner: Option<OwnerName>,
    /// Accepted while observed.
    pub accepted: u64,
    /// Its port is one that connect() may choose while the listener restarts.
    pub is_in_range: bool,
}

/// A process that takes ports far faster than it did.
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
    /// Different ones: at least so many, at most 1,024.
    pub ports: u32,
    pub port_low: u16,
    pub port_high: u16,
    pub tries: u64,
    pub rate_per_s: Option<f64>,
    pub duration_s: f64,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// A sentence.
    pub what: String,
    /// Why, in numbers that were seen.
    pub evidence: String,
    /// The exact command, socket option or change of code.
    pub command: String,
    /// What it would bring.
    pub gain: String,
}
