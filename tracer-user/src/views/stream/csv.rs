//! The stream as CSV (RFC 4180) for spreadsheets and dataframes: a header, then a row for each
//! record, all with the same columns. A column that a record has nothing for is empty. The columns
//! are described in docs/csv.md.
//!
//! Written without a library: a cell is a number, one of our names, or a name that somebody else
//! chose, and only the last kind may need quotes.

use jiff::{Timestamp, tz::TimeZone};
use tracer_ebpf::Owner;

use crate::{
    foreign::Foreign,
    ledger::Ledger,
    model::{
        Addr, Change, Failure, Instant, Kind, Lease, LeaseEvent, Netns, Phase, Port, Pressure, Scan,
    },
    record::{
        Body, Cgroup, Record, comm,
        digits::{append_billionths, append_decimal},
        durations::Durations,
        names,
        time_of_day::Second,
    },
    views::{Verbosity, View},
};

/// The header. [`Csv::row`] writes the cells in this order.
const HEADER: &str = "time_utc,type,netns,proto,kind,local_addr,local_port,peer_addr,peer_port,pid,\
                      comm,uid,container,held_s,established_s,time_wait_s,detail,cause,used,\
                      capacity,count,lease";

/// Writes every record as a row.
#[derive(Debug)]
pub struct Csv {
    realtime_offset_ns: i128,
    verbosity: Verbosity,
    /// The second of the latest row.
    second: Second,
    buffer: Vec<u8>,
}

impl Csv {
    /// `realtime_offset_ns` is the time of day minus the monotonic time.
    #[must_use]
    pub fn new(realtime_offset_ns: i128, verbosity: Verbosity) -> Self {
        let buffer = format!("{HEADER}\r\n").into_bytes();
        Self { realtime_offset_ns, verbosity, second: Second::default(), buffer }
    }

    fn row(&mut self, at: Instant, record_type: &'static str, row: &Row<'_>) {
        let Self { realtime_offset_ns, verbosity: _, second, buffer } = self;
        let Row {
            netns,
            proto,
            kind,
            local_addr,
            local_port,
            peer_addr,
            peer_port,
            owner,
            container,
            held_ns,
            established_ns,
            time_wait_ns,
            detail,
            cause,
            used,
            capacity,
            count,
            lease,
        } = *row;
        append_time(i128::from(at.ns()) + *realtime_offset_ns, second, buffer);
        name(Some(record_type), buffer);
        number(netns.map(|netns| netns.0), buffer);
        name(proto, buffer);
        name(kind.map(names::kind), buffer);
        address(local_addr, buffer);
        number(local_port, buffer);
        address(peer_addr, buffer);
        number(peer_port, buffer);
        number(owner.map(|owner| owner.pid), buffer);
        foreign(owner.map(|owner| comm(&owner.comm)).as_ref(), buffer);
        number(owner.map(|owner| owner.uid), buffer);
        foreign(container, buffer);
        seconds(held_ns, buffer);
        seconds(established_ns, buffer);
        seconds(time_wait_ns, buffer);
        name(detail, buffer);
        name(cause, buffer);
        number(used, buffer);
        number(capacity, buffer);
        number(count, buffer);
        number(lease, buffer);
        buffer.extend_from_slice(b"\r\n");
    }
}

/// The cells of a row, but for the time and the type; `None` for an empty one.
#[derive(Clone, Copy, Default)]
struct Row<'a> {
    netns: Option<Netns>,
    proto: Option<&'static str>,
    kind: Option<Kind>,
    local_addr: Option<Addr>,
    local_port: Option<u16>,
    peer_addr: Option<Addr>,
    peer_port: Option<u16>,
    owner: Option<&'a Owner>,
    container: Option<&'a Foreign<'static>>,
    held_ns: Option<u64>,
    established_ns: Option<u64>,
    time_wait_ns: Option<u64>,
    /// One of our names, which need no quotes.
    detail: Option<&'a str>,
    cause: Option<&'static str>,
    used: Option<u32>,
    capacity: Option<u32>,
    count: Option<u64>,
    lease: Option<u64>,
}

impl View for Csv {
    fn record(&mut self, record: &Record<'_>, _ledger: &Ledger) {
        let Record { at, body } = *record;
        let record_type = names::record_type(record.record_type());
        let mut write = |row: Row<'_>| self.row(at, record_type, &row);
        match body {
            // The header stands for it.
            Body::Start(start) => self.verbosity.warn(start),
            Body::Namespace { netns, settings, is_new: _ } => write(Row {
                netns: Some(netns),
                capacity: Some(settings.capacity()),
                ..Row::default()
            }),
            Body::Lease { event, cgroup } => write(Row::of_change(&event, cgroup)),
            Body::Fail { failure, cgroup, holder_cgroup: _ } => {
                let error = names::errno(failure.errno);
                write(Row { detail: Some(&error), ..Row::of_failure(failure, cgroup) });
            }
            Body::Pressure(pressure) => write(Row::of_pressure(pressure)),
            Body::Scan(scan) => write(Row::of_scan(scan)),
            Body::Loss(loss) => write(Row {
                detail: Some(names::lost_at(loss.lost_at)),
                count: Some(loss.count),
                ..Row::default()
            }),
            Body::Verify(verify) => {
                write(Row {
                    count: Some(verify.missing + verify.extra + verify.classes),
                    ..Row::default()
                });
                self.verbosity.list(&verify.differences);
            }
            Body::Summary(summary) => {
                write(Row { count: Some(summary.lost), ..Row::default() });
            }
        }
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

impl<'a> Row<'a> {
    fn of_change(event: &LeaseEvent<'a>, cgroup: Option<&'a Cgroup>) -> Self {
        let LeaseEvent { at, lease, change } = *event;
        let Durations { held_ns, established_ns, time_wait_ns } = Durations::of(lease, at);
        let row = Self { held_ns, ..Self::of_lease(lease, cgroup) };
        match change {
            Change::Held { .. } | Change::Update { .. } => {
                Self { detail: Some(phase(lease.phase)), ..row }
            }
            Change::Bind { .. }
            | Change::Connect { .. }
            | Change::Established { .. }
            | Change::Accept { .. }
            | Change::Listen => row,
            Change::Closing { by } => Self { detail: Some(names::side(by)), established_ns, ..row },
            Change::TimeWait(substate) => {
                Self { detail: Some(names::substate(substate)), established_ns, ..row }
            }
            Change::Release { reason } => {
                Self { detail: Some(names::reason(reason)), established_ns, time_wait_ns, ..row }
            }
        }
    }

    fn of_lease(lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Self {
        let peer = lease.peer.get();
        Self {
            netns: Some(lease.netns),
            proto: Some("tcp"),
            kind: Some(lease.kind),
            local_addr: Some(lease.local_addr),
            local_port: Some(lease.local_port.0),
            peer_addr: peer.map(|(addr, _)| addr),
            peer_port: peer.map(|(_, port)| port.0),
            owner: lease.owner.as_deref(),
            container: cgroup.and_then(|cgroup| cgroup.container.as_ref()),
            lease: Some(lease.id.0),
            ..Self::default()
        }
    }

    fn of_failure(failure: &'a Failure<'_>, cgroup: Option<&'a Cgroup>) -> Self {
        let port = failure.local_port;
        Self {
            netns: Some(failure.netns),
            proto: Some("tcp"),
            kind: Some(failure.wanted_kind()),
            local_addr: Some(failure.local_addr),
            local_port: (port != 0).then_some(port),
            peer_addr: failure.peer.map(|(addr, _)| addr),
            peer_port: failure.peer.map(|(_, port)| port.0),
            owner: failure.owner.as_ref(),
            container: cgroup.and_then(|cgroup| cgroup.container.as_ref()),
            cause: failure.cause.map(names::cause),
            used: failure.range.map(|range| range.used),
            capacity: failure.range.map(|range| range.capacity),
            ..Self::default()
        }
    }

    fn of_pressure(pressure: &Pressure) -> Self {
        let destination = pressure.destination;
        let peer = destination.map(|destination| destination.peer);
        Self {
            netns: Some(pressure.netns),
            proto: Some("tcp"),
            local_addr: destination.map(|destination| destination.source),
            peer_addr: peer.map(|(addr, _)| addr),
            peer_port: peer.map(|(_, Port(port))| port),
            detail: Some(if pressure.is_rising { "rising" } else { "falling" }),
            used: Some(pressure.range.used),
            capacity: Some(pressure.range.capacity),
            ..Self::default()
        }
    }

    fn of_scan(scan: &Scan) -> Self {
        Self {
            netns: Some(scan.netns),
            proto: Some("tcp"),
            peer_addr: Some(scan.source),
            count: Some(scan.ports.into()),
            ..Self::default()
        }
    }
}

/// The phase; of a TIME_WAIT, its substate, which differs from the phase's name for FIN_WAIT2.
fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::TimeWait(substate) => names::substate(substate),
        other => names::phase(other),
    }
}

/// Appends a time, nanoseconds since 1970, in the only form that all spreadsheets take for one:
/// without `T`, zone, or more than milliseconds.
fn append_time(ns: i128, second: &mut Second, row: &mut Vec<u8>) {
    let format =
        |began: Timestamp| began.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string();
    let (text, fraction_ns) = second.of(ns, format);
    row.extend_from_slice(text.as_bytes());
    row.extend_from_slice(format!(".{:03}", fraction_ns / 1_000_000).as_bytes());
}

/// Appends a separator and a name of ours.
fn name(name: Option<&str>, row: &mut Vec<u8>) {
    row.push(b',');
    row.extend_from_slice(name.unwrap_or_default().as_bytes());
}

/// Appends a separator and a number.
fn number(number: Option<impl Into<u64>>, row: &mut Vec<u8>) {
    row.push(b',');
    if let Some(number) = number {
        append_decimal(number.into(), row);
    }
}

/// Appends a separator and a duration in seconds.
fn seconds(ns: Option<u64>, row: &mut Vec<u8>) {
    row.push(b',');
    if let Some(ns) = ns {
        append_billionths(ns, row);
    }
}

/// Appends a separator and an address.
fn address(addr: Option<Addr>, row: &mut Vec<u8>) {
    row.push(b',');
    if let Some(addr) = addr {
        row.extend_from_slice(addr.to_string().as_bytes());
    }
}

/// Appends a separator and a name that somebody else chose, so that it neither leaves its cell nor
/// is run: a spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, which
/// can read other cells and open network connections, but one that begins with `'` for text.
fn foreign(name: Option<&Foreign<'_>>, row: &mut Vec<u8>) {
    row.push(b',');
    let Some(name) = name else { return };
    let name = name.shown();
    // Also as wide characters, which some spreadsheets accept.
    let is_formula = name.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    let needs_quotes = name.contains([',', '"']);
    let mut cell = String::with_capacity(name.len() + 3);
    cell.extend(is_formula.then_some('\''));
    cell.push_str(&name.replace('"', "\"\""));
    let quote = needs_quotes.then_some('"');
    row.extend(quote.map(|_| b'"'));
    row.extend_from_slice(cell.as_bytes());
    row.extend(quote.map(|_| b'"'));
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;
    use crate::{
        record::{
            json::Line,
            samples::{calls, cgroups, changes, instants, leases, pressures, scans},
        },
        sources::replay::Recording,
    };

    const RELEASE: &str = r#"{"v":1,"type":"release","time":"2026-01-02T03:04:05.006007008Z","mono_ns":9006007008,"netns":4026531840,"lease":3,"cookie":9,"kind":"connect","family":"ipv4","local_addr":"10.0.0.1","local_port":40000,"peer_addr":"10.0.0.2","peer_port":80,"pid":12,"comm":"=a,b","uid":0,"cgroup":"/a","container":"4b5f","reason":"time_wait_expired","held_s":8.5,"established_s":0.25,"time_wait_s":1.0,"closed_by":"local"}"#;

    /// What is written of these records after the header.
    fn rows(records: &[Record<'_>]) -> Vec<String> {
        let recording = Recording::default();
        let mut csv = Csv::new(1_767_323_036_000_000_000, Verbosity::Quiet);
        for record in records {
            csv.record(record, recording.ledger());
        }
        let text = String::from_utf8(std::mem::take(csv.buffer())).unwrap();
        let rows = text.strip_prefix(HEADER).unwrap().strip_prefix("\r\n").unwrap();
        rows.split_terminator("\r\n").map(str::to_owned).collect()
    }

    /// The cells of a row, as RFC 4180 has them.
    fn cells(row: &str) -> Vec<String> {
        let (mut cells, mut is_quoted) = (vec![String::new()], false);
        for letter in row.chars() {
            match letter {
                '"' => is_quoted = !is_quoted,
                ',' if !is_quoted => cells.push(String::new()),
                letter => cells.last_mut().unwrap().push(letter),
            }
        }
        assert!(!is_quoted, "{row}");
        cells
    }

    #[test]
    fn a_release_is_a_row() {
        let line = Line::parse(RELEASE.as_bytes()).unwrap();
        let rows = line.record.unwrap().with(|record| rows(&[*record]));
        assert_eq!(
            rows,
            [
                "2026-01-02 03:04:05.006,release,4026531840,tcp,connect,10.0.0.1,40000,10.0.0.2,80,12,\
              \"'=a,b\",0,4b5f,8.5,0.25,1.0,time_wait_expired,,,,,3"
            ]
        );
    }

    proptest! {
        #[test]
        fn every_row_has_a_cell_for_each_column(
            at in instants(),
            lease in leases(),
            change in prop_oneof![changes(), Just(Change::Held { bucket: None })],
            call in calls(),
            cgroup in option::of(cgroups()),
            pressure in pressures(),
            scan in scans(),
        ) {
            let cgroup = cgroup.as_ref();
            let failure = call.failure(at, &lease);
            let bodies = [
                Body::Lease { event: LeaseEvent { at, lease: &lease, change }, cgroup },
                Body::Fail { failure: &failure, cgroup, holder_cgroup: None },
                Body::Pressure(&pressure),
                Body::Scan(&scan),
            ];
            let rows = rows(&bodies.map(|body| Record { at, body }));
            prop_assert_eq!(rows.len(), bodies.len());
            for row in rows {
                prop_assert_eq!(cells(&row).len(), cells(HEADER).len(), "{}", row);
            }
        }
    }

    fn cell(content: &str) -> String {
        let mut row = Vec::new();
        foreign(Some(&content.into()), &mut row);
        String::from_utf8(row.split_off(1)).unwrap()
    }

    #[test]
    fn a_foreign_name_is_never_a_formula() {
        for name in ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1", "=a,b", "=\"a\""] {
            let cell = cell(name);
            assert!(cells(&cell)[0].starts_with('\''), "{name:?} is {cell}");
        }
        assert_eq!(cell("\t=1"), "\\t=1");
        assert_eq!(cell("nginx"), "nginx");
        assert_eq!(cell("a-b=c"), "a-b=c");
    }

    #[test]
    fn a_foreign_name_stays_in_its_cell() {
        assert_eq!(cell("a,b"), "\"a,b\"");
        assert_eq!(cell("say \"hi\""), "\"say \"\"hi\"\"\"");
        assert_eq!(cell("two\r\nlines"), "two\\r\\nlines");
        assert_eq!(cell("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn every_column_is_documented() {
        let page = include_str!("../../../../docs/csv.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        assert_eq!(rows.collect::<Vec<_>>(), HEADER.split(',').collect::<Vec<_>>());
    }
}
