//! What is written is read, and written again is the same text.

use proptest::{option, prelude::*};

use super::{Line, Writer};
use crate::{
    model::{Change, Instant, Lease, LeaseEvent, Reuse},
    record::{
        Body, Record,
        samples::{
            buckets, calls, cgroups, changes, instants, leases, losses, pressures, scans, settings,
            starts, summaries, verifies,
        },
    },
};

/// Up to this many nanoseconds, 26 days, a duration in seconds is read as the one that was written.
const EXACT_NS: u64 = 1 << 51;

fn write(record: &Record<'_>) -> String {
    let mut writer = Writer::new(1_700_000_000_123_456_789);
    writer.record(record);
    String::from_utf8(std::mem::take(writer.buffer())).expect("JSON is UTF-8")
}

fn assert_survives(at: Instant, body: Body<'_>) -> Result<(), TestCaseError> {
    let written = write(&Record { at, body });
    let line = Line::parse(written.as_bytes());
    let line = line.map_err(|error| TestCaseError::fail(format!("{error}: {written}")))?;
    let record = line.record.expect("its type is known");
    prop_assert_eq!(record.with(write), written);
    Ok(())
}

/// A lease that lived before `at`, its instants in their order.
fn before(at: Instant, mut lease: Lease) -> Lease {
    let Lease { acquired, established, closing, time_wait, timer_armed, .. } = &mut lease;
    let mut latest = at;
    for instant in [timer_armed, time_wait, closing, established, acquired].into_iter().flatten() {
        let earliest = at.ns().saturating_sub(EXACT_NS);
        *instant = Instant::from_ns(instant.ns().clamp(earliest, latest.ns()));
        latest = *instant;
    }
    lease
}

fn exact(change: Change) -> Change {
    let exact = |ns: Option<u64>| ns.map(|ns| ns % EXACT_NS);
    let idle = |reuse: Option<Reuse>| {
        reuse.map(|reuse| Reuse { idle_ns: reuse.idle_ns % EXACT_NS, ..reuse })
    };
    match change {
        Change::Bind { requested_port, reuse } => {
            Change::Bind { requested_port, reuse: idle(reuse) }
        }
        Change::Connect { search_ns, reuse } => {
            Change::Connect { search_ns: exact(search_ns), reuse: idle(reuse) }
        }
        Change::Established { handshake_ns } => {
            Change::Established { handshake_ns: exact(handshake_ns) }
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn changes_of_leases_survive(
        at in instants(),
        lease in leases(),
        change in prop_oneof![changes(), buckets().prop_map(|bucket| Change::Held { bucket })],
        cgroup in option::of(cgroups()),
    ) {
        let lease = before(at, lease);
        let event = LeaseEvent { at, lease: &lease, change: exact(change) };
        assert_survives(at, Body::Lease { event, cgroup: cgroup.as_ref() })?;
    }

    #[test]
    fn failures_survive(
        at in instants(),
        lease in leases(),
        mut call in calls(),
        cgroup in option::of(cgroups()),
        holder_cgroup in option::of(cgroups()),
    ) {
        call.holder = call.holder.map(|holder| before(at, holder));
        let mut failure = call.failure(at, &lease);
        failure.search_ns = failure.search_ns.map(|ns| ns % EXACT_NS);
        let (cgroup, holder_cgroup) = (cgroup.as_ref(), holder_cgroup.as_ref());
        assert_survives(at, Body::Fail { failure: &failure, cgroup, holder_cgroup })?;
    }
}

proptest! {
    #[test]
    fn records_of_namespaces_survive(
        at in instants(),
        settings in settings(),
        pressure in pressures(),
        scan in scans(),
    ) {
        assert_survives(at, Body::Namespace { netns: scan.netns, settings: &settings, is_new: scan.tries % 2 == 0 })?;
        assert_survives(pressure.at, Body::Pressure(&pressure))?;
        assert_survives(scan.last, Body::Scan(&scan))?;
    }

    #[test]
    fn records_of_the_run_survive(
        at in instants(),
        start in starts(),
        loss in losses(),
        verify in verifies(),
        summary in summaries(),
    ) {
        assert_survives(at, Body::Start(&start))?;
        assert_survives(at, Body::Loss(&loss))?;
        assert_survives(at, Body::Verify(&verify))?;
        assert_survives(at, Body::Summary(&summary))?;
    }
}
