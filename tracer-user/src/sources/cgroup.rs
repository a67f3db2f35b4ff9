//! The names of cgroups.

use crate::{
    kernel::host::cgroup::{CgroupRoot, container_of},
    record::Cgroup,
};

/// The cgroup with this id. `None` if it is gone.
pub(crate) fn by_id(root: &CgroupRoot, id: u64) -> Option<Cgroup> {
    let path = root.path_of(id)?;
    let container = container_of(&path).map(|id| id.to_owned().into());
    Some(Cgroup { path: path.into(), container })
}
