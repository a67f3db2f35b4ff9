//! The fields of the records about leases and failures, as the reader takes them and the writer
//! names them.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use serde::{Deserialize, de::IgnoredAny};
use tracer_ebpf::Owner;

use super::fields::{RangeFields, earlier, named, nanoseconds_of_s, nanoseconds_of_us, needed};
use crate::{
    capacity::Advice,
    model::{
        Addr, BucketClass, Cause, Change, Cookie, Failure, Instant, Lease, LeaseId, Netns,
        Operation, Peer, Phase, Port, Reuse, Substate, TIME_WAIT_S,
    },
    record::{Cgroup, RecordType, names::Named as _, owned::OwnedFailure},
};

/// All fields of the records about leases and failures; a record has those of its type.
#[derive(Deserialize)]
pub(super) struct LeaseFields<'a> {
    pub(super) lease: Option<u64>,
    pub(super) cookie: Option<u64>,
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) family: Cow<'a, str>,
    pub(super) local_addr: IpAddr,
    pub(super) local_port: Option<u16>,
    pub(super) peer_addr: Option<IpAddr>,
    pub(super) peer_port: Option<u16>,
    pub(super) pid: Option<u32>,
    #[serde(borrow)]
    pub(super) comm: Option<Cow<'a, str>>,
    pub(super) uid: Option<u32>,
    #[serde(borrow)]
    pub(super) cgroup: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) container: Option<Cow<'a, str>>,

    #[serde(borrow)]
    pub(super) phase: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) substate: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) by: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) closed_by: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) reason: Option<Cow<'a, str>>,
    pub(super) timestamps: Option<bool>,
    #[serde(borrow)]
    pub(super) bucket: Option<Cow<'a, str>>,
    pub(super) age_s: Option<f64>,
    pub(super) held_s: Option<f64>,
    pub(super) established_s: Option<f64>,
    pub(super) time_wait_s: Option<f64>,
    pub(super) search_us: Option<f64>,
    pub(super) handshake_us: Option<f64>,
    pub(super) listener: Option<u64>,
    pub(super) reuse: Option<ReuseFields>,

    #[serde(borrow)]
    pub(super) op: Option<Cow<'a, str>>,
    pub(super) errno: Option<i32>,
    /// The name of `errno`.
    pub(super) error: Option<IgnoredAny>,
    /// The same as `local_addr`.
    pub(super) requested_addr: Option<IgnoredAny>,
    pub(super) requested_port: Option<u16>,
    #[serde(borrow)]
    pub(super) cause: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) holder: Option<Box<LeaseFields<'a>>>,
    /// Of a holder.
    pub(super) free_in_s: Option<f64>,
    pub(super) holder_ports: Option<u32>,
    pub(super) range: Option<RangeFields>,
    pub(super) own_range: Option<[u16; 2]>,
    #[serde(borrow)]
    pub(super) advice: Option<Cow<'a, str>>,
}

/// The fields of `reuse`.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct ReuseFields {
    #[serde(default)]
    pub(super) lease: u64,
    pub(super) idle_s: f64,
    pub(super) from_time_wait: bool,
}

impl From<ReuseFields> for Reuse {
    fn from(fields: ReuseFields) -> Self {
        let ReuseFields { lease, idle_s, from_time_wait } = fields;
        Self { previous: LeaseId(lease), idle_ns: nanoseconds_of_s(idle_s), from_time_wait }
    }
}

impl LeaseFields<'_> {
    /// The change that a record of this type reports.
    ///
    /// # Errors
    /// If a field that the type needs is missing, or the type is not that of a change.
    pub(super) fn change(&self, record: RecordType) -> Result<Change, String> {
        Ok(match record {
            RecordType::Held => Change::Held { bucket: self.bucket()? },
            RecordType::Bind => Change::Bind {
                requested_port: self.requested_port.unwrap_or_default(),
                reuse: self.reuse.map(Into::into),
            },
            RecordType::Connect => Change::Connect {
                search_ns: self.search_us.map(nanoseconds_of_us),
                reuse: self.reuse.map(Into::into),
            },
            RecordType::Established => {
                Change::Established { handshake_ns: self.handshake_us.map(nanoseconds_of_us) }
            }
            RecordType::Accept => Change::Accept { listener: self.listener.map(Cookie) },
            RecordType::Listen => Change::Listen,
            RecordType::Update => Change::Update { bucket: self.bucket()? },
            RecordType::Closing => {
                Change::Closing { by: named(needed("by", self.by.as_deref())?)? }
            }
            RecordType::TimeWait => {
                Change::TimeWait(named(needed("substate", self.substate.as_deref())?)?)
            }
            RecordType::Release => {
                Change::Release { reason: named(needed("reason", self.reason.as_deref())?)? }
            }
            _ => return Err("it reports no change of a lease".to_owned()),
        })
    }

    /// The class of the port's bucket. `None` if the record does not say it.
    fn bucket(&self) -> Result<Option<BucketClass>, String> {
        self.bucket.as_deref().map(named).transpose()
    }

    /// The lease as it is after a change, as far as the record says.
    pub(super) fn lease(&self, at: Instant, netns: Netns, change: Change) -> Result<Lease, String> {
        let id = LeaseId(needed("lease", self.lease)?);
        let phase = match change {
            Change::Held { .. } | Change::Update { .. } => self.phase()?,
            Change::Bind { .. } => Phase::Bound,
            Change::Connect { .. } => Phase::Connecting,
            Change::Established { .. } | Change::Accept { .. } => Phase::Established,
            Change::Listen => Phase::Listen,
            Change::Closing { .. } | Change::Release { .. } => Phase::Closing,
            Change::TimeWait(substate) => Phase::TimeWait(substate),
        };
        let lease = self.lease_in(phase, id, netns)?;
        let before = |by_s: Option<f64>| by_s.map(|by_s| earlier(at, by_s));
        Ok(match change {
            Change::Held { .. } => Lease { acquired: before(self.age_s), ..lease },
            Change::Bind { .. } | Change::Connect { .. } => Lease { acquired: Some(at), ..lease },
            Change::Established { .. } => Lease { established: Some(at), ..lease },
            Change::Accept { .. } => Lease { acquired: Some(at), established: Some(at), ..lease },
            Change::Listen | Change::Update { .. } => lease,
            Change::Closing { by } => Lease { closing: Some(at), closed_by: Some(by), ..lease },
            Change::TimeWait(_) => Lease { time_wait: Some(at), ..lease },
            Change::Release { .. } => {
                let time_wait = before(self.time_wait_s);
                // The record does not say when the first FIN was seen. Without that instant, the
                // connection ended when the TIME_WAIT began, or now.
                let ended = time_wait.unwrap_or(at);
                Lease {
                    acquired: before(self.held_s),
                    established: self.established_s.map(|by_s| earlier(ended, by_s)),
                    time_wait,
                    ..lease
                }
            }
        })
    }

    /// The lease that is in the way of a call at this time.
    fn holder(&self, at: Instant, netns: Netns) -> Result<Lease, String> {
        let id = LeaseId(self.lease.unwrap_or_default());
        let lease = self.lease_in(self.phase()?, id, netns)?;
        let elapsed_s = self.free_in_s.map(|free_in_s| f64::from(TIME_WAIT_S) - free_in_s);
        Ok(Lease { timer_armed: elapsed_s.map(|elapsed_s| earlier(at, elapsed_s)), ..lease })
    }

    /// The lease without its instants.
    fn lease_in(&self, phase: Phase, id: LeaseId, netns: Netns) -> Result<Lease, String> {
        Ok(Lease {
            id,
            cookie: Cookie(self.cookie.unwrap_or_default()),
            netns,
            kind: named(&self.kind)?,
            family: named(&self.family)?,
            v6_only: false,
            local_addr: self.local_addr.into(),
            local_port: Port(needed("local_port", self.local_port)?),
            peer: Peer::from(self.peer()),
            phase,
            owner: self.owner().map(Arc::new),
            acquired: None,
            established: None,
            closing: None,
            closed_by: self.closed_by.as_deref().map(named).transpose()?,
            time_wait: None,
            timer_armed: None,
            has_timestamps: self.timestamps,
        })
    }

    fn phase(&self) -> Result<Phase, String> {
        let phase = named(needed("phase", self.phase.as_deref())?)?;
        Ok(match (phase, self.substate.as_deref()) {
            (Phase::TimeWait(_), Some(name)) => Phase::TimeWait(named::<Substate>(name)?),
            (phase, _) => phase,
        })
    }

    fn peer(&self) -> Option<(Addr, Port)> {
        let (addr, port) = self.peer_addr.zip(self.peer_port)?;
        Some((addr.into(), Port(port)))
    }

    fn owner(&self) -> Option<Owner> {
        let (pid, name) = (self.pid?, self.comm.as_deref()?);
        /// Written in place of bytes that are not UTF-8. Read as a single such byte, it takes no
        /// more room than they did, and is written alike.
        const INVALID: &str = "\u{fffd}";
        let parts = name.split(INVALID).map(str::as_bytes);
        let bytes = parts.enumerate().flat_map(|(index, part)| {
            let between: &[u8] = if index == 0 { &[] } else { &[0xff] };
            between.iter().chain(part)
        });
        let mut comm = [0; 16];
        for (to, from) in comm.iter_mut().zip(bytes) {
            *to = *from;
        }
        Some(Owner { pid, uid: self.uid.unwrap_or_default(), cgroup_id: 0, comm })
    }

    /// The cgroup of the owner.
    pub(super) fn cgroup(&self) -> Option<Cgroup> {
        let path = self.cgroup.as_deref()?.to_owned();
        let container = self.container.as_deref().map(|id| id.to_owned().into());
        Some(Cgroup { path: path.into(), container })
    }

    /// The failure of a record that has that type.
    pub(super) fn failure(&self, at: Instant, netns: Netns) -> Result<OwnedFailure, String> {
        let holder = self.holder.as_deref();
        let is_advised = |advice: Advice| self.advice.as_deref() == Some(advice.name());
        let failure = Failure {
            at,
            netns,
            cookie: Cookie(self.cookie.unwrap_or_default()),
            family: named(&self.family)?,
            owner: self.owner(),
            operation: named::<Operation>(needed("op", self.op.as_deref())?)?,
            errno: needed("errno", self.errno)?,
            local_addr: self.local_addr.into(),
            local_port: self.requested_port.unwrap_or_default(),
            peer: self.peer(),
            // A later version may know further causes.
            cause: self.cause.as_deref().map(|name| Cause::from_name(name).unwrap_or(Cause::Other)),
            holder: None,
            holder_ports: self.holder_ports,
            range: self.range.map(Into::into),
            own_range: self.own_range.map(|[low, high]| (Port(low), Port(high))),
            // Only the advice depends on it.
            is_of_range: is_advised(Advice::ReservePort),
            search_ns: self.search_us.map(nanoseconds_of_us),
        };
        Ok(OwnedFailure {
            failure,
            cgroup: self.cgroup(),
            holder: holder.map(|holder| holder.holder(at, netns)).transpose()?,
            holder_cgroup: holder.and_then(Self::cgroup),
        })
    }
}
