//! Reads a line of JSON back into a record.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    fields::{
        LossFields, NamespaceFields, PressureFields, ScanFields, StartFields, SummaryFields,
        VerifyFields, needed,
    },
    lease_fields::LeaseFields,
};
use crate::{
    model::{Instant, Netns},
    record::{
        RecordType,
        names::Named as _,
        owned::{OwnedBody, OwnedRecord},
    },
};

/// A line that was read.
#[derive(Clone, Debug)]
pub(crate) struct Line<'a> {
    /// Time of day, RFC 3339.
    pub(crate) time: Cow<'a, str>,
    /// The record; `None` if this version does not know its type.
    pub(crate) record: Option<OwnedRecord>,
}

/// Why a line is not a record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Not a JSON object, or one without a field that every record has.
    #[error("expected a record, a JSON object with `v`, `type`, `time` and `mono_ns`: {0}")]
    Malformed(String),
    /// Written for readers of another version of the interface.
    #[error("expected records of version 1, found version {0}")]
    Version(u32),
    /// A field of the record's type is missing, or its value makes no sense.
    #[error("expected a `{record}` record: {reason}")]
    Incomplete {
        /// The record's type.
        record: String,
        /// What is wrong.
        reason: String,
    },
}

impl<'a> Line<'a> {
    /// Reads one line. Types and fields that this version does not know are skipped.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, RecordError> {
        let Head { v, record, time, mono_ns, netns } =
            serde_json::from_slice(line).map_err(|error| RecordError::Malformed(reason(&error)))?;
        if v != 1 {
            return Err(RecordError::Version(v));
        }
        let at = Instant::from_ns(mono_ns);
        let body = RecordType::from_name(&record)
            .map(|record| body(record, line, at, netns.map(Netns)))
            .transpose()
            .map_err(|reason| RecordError::Incomplete { record: record.to_string(), reason })?;
        Ok(Self { time, record: body.map(|body| OwnedRecord { at, body }) })
    }
}

/// The fields of every record.
#[derive(Deserialize)]
struct Head<'a> {
    v: u32,
    #[serde(rename = "type", borrow)]
    record: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    mono_ns: u64,
    netns: Option<u32>,
}

fn body(
    record: RecordType,
    line: &[u8],
    at: Instant,
    netns: Option<Netns>,
) -> Result<OwnedBody, String> {
    fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(line).map_err(|error| reason(&error))
    }
    let netns = || needed("netns", netns);
    Ok(match record {
        RecordType::Start => OwnedBody::Start(read::<StartFields<'_>>(line)?.into_start()),
        RecordType::Namespace => {
            let fields: NamespaceFields<'_> = read(line)?;
            let is_new = fields.new;
            let settings = Box::new(fields.into_settings()?);
            OwnedBody::Namespace { netns: netns()?, settings, is_new }
        }
        RecordType::Held
        | RecordType::Bind
        | RecordType::Connect
        | RecordType::Established
        | RecordType::Accept
        | RecordType::Listen
        | RecordType::Update
        | RecordType::Closing
        | RecordType::TimeWait
        | RecordType::Release => {
            let fields: LeaseFields<'_> = read(line)?;
            let change = fields.change(record)?;
            let lease = Box::new(fields.lease(at, netns()?, change)?);
            OwnedBody::Lease { lease, change, cgroup: fields.cgroup() }
        }
        RecordType::Fail => {
            OwnedBody::Fail(Box::new(read::<LeaseFields<'_>>(line)?.failure(at, netns()?)?))
        }
        RecordType::Pressure => {
            OwnedBody::Pressure(read::<PressureFields>(line)?.into_pressure(at, netns()?))
        }
        RecordType::Scan => OwnedBody::Scan(read::<ScanFields>(line)?.into_scan(at, netns()?)),
        RecordType::Loss => OwnedBody::Loss(read::<LossFields<'_>>(line)?.into_loss()),
        RecordType::Verify => OwnedBody::Verify(read::<VerifyFields>(line)?.into_verify()),
        RecordType::Summary => OwnedBody::Summary(read::<SummaryFields<'_>>(line)?.into_summary()),
    })
}

/// serde's message without the number of the line, which is always 1.
fn reason(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Change, Port},
        record::Body,
    };

    const CONNECT: &str = r#"{"v":1,"type":"connect","time":"2026-01-02T03:04:05.000000006Z","mono_ns":7,"netns":4026531840,"lease":3,"cookie":9,"kind":"connect","family":"ipv4","local_addr":"10.0.0.1","local_port":40000,"peer_addr":"10.0.0.2","peer_port":80,"pid":12,"comm":"curl","uid":0,"cgroup":"/a","container":null,"search_us":4.5,"reuse":{"lease":1,"idle_s":0.5,"from_time_wait":false},"something_new":[1]}"#;

    fn error(line: &str) -> String {
        Line::parse(line.as_bytes()).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_record_is_read() {
        let line = Line::parse(CONNECT.as_bytes()).unwrap();
        line.record.expect("it is known").with(|record| {
            assert_eq!(record.at.ns(), 7);
            let Body::Lease { event, cgroup } = record.body else { panic!("{record:?}") };
            assert_eq!(event.lease.netns, Netns(4_026_531_840));
            assert_eq!(event.lease.local_port, Port(40_000));
            assert_eq!(event.lease.owner.as_ref().map(|owner| owner.pid), Some(12));
            assert_eq!(cgroup.map(|cgroup| cgroup.path.raw()), Some("/a"));
            let Change::Connect { search_ns, reuse } = event.change else { panic!("{event:?}") };
            assert_eq!(search_ns, Some(4_500));
            assert_eq!(reuse.map(|reuse| reuse.idle_ns), Some(500_000_000));
        });
    }

    #[test]
    fn unknown_types_are_skipped() {
        let line = r#"{"v":1,"type":"weather","time":"x","mono_ns":7}"#;
        assert!(Line::parse(line.as_bytes()).unwrap().record.is_none());
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let half = &CONNECT[..CONNECT.len() / 2];
        assert!(error(half).starts_with("expected a record, a JSON object"), "{}", error(half));
        assert_eq!(
            error(&CONNECT.replace("\"v\":1", "\"v\":2")),
            "expected records of version 1, found version 2"
        );
        assert_eq!(
            error(&CONNECT.replace("\"lease\":3,", "")),
            "expected a `connect` record: there is no `lease`"
        );
        assert_eq!(
            error(&CONNECT.replace("\"kind\":\"connect\"", "\"kind\":\"x\"")),
            "expected a `connect` record: `kind` is `x`, which is not known"
        );
        assert!(error(&CONNECT.replace("10.0.0.1", "10.0.0")).contains("IP address"));
        assert!(error("").starts_with("expected a record"));
    }
}
