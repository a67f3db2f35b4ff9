//! The answer of `portlife why PORT`: who holds the port, and who can use it.

use std::{collections::BTreeSet, fmt::Write as _};

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::Cgroups;
use crate::{
    capacity::{BindAnswer, ConnectAnswer, Occupancy, Occupant, PortView},
    model::{Instant, Phase, Port, PortClass},
    record::{comm, json::Holder, names},
    views::{
        format::{count, number},
        owner_name::OwnerName,
        stream::{
            json::Json,
            text::{endpoint, peer},
        },
    },
};

/// The answer.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// The port in question.
    pub port: Port,
    /// Its holders.
    pub view: &'a PortView,
    /// The cgroups of its holders.
    pub cgroups: &'a Cgroups,
}

/// Holders that the text lists one by one. More are grouped.
const MAX_LISTED: usize = 10;
/// Groups of holders that the text lists.
const MAX_GROUPS: usize = 12;

/// The answer as text.
#[must_use]
pub fn text(answer: &Answer<'_>) -> String {
    let Answer { port, view, .. } = answer;
    let holders: usize = view.namespaces.iter().map(|namespace| namespace.occupants.len()).sum();
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        text,
        "port {} ({}): {}{}",
        port.0,
        names::port_class(PortClass::of(*port)).replace('_', "-"),
        match holders {
            0 => "not held in ".to_owned(),
            some => {
                let is_held = |namespace: &&Occupancy| !namespace.occupants.is_empty();
                let namespaces = view.namespaces.iter().filter(is_held).count();
                format!("{} in {} of ", count(some, "holder"), number(namespaces))
            }
        },
        count(view.searched, "network namespace"),
    );
    for namespace in &view.namespaces {
        let _ = writeln!(text, "\nnetns {}{}", namespace.netns.0, settings(namespace, *port));
        for line in occupant_lines(answer, namespace) {
            let _ = writeln!(text, "  {line}");
        }
        for line in judgement(namespace, *port) {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

impl Json {
    /// The answer as one record, of type `why`.
    #[must_use]
    pub fn why(mut self, at: Instant, answer: &Answer<'_>) -> Vec<u8> {
        #[derive(Serialize)]
        struct Why<'a> {
            port: u16,
            class: &'static str,
            searched: usize,
            namespaces: Vec<Namespace<'a>>,
            problems: &'a [String],
        }
        #[derive(Serialize)]
        struct Namespace<'a> {
            netns: u32,
            range_low: Option<u16>,
            range_high: Option<u16>,
            reserved: Option<bool>,
            bind: Bind,
            connect: &'static str,
            holders: Vec<Occupied<'a>>,
            advice: Vec<String>,
        }
        #[derive(Serialize)]
        struct Bind {
            possible: bool,
            reuse_addr_helps: Option<bool>,
            free_in_s: Option<f64>,
        }
        #[derive(Serialize)]
        struct Occupied<'a> {
            #[serde(flatten)]
            holder: Holder<'a>,
            substate: Option<&'static str>,
            age_s: Option<f64>,
            bucket: Option<&'static str>,
        }
        let namespaces = answer.view.namespaces.iter().map(|namespace| {
            let settings = namespace.settings.as_ref();
            let bind = match namespace.bind() {
                BindAnswer::Free => {
                    Bind { possible: true, reuse_addr_helps: None, free_in_s: None }
                }
                BindAnswer::Taken { reuse_addr_helps, free_in_ms } => Bind {
                    possible: false,
                    reuse_addr_helps,
                    free_in_s: free_in_ms.map(|ms| f64::from(ms) / 1e3),
                },
            };
            let holders = namespace.occupants.iter().map(|occupant| {
                let Occupant { lease, time_wait_left_ms, bucket } = occupant;
                Occupied {
                    holder: Holder::of(
                        lease,
                        answer.cgroups.get(lease),
                        time_wait_left_ms.map(|ms| f64::from(ms) / 1e3),
                    ),
                    substate: match lease.phase {
                        Phase::TimeWait(substate) => Some(names::substate(substate)),
                        _ => None,
                    },
                    age_s: namespace.age_ms(occupant).map(|ms| f64::from(ms) / 1e3),
                    bucket: bucket.map(|bucket| names::bucket_class(bucket.class)),
                }
            });
            Namespace {
                netns: namespace.netns.0,
                range_low: settings.map(|settings| settings.range.low().0),
                range_high: settings.map(|settings| settings.range.high().0),
                reserved: settings.map(|settings| settings.reserved.contains(answer.port)),
                bind,
                connect: connect(namespace.connect(answer.port)),
                holders: holders.collect(),
                advice: advice(namespace, answer.port),
            }
        });
        let why = Why {
            port: answer.port.0,
            class: names::port_class(PortClass::of(answer.port)),
            searched: answer.view.searched,
            namespaces: namespaces.collect(),
            problems: &answer.view.problems,
        };
        self.write("why", at, why);
        std::mem::take(crate::views::View::buffer(&mut self))
    }
}

fn settings(namespace: &Occupancy, port: Port) -> String {
    let Some(settings) = &namespace.settings else { return String::new() };
    let place = match () {
        () if settings.reserved.contains(port) => "the port is reserved",
        () if settings.range.contains(port) => "the port is in it",
        () => "the port is outside it",
    };
    format!(
        ": the ephemeral range is {}-{}, {place}",
        settings.range.low().0,
        settings.range.high().0
    )
}

/// The holders, one in a line, or the same kind of holder of one program if there are many.
fn occupant_lines(answer: &Answer<'_>, namespace: &Occupancy) -> Vec<String> {
    let occupants = &namespace.occupants;
    if occupants.len() <= MAX_LISTED {
        return occupants.iter().map(|one| occupant_line(answer, namespace, one)).collect();
    }
    let mut groups: Vec<(_, Vec<&Occupant>)> = Vec::new();
    let mut group_of = FxHashMap::default();
    for occupant in occupants {
        let lease = &occupant.lease;
        let comm = lease.owner.as_ref().map(|owner| (owner.comm, owner.cgroup_id));
        let state = names::ss_state(lease.phase, lease.closed_by);
        let key = (state, lease.kind, lease.local_addr, comm);
        let group = *group_of.entry(key).or_insert_with(|| {
            groups.push((key, Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push(occupant);
    }
    let mut lines: Vec<_> = groups
        .iter()
        .take(MAX_GROUPS)
        .map(|(_, members)| match members[..] {
            [one] => occupant_line(answer, namespace, one),
            _ => group_line(answer, members),
        })
        .collect();
    let rest: usize = groups.iter().skip(MAX_GROUPS).map(|(_, members)| members.len()).sum();
    if rest > 0 {
        lines.push(format!("and {}", count(rest, "more holder")));
    }
    lines
}

/// Holders that differ in their peers and processes only.
fn group_line(answer: &Answer<'_>, members: &[&Occupant]) -> String {
    let Some(Occupant { lease, .. }) = members.first() else { return String::new() };
    let pids = members.iter().filter_map(|one| Some(one.lease.owner.as_ref()?.pid));
    let processes = pids.collect::<BTreeSet<_>>().len();
    let who = match answer.cgroups.owner(lease) {
        Some(name) if processes > 1 => {
            format!("{}, {processes} processes", OwnerName { pid: None, ..name })
        }
        Some(name) => name.to_string(),
        None => "no process".to_owned(),
    };
    let left = members.iter().filter_map(|one| one.time_wait_left_ms);
    let until = match (left.clone().min(), left.max()) {
        (Some(first), Some(last)) => {
            format!("  free in {:.0} to {:.0} s", f64::from(first) / 1e3, f64::from(last) / 1e3)
        }
        _ => String::new(),
    };
    format!(
        "{:<10} {:<21} {:<21} {:<9} {who}{until}",
        names::ss_state(lease.phase, lease.closed_by),
        endpoint(lease.local_addr, Some(lease.local_port)),
        count(members.len(), "peer"),
        names::kind(lease.kind),
    )
}

fn occupant_line(answer: &Answer<'_>, namespace: &Occupancy, occupant: &Occupant) -> String {
    let Occupant { lease, time_wait_left_ms, bucket: _ } = occupant;
    let who = match &lease.owner {
        Some(owner) => format!("{}/{} uid {}", owner.pid, comm(&owner.comm), owner.uid),
        None => "no process".to_owned(),
    };
    let place =
        answer.cgroups.get(lease).map_or_else(String::new, |cgroup| match &cgroup.container {
            Some(container) => format!("  container {container}"),
            None => format!("  {}", cgroup.path),
        });
    let since = namespace
        .age_ms(occupant)
        .map_or_else(String::new, |ms| format!("  for {:.0} s", f64::from(ms) / 1e3));
    let until = time_wait_left_ms
        .map_or_else(String::new, |ms| format!("  free in {:.0} s", f64::from(ms) / 1e3));
    format!(
        "{:<10} {:<21} {:<21} {:<9} {who}{place}{since}{until}",
        names::ss_state(lease.phase, lease.closed_by),
        endpoint(lease.local_addr, Some(lease.local_port)),
        peer(lease.peer.get()),
        names::kind(lease.kind),
    )
    .trim_end()
    .to_owned()
}

/// Who can use the port now, and what to change, in sentences.
fn judgement(namespace: &Occupancy, port: Port) -> Vec<String> {
    let bind = match namespace.bind() {
        BindAnswer::Free => "bind() succeeds".to_owned(),
        BindAnswer::Taken { reuse_addr_helps, free_in_ms } => {
            let mut text = "bind() to all addresses fails with EADDRINUSE".to_owned();
            if let Some(ms) = free_in_ms {
                // The timer wheel's slots are two to four seconds wide at a minute's distance.
                let _ = write!(
                    text,
                    " for another {:.0} to {:.0} s",
                    f64::from(ms) / 1e3,
                    f64::from(ms) / 1e3 + 4.0
                );
            }
            text.push_str(match reuse_addr_helps {
                Some(true) => "; with SO_REUSEADDR it succeeds",
                Some(false) => "; SO_REUSEADDR does not help",
                None => "",
            });
            text
        }
    };
    let connect = match namespace.connect(port) {
        ConnectAnswer::OutsideRange => "connect() never chooses it: it is outside the range",
        ConnectAnswer::Reserved => "connect() never chooses it: it is reserved",
        ConnectAnswer::Free => "connect() may choose it for any destination",
        ConnectAnswer::PerDestination => {
            "connect() may choose it for any destination but those of its holders"
        }
        ConnectAnswer::Locked { binder_is_gone: false } => {
            "connect() chooses it for no destination: it is bound"
        }
        ConnectAnswer::Locked { binder_is_gone: true } => {
            "connect() chooses it for no destination: a process that is gone had bound it, and the \
             port stays bind-locked until its last connection ends"
        }
        ConnectAnswer::Unknown => "whether connect() may choose it cannot be read",
    };
    let mut lines = vec![bind, connect.to_owned()];
    lines.extend(advice(namespace, port));
    lines
}

/// What to change, in sentences.
fn advice(namespace: &Occupancy, port: Port) -> Vec<String> {
    let mut advice = Vec::new();
    if namespace.is_chosen_by_kernel() {
        let reserve = namespace.settings.as_ref().filter(|settings| settings.may_choose(port));
        if reserve.is_some() {
            advice.push(format!(
                "the kernel chose this port; to keep it for a server: \
                 sysctl -w net.ipv4.ip_local_reserved_ports={}",
                with_reserved(namespace, port)
            ));
        }
    } else if namespace.is_listener_unprotected(port) {
        advice.push(format!(
            "a server listens in the ephemeral range: while it restarts, a client may get its \
             port; to keep it for the server: sysctl -w net.ipv4.ip_local_reserved_ports={}",
            with_reserved(namespace, port)
        ));
    }
    let has_unowned_time_wait = namespace.occupants.iter().any(|occupant| {
        matches!(occupant.lease.phase, Phase::TimeWait(_)) && occupant.lease.owner.is_none()
    });
    if has_unowned_time_wait {
        advice.push(
            "the kernel keeps no owner of a TIME_WAIT; `portlife trace` names those of \
             connections that begin while it runs"
                .to_owned(),
        );
    }
    advice
}

/// The setting with this port added: writing it replaces what it held.
fn with_reserved(namespace: &Occupancy, port: Port) -> String {
    let settings = namespace.settings.as_ref();
    settings.map_or_else(|| port.0.to_string(), |settings| settings.reserved.with(port).to_string())
}

fn connect(answer: ConnectAnswer) -> &'static str {
    match answer {
        ConnectAnswer::OutsideRange => "outside_range",
        ConnectAnswer::Reserved => "reserved",
        ConnectAnswer::Free => "free",
        ConnectAnswer::PerDestination => "per_destination",
        ConnectAnswer::Locked { binder_is_gone: false } => "bound",
        ConnectAnswer::Locked { binder_is_gone: true } => "poisoned",
        ConnectAnswer::Unknown => "unknown",
    }
}
