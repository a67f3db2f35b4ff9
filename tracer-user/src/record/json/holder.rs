//! The identity of a lease, for records that serde writes.

use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use tracer_ebpf::Owner;

use crate::{
    model::{Addr, Family, Kind, Lease, Phase},
    record::{Cgroup, comm, names::Named},
};

/// The fields that identify a lease or the socket of a failed call.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Identity<'a> {
    /// `None` for a failed call.
    pub(super) lease: Option<u64>,
    pub(super) cookie: u64,
    #[serde(serialize_with = "name")]
    pub(super) kind: Kind,
    #[serde(serialize_with = "name")]
    pub(super) family: Family,
    pub(super) local_addr: Addr,
    /// `None` for a failed call that asked for any port.
    pub(super) local_port: Option<u16>,
    pub(super) peer_addr: Option<Addr>,
    pub(super) peer_port: Option<u16>,
    #[serde(flatten)]
    pub(super) process: Process<'a>,
}

impl<'a> Identity<'a> {
    /// The identity of a lease, whose owner is in this cgroup.
    #[inline]
    pub(super) fn of(lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Self {
        Self {
            lease: Some(lease.id.0),
            cookie: lease.cookie.0,
            kind: lease.kind,
            family: lease.family,
            local_addr: lease.local_addr,
            local_port: Some(lease.local_port.0),
            peer_addr: lease.peer.get().map(|(addr, _)| addr),
            peer_port: lease.peer.get().map(|(_, port)| port.0),
            process: Process { owner: lease.owner.as_deref(), cgroup },
        }
    }
}

/// The process that holds a port, or that called.
#[derive(Clone, Copy)]
pub(crate) struct Process<'a> {
    /// `None` if it was not seen.
    pub(crate) owner: Option<&'a Owner>,
    /// Its cgroup; `None` if that is not known.
    pub(crate) cgroup: Option<&'a Cgroup>,
}

impl Serialize for Process<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { owner, cgroup } = *self;
        let mut process = serializer.serialize_struct("Process", 5)?;
        process.serialize_field("pid", &owner.map(|owner| owner.pid))?;
        process.serialize_field("comm", &owner.map(|owner| comm(&owner.comm)))?;
        process.serialize_field("uid", &owner.map(|owner| owner.uid))?;
        process.serialize_field("cgroup", &cgroup.map(|cgroup| &cgroup.path))?;
        let container = cgroup.and_then(|cgroup| cgroup.container.as_ref());
        process.serialize_field("container", &container)?;
        process.end()
    }
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.ip().serialize(serializer)
    }
}

/// The lease that is in the way of a call.
#[derive(Serialize)]
pub(crate) struct Holder<'a> {
    #[serde(flatten)]
    identity: Identity<'a>,
    #[serde(serialize_with = "name")]
    phase: Phase,
    free_in_s: Option<f64>,
}

impl<'a> Holder<'a> {
    /// The lease in the way, whose owner is in this cgroup. `free_in_s` is the time until it
    /// releases its port, seconds; `None` if that is not settled.
    pub(crate) fn of(lease: &'a Lease, cgroup: Option<&'a Cgroup>, free_in_s: Option<f64>) -> Self {
        Self { identity: Identity::of(lease, cgroup), phase: lease.phase, free_in_s }
    }
}

/// Serializes a value as its name.
fn name<T: Named, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.name())
}
