//! How views name a process.

use std::fmt;

use serde::Serialize;
use tracer_ebpf::Owner;

use crate::{
    foreign::Foreign,
    record::{Cgroup, comm},
};

/// The name of a process: command, pid and container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct OwnerName {
    /// `None` if the name stands for several processes.
    pub pid: Option<u32>,
    /// The name of the command (`comm`).
    pub comm: Foreign<'static>,
    /// The container's id. `None` outside of containers.
    pub container: Option<Foreign<'static>>,
}

impl OwnerName {
    /// The name of a process in a cgroup.
    #[must_use]
    pub fn of_process(owner: &Owner, cgroup: Option<&Cgroup>) -> Self {
        Self {
            pid: Some(owner.pid),
            comm: comm(&owner.comm).into_owned(),
            container: cgroup.and_then(|cgroup| cgroup.container.clone()),
        }
    }
}

impl fmt::Display for OwnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, comm, container } = self;
        write!(f, "{comm}")?;
        if let Some(pid) = pid {
            write!(f, "[{pid}]")?;
        }
        if let Some(container) = container {
            // As container tools abbreviate them.
            write!(f, " in {}", container.first(12))?;
        }
        Ok(())
    }
}
