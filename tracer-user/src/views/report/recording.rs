//! Reads a recorded stream of records.

use std::io::{self, BufRead, Read as _};

use tracer_ebpf::Owner;

use crate::{
    model::{Kind, Operation, Port},
    record::{
        Cgroup, RecordType,
        filter::{Filter, Subject},
        read::{Body, Event, Record, Who},
    },
    views::report::Aggregate,
};

/// No record is so long; what is, is no recording.
const MOST_BYTES: u64 = 1 << 20;
/// Lines that are not records, and are told one by one.
const MOST_TOLD: u64 = 10;

/// What became of the lines of a recording.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Lines that are records.
    pub records: u64,
    /// Lines that are not.
    pub damaged: u64,
    /// What is wrong, in sentences with the name of the recording and the line.
    pub problems: Vec<String>,
}

/// Reads all of `input`, which is called `name`, and adds up what the filter admits.
///
/// # Errors
/// If the input cannot be read; what was read before counts.
pub fn read(
    mut input: impl BufRead,
    name: &str,
    filter: &Filter,
    aggregate: &mut Aggregate,
    outcome: &mut Outcome,
) -> io::Result<()> {
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        (&mut input).take(MOST_BYTES).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        let is_whole = line.last() == Some(&b'\n');
        let is_too_long = !is_whole && line.len() as u64 == MOST_BYTES;
        if is_too_long {
            skip_line(&mut input)?;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match Record::parse(line.trim_ascii()) {
            Ok(record) => {
                outcome.records += 1;
                if admits(filter, &record) {
                    aggregate.take(&record);
                }
            }
            Err(error) => {
                outcome.damaged += 1;
                if outcome.damaged <= MOST_TOLD {
                    let what = if is_too_long {
                        format!("expected a record, found a line of more than {MOST_BYTES} bytes")
                    } else if is_whole {
                        error.to_string()
                    } else {
                        format!("expected the end of the last record, which is cut off ({error})")
                    };
                    outcome.problems.push(format!("{name}:{number}: {what}"));
                }
            }
        }
    }
    if outcome.damaged > MOST_TOLD {
        let more = outcome.damaged - MOST_TOLD;
        outcome.problems.push(format!("{name}: {more} more lines are no records"));
    }
    Ok(())
}

fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(());
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(available.len(), |end| end + 1);
        input.consume(length);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// True if the record would have been shown by a tracer with this filter.
fn admits(filter: &Filter, record: &Record<'_>) -> bool {
    let (record_type, who) = match &record.body {
        Body::Lease(lease) => (type_of(&lease.event), &lease.who),
        Body::Fail(fail) => (RecordType::Fail, &fail.who),
        Body::Namespace(_) => {
            return filter.admits_settings()
                && (filter.namespaces.is_empty() || filter.namespaces.contains(&record.netns));
        }
        Body::Scan(scan) => {
            let tried = scan.port_low..=scan.port_high;
            return filter.admits_scan(record.netns, scan.source_addr, &tried);
        }
        Body::Start { .. } | Body::Loss { .. } | Body::Summary | Body::Other => return true,
    };
    let kind = match &record.body {
        Body::Fail(fail) => match fail.operation {
            Operation::Bind => Kind::Bind,
            Operation::Connect => Kind::Connect,
            Operation::Listen => Kind::Listen,
        },
        _ => who.kind,
    };
    let owner = owner_of(who);
    let cgroup = who.process.as_ref().and_then(|process| {
        let path = process.cgroup.as_deref()?.to_owned();
        Some(Cgroup { path, container: process.container.as_deref().map(str::to_owned) })
    });
    let local_port = match &record.body {
        Body::Fail(fail) => fail.requested_port,
        _ => who.local_port.unwrap_or_default(),
    };
    filter.admits(&Subject {
        record: record_type,
        netns: record.netns,
        family: Some(who.family),
        kind,
        local_port,
        peer: who.peer.map(|(addr, port)| (addr.into(), Port(port))),
        owner: owner.as_ref(),
        cgroup: cgroup.as_ref(),
    })
}

fn owner_of(who: &Who<'_>) -> Option<Owner> {
    let process = who.process.as_ref()?;
    let mut comm = [0; 16];
    for (to, from) in comm.iter_mut().zip(process.comm.as_bytes()) {
        *to = *from;
    }
    Some(Owner { pid: process.pid, uid: process.uid, comm, cgroup_id: 0 })
}

fn type_of(event: &Event) -> RecordType {
    match event {
        Event::Held { .. } => RecordType::Held,
        Event::Bind { .. } => RecordType::Bind,
        Event::Connect { .. } => RecordType::Connect,
        Event::Established => RecordType::Established,
        Event::Accept => RecordType::Accept,
        Event::Listen => RecordType::Listen,
        Event::Closing { .. } => RecordType::Closing,
        Event::TimeWait { .. } => RecordType::TimeWait,
        Event::Release { .. } => RecordType::Release,
    }
}
