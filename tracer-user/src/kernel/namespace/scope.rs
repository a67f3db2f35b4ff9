//! Which network namespaces are traced.

use tracer_ebpf::MAX_NETNS_WANTED;

use crate::model::Netns;

/// The network namespaces that the programs report and that snapshots show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope([u32; MAX_NETNS_WANTED]);

impl Scope {
    /// These namespaces. All namespaces if the list is empty, or longer than the programs' own.
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
