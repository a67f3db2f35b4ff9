//! Advice: what to do, with the evidence for it, the exact command or option, and the gain.

use crate::{
    capacity::ceiling_per_s,
    ledger::Ledger,
    model::{LocalRange, Netns, Port, PortSet, TIME_WAIT_S},
    views::{
        format::{self, endpoint, number},
        report::model::{
            Advice, DestinationRow, FailureRow, Finding, FindingKind, HolderRow, ListenerRow,
            Report, SettingsRow,
        },
    },
};

/// Advice on all findings, most urgent first.
#[must_use]
pub fn for_report(report: &Report, ledger: &Ledger) -> Vec<Advice> {
    let mut advice: Vec<Advice> = Vec::new();
    for finding in std::iter::once(&report.verdict).chain(&report.findings) {
        for one in for_finding(finding, report, ledger) {
            // Two findings can have the same remedy.
            if !advice.iter().any(|known| known.what == one.what && known.command == one.command) {
                advice.push(one);
            }
        }
    }
    advice
}

/// What does not help, although it is often recommended.
#[must_use]
pub fn folklore(report: &Report) -> Vec<String> {
    let has_time_waits = report.destinations.iter().any(|row| {
        row.time_wait > 0 && row.time_wait.saturating_mul(4) >= row.capacity.unwrap_or(u32::MAX / 4)
    });
    let is_about_them = std::iter::once(&report.verdict)
        .chain(&report.findings)
        .any(|finding| finding.kind == FindingKind::TimeWaitPileUp);
    if !has_time_waits && !is_about_them {
        return Vec::new();
    }
    vec![
        "tcp_fin_timeout does not shorten TIME_WAIT: it applies to orphaned sockets in FIN_WAIT2. \
         TIME_WAIT always lasts 60 s."
            .to_owned(),
        "tcp_tw_recycle was removed in Linux 4.12; it broke clients behind NAT.".to_owned(),
        "A low tcp_max_tw_buckets frees ports only by giving up the protection of TIME_WAIT: \
         late segments can reach new connections."
            .to_owned(),
    ]
}

fn for_finding(finding: &Finding, report: &Report, ledger: &Ledger) -> Vec<Advice> {
    let context = CommandContext::for_finding(finding, report);
    let row = finding.destination_row.and_then(|index| report.destinations.get(index));
    let failure = finding.failure_row.and_then(|index| report.failures.get(index));
    match finding.kind {
        FindingKind::DestinationExhausted | FindingKind::Filling => {
            let Some(row) = row else { return Vec::new() };
            let mut advice = vec![reuse_connections(row, finding)];
            if row.time_wait > 0 {
                advice.extend(reuse_time_waits(row, &context));
            }
            advice.extend(widen_range(Some(row), finding, report, &context));
            advice.push(add_addresses(row));
            advice
        }
        FindingKind::TimeWaitPileUp => {
            let Some(row) = row else { return Vec::new() };
            let mut advice = vec![reuse_connections(row, finding)];
            advice.extend(reuse_time_waits(row, &context));
            advice.extend(widen_range(Some(row), finding, report, &context));
            advice.push(add_addresses(row));
            advice
        }
        FindingKind::SlowConnect => {
            let Some(row) = row else { return Vec::new() };
            let mut advice = vec![narrow_search(row), reuse_connections(row, finding)];
            advice.push(add_addresses(row));
            advice
        }
        FindingKind::BindBeforeConnect => vec![bind_without_port(finding, report)],
        FindingKind::PoisonedPort => {
            vec![bind_outside_range(finding, report, ledger, &context)]
        }
        FindingKind::ListenerBlocked => {
            let Some(failure) = failure else { return Vec::new() };
            reserve_blocked(failure, report, &context)
        }
        FindingKind::ListenerInRange => {
            let listeners = report
                .listeners
                .iter()
                .filter(|listener| listener.is_in_range && Some(listener.netns) == finding.netns);
            vec![reserve_listeners(listeners, &context)]
        }
        FindingKind::CloseWaitLeak => vec![close_sockets(finding, report)],
        FindingKind::BoundIdle => vec![release_idle_ports(finding, report)],
        FindingKind::RangeReserved => vec![Advice {
            what: "Reserve fewer ports, or widen the range.".to_owned(),
            evidence: "no port of ip_local_port_range is left after ip_local_reserved_ports"
                .to_owned(),
            command: context.sysctl("net.ipv4.ip_local_reserved_ports", ""),
            gain: "every port taken off the list can be chosen at once".to_owned(),
        }],
        FindingKind::RangeExhausted => {
            widen_range(None, finding, report, &context).into_iter().collect()
        }
        FindingKind::TimeWaitOverflow => vec![Advice {
            what: "Raise tcp_max_tw_buckets.".to_owned(),
            evidence: finding.sentence.clone(),
            command: context.sysctl(
                "net.ipv4.tcp_max_tw_buckets",
                &context
                    .settings
                    .map_or(262_144, |settings| u64::from(settings.max_tw_buckets) * 2)
                    .to_string(),
            ),
            gain: "connections end with a TIME_WAIT, as TCP requires; each takes about 250 bytes"
                .to_owned(),
        }],
        FindingKind::PortHeld => {
            failure.map(|failure| free_held_port(failure, finding)).into_iter().collect()
        }
        FindingKind::CallFailed
        | FindingKind::RateJump
        | FindingKind::Scan
        | FindingKind::Healthy => Vec::new(),
    }
}

/// The namespace in which the advised commands are to be run.
struct CommandContext<'a> {
    /// A process in the namespace. `None` if none is known.
    pid: Option<u32>,
    settings: Option<&'a SettingsRow>,
}

impl<'a> CommandContext<'a> {
    fn for_finding(finding: &Finding, report: &'a Report) -> Self {
        let row = report.namespaces.iter().find(|row| Some(row.netns) == finding.netns);
        Self {
            pid: finding.owner.as_ref().and_then(|owner| owner.pid),
            settings: row.and_then(|row| row.settings.as_ref()),
        }
    }

    fn sysctl(&self, name: &str, value: &str) -> String {
        let enter = self.pid.map(|pid| format!("nsenter -t {pid} -n ")).unwrap_or_default();
        format!("{enter}sysctl -w {name}=\"{value}\"")
    }
}

fn reuse_connections(row: &DestinationRow, finding: &Finding) -> Advice {
    let who = finding.owner.as_ref().map_or_else(|| "the client".to_owned(), ToString::to_string);
    let peer = endpoint(row.peer_addr, row.peer_port);
    if finding.kind != FindingKind::TimeWaitPileUp && row.time_wait * 2 < row.used.max(1) {
        return Advice {
            what: format!("Reduce the number of connections that {who} has open at once."),
            evidence: format!(
                "up to {} connections to {peer} were open at once; {} are in TIME_WAIT now",
                number(row.peak),
                number(row.time_wait)
            ),
            command: "in the client: a bounded connection pool, HTTP/2 or pipelining; close idle connections"
                .to_owned(),
            gain: "one port for each connection that is closed".to_owned(),
        };
    }
    let lately = if row.rate_per_s >= 0.05 {
        format!(", {} a second lately", format::rate(row.rate_per_s))
    } else {
        String::new()
    };
    Advice {
        what: format!("Make {who} keep connections open and reuse them."),
        evidence: format!(
            "{} connections were made to {peer}{lately}; {} of the {} ports in use for it are \
             in TIME_WAIT",
            number(row.taken),
            number(row.time_wait),
            number(row.used),
        ),
        command: "in the client: a connection pool, HTTP keep-alive or HTTP/2; or have the server \
                  close first, so that the TIME_WAIT holds its port instead"
            .to_owned(),
        gain: row.mean_hold_s.map_or_else(
            || "a connection that stays open leaves no TIME_WAIT".to_owned(),
            |mean_s| {
                format!(
                    "each connection that is reused saves a port for {}",
                    format::duration(mean_s)
                )
            },
        ),
    }
}

fn reuse_time_waits(row: &DestinationRow, context: &CommandContext<'_>) -> Option<Advice> {
    let settings = context.settings?;
    if settings.timestamps && row.without_timestamps * 2 > row.time_wait {
        return Some(enable_peer_timestamps(row));
    }
    let is_loopback = row.source_addr.is_loopback() || row.peer_addr.is_loopback();
    let is_on =
        settings.timestamps && (settings.tw_reuse == 1 || (settings.tw_reuse == 2 && is_loopback));
    if is_on {
        return None;
    }
    let delay_s = f64::from(settings.tw_reuse_delay_ms.unwrap_or(1000)) / 1e3;
    let mut command = context.sysctl("net.ipv4.tcp_tw_reuse", "1");
    if !settings.timestamps {
        command = format!("{command}; {}", context.sysctl("net.ipv4.tcp_timestamps", "1"));
    }
    let now =
        row.ceiling_per_s.unwrap_or_else(|| ceiling_per_s(settings.capacity, TIME_WAIT_S.into()));
    Some(Advice {
        what: "Allow connect() to reuse ports in TIME_WAIT.".to_owned(),
        evidence: format!(
            "{} ports are in TIME_WAIT; tcp_tw_reuse is {}{}",
            number(row.time_wait),
            settings.tw_reuse,
            match (settings.timestamps, settings.tw_reuse) {
                (false, _) => ", and has no effect because tcp_timestamps is off",
                (true, 2) => " (for loopback only)",
                _ => " (never)",
            }
        ),
        command,
        gain: format!(
            "from {} to {} connections a second to this destination: a port can be reused after {} s \
             instead of 60 (both ends need timestamps)",
            format::rate(now),
            format::rate(ceiling_per_s(settings.capacity, delay_s)),
            delay_s
        ),
    })
}

/// For a peer that sends no timestamps, without which `tcp_tw_reuse` has no effect.
fn enable_peer_timestamps(row: &DestinationRow) -> Advice {
    Advice {
        what: format!(
            "Enable TCP timestamps on {}: without them, no setting of this host ends a TIME_WAIT early.",
            endpoint(row.peer_addr, row.peer_port)
        ),
        evidence: format!(
            "{} of {} connections in TIME_WAIT had none, though tcp_timestamps is on here",
            number(row.without_timestamps),
            number(row.time_wait)
        ),
        command: "on the peer, or on the load balancer that strips them: sysctl -w \
                  net.ipv4.tcp_timestamps=1; on Windows: netsh int tcp set global timestamps=enabled"
            .to_owned(),
        gain: "with tcp_tw_reuse=1, connect() can then reuse a port after 1 s instead of 60"
            .to_owned(),
    }
}

fn widen_range(
    row: Option<&DestinationRow>,
    finding: &Finding,
    report: &Report,
    context: &CommandContext<'_>,
) -> Option<Advice> {
    const WIDEST: (u16, u16) = (1024, 65_535);
    let settings = context.settings?;
    if (settings.range_low, settings.range_high) == WIDEST {
        return None;
    }
    let reserved = PortSet::parse(&settings.reserved).ok()?;
    let range = LocalRange::new(Port(WIDEST.0), Port(WIDEST.1))?;
    // The wider range includes the ports of listeners, which clients must not get.
    let mut to_reserve: Vec<_> = report
        .listeners
        .iter()
        .filter(|listener| {
            Some(listener.netns) == finding.netns
                && range.contains(Port(listener.local_port))
                && !reserved.contains(Port(listener.local_port))
        })
        .map(|listener| listener.local_port)
        .collect();
    to_reserve.sort_unstable();
    to_reserve.dedup();
    let listed = u32::try_from(to_reserve.len()).unwrap_or(0);
    let capacity = range.len() - reserved.count_within(range) - listed;
    if capacity <= settings.capacity {
        return None;
    }
    let mut command =
        context.sysctl("net.ipv4.ip_local_port_range", &format!("{} {}", WIDEST.0, WIDEST.1));
    if !to_reserve.is_empty() {
        let list = add_to_reserved(&settings.reserved, &to_reserve);
        let reserve = context.sysctl("net.ipv4.ip_local_reserved_ports", &list);
        command = format!("{reserve}; {command}");
    }
    let rates = row
        .and_then(|row| row.mean_hold_s)
        // Holds of moments are no basis for a rate.
        .filter(|mean_s| *mean_s >= 1.0)
        .map(|mean_s| {
            format!(
                ", or from {} to {} connections a second",
                format::rate(ceiling_per_s(settings.capacity, mean_s)),
                format::rate(ceiling_per_s(capacity, mean_s))
            )
        })
        .unwrap_or_default();
    Some(Advice {
        what: "Widen ip_local_port_range; reserve the ports of listeners first.".to_owned(),
        evidence: format!(
            "the range {}-{} has {} ports to choose from",
            settings.range_low,
            settings.range_high,
            number(settings.capacity)
        ),
        command,
        gain: format!(
            "from {} to {} ports for each destination{rates}",
            number(settings.capacity),
            number(capacity)
        ),
    })
}

fn add_addresses(row: &DestinationRow) -> Advice {
    let capacity = row.capacity.unwrap_or(0);
    Advice {
        what: "Spread the connections over more source or destination addresses.".to_owned(),
        evidence: format!(
            "all connections go from {} to {}, and each pair of addresses has its own ports",
            row.source_addr,
            endpoint(row.peer_addr, row.peer_port)
        ),
        command: "in the client, before connect(): setsockopt(fd, IPPROTO_IP, \
                  IP_BIND_ADDRESS_NO_PORT, 1), then bind() to one of several addresses, port 0"
            .to_owned(),
        gain: format!("{} more ports for each additional address on either side", number(capacity)),
    }
}

fn narrow_search(row: &DestinationRow) -> Advice {
    let median = row.search.quantile_s(0.5).unwrap_or(0.0);
    let slow = row.search.quantile_s(0.99).unwrap_or(median);
    Advice {
        what: "Make each socket search a small range of ports.".to_owned(),
        evidence: format!(
            "99 % of searches take up to {}, half of them up to {}: connect() tries all ports of one \
             parity first, and those are in use",
            format::duration(slow),
            format::duration(median)
        ),
        command: "before connect() (Linux 6.3 or newer): setsockopt(fd, IPPROTO_IP, \
                  IP_LOCAL_PORT_RANGE, low | high << 16) with a random range of about 500 \
                  ports; with another one on EADDRNOTAVAIL"
            .to_owned(),
        gain: format!(
            "a search visits only these ports: about {} instead of {}",
            format::duration(median),
            format::duration(slow)
        ),
    }
}

fn bind_without_port(finding: &Finding, report: &Report) -> Advice {
    let row = report.namespaces.iter().find(|row| Some(row.netns) == finding.netns);
    let who = finding.owner.as_ref().map_or_else(|| "the client".to_owned(), ToString::to_string);
    let capacity = row.and_then(|row| row.settings.as_ref()).map_or(0, |s| s.capacity);
    let locked = row.map_or(0, |row| row.bind_locked);
    Advice {
        what: format!("Make {who} leave the choice of the port to connect()."),
        evidence: format!(
            "{} of {} ports are bound before connecting, which makes them unavailable to every other \
             destination",
            number(locked),
            number(capacity)
        ),
        command: "before bind(): setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1); or do \
                  not bind() at all"
            .to_owned(),
        gain: format!(
            "from {} ports shared by all destinations to {} for each",
            number(capacity),
            number(capacity)
        ),
    }
}

fn bind_outside_range(
    finding: &Finding,
    report: &Report,
    ledger: &Ledger,
    context: &CommandContext<'_>,
) -> Advice {
    let row = report.namespaces.iter().find(|row| Some(row.netns) == finding.netns);
    let who = finding.owner.as_ref().map_or_else(|| "the binder".to_owned(), ToString::to_string);
    let locked = row.map_or(0, |row| row.bind_locked);
    let netns = finding.netns.map(Netns);
    let locked_ports = netns.into_iter().flat_map(|netns| ledger.locked_ports(netns));
    let mut ports: Vec<u16> = locked_ports.map(|port| port.0).collect();
    ports.sort_unstable();
    let command = context.settings.map_or_else(String::new, |settings| {
        let list = add_to_reserved(&settings.reserved, &ports);
        context.sysctl("net.ipv4.ip_local_reserved_ports", &list)
    });
    Advice {
        what: format!(
            "Make {who} bind ports outside ip_local_port_range, or stop it; if it needs these, \
             reserve them."
        ),
        evidence: format!(
            "{} ports of the range are bound, and connect() never chooses them",
            number(locked)
        ),
        command: format!(
            "clients that bind: IP_BIND_ADDRESS_NO_PORT before bind(); for fixed ports: {command}"
        ),
        gain: format!(
            "{} ports become available to every destination when {who} releases them (before \
             Linux 6.18, when the last connection on them has ended as well)",
            number(locked)
        ),
    }
}

fn reserve_blocked(
    first: &FailureRow,
    report: &Report,
    context: &CommandContext<'_>,
) -> Vec<Advice> {
    let is_blocked = |failure: &&FailureRow| {
        let by_client = |holder: &HolderRow| matches!(holder.kind, "connect" | "bind_auto");
        failure.netns == first.netns
            && failure.requested_port != 0
            && failure.cause == first.cause
            && failure.holder.as_ref().is_some_and(by_client)
    };
    let blocked = report.failures.iter().filter(is_blocked);
    let mut ports: Vec<_> = blocked.map(|failure| failure.requested_port).collect();
    ports.sort_unstable();
    ports.dedup();
    let capacity = context.settings.map_or(0, |settings| settings.capacity);
    let reserved = context.settings.map_or("", |settings| settings.reserved.as_str());
    let left = capacity.saturating_sub(u32::try_from(ports.len()).unwrap_or(0));
    let mut advice = vec![Advice {
        what: "Reserve the port, so that no client gets it again.".to_owned(),
        evidence: format!(
            "port {} is one of the {} that connect() chooses from",
            first.requested_port,
            number(capacity)
        ),
        command: context
            .sysctl("net.ipv4.ip_local_reserved_ports", &add_to_reserved(reserved, &ports)),
        gain: format!(
            "the port is free whenever the listener starts; clients keep {} ports",
            number(left)
        ),
    }];
    if let Some(holder) = &first.holder
        && let Some((addr, port)) = holder.peer_addr.zip(holder.peer_port)
    {
        let enter = context.pid.map(|pid| format!("nsenter -t {pid} -n ")).unwrap_or_default();
        advice.push(Advice {
            what: "To start the listener now, end the connection that holds the port.".to_owned(),
            evidence: format!("it goes to {}; SO_REUSEADDR does not help", endpoint(addr, port)),
            command: format!(
                "{enter}ss -K dst {} sport = :{}",
                endpoint(addr, port),
                first.requested_port
            ),
            gain: "the port is free at once; the client has to connect again".to_owned(),
        });
    }
    advice
}

fn reserve_listeners<'a>(
    listeners: impl Iterator<Item = &'a ListenerRow>,
    context: &CommandContext<'_>,
) -> Advice {
    let mut ports: Vec<_> = listeners.map(|listener| listener.local_port).collect();
    ports.sort_unstable();
    ports.dedup();
    let reserved = context.settings.map_or("", |settings| settings.reserved.as_str());
    Advice {
        what: "Reserve the ports of listeners that are in the range.".to_owned(),
        evidence: format!(
            "{} may be taken by a client while the listener restarts",
            format::count(ports.len(), "port")
        ),
        command: context
            .sysctl("net.ipv4.ip_local_reserved_ports", &add_to_reserved(reserved, &ports)),
        gain: "a restart cannot fail with EADDRINUSE because of a client".to_owned(),
    }
}

fn close_sockets(finding: &Finding, report: &Report) -> Advice {
    let leak = report
        .leaks
        .iter()
        .find(|leak| Some(leak.netns) == finding.netns && leak.owner == finding.owner);
    let count = leak.map_or(0, |leak| leak.count);
    let who = finding.owner.as_ref().map_or_else(|| "the process".to_owned(), ToString::to_string);
    let pid = finding.owner.as_ref().and_then(|owner| owner.pid);
    let look = pid.map_or_else(
        || "ss -tanp state close-wait".to_owned(),
        |pid| format!("nsenter -t {pid} -n ss -tanp state close-wait; ls -l /proc/{pid}/fd"),
    );
    Advice {
        what: format!("Make {who} close its sockets when read() returns 0."),
        evidence: format!(
            "it left {} open, and closed {} others after their peers had",
            number(count),
            number(leak.map_or(0, |leak| leak.closed_otherwise))
        ),
        command: format!("to list them: {look}; they stay until the process closes them or exits"),
        gain: format!(
            "{} sockets and file descriptors, and as many FIN_WAIT2s on the peers",
            number(count)
        ),
    }
}

fn release_idle_ports(finding: &Finding, report: &Report) -> Advice {
    let row = report.namespaces.iter().find(|row| Some(row.netns) == finding.netns);
    let who = finding.owner.as_ref().map_or_else(|| "the process".to_owned(), ToString::to_string);
    Advice {
        what: format!("Make {who} bind only when it needs the port, or close unused sockets."),
        evidence: finding.sentence.clone(),
        command: "to list them: ss -B -tnp (Linux 6.8 or newer); in the process: close()"
            .to_owned(),
        gain: format!(
            "{} ports become available to connect()",
            number(row.map_or(0, |row| row.bind_locked))
        ),
    }
}

fn free_held_port(failure: &FailureRow, finding: &Finding) -> Advice {
    let is_time_wait = failure
        .holder
        .as_ref()
        .is_some_and(|holder| holder.state.starts_with("TIME") || holder.state.starts_with("FIN"));
    let FailureRow { op, requested_port: port, .. } = failure;
    let (what, command) = if is_time_wait {
        (
            "Make the server set SO_REUSEADDR before bind().",
            "setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1)".to_owned(),
        )
    } else {
        ("Stop the holder of the port, or use another port.", format!("portlife why {port}"))
    };
    Advice {
        what: what.to_owned(),
        evidence: finding.sentence.clone(),
        command,
        gain: format!("the {op}() succeeds"),
    }
}

/// The value of `ip_local_reserved_ports` with these ports added.
fn add_to_reserved(reserved: &str, ports: &[u16]) -> String {
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    let list = [reserved.to_owned(), ports.join(",")];
    let list: Vec<_> = list.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    let list = list.join(",");
    PortSet::parse(&list).map_or(list, |set| set.to_string())
}
