//! Which network namespaces are looked at.

use tracer_ebpf::MAX_NETNS_WANTED;

use crate::model::Netns;

/// The network namespaces that the programs report and that snapshots show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope([u32; MAX_NETNS_WANTED]);

impl Scope {
    /// These namespaces; all if there are none of them, or more than the programs can tell apart.
    #[must_use]
    pub fn of(namespaces: &[Netns]) -> Self {
        let mut inodes = [0; MAX_NETNS_WANTED];
        if namespaces.len() <= MAX_NETNS_WANTED {
            for (inode, netns) in inodes.iter_mut().zip(namespaces) {
                *inode = netns.0;
            }
        }
        Self(inodes)
    }

    /// Their inodes, zero-padded, for the programs.
    #[cfg(feature = "programs")]
    pub(crate) fn inodes(self) -> [u32; MAX_NETNS_WANTED] {
        self.0
    }

    /// True if this namespace is reported.
    #[must_use]
    pub(crate) fn contains(self, netns: Netns) -> bool {
        self == Self::default() || self.0.contains(&netns.0)
    }
}
