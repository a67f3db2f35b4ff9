//! The answer of `portlife why ADDR:PORT`: which ports a destination leaves, and who uses them.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::Cgroups;
use crate::{
    capacity::{
        DestinationInNamespace, DestinationView, Locker, Remedy, RemedySetting, SourcePorts,
        SourceView, advice_on_bind_lock,
    },
    model::{Addr, Cause, Instant, Lease, RangeUse, Settings},
    record::{json::Process, names},
    views::{
        format::{count, number},
        owner_name::OwnerName,
        phases::Phases,
        stream::{json::Json, text::endpoint},
        table::{Table, wrap},
    },
};

/// Width of the text, in columns.
const WIDTH: usize = 80;
/// Namespaces that the text describes, source addresses of each, and rows of a table of owners.
const MAX_NAMESPACES: usize = 5;
const MAX_SOURCES: usize = 3;
const MAX_OWNERS: usize = 5;

/// The answer.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// What was found.
    pub view: &'a DestinationView,
    /// The cgroups of its owners.
    pub cgroups: &'a Cgroups,
}

/// The answer as text.
#[must_use]
pub fn text(answer: &Answer<'_>) -> String {
    let Answer { view, .. } = answer;
    let DestinationView { peer, namespaces, searched, own: _, problems: _ } = view;
    let sources = namespaces.iter().flat_map(|namespace| &namespace.sources);
    let connected: Vec<_> = sources.filter(|source| !source.connections.is_empty()).collect();
    let connections: usize = connected.iter().map(|source| source.connections.len()).sum();
    let mut text = format!("{}: ", endpoint(peer.0, Some(peer.1)));
    // Writing to a String cannot fail, here and below.
    let _ = if connections == 0 {
        writeln!(text, "no connections in {}", count(*searched, "network namespace"))
    } else {
        let namespaces = namespaces.iter().filter(|namespace| namespace.is_connected()).count();
        writeln!(
            text,
            "{} in {} of {}",
            count(connections, "connection"),
            number(namespaces),
            count(*searched, "network namespace"),
        )
    };
    for namespace in namespaces.iter().take(MAX_NAMESPACES) {
        describe_namespace(answer, namespace, &mut text);
    }
    let rest = namespaces.len().saturating_sub(MAX_NAMESPACES);
    if rest > 0 {
        let more = count(rest, "more network namespace");
        let _ = writeln!(text, "\nand {more} with more headroom; -n or -o json shows them");
    }
    text
}

fn describe_namespace(answer: &Answer<'_>, namespace: &DestinationInNamespace, text: &mut String) {
    let DestinationInNamespace { netns, settings, route_source, sources } = namespace;
    let range = match settings {
        Some(settings) => {
            let reserved = match settings.range.len() - settings.capacity() {
                0 => String::new(),
                some => format!(", {} of them reserved", number(some)),
            };
            let range = settings.range;
            format!(
                "ephemeral range {}-{}, {}{reserved}",
                range.low().0,
                range.high().0,
                count(range.len(), "port"),
            )
        }
        None => "its settings cannot be read".to_owned(),
    };
    let _ = writeln!(text, "\nnetns {}: {range}", netns.0);
    if route_source.is_none() {
        let _ = writeln!(text, "  there is no route to it");
    }
    for source in sources.iter().take(MAX_SOURCES) {
        describe_source(answer, namespace, source, text);
    }
    let rest = sources.get(MAX_SOURCES..).unwrap_or_default();
    if !rest.is_empty() {
        let connections: usize = rest.iter().map(|source| source.connections.len()).sum();
        let _ = writeln!(
            text,
            "  {} more source addresses with more headroom: {}",
            number(rest.len()),
            count(connections, "connection")
        );
    }
}

fn describe_source(
    answer: &Answer<'_>,
    namespace: &DestinationInNamespace,
    source: &SourceView,
    text: &mut String,
) {
    let SourceView { addr, device, connections, ports } = source;
    let interface = match device {
        0 => String::new(),
        device => format!(" through interface {device}"),
    };
    let is_chosen =
        namespace.sources.len() > 1 && *device == 0 && namespace.route_source == Some(*addr);
    let chosen = if is_chosen { ", which the routing table chooses" } else { "" };
    let left = match ports {
        Some(ports) => left(ports),
        None => "the ports that are left cannot be read".to_owned(),
    };
    let _ = writeln!(text, "  from {addr}{interface}{chosen}\n    {left}");
    let mut phases = Phases::default();
    connections.iter().for_each(|connection| phases.count(&connection.lease));
    if let Some(ports) = ports {
        for line in usage(answer, ports, &phases) {
            let _ = writeln!(text, "    {line}");
        }
    }
    if !connections.is_empty() {
        for line in owners_table(answer, source) {
            let _ = writeln!(text, "    {line}");
        }
    }
    for sentence in advice(answer, namespace, source) {
        for (at, line) in wrap(&sentence, WIDTH - 6).iter().enumerate() {
            let _ = writeln!(text, "    {}{line}", if at == 0 { "- " } else { "  " });
        }
    }
}

/// How many ports are left.
fn left(ports: &SourcePorts) -> String {
    let SourcePorts { range, headroom, cause, .. } = ports;
    match cause {
        Some(cause) => format!(
            "NO PORT IS LEFT: connect() fails with EADDRNOTAVAIL ({})",
            names::cause(*cause).replace('_', " ")
        ),
        None => format!(
            "{}{} of {} ports {} left",
            if headroom.min == headroom.max { "" } else { "at least " },
            number(headroom.min),
            number(range.capacity),
            if headroom.min == 1 { "is" } else { "are" },
        ),
    }
}

/// How the ports are used, and when they are free, in lines.
fn usage(answer: &Answer<'_>, ports: &SourcePorts, phases: &Phases) -> Vec<String> {
    let SourcePorts { range, locker, next_free_in_ms, all_free_in_ms, .. } = ports;
    let RangeUse { used, bind_locked, reusable, .. } = *range;
    let connections: u32 = phases.iter().map(|(_, leases)| leases).sum();
    let mut lines = Vec::new();
    if connections > 0 {
        let states: Vec<_> = phases
            .iter()
            .filter(|(_, leases)| *leases > 0)
            .map(|(state, leases)| format!("{} {state}", number(leases)))
            .collect();
        let outside = match connections.saturating_sub(used) {
            0 => String::new(),
            some => format!("; {} on ports outside the range", number(some)),
        };
        let reusable = match reusable {
            0 => String::new(),
            some => format!("; {} can be reused now", number(some)),
        };
        lines.push(format!("{} in use: {}{outside}{reusable}", number(used), states.join(", ")));
    }
    if bind_locked > 0 {
        let by = match locker {
            Some(Locker { lease, ports }) => format!(
                ", {} of them by {}",
                if *ports == bind_locked { "all".to_owned() } else { number(*ports) },
                answer
                    .cgroups
                    .owner(lease)
                    .map_or_else(|| "no process".to_owned(), |name| name.to_string())
            ),
            None => String::new(),
        };
        lines.push(format!("{} bound, so connect() does not choose them{by}", number(bind_locked)));
    }
    // Timers expire up to some seconds late.
    match (next_free_in_ms, all_free_in_ms) {
        (Some(1..), Some(all)) => lines.push(format!(
            "the next port is free in about {}, all in about {}",
            seconds(next_free_in_ms.unwrap_or_default()),
            seconds(*all)
        )),
        (Some(next @ 1..), None) => {
            lines.push(format!("the next port is free in about {}", seconds(*next)));
        }
        (None, _) if used > 0 => {
            lines.push("a port is free when one of these connections ends".to_owned());
        }
        _ => {}
    }
    lines
}

fn seconds(ms: u32) -> String {
    match ms {
        0..10_000 => format!("{:.1} s", f64::from(ms) / 1e3),
        _ => format!("{:.0} s", f64::from(ms) / 1e3),
    }
}

/// The programs that use the ports, one row for all processes of a name and container.
fn owners_table(answer: &Answer<'_>, source: &SourceView) -> Vec<String> {
    let mut programs: BTreeMap<Option<OwnerName>, (Phases, u32, Option<u32>, bool)> =
        BTreeMap::new();
    for connection in &source.connections {
        let name = answer.cgroups.owner(&connection.lease);
        let pid = name.as_ref().and_then(|name| name.pid);
        let program = name.map(|name| OwnerName { pid: None, ..name });
        let (phases, connections, first_pid, has_several) =
            programs.entry(program).or_insert((Phases::default(), 0, pid, false));
        phases.count(&connection.lease);
        *connections += 1;
        *has_several |= *first_pid != pid;
    }
    let mut rows: Vec<_> = programs.into_iter().collect();
    rows.sort_by_key(|(_, (_, connections, ..))| Reverse(*connections));
    let mut table =
        Table::new(&[(">USED", 9), (">ESTAB", 9), (">TIME-W", 9), (">OTHER", 9), ("BY", 40)]);
    for (program, (phases, connections, pid, has_several)) in rows.iter().take(MAX_OWNERS) {
        let other = connections - phases.established - phases.time_wait;
        let by = match program {
            Some(program) if *has_several => format!("{program}, several processes"),
            Some(program) => OwnerName { pid: *pid, ..program.clone() }.to_string(),
            None => "no process".to_owned(),
        };
        let [used, established, time_wait, other] =
            [*connections, phases.established, phases.time_wait, other].map(number);
        table.row([used, established, time_wait, other, by]);
    }
    let mut lines = table.lines(WIDTH - 4);
    if let Some(more) = rows.len().checked_sub(MAX_OWNERS).filter(|more| *more > 0) {
        lines.push(format!("and {more} more programs"));
    }
    lines
}

/// What to change, in sentences.
fn advice(
    answer: &Answer<'_>,
    namespace: &DestinationInNamespace,
    source: &SourceView,
) -> Vec<String> {
    let Some(ports) = &source.ports else { return Vec::new() };
    let SourcePorts { range, without_timestamps, locker, remedies, .. } = ports;
    // A process in the namespace, for a command that must run there.
    let pids = namespace.sources.iter().flat_map(|source| &source.connections);
    let pid = pids
        .filter_map(|connection| connection.lease.owner.as_ref())
        .map(|owner| owner.pid)
        .next()
        .filter(|_| namespace.netns != answer.view.own);
    let enter = pid.map(|pid| format!("nsenter -t {pid} -n ")).unwrap_or_default();
    let mut advice: Vec<String> = remedies
        .iter()
        .map(|Remedy { setting, headroom }| {
            let headroom = count(*headroom, "port");
            match setting {
                RemedySetting::ReuseTimeWaits { after_ms } => format!(
                    "{enter}sysctl -w net.ipv4.tcp_tw_reuse=1: {headroom}, each {} s after its \
                     TIME_WAIT began",
                    f64::from(*after_ms) / 1e3
                ),
                RemedySetting::WidestRange => format!(
                    "{enter}sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\": {headroom} at \
                     once; reserve the ports of listeners first (`portlife check` lists them)"
                ),
            }
        })
        .collect();
    if range.bind_locked > 0 && range.bind_locked * 10 >= range.capacity {
        let lease = locker.as_ref().map(|locker| &locker.lease);
        advice.push(names::advice(advice_on_bind_lock(lease)).to_owned());
    }
    if *without_timestamps > 0 && *without_timestamps * 2 > range.used {
        advice.push(format!(
            "the peer of {} sent no timestamps: no setting of this host frees their ports early",
            count(*without_timestamps, "TIME_WAIT")
        ));
    }
    advice
}

impl Json {
    /// The answer as one record, of type `why_destination`.
    #[must_use]
    pub fn why_destination(mut self, at: Instant, answer: &Answer<'_>) -> Vec<u8> {
        #[derive(Serialize)]
        struct WhyDestination<'a> {
            peer_addr: Addr,
            peer_port: u16,
            searched: usize,
            namespaces: Vec<Namespace<'a>>,
            problems: &'a [String],
        }
        #[derive(Serialize)]
        struct Namespace<'a> {
            netns: u32,
            range_low: Option<u16>,
            range_high: Option<u16>,
            capacity: Option<u32>,
            route_source: Option<Addr>,
            sources: Vec<SourceFields<'a>>,
        }
        let DestinationView { peer, namespaces, searched, own: _, problems } = answer.view;
        let namespaces = namespaces.iter().map(|namespace| {
            let settings = namespace.settings.as_ref();
            Namespace {
                netns: namespace.netns.0,
                range_low: settings.map(|settings| settings.range.low().0),
                range_high: settings.map(|settings| settings.range.high().0),
                capacity: settings.map(Settings::capacity),
                route_source: namespace.route_source,
                sources: namespace
                    .sources
                    .iter()
                    .map(|source| SourceFields {
                        advice: advice(answer, namespace, source),
                        ..SourceFields::of(source, answer.cgroups)
                    })
                    .collect(),
            }
        });
        let why = WhyDestination {
            peer_addr: peer.0,
            peer_port: peer.1.0,
            searched: *searched,
            namespaces: namespaces.collect(),
            problems,
        };
        self.write("why_destination", at, why);
        std::mem::take(crate::views::View::buffer(&mut self))
    }
}

/// The fields of one source address.
#[derive(Serialize)]
struct SourceFields<'a> {
    source_addr: Addr,
    /// `None` for sockets that are bound to none.
    interface: Option<u32>,
    connections: usize,
    phases: Phases,
    used: Option<u32>,
    bind_locked: Option<u32>,
    reusable: Option<u32>,
    headroom: Option<u32>,
    headroom_max: Option<u32>,
    cause: Option<Cause>,
    next_free_in_s: Option<f64>,
    all_free_in_s: Option<f64>,
    without_timestamps: Option<u32>,
    bind_locked_by: Option<LockerFields<'a>>,
    owners: Vec<OwnerFields<'a>>,
    advice: Vec<String>,
}

/// A process and its leases.
#[derive(Serialize)]
struct OwnerFields<'a> {
    #[serde(flatten)]
    process: Process<'a>,
    leases: u32,
    phases: Phases,
}

/// A process and the ports that it keeps from connect().
#[derive(Serialize)]
struct LockerFields<'a> {
    #[serde(flatten)]
    process: Process<'a>,
    ports: u32,
}

impl<'a> SourceFields<'a> {
    fn of(source: &'a SourceView, cgroups: &'a Cgroups) -> Self {
        let SourceView { addr, device, connections, ports } = source;
        let mut phases = Phases::default();
        let mut owners: BTreeMap<Option<u32>, (&Lease, u32, Phases)> = BTreeMap::new();
        for connection in connections {
            let lease = &connection.lease;
            phases.count(lease);
            let pid = lease.owner.as_ref().map(|owner| owner.pid);
            let (_, leases, phases) = owners.entry(pid).or_insert((lease, 0, Phases::default()));
            *leases += 1;
            phases.count(lease);
        }
        let mut owners: Vec<_> = owners
            .into_values()
            .map(|(lease, leases, phases)| OwnerFields {
                process: cgroups.process(lease),
                leases,
                phases,
            })
            .collect();
        owners.sort_by_key(|owner| Reverse(owner.leases));
        let range = ports.as_ref().map(|ports| ports.range);
        let ms = |ms: u32| f64::from(ms) / 1e3;
        Self {
            source_addr: *addr,
            interface: (*device != 0).then_some(*device),
            connections: connections.len(),
            phases,
            used: range.map(|range| range.used),
            bind_locked: range.map(|range| range.bind_locked),
            reusable: range.map(|range| range.reusable),
            headroom: ports.as_ref().map(|ports| ports.headroom.min),
            headroom_max: ports.as_ref().map(|ports| ports.headroom.max),
            cause: ports.as_ref().and_then(|ports| ports.cause),
            next_free_in_s: ports.as_ref().and_then(|ports| ports.next_free_in_ms).map(ms),
            all_free_in_s: ports.as_ref().and_then(|ports| ports.all_free_in_ms).map(ms),
            without_timestamps: ports.as_ref().map(|ports| ports.without_timestamps),
            bind_locked_by: ports.as_ref().and_then(|ports| ports.locker.as_ref()).map(
                |Locker { lease, ports }| LockerFields {
                    process: cgroups.process(lease),
                    ports: *ports,
                },
            ),
            owners,
            advice: Vec::new(),
        }
    }
}
