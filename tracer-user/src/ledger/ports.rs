//! Per namespace and port: who holds it now, and who held it last.

use rustc_hash::FxHashMap;

use super::types::{BucketClass, Instant, LeaseId, Netns, Port};

/// An end of a chain of leases.
pub const NONE: u32 = u32::MAX;

/// The latest release on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastUse {
    /// The lease that ended.
    pub lease: LeaseId,
    /// When it ended.
    pub released: Instant,
}

/// What is known of one port of one namespace.
#[derive(Clone, Copy, Debug)]
pub struct PortSlot {
    /// First of the chain of leases that hold the port now, or [`NONE`].
    pub first: u32,
    /// The latest release.
    pub last_use: Option<LastUse>,
    /// The class of the port's bucket, while somebody holds the port.
    pub class: BucketClass,
}

const EMPTY: PortSlot = PortSlot { first: NONE, last_use: None, class: BucketClass::Connect };
const PAGE_PORTS: usize = 256;
type Page = Box<[PortSlot; PAGE_PORTS]>;

/// All namespaces' ports. A namespace's table is allocated in pages of 256 ports, as they are
/// used: the whole range of one takes about 2 MB, an idle namespace nothing.
#[derive(Debug, Default)]
pub struct Ports {
    namespaces: FxHashMap<Netns, Vec<Option<Page>>>,
}

impl Ports {
    /// The slot of a port; empty if it was never used.
    #[must_use]
    pub fn get(&self, netns: Netns, port: Port) -> PortSlot {
        let (page, index) = place(port);
        self.namespaces
            .get(&netns)
            .and_then(|pages| pages.get(page)?.as_ref()?.get(index))
            .copied()
            .unwrap_or(EMPTY)
    }

    /// The slot of a port, to write to.
    pub fn get_mut(&mut self, netns: Netns, port: Port) -> &mut PortSlot {
        let (page, index) = place(port);
        let pages = self.namespaces.entry(netns).or_default();
        if pages.len() <= page {
            pages.resize_with(page + 1, || None);
        }
        // Both indices are in range: `page` by the resize, `index` by its type's eight bits.
        &mut pages[page].get_or_insert_with(|| Box::new([EMPTY; PAGE_PORTS]))[index]
    }
}

fn place(port: Port) -> (usize, usize) {
    let [page, index] = port.0.to_be_bytes();
    (usize::from(page), usize::from(index))
}
