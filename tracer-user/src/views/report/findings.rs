//! Findings: the verdict and everything else that is wrong, in sentences.

use std::collections::BTreeMap;

use crate::{
    model::{Cause, LocalRange, Netns, Port},
    views::{
        format::{self, endpoint, number},
        owner_name::OwnerName,
        report::{
            model::{
                DestinationRow, FailureRow, Finding, FindingKind, LeakRow, LeakState, ListenerRow,
                Report, ScanRow, Severity,
            },
            rows,
            survey::Survey,
            tally::Tally,
        },
    },
};

/// All findings, the most severe first.
#[must_use]
pub fn find(report: &Report, tally: &Tally) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, failure) in report.failures.iter().enumerate() {
        found.push(Finding {
            failure_row: Some(index),
            destination_row: destination_of(report, failure),
            ..failure_finding(report, tally, failure)
        });
    }
    found.extend(report.leaks.iter().filter_map(|leak| leak_finding(report, leak)));
    for finding_of in [slow_search_finding, filling_finding] {
        found.extend(report.destinations.iter().enumerate().filter_map(|(index, row)| {
            Some(Finding { destination_row: Some(index), ..finding_of(row)? })
        }));
    }
    for (netns, namespace) in &tally.namespaces {
        if namespace.time_wait_overflows > 0 {
            found.push(Finding {
                severity: Severity::Warning,
                kind: FindingKind::TimeWaitOverflow,
                sentence: format!(
                    "{} connections ended without a TIME_WAIT because tcp_max_tw_buckets{} was \
                     reached: late segments may reach new connections",
                    number(namespace.time_wait_overflows),
                    namespace
                        .settings
                        .as_ref()
                        .map(|settings| format!(" ({})", settings.max_time_waits))
                        .unwrap_or_default()
                ),
                netns: Some(netns.0),
                cause: None,
                owner: None,
                failed: 0,
                ..empty()
            });
        }
    }
    found.extend(listener_findings(report));
    for jump in &report.jumps {
        found.push(Finding {
            severity: Severity::Note,
            kind: FindingKind::RateJump,
            sentence: format!(
                "{} took {} ports in one second, {} s into the observation; before that it took \
                 {:.1} a second",
                jump.owner,
                number(jump.per_s),
                jump.at_s.round(),
                jump.before_per_s
            ),
            netns: None,
            cause: None,
            owner: Some(jump.owner.clone()),
            failed: 0,
            ..empty()
        });
    }
    found.extend(report.scans.iter().map(|scan| Finding {
        severity: Severity::Note,
        kind: FindingKind::Scan,
        sentence: scan_sentence(scan),
        netns: Some(scan.netns),
        cause: None,
        owner: None,
        failed: 0,
        ..empty()
    }));
    let mut merged = merge(found);
    // A destination that fills up is not worth a finding of its own if calls fail already.
    let failing: Vec<_> = merged
        .iter()
        .filter(|finding| finding.severity == Severity::Failing)
        .map(|finding| finding.netns)
        .collect();
    merged.retain(|finding| {
        finding.kind != FindingKind::Filling || !failing.contains(&finding.netns)
    });
    // A lack of ports, which affects every process, comes before a single port that is held.
    let is_shortage =
        |cause| matches!(cause, Some(Cause::RangeFull | Cause::RangeBindLocked | Cause::Reserved));
    merged.sort_by_key(|finding| {
        std::cmp::Reverse((finding.severity, finding.failed, is_shortage(finding.cause)))
    });
    merged
}

fn scan_sentence(scan: &ScanRow) -> String {
    let ScanRow { source_addr, ports, port_low, port_high, tries, rate_per_s, .. } = scan;
    // The eBPF programs count no more different ports.
    const MAX: u32 = 1024;
    format!(
        "{source_addr} scans ports: it tried {}{} closed ports between {port_low} and {port_high}, {} \
         times{}",
        if *ports < MAX { "" } else { "over " },
        number(*ports),
        number(*tries),
        rate_per_s.map(|rate| format!(", {rate:.0} a second")).unwrap_or_default()
    )
}

/// The verdict where nothing is wrong.
#[must_use]
pub fn healthy(report: &Report) -> Finding {
    let fullest = report.destinations.iter().find(|row| row.used > 0 && row.capacity.is_some());
    let sentence = match fullest {
        _ if report.observed.records == 0 => "There are no records to report on.".to_owned(),
        Some(row) => format!(
            "No shortage of ports: no call failed for lack of one, and the fullest destination, \
             {}, uses {} of {} ports.",
            endpoint(row.peer_addr, row.peer_port),
            number(row.used),
            number(row.capacity.unwrap_or(0)),
        ),
        None => "No shortage of ports: no call failed for lack of one, and no client holds any."
            .to_owned(),
    };
    Finding { sentence, ..empty() }
}

/// A finding without content, of severity `Healthy`.
#[must_use]
pub fn empty() -> Finding {
    Finding {
        severity: Severity::Healthy,
        kind: FindingKind::Healthy,
        sentence: String::new(),
        netns: None,
        cause: None,
        owner: None,
        failed: 0,
        failure_row: None,
        destination_row: None,
    }
}

/// Merges failures of the same kind, namespace and owner: the first one is kept, with the sum of the
/// failed calls.
fn merge(found: Vec<Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    for finding in found {
        let same = merged.iter_mut().find(|other| {
            other.kind == finding.kind
                && other.netns == finding.netns
                && other.owner == finding.owner
                && finding.severity == Severity::Failing
        });
        match same {
            Some(other) => other.failed += finding.failed,
            None => merged.push(finding),
        }
    }
    merged
}

/// Index of the row of the destination that a call wanted.
fn destination_of(report: &Report, failure: &FailureRow) -> Option<usize> {
    let peer = failure.peer_addr.zip(failure.peer_port)?;
    report.destinations.iter().position(|row| {
        row.netns == failure.netns
            && row.source_addr == failure.local_addr
            && (row.peer_addr, row.peer_port) == peer
    })
}

/// Listeners whose ports connect() may choose, by namespace.
fn listener_findings(report: &Report) -> Vec<Finding> {
    const MAX_NAMED: usize = 5;
    let mut by_namespace: BTreeMap<u32, Vec<&ListenerRow>> = BTreeMap::new();
    for listener in report.listeners.iter().filter(|listener| listener.is_in_range) {
        by_namespace.entry(listener.netns).or_default().push(listener);
    }
    let finding = |(netns, listeners): (u32, Vec<&ListenerRow>)| {
        let mut named: Vec<_> = listeners
            .iter()
            .take(MAX_NAMED)
            .map(|listener| {
                format!("{} on {}", owner_or_unknown(listener.owner.as_ref()), listener.local_port)
            })
            .collect();
        if listeners.len() > MAX_NAMED {
            named.push(format!("{} more", number(listeners.len() - MAX_NAMED)));
        }
        Finding {
            severity: Severity::Note,
            kind: FindingKind::ListenerInRange,
            sentence: format!(
                "restarting {} may fail: while it is down, connect() may take the port, which is in \
                 ip_local_port_range and not reserved.",
                named.join(", ")
            ),
            netns: Some(netns),
            cause: None,
            owner: listeners.first().and_then(|listener| listener.owner.clone()),
            failed: 0,
            ..empty()
        }
    };
    by_namespace.into_iter().map(finding).collect()
}

fn failure_finding(report: &Report, tally: &Tally, failure: &FailureRow) -> Finding {
    let caller = failure.callers.first().and_then(|caller| caller.owner.clone());
    let who = owner_or_unknown(caller.as_ref());
    let calls = calls(failure);
    let range = failure.local_range.map_or_else(|| "ip_local_port_range".to_owned(), range_text);
    let finding = |kind, owner: Option<OwnerName>, sentence: String| Finding {
        severity: Severity::Failing,
        kind,
        sentence,
        netns: Some(failure.netns),
        cause: failure.cause,
        owner,
        failed: failure.count,
        ..empty()
    };
    match failure.cause {
        Some(Cause::RangeFull) if failure.op == "connect" => {
            let row = destination_of(report, failure);
            let row = row.and_then(|index| report.destinations.get(index));
            exhausted_finding(failure, row, &calls, &range, caller, &finding)
        }
        Some(Cause::RangeFull | Cause::RangeBindLocked) => {
            bound_ports_finding(failure, tally, &calls, &range, caller, &finding)
        }
        Some(Cause::Reserved) => finding(
            FindingKind::RangeReserved,
            caller,
            format!(
                "{calls} by {who}: every port of {range} is in ip_local_reserved_ports, so \
                 none can be chosen."
            ),
        ),
        Some(Cause::PortHeld) => held_port_finding(failure, tally, &calls, caller, &finding),
        cause => Finding {
            severity: Severity::Warning,
            ..finding(
                FindingKind::CallFailed,
                caller,
                format!(
                    "{calls} by {who}{}.",
                    match cause {
                        Some(Cause::AddressNotLocal) =>
                            format!(": {} is not an address of this namespace", failure.local_addr),
                        Some(Cause::Permission) =>
                            ": the process may not bind this port".to_owned(),
                        _ => String::new(),
                    }
                ),
            )
        },
    }
}

fn exhausted_finding(
    failure: &FailureRow,
    row: Option<&DestinationRow>,
    calls: &str,
    range: &str,
    caller: Option<OwnerName>,
    finding: &impl Fn(FindingKind, Option<OwnerName>, String) -> Finding,
) -> Finding {
    let survey = &failure.survey;
    let used = survey.to_destination.ports;
    let capacity = survey.capacity.unwrap_or(used);
    let owner = failure.held_by.clone();
    let by = owner_or_unknown(owner.as_ref());
    let after = match row.and_then(|row| row.headroom) {
        Some(headroom) if headroom > 0 => {
            format!(" By now {} can be used again.", number(headroom))
        }
        _ => String::new(),
    };
    if survey.time_wait > 0 && survey.time_wait * 2 >= used {
        let ceiling = row
            .and_then(|row| row.ceiling_per_s)
            .map(|ceiling| {
                format!(". That allows at most {} connections a second", format::rate(ceiling))
            })
            .unwrap_or_default();
        let sentence = format!(
            "{calls}: {} of {} ports of {range} are in TIME_WAIT after connections of {by}, which \
             closes first{ceiling}.{after}",
            number(survey.time_wait),
            number(capacity),
        );
        return finding(FindingKind::TimeWaitPileUp, owner.or(caller), sentence);
    }
    let sentence = format!(
        "{calls}: {} of {} ports of {range} were in use for this destination, {} by {by}.{after}",
        number(used),
        number(capacity),
        number(survey.to_destination.of_owner),
    );
    finding(FindingKind::DestinationExhausted, owner.or(caller), sentence)
}

/// A search for a port failed because ports are bound.
fn bound_ports_finding(
    failure: &FailureRow,
    tally: &Tally,
    calls: &str,
    range: &str,
    caller: Option<OwnerName>,
    finding: &impl Fn(FindingKind, Option<OwnerName>, String) -> Finding,
) -> Finding {
    let Survey { bound, bound_auto, bound_listening, bound_shared, held, .. } = failure.survey;
    // The failure may name the process that has bound most.
    let named = failure.holder.as_ref().and_then(|holder| holder.owner.clone());
    let owner = tally.owners.name(bound.owner).or(named);
    let by = owner_or_unknown(owner.as_ref());
    let of_owner = bound.of_owner;
    let who = owner_or_unknown(caller.as_ref());
    if bound_listening > 0 && bound_listening * 2 >= of_owner {
        let sentence = format!(
            "{calls} by {who}: {} of {range} belong to listeners of {by}, which makes them \
             unavailable to connect().",
            format::count(of_owner, "port")
        );
        return finding(FindingKind::RangeExhausted, owner, sentence);
    }
    if bound_auto > 0 && bound_auto * 2 >= of_owner && bound.ports * 2 >= held.ports {
        let sentence = format!(
            "{calls} by {who}: {} of {} ports of {range} are bound by {by}. It binds before it \
             connects, which makes each port unavailable to every other destination.",
            number(of_owner),
            number(failure.survey.capacity.unwrap_or(bound.ports)),
        );
        return finding(FindingKind::BindBeforeConnect, owner, sentence);
    }
    if failure.cause == Some(Cause::RangeBindLocked) {
        let shared = if bound_shared > 0 {
            format!(", {} of them shared with connections of other processes", number(bound_shared))
        } else {
            String::new()
        };
        let sentence = format!(
            "{calls} by {who} although the destination does not use every port: {by} has bound {} of \
             the {} ports of {range}{shared}, and connect() never chooses a bound port.",
            number(of_owner),
            number(failure.survey.capacity.unwrap_or(bound.ports)),
        );
        return finding(FindingKind::PoisonedPort, owner, sentence);
    }
    let owner = tally.owners.name(held.owner);
    let by = owner_or_unknown(owner.as_ref());
    let sentence = format!(
        "{calls} by {who}: all ports of {range} are held, {} by {by}.",
        number(held.of_owner)
    );
    finding(FindingKind::RangeExhausted, owner.or(caller), sentence)
}

fn held_port_finding(
    failure: &FailureRow,
    tally: &Tally,
    calls: &str,
    caller: Option<OwnerName>,
    finding: &impl Fn(FindingKind, Option<OwnerName>, String) -> Finding,
) -> Finding {
    let who = owner_or_unknown(caller.as_ref());
    let Some(holder) = &failure.holder else {
        let sentence = format!("{calls} by {who}: the port is held.");
        return finding(FindingKind::PortHeld, caller, sentence);
    };
    let by = owner_or_unknown(holder.owner.as_ref());
    let to = holder
        .peer_addr
        .zip(holder.peer_port)
        .map(|(addr, port)| format!(" to {}", endpoint(addr, port)))
        .unwrap_or_default();
    let is_in_range = rows::settings_of(tally, Netns(failure.netns))
        .is_none_or(|settings| settings.may_choose(Port(failure.requested_port)));
    if is_in_range && (holder.kind == "connect" || holder.kind == "bind_auto") {
        let sentence = format!(
            "{calls} by {who}: an outgoing connection of {by}{to} holds the port ({}). The kernel \
             could choose it because it is in ip_local_port_range and not reserved.",
            holder.state
        );
        return finding(FindingKind::ListenerBlocked, holder.owner.clone(), sentence);
    }
    let sentence = format!("{calls} by {who}: {by} holds the port ({}{to}).", holder.state);
    finding(FindingKind::PortHeld, holder.owner.clone(), sentence)
}

/// `11 connect()s to 127.0.0.1:80 failed with EADDRNOTAVAIL`.
fn calls(failure: &FailureRow) -> String {
    let FailureRow { op, error, count, local_addr, requested_port, .. } = failure;
    let what = match (failure.peer_addr.zip(failure.peer_port), *requested_port) {
        (Some((addr, port)), _) if *op == "connect" => format!(" to {}", endpoint(addr, port)),
        (_, 0) => format!(" of {local_addr} to any port"),
        (_, port) => format!(" to {}", endpoint(*local_addr, port)),
    };
    format!("{}{what} failed with {error}", format::count(*count, &format!("{op}()")))
}

/// Fewer unused ports than this are no finding.
const MIN_LEAK: u32 = 10;

fn leak_finding(report: &Report, leak: &LeakRow) -> Option<Finding> {
    let LeakRow { netns, state, count, oldest_s, .. } = leak;
    if *count < MIN_LEAK {
        return None;
    }
    let owner = owner_or_unknown(leak.owner.as_ref());
    let count_text = number(*count);
    let oldest = format::duration(*oldest_s);
    let row = report.namespaces.iter().find(|row| row.netns == *netns);
    let (kind, sentence) = match state {
        // A process that closes more connections than it leaves open is busy, not leaking.
        LeakState::CloseWait if leak.closed_otherwise > u64::from(*count) => return None,
        LeakState::CloseWait => (
            FindingKind::CloseWaitLeak,
            format!(
                "{owner} does not close connections that its peers have closed: {count_text} are in \
                 CLOSE_WAIT, the oldest for {oldest}{}.",
                leak.local_port.map(|port| format!(", on port {port}")).unwrap_or_default()
            ),
        ),
        LeakState::BoundIdle => {
            // Bound ports outside the range take nothing from connect().
            let capacity = row?.settings.as_ref()?.capacity;
            let is_much = u64::from(row?.bind_locked) * 10 >= u64::from(capacity);
            if !is_much {
                return None;
            }
            let sentence = format!(
                "{owner} has bound {count_text} ports and does nothing with them, the oldest for \
                 {oldest}: connect() cannot choose them."
            );
            (FindingKind::BoundIdle, sentence)
        }
        LeakState::FinWait2 => return None,
    };
    Some(Finding {
        severity: Severity::Warning,
        kind,
        sentence,
        netns: Some(*netns),
        cause: None,
        owner: leak.owner.clone(),
        failed: 0,
        ..empty()
    })
}

/// connect() tries all ports of one parity first. Once those are in use, each call searches half of
/// the range in vain: connect() is slow long before it fails.
fn slow_search_finding(row: &DestinationRow) -> Option<Finding> {
    /// Slightly below one half, at which all ports of one parity are in use.
    const MIN_FILL: f64 = 0.45;
    const TIMES_THE_MEDIAN: f64 = 8.0;
    const MIN_S: f64 = 50e-6;
    const MIN_COUNT: u64 = 10;
    let fill = row.fill().filter(|fill| *fill >= MIN_FILL)?;
    let median_s = row.search.quantile_s(0.5)?;
    let slow_s = (median_s * TIMES_THE_MEDIAN).max(MIN_S);
    let slow = row.search.count_from(slow_s);
    (slow >= MIN_COUNT && slow * 100 >= row.search.count() && row.failed == 0).then(|| Finding {
        severity: if fill >= 0.9 { Severity::Critical } else { Severity::Warning },
        kind: FindingKind::SlowConnect,
        sentence: format!(
            "connect() to {} takes long to find a port: {} of {} searches took {} or longer, the \
             median is {}. {} of {} ports are in use for this destination, {} by {}; after {} more \
             connect() fails.",
            endpoint(row.peer_addr, row.peer_port),
            number(slow),
            number(row.search.count()),
            format::duration(slow_s),
            format::duration(median_s),
            number(row.used),
            number(row.capacity.unwrap_or(0)),
            number(row.owner_ports),
            owner_or_unknown(row.owner.as_ref()),
            number(row.headroom.unwrap_or(0)),
        ),
        netns: Some(row.netns),
        cause: None,
        owner: row.owner.clone(),
        failed: 0,
        ..empty()
    })
}

fn filling_finding(row: &DestinationRow) -> Option<Finding> {
    /// A destination that fills up sooner than this is a finding.
    const SOON_S: f64 = 300.0;
    let fill = row.fill()?;
    let eta_s = row.eta_s.filter(|eta_s| *eta_s <= SOON_S);
    let severity = match fill {
        fill if fill >= 0.9 => Severity::Critical,
        fill if fill >= 0.7 => Severity::Warning,
        fill if fill >= 0.3 && eta_s.is_some() => Severity::Warning,
        _ => return None,
    };
    let eta = eta_s
        .filter(|eta_s| *eta_s > 0.0)
        .map(|eta_s| {
            format!(
                "; at {} a second, none are left in {}",
                format::rate(row.rate_per_s),
                format::duration(eta_s)
            )
        })
        .unwrap_or_default();
    let time_waits = if row.time_wait * 2 >= row.used {
        format!(", {} of them in TIME_WAIT", number(row.time_wait))
    } else {
        String::new()
    };
    Some(Finding {
        severity,
        kind: FindingKind::Filling,
        sentence: format!(
            "{} of {} ports for {} are in use{time_waits}, most by {}{eta}.",
            number(row.used),
            number(row.capacity.unwrap_or(0)),
            endpoint(row.peer_addr, row.peer_port),
            owner_or_unknown(row.owner.as_ref()),
        ),
        netns: Some(row.netns),
        cause: None,
        owner: row.owner.clone(),
        failed: row.failed,
        ..empty()
    })
}

fn owner_or_unknown(owner: Option<&OwnerName>) -> String {
    owner.map_or_else(|| "an unknown process".to_owned(), ToString::to_string)
}

fn range_text(range: LocalRange) -> String {
    format!("{}-{}", range.low().0, range.high().0)
}
