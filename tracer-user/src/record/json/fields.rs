//! The fields of the records that are not about a lease, each struct both written and read.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    capacity::Forecast,
    foreign::Foreign,
    model::{
        Destination, Instant, LocalRange, Netns, Port, PortSet, Pressure, RangeUse, Rates, Scan,
        Settings, TimeWaitReuse, seconds,
    },
    record::{HookReport, Loss, LostAt, RecordType, Start, Summary, Verify, names::Named},
};

/// The fields of `start`.
#[derive(Serialize, Deserialize)]
pub(super) struct StartFields<'a> {
    /// Not read: a record says nothing about the version that wrote it.
    #[serde(skip_deserializing)]
    version: &'static str,
    #[serde(borrow)]
    kernel: Cow<'a, str>,
    /// By name, how each hook is attached, or [`NOT_ATTACHED`] and why.
    #[serde(default)]
    hooks: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(default = "recovers")]
    buckets_recover: bool,
    #[serde(default)]
    held: usize,
    #[serde(default)]
    warnings: Cow<'a, [Foreign<'static>]>,
}

/// The rule of kernels from 6.18 on, for records that do not say it.
fn recovers() -> bool {
    true
}

/// What the text of a hook that is not attached begins with.
const NOT_ATTACHED: &str = "not attached: ";

impl<'a> From<&'a Start> for StartFields<'a> {
    fn from(start: &'a Start) -> Self {
        let Start { kernel, hooks, buckets_recover, held, warnings } = start;
        let hooks = hooks.iter().map(|HookReport { name, outcome, loss }| {
            let outcome = match (outcome, loss) {
                (Ok(how), _) => Cow::Borrowed(how.raw()),
                (Err(reason), Some(loss)) => {
                    format!("{NOT_ATTACHED}{}; {loss}", reason.raw()).into()
                }
                (Err(reason), None) => format!("{NOT_ATTACHED}{}", reason.raw()).into(),
            };
            (Cow::Borrowed(name.raw()), outcome)
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: kernel.raw().into(),
            hooks: hooks.collect(),
            buckets_recover: *buckets_recover,
            held: *held,
            warnings: warnings.into(),
        }
    }
}

impl StartFields<'_> {
    pub(super) fn into_start(self) -> Start {
        let Self { version: _, kernel, hooks, buckets_recover, held, warnings } = self;
        let hooks = hooks.into_iter().map(|(name, outcome)| HookReport {
            name: name.into_owned().into(),
            outcome: match outcome.strip_prefix(NOT_ATTACHED) {
                Some(reason) => Err(reason.to_owned().into()),
                None => Ok(outcome.into_owned().into()),
            },
            // Part of the reason.
            loss: None,
        });
        Start {
            kernel: kernel.into_owned().into(),
            hooks: hooks.collect(),
            buckets_recover,
            held,
            warnings: warnings.into_owned(),
        }
    }
}

/// The fields of `namespace`.
#[derive(Serialize, Deserialize)]
pub(super) struct NamespaceFields<'a> {
    #[serde(default)]
    pub(super) new: bool,
    range_low: u16,
    range_high: u16,
    #[serde(borrow)]
    reserved: Cow<'a, str>,
    /// Follows from the others.
    #[serde(skip_deserializing)]
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

impl NamespaceFields<'_> {
    pub(super) fn of(settings: &Settings, is_new: bool) -> Self {
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
        Self {
            new: is_new,
            range_low: range.low().0,
            range_high: range.high().0,
            reserved: reserved.to_string().into(),
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
        }
    }
}

impl NamespaceFields<'_> {
    pub(super) fn into_settings(self) -> Result<Settings, String> {
        let Self {
            new: _,
            range_low,
            range_high,
            reserved,
            capacity: _,
            step_width,
            autobind_reuse,
            unprivileged_start,
            tw_reuse,
            tw_reuse_delay_ms,
            timestamps,
            max_tw_buckets,
            fin_timeout_s,
            somaxconn,
        } = self;
        Ok(Settings {
            range: LocalRange::new(Port(range_low), Port(range_high))
                .ok_or_else(|| format!("{range_low} to {range_high} is no range of ports"))?,
            reserved: PortSet::parse(&reserved)?,
            step_width,
            autobind_reuse,
            unprivileged_start,
            time_wait_reuse: TimeWaitReuse::from_number(tw_reuse)
                .ok_or_else(|| format!("`tw_reuse` is {tw_reuse}, not 0, 1 or 2"))?,
            time_wait_reuse_delay_ms: tw_reuse_delay_ms,
            timestamps,
            max_time_waits: max_tw_buckets,
            fin_timeout_s,
            max_listen_backlog: somaxconn,
        })
    }
}

/// The fields of `pressure`.
#[derive(Serialize, Deserialize)]
pub(super) struct PressureFields {
    source_addr: Option<IpAddr>,
    peer_addr: Option<IpAddr>,
    peer_port: Option<u16>,
    level_percent: u8,
    rising: bool,
    #[serde(flatten)]
    range: RangeFields,
    /// Follows from `range`.
    #[serde(skip_deserializing)]
    headroom: u32,
    rate_per_s: f64,
    release_per_s: f64,
    hold_s: Option<f64>,
    /// Follows from `range` and the rates.
    #[serde(skip_deserializing)]
    eta_s: Option<f64>,
}

impl From<&Pressure> for PressureFields {
    fn from(pressure: &Pressure) -> Self {
        let Pressure { at: _, netns: _, destination, level_percent, is_rising, range, rates } =
            *pressure;
        let peer = destination.map(|destination| destination.peer);
        Self {
            source_addr: destination.map(|destination| destination.source.ip()),
            peer_addr: peer.map(|(addr, _)| addr.ip()),
            peer_port: peer.map(|(_, port)| port.0),
            level_percent,
            rising: is_rising,
            range: range.into(),
            headroom: range.headroom(),
            rate_per_s: rates.taken_per_s,
            release_per_s: rates.released_per_s,
            hold_s: rates.hold_s,
            eta_s: Forecast::of(&range, &rates).eta_s,
        }
    }
}

impl PressureFields {
    pub(super) fn into_pressure(self, at: Instant, netns: Netns) -> Pressure {
        let Self {
            source_addr,
            peer_addr,
            peer_port,
            level_percent,
            rising: is_rising,
            range,
            headroom: _,
            rate_per_s: taken_per_s,
            release_per_s: released_per_s,
            hold_s,
            eta_s: _,
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

/// The use of a range's ports, in `pressure` and as `range` of a failure.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct RangeFields {
    capacity: u32,
    #[serde(default)]
    reserved: u32,
    used: u32,
    bind_locked: u32,
    #[serde(default)]
    reusable: u32,
}

impl From<RangeUse> for RangeFields {
    fn from(range: RangeUse) -> Self {
        let RangeUse { capacity, reserved, used, bind_locked, reusable } = range;
        Self { capacity, reserved, used, bind_locked, reusable }
    }
}

impl From<RangeFields> for RangeUse {
    fn from(fields: RangeFields) -> Self {
        let RangeFields { capacity, reserved, used, bind_locked, reusable } = fields;
        Self { capacity, reserved, used, bind_locked, reusable }
    }
}

/// The fields of `scan`.
#[derive(Serialize, Deserialize)]
pub(super) struct ScanFields {
    source_addr: IpAddr,
    ports: u32,
    port_low: u16,
    port_high: u16,
    tries: u64,
    /// Follows from the others.
    #[serde(skip_deserializing)]
    rate_per_s: Option<f64>,
    duration_s: f64,
}

impl From<&Scan> for ScanFields {
    fn from(scan: &Scan) -> Self {
        let Scan { netns: _, source, ports, port_low, port_high, tries, first, last } = *scan;
        Self {
            source_addr: source.ip(),
            ports,
            port_low: port_low.0,
            port_high: port_high.0,
            tries,
            rate_per_s: scan.rate_per_s(),
            duration_s: seconds(last.since(first)),
        }
    }
}

impl ScanFields {
    pub(super) fn into_scan(self, at: Instant, netns: Netns) -> Scan {
        let Self { source_addr, ports, port_low, port_high, tries, rate_per_s: _, duration_s } =
            self;
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

/// The fields of `loss`.
#[derive(Serialize, Deserialize)]
pub(super) struct LossFields<'a> {
    count: u64,
    #[serde(rename = "where", borrow, default)]
    lost_at: Cow<'a, str>,
    healed: bool,
}

impl From<&Loss> for LossFields<'_> {
    fn from(loss: &Loss) -> Self {
        let Loss { count, lost_at, healed } = *loss;
        Self { count, lost_at: lost_at.name().into(), healed }
    }
}

impl LossFields<'_> {
    pub(super) fn into_loss(self) -> Loss {
        let Self { count, lost_at, healed } = self;
        // A later version may know further places.
        let lost_at = LostAt::from_name(&lost_at).unwrap_or(LostAt::Unseen);
        Loss { count, lost_at, healed }
    }
}

/// The fields of `verify`.
#[derive(Serialize, Deserialize)]
pub(super) struct VerifyFields {
    leases: u64,
    kernel: u64,
    missing: u64,
    extra: u64,
    #[serde(default)]
    classes: u64,
    #[serde(default)]
    unlisted: u64,
}

impl From<&Verify> for VerifyFields {
    fn from(verify: &Verify) -> Self {
        let Verify { leases, kernel, missing, extra, classes, unlisted, differences: _ } = *verify;
        Self { leases, kernel, missing, extra, classes, unlisted }
    }
}

impl VerifyFields {
    pub(super) fn into_verify(self) -> Verify {
        let Self { leases, kernel, missing, extra, classes, unlisted } = self;
        Verify { leases, kernel, missing, extra, classes, unlisted, differences: Vec::new() }
    }
}

/// The fields of `summary`.
#[derive(Serialize, Deserialize)]
pub(super) struct SummaryFields<'a> {
    /// By type of record.
    #[serde(default)]
    totals: BTreeMap<Cow<'a, str>, u64>,
    #[serde(default)]
    facts_seen: u64,
    #[serde(default)]
    facts_filtered: u64,
    #[serde(default)]
    facts_received: u64,
    #[serde(default)]
    lost: u64,
    #[serde(default)]
    dropped: u64,
    #[serde(default)]
    duration_s: f64,
}

impl<'a> From<&'a Summary> for SummaryFields<'a> {
    fn from(summary: &'a Summary) -> Self {
        let Summary {
            totals,
            facts_seen,
            facts_filtered,
            facts_received,
            lost,
            dropped,
            duration_s,
        } = summary;
        Self {
            totals: totals.iter().map(|(name, count)| (Cow::Borrowed(*name), *count)).collect(),
            facts_seen: *facts_seen,
            facts_filtered: *facts_filtered,
            facts_received: *facts_received,
            lost: *lost,
            dropped: *dropped,
            duration_s: *duration_s,
        }
    }
}

impl SummaryFields<'_> {
    pub(super) fn into_summary(self) -> Summary {
        let Self { totals, facts_seen, facts_filtered, facts_received, lost, dropped, duration_s } =
            self;
        let totals = totals
            .into_iter()
            .filter_map(|(name, count)| Some((RecordType::from_name(&name)?.name(), count)));
        Summary {
            totals: totals.collect(),
            facts_seen,
            facts_filtered,
            facts_received,
            lost,
            dropped,
            duration_s,
        }
    }
}

/// The value of a field that a record of this type must have.
pub(super) fn needed<T>(field: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("there is no `{field}`"))
}

/// The value with this name.
pub(super) fn named<T: Named>(name: &str) -> Result<T, String> {
    T::from_name(name).ok_or_else(|| format!("`{}` is `{name}`, which is not known", T::FIELD))
}

/// The instant that many seconds before this one.
pub(super) fn earlier(at: Instant, by_s: f64) -> Instant {
    Instant::from_ns(at.ns().saturating_sub(nanoseconds_of_s(by_s)))
}

/// Nanoseconds of some seconds: those that were written, up to 26 days; of longer times nearly so.
pub(super) fn nanoseconds_of_s(seconds: f64) -> u64 {
    rounded(seconds * 1e9)
}

/// Nanoseconds of some microseconds, as exact as [`nanoseconds_of_s`].
pub(super) fn nanoseconds_of_us(microseconds: f64) -> u64 {
    rounded(microseconds * 1e3)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as casts saturate, and a duration is not negative"
)]
fn rounded(number: f64) -> u64 {
    number.round() as u64
}
