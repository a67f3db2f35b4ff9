//! The answers of `portlife why`.

pub mod destination;
pub mod port;

use rustc_hash::FxHashMap;

use crate::{
    model::Lease,
    record::{Cgroup, json::Process},
    views::owner_name::OwnerName,
};

/// The cgroups of owners, by their ids.
#[derive(Debug)]
pub struct Cgroups(FxHashMap<u64, Option<Cgroup>>);

impl Cgroups {
    /// The cgroups of the owners of these leases. `find` is called once for each id.
    pub fn of<'a>(
        leases: impl Iterator<Item = &'a Lease>,
        find: impl Fn(u64) -> Option<Cgroup>,
    ) -> Self {
        let mut cgroups = FxHashMap::default();
        for owner in leases.filter_map(|lease| lease.owner.as_ref()) {
            cgroups.entry(owner.cgroup_id).or_insert_with_key(|id| find(*id));
        }
        Self(cgroups)
    }

    /// The cgroup of a lease's owner. `None` if it is not known.
    fn get(&self, lease: &Lease) -> Option<&Cgroup> {
        self.0.get(&lease.owner.as_ref()?.cgroup_id)?.as_ref()
    }

    /// The name of a lease's owner. `None` if it is not known.
    fn owner(&self, lease: &Lease) -> Option<OwnerName> {
        Some(OwnerName::of_process(lease.owner.as_ref()?, self.get(lease)))
    }

    /// A lease's owner, for JSON.
    fn process<'a>(&'a self, lease: &'a Lease) -> Process<'a> {
        Process { owner: lease.owner.as_deref(), cgroup: self.get(lease) }
    }
}
