//! The answers of `portlife why`.

pub mod destination;
pub mod port;

use crate::{model::Lease, record::Cgroup, views::owner_name::OwnerName};

/// Finds the cgroup with an id.
pub type CgroupOf<'a> = &'a dyn Fn(u64) -> Option<Cgroup>;

/// The cgroup of a lease's owner.
fn cgroup(lease: &Lease, cgroup_of: CgroupOf<'_>) -> Option<Cgroup> {
    cgroup_of(lease.owner.as_ref()?.cgroup_id)
}

/// The name of a lease's owner. `None` if it is not known.
fn owner(lease: &Lease, cgroup_of: CgroupOf<'_>) -> Option<OwnerName> {
    let owner = lease.owner.as_ref()?;
    Some(OwnerName::of_process(owner, cgroup_of(owner.cgroup_id).as_ref()))
}
