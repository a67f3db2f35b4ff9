//! Writes records as lines of JSON.

use serde::Serialize;

use super::{
    append::{AsSerde, Microseconds, Name, Seconds, Value, append},
    fields::{
        LossFields, NamespaceFields, PressureFields, RangeFields, ScanFields, StartFields,
        SummaryFields, VerifyFields,
    },
    holder::{Holder, Identity, Process},
    lease_fields::{LeaseFields, ReuseFields},
    owners::Owners,
    text,
};
use crate::{
    capacity::{advice_on, free_in_s},
    model::{Change, Failure, Instant, LeaseEvent, LeaseId, Netns, Phase, Reuse, Substate},
    record::{
        Body, Cgroup, Record, RecordType,
        digits::append_decimal,
        durations::Durations,
        names::{self, Named as _},
        time_of_day::TimeOfDay,
    },
};

/// Writes records as JSON, each an object on a line of its own, into a buffer.
///
/// Records about leases and failures, of which there are thousands a second, are put together by
/// hand; the others by serde. Both have the same form.
#[derive(Debug)]
pub(crate) struct Writer {
    realtime_offset_ns: i128,
    buffer: Vec<u8>,
    time: TimeOfDay,
    owners: Owners,
}

impl Writer {
    /// Creates a writer with an empty buffer. `realtime_offset_ns` is the time of day minus the
    /// monotonic time.
    pub(crate) fn new(realtime_offset_ns: i128) -> Self {
        Self {
            realtime_offset_ns,
            buffer: Vec::new(),
            time: TimeOfDay::default(),
            owners: Owners::default(),
        }
    }

    /// The lines that were written and not yet taken out.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes a record.
    pub(crate) fn record(&mut self, record: &Record<'_>) {
        let Record { at, body } = *record;
        match body {
            Body::Lease { event, cgroup } => self.lease(&event, cgroup),
            Body::Fail { failure, cgroup, holder_cgroup } => {
                self.failure(failure, cgroup, holder_cgroup);
            }
            Body::Start(start) => {
                self.write(RecordType::Start.name(), at, None, StartFields::from(start));
            }
            Body::Namespace { netns, settings, is_new } => {
                let fields = NamespaceFields::of(settings, is_new);
                self.write(RecordType::Namespace.name(), at, Some(netns), fields);
            }
            Body::Pressure(pressure) => {
                let fields = PressureFields::from(pressure);
                self.write(RecordType::Pressure.name(), at, Some(pressure.netns), fields);
            }
            Body::Scan(scan) => {
                self.write(RecordType::Scan.name(), at, Some(scan.netns), ScanFields::from(scan));
            }
            Body::Loss(loss) => {
                self.write(RecordType::Loss.name(), at, None, LossFields::from(loss));
            }
            Body::Verify(verify) => {
                self.write(RecordType::Verify.name(), at, None, VerifyFields::from(verify));
            }
            Body::Summary(summary) => {
                self.write(RecordType::Summary.name(), at, None, SummaryFields::from(summary));
            }
        }
    }

    /// Writes a record of any type, also one that is not a [`Record`]: the fields of every record,
    /// then those of `rest`.
    pub(crate) fn write<D: Serialize>(
        &mut self,
        record_type: &'static str,
        at: Instant,
        netns: Option<Netns>,
        rest: D,
    ) {
        let time = jiff::Timestamp::from_nanosecond(i128::from(at.ns()) + self.realtime_offset_ns)
            .unwrap_or_default();
        let line = Line {
            v: 1,
            record_type,
            time: format_args!("{time:.9}"),
            mono_ns: at.ns(),
            netns: netns.map(|netns| netns.0),
            rest,
        };
        // Writing to memory cannot fail, and the records are made of what JSON can say.
        if text::append(&mut self.buffer, &line).is_ok() {
            self.buffer.push(b'\n');
        }
    }

    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) {
        let LeaseEvent { at, lease, change } = *event;
        let record = RecordType::of(&change);
        let identity = Identity::of(lease, cgroup);
        self.write_by_hand(record, at, lease.netns, &identity, |buffer| match change {
            Change::Held { bucket } => append!(
                buffer,
                LeaseFields<'_> {
                    phase: Name(lease.phase),
                    substate: substate(lease.phase).map(Name),
                    closed_by: lease.closed_by.map(Name),
                    age_s: lease.acquired.map(|acquired| Seconds(at.since(acquired))),
                    timestamps: lease.has_timestamps,
                    bucket: bucket.map(Name),
                }
            ),
            Change::Bind { requested_port, reuse } => {
                append!(buffer, LeaseFields<'_> { requested_port: requested_port, reuse: reuse });
            }
            Change::Connect { search_ns, reuse } => append!(
                buffer,
                LeaseFields<'_> { search_us: search_ns.map(Microseconds), reuse: reuse }
            ),
            Change::Established { handshake_ns } => append!(
                buffer,
                LeaseFields<'_> { handshake_us: handshake_ns.map(Microseconds) }
            ),
            Change::Accept { listener } => append!(
                buffer,
                LeaseFields<'_> { listener: listener.map(|cookie| cookie.0) }
            ),
            Change::Listen => {}
            Change::Update { bucket } => append!(
                buffer,
                LeaseFields<'_> {
                    phase: Name(lease.phase),
                    substate: substate(lease.phase).map(Name),
                    closed_by: lease.closed_by.map(Name),
                    bucket: bucket.map(Name),
                }
            ),
            Change::Closing { by } => append!(buffer, LeaseFields<'_> { by: Name(by) }),
            Change::TimeWait(substate) => append!(
                buffer,
                LeaseFields<'_> { substate: Name(substate), timestamps: lease.has_timestamps }
            ),
            Change::Release { reason } => {
                let Durations { held_ns, established_ns, time_wait_ns } = Durations::of(lease, at);
                append!(
                    buffer,
                    LeaseFields<'_> {
                        reason: Name(reason),
                        held_s: held_ns.map(Seconds),
                        established_s: established_ns.map(Seconds),
                        time_wait_s: time_wait_ns.map(Seconds),
                        closed_by: lease.closed_by.map(Name),
                    }
                );
            }
        });
    }

    fn failure(
        &mut self,
        failure: &Failure<'_>,
        cgroup: Option<&Cgroup>,
        holder_cgroup: Option<&Cgroup>,
    ) {
        let advice = advice_on(failure, failure.cause);
        let Failure {
            at,
            netns,
            cookie,
            family,
            owner,
            operation,
            errno,
            local_addr,
            local_port,
            peer,
            cause,
            holder,
            holder_ports,
            range,
            own_range,
            is_of_range: _,
            search_ns,
        } = *failure;
        let identity = Identity {
            lease: None,
            cookie: cookie.0,
            kind: failure.wanted_kind(),
            family,
            local_addr,
            local_port: (local_port != 0).then_some(local_port),
            peer_addr: peer.map(|(addr, _)| addr),
            peer_port: peer.map(|(_, port)| port.0),
            process: Process { owner: owner.as_ref(), cgroup },
        };
        self.write_by_hand(RecordType::Fail, at, netns, &identity, |buffer| {
            append!(
                buffer,
                LeaseFields<'_> {
                    op: Name(operation),
                    errno: errno,
                    error: AsSerde(names::errno(errno)),
                    requested_addr: local_addr,
                    requested_port: local_port,
                    cause: cause.map(Name),
                    holder: holder.map(|lease| {
                        AsSerde(Holder::of(lease, holder_cgroup, free_in_s(lease, at)))
                    }),
                    holder_ports: holder_ports,
                    range: range.map(|range| AsSerde(RangeFields::from(range))),
                    own_range: own_range.map(|(low, high)| AsSerde([low.0, high.0])),
                    advice: advice.map(Name),
                    search_us: search_ns.map(Microseconds),
                }
            );
        });
    }

    /// Writes a record about a lease or a failure, as [`write`](Self::write) would.
    #[inline]
    fn write_by_hand(
        &mut self,
        record: RecordType,
        at: Instant,
        netns: Netns,
        identity: &Identity<'_>,
        rest: impl FnOnce(&mut Vec<u8>),
    ) {
        let Self { realtime_offset_ns, buffer, time, owners } = self;
        buffer.extend_from_slice(b"{\"v\":1,\"type\":");
        Name(record).append(buffer);
        buffer.extend_from_slice(b",\"time\":\"");
        time.append(i128::from(at.ns()) + *realtime_offset_ns, buffer);
        buffer.extend_from_slice(b"\",\"mono_ns\":");
        append_decimal(at.ns(), buffer);
        buffer.extend_from_slice(b",\"netns\":");
        append_decimal(netns.0.into(), buffer);
        let Identity {
            lease,
            cookie,
            kind,
            family,
            local_addr,
            local_port,
            peer_addr,
            peer_port,
            process: Process { owner, cgroup },
        } = *identity;
        append!(
            buffer,
            LeaseFields<'_> {
                lease: lease,
                cookie: cookie,
                kind: Name(kind),
                family: Name(family),
                local_addr: local_addr,
                local_port: local_port,
                peer_addr: peer_addr,
                peer_port: peer_port,
            }
        );
        owners.append(owner, cgroup, buffer);
        rest(buffer);
        buffer.extend_from_slice(b"}\n");
    }
}

fn substate(phase: Phase) -> Option<Substate> {
    match phase {
        Phase::TimeWait(substate) => Some(substate),
        _ => None,
    }
}

/// The fields of every record, then those of its type.
#[derive(Serialize)]
struct Line<'a, D> {
    v: u32,
    #[serde(rename = "type")]
    record_type: &'static str,
    time: std::fmt::Arguments<'a>,
    mono_ns: u64,
    netns: Option<u32>,
    #[serde(flatten)]
    rest: D,
}

impl Value for Reuse {
    fn append(self, bytes: &mut Vec<u8>) {
        let Self { previous: LeaseId(lease), idle_ns, from_time_wait } = self;
        let before = bytes.len();
        append!(
            bytes,
            ReuseFields { lease: lease, idle_s: Seconds(idle_ns), from_time_wait: from_time_wait }
        );
        // In place of the first comma.
        bytes[before] = b'{';
        bytes.push(b'}');
    }
}
