//! The fields of a process, kept as text: a host has few processes beside its connections.

use tracer_ebpf::Owner;

use super::{
    append::{AsSerde, append},
    lease_fields::LeaseFields,
};
use crate::record::{Cgroup, comm};

/// The text of the processes that were written last.
#[derive(Debug)]
pub(super) struct Owners {
    slots: Vec<Slot>,
}

/// A process and its text.
#[derive(Clone, Debug, Default)]
struct Slot {
    owner: Option<Owner>,
    cgroup: Option<Cgroup>,
    /// Empty before the first use.
    text: Vec<u8>,
}

impl Owners {
    /// A process's slot is its id modulo this, so that a server's workers, whose ids follow one
    /// another, have one each.
    const SLOTS: usize = 256;

    /// Appends the fields of a process, null where it is not known.
    #[inline]
    pub(super) fn append(
        &mut self,
        owner: Option<&Owner>,
        cgroup: Option<&Cgroup>,
        bytes: &mut Vec<u8>,
    ) {
        let slot = &mut self.slots[owner.map_or(0, |owner| owner.pid as usize % Self::SLOTS)];
        let is_same = slot.owner.as_ref() == owner && slot.cgroup.as_ref() == cgroup;
        if slot.text.is_empty() || !is_same {
            slot.replace(owner, cgroup);
        }
        bytes.extend_from_slice(&slot.text);
    }
}

impl Default for Owners {
    fn default() -> Self {
        Self { slots: vec![Slot::default(); Self::SLOTS] }
    }
}

impl Slot {
    #[cold]
    fn replace(&mut self, owner: Option<&Owner>, cgroup: Option<&Cgroup>) {
        self.owner = owner.copied();
        if self.cgroup.as_ref() != cgroup {
            self.cgroup = cgroup.cloned();
        }
        self.text.clear();
        append!(
            &mut self.text,
            LeaseFields<'_> {
                pid: owner.map(|owner| owner.pid),
                comm: AsSerde(owner.map(|owner| comm(&owner.comm))),
                uid: owner.map(|owner| owner.uid),
                cgroup: AsSerde(cgroup.map(|cgroup| &cgroup.path)),
                container: AsSerde(cgroup.and_then(|cgroup| cgroup.container.as_ref())),
            }
        );
    }
}
