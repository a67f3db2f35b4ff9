//! The answer of `portlife why`: who holds a port, and what it is good for.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    capacity::{BindAnswer, ConnectAnswer, Occupancy, Occupant, PortView},
    model::{BucketClass, Instant, Lease, Phase, Port, PortClass},
    record::{Cgroup, comm, json::Holder, names},
    views::stream::{
        json::Json,
        text::{endpoint, peer},
    },
};

/// What there is to say.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// The port that was asked for.
    pub port: Port,
    /// Who holds it.
    pub view: &'a PortView,
    /// The cgroup with an id.
    pub cgroup_of: &'a dyn Fn(u64) -> Option<Cgroup>,
}

impl Answer<'_> {
    fn cgroup(&self, lease: &Lease) -> Option<Cgroup> {
        (self.cgroup_of)(lease.owner.as_ref()?.cgroup_id)
    }
}

/// The answer for people.
#[must_use]
pub fn text(answer: &Answer<'_>) -> String {
    let Answer { port, view, .. } = answer;
    let holders: usize = view.namespaces.iter().map(|namespace| namespace.occupants.len()).sum();
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        text,
        "port {} ({}): {} in {} network namespace{}",
        port.0,
        names::port_class(PortClass::of(*port)).replace('_', "-"),
        match holders {
            0 => "nobody holds it".to_owned(),
            1 => "1 holder".to_owned(),
            more => format!("{more} holders"),
        },
        view.searched,
        if view.searched == 1 { "" } else { "s" },
    );
    for namespace in &view.namespaces {
        let _ = writeln!(text, "\nnetns {}{}", namespace.netns.0, settings(namespace, *port));
        for occupant in &namespace.occupants {
            let _ = writeln!(text, "  {}", occupant_line(answer, namespace, occupant));
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
        let cgroups: Vec<Vec<Option<Cgroup>>> = answer
            .view
            .namespaces
            .iter()
            .map(|namespace| {
                namespace.occupants.iter().map(|occupant| answer.cgroup(&occupant.lease)).collect()
            })
            .collect();
        let namespaces = answer.view.namespaces.iter().zip(&cgroups).map(|(namespace, cgroups)| {
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
            let holders = namespace.occupants.iter().zip(cgroups).map(|(occupant, cgroup)| {
                let Occupant { lease, time_wait_left_ms, bucket } = occupant;
                Occupied {
                    holder: Holder::of(
                        lease,
                        cgroup.as_ref(),
                        time_wait_left_ms.map(|ms| f64::from(ms) / 1e3),
                    ),
                    substate: match lease.phase {
                        Phase::TimeWait(substate) => Some(names::substate(substate)),
                        _ => None,
                    },
                    age_s: namespace.age_ms(occupant).map(|ms| f64::from(ms) / 1e3),
                    bucket: bucket.map(|bucket| match bucket.class {
                        BucketClass::Connect => "connect",
                        BucketClass::Bind => "bind",
                    }),
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
        std::mem::take(super::View::buffer(&mut self))
    }
}

fn settings(namespace: &Occupancy, port: Port) -> String {
    let Some(settings) = &namespace.settings else { return String::new() };
    let place = match () {
        () if settings.reserved.contains(port) => "reserved",
        () if settings.range.contains(port) => "within it, not reserved",
        () => "outside of it",
    };
    format!(
        ": the ephemeral range is {}-{}, the port is {place}",
        settings.range.low().0,
        settings.range.high().0
    )
}

fn occupant_line(answer: &Answer<'_>, namespace: &Occupancy, occupant: &Occupant) -> String {
    let Occupant { lease, time_wait_left_ms, bucket: _ } = occupant;
    let who = match &lease.owner {
        Some(owner) => format!("{}/{} uid {}", owner.pid, comm(&owner.comm), owner.uid),
        None => "no process".to_owned(),
    };
    let place = answer.cgroup(lease).map_or_else(String::new, |cgroup| match cgroup.container {
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

/// What can be done with the port now, in sentences.
fn judgement(namespace: &Occupancy, port: Port) -> Vec<String> {
    let bind = match namespace.bind() {
        BindAnswer::Free => "bind() of it succeeds".to_owned(),
        BindAnswer::Taken { reuse_addr_helps, free_in_ms } => {
            let mut text = "bind() of it on all addresses fails with EADDRINUSE".to_owned();
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
        ConnectAnswer::OutsideRange => "connect() never chooses it by itself: outside of the range",
        ConnectAnswer::Reserved => "connect() never chooses it by itself: it is reserved",
        ConnectAnswer::Free => "connect() may choose it for any destination",
        ConnectAnswer::PerDestination => {
            "connect() may choose it for other destinations than its holders'"
        }
        ConnectAnswer::Locked { binder_is_gone: false } => {
            "connect() chooses it for no destination: it is bound"
        }
        ConnectAnswer::Locked { binder_is_gone: true } => {
            "connect() chooses it for no destination: a bind() of the past has locked it, and the \
             kernel keeps the lock until the last holder lets go"
        }
        ConnectAnswer::Unknown => "whether connect() may choose it cannot be seen",
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
                "its holders got it by chance; if a server needs it, keep it for the server: \
                 sysctl -w net.ipv4.ip_local_reserved_ports={}",
                with_reserved(namespace, port)
            ));
        }
    } else if namespace.is_listener_unprotected(port) {
        advice.push(format!(
            "a server listens within the ephemeral range: while it restarts, any client may be \
             given its port, and it cannot come back; reserve it: sysctl -w \
             net.ipv4.ip_local_reserved_ports={}",
            with_reserved(namespace, port)
        ));
    }
    let has_unowned_time_wait = namespace.occupants.iter().any(|occupant| {
        matches!(occupant.lease.phase, Phase::TimeWait(_)) && occupant.lease.owner.is_none()
    });
    if has_unowned_time_wait {
        advice.push(
            "the kernel keeps no owner of a TIME_WAIT: `portlife trace` names those of \
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
