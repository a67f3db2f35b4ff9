//! Per namespace and port: the leases on it now, and the latest release.
//!
//! The number of leases is bounded by the number of sockets. The number of latest releases is not:
//! namespaces come and go, and no hook shows the end of one. It is therefore limited, and the
//! oldest are forgotten first.

use std::{collections::VecDeque, num::NonZeroU64};

use rustc_hash::FxHashMap;

use super::LeaseIndex;
use crate::model::{BucketClass, Incarnation, Instant, LeaseId, Netns, Port};

/// The latest release on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastUse {
    /// The lease that ended.
    pub lease: LeaseId,
    /// When it ended.
    pub released: Instant,
}

/// The holders of one port of one namespace.
#[derive(Clone, Copy, Debug)]
pub struct PortSlot {
    /// First of the chain of leases that hold the port now.
    pub first: Option<LeaseIndex>,
    /// The class of the port's bucket, while the port is held.
    pub class: BucketClass,
}

/// A [`PortSlot`] as it is kept, in 4 bytes: the class is the highest bit.
#[derive(Clone, Copy, Debug)]
struct Slot(u32);

impl Slot {
    const BIND: u32 = 1 << 31;
    const EMPTY: Self = Self(0);

    fn unpack(self) -> PortSlot {
        PortSlot {
            first: LeaseIndex::from_bits(self.0 & !Self::BIND),
            class: if self.0 & Self::BIND == 0 { BucketClass::Connect } else { BucketClass::Bind },
        }
    }

    fn set_first(&mut self, first: Option<LeaseIndex>) {
        self.0 = self.0 & Self::BIND | first.map_or(0, LeaseIndex::to_bits);
    }

    fn set_class(&mut self, class: BucketClass) {
        match class {
            BucketClass::Connect => self.0 &= !Self::BIND,
            BucketClass::Bind => self.0 |= Self::BIND,
        }
    }
}

const _: () = assert!(LeaseIndex::MAX_BITS < Slot::BIND);

/// A [`LastUse`] as it is kept, in 16 bytes.
#[derive(Clone, Copy, Debug)]
struct PastUse {
    lease: NonZeroU64,
    released: Instant,
}

const _: () = assert!(size_of::<Option<PastUse>>() == 16);

const PAGE_PORTS: usize = 256;
/// Maximum number of pages without a held port that are kept for the latest releases on them: 10
/// MB.
const MAX_IDLE_PAGES: usize = 2048;

/// The ports of all namespaces. A namespace's table is allocated in pages of 256 ports, as they are
/// used: the whole range takes about 0.3 MB, and 1 MB more once its ports were released; an idle
/// namespace takes nothing.
#[derive(Debug, Default)]
pub struct Ports {
    namespaces: FxHashMap<Netns, Namespace>,
    /// Pages that became idle, in this order. They may be in use again.
    idle: VecDeque<(Netns, usize)>,
}

#[derive(Debug, Default)]
struct Namespace {
    /// `None` until an observation has shown it.
    incarnation: Option<Incarnation>,
    pages: Vec<Option<Box<Page>>>,
    allocated: usize,
}

#[derive(Debug)]
struct Page {
    slots: [Slot; PAGE_PORTS],
    /// The latest releases, from the first one on.
    past: Option<Box<[Option<PastUse>; PAGE_PORTS]>>,
    /// Leases on these ports.
    leases: usize,
    /// True if it is listed in [`Ports::idle`].
    is_listed: bool,
    /// True if it was in use since it was listed there or last inspected.
    was_used: bool,
}

impl Page {
    const NEW: Self = Self {
        slots: [Slot::EMPTY; PAGE_PORTS],
        past: None,
        leases: 0,
        is_listed: false,
        was_used: false,
    };
}

impl Ports {
    /// The holders of a port.
    #[must_use]
    pub fn get(&self, netns: Netns, port: Port) -> PortSlot {
        let (page, index) = self.find(netns, port);
        page.and_then(|page| page.slots.get(index)).copied().unwrap_or(Slot::EMPTY).unpack()
    }

    /// The latest release on a port. `None` if it is not known.
    #[must_use]
    pub fn last_use(&self, netns: Netns, port: Port) -> Option<LastUse> {
        let (page, index) = self.find(netns, port);
        let PastUse { lease, released } = (*page?.past.as_ref()?.get(index)?)?;
        Some(LastUse { lease: LeaseId(lease.get()), released })
    }

    fn find(&self, netns: Netns, port: Port) -> (Option<&Page>, usize) {
        let (number, index) = place(port);
        let pages = self.namespaces.get(&netns).map(|namespace| &namespace.pages);
        (pages.and_then(|pages| pages.get(number)?.as_deref()), index)
    }

    /// The first leases of the chains of all ports of a namespace that are held.
    pub fn chains_of(&self, netns: Netns) -> impl Iterator<Item = LeaseIndex> {
        let pages = self.namespaces.get(&netns).map(|namespace| &namespace.pages);
        pages
            .into_iter()
            .flatten()
            .flatten()
            .filter(|page| page.leases > 0)
            .flat_map(|page| page.slots.iter().filter_map(|slot| slot.unpack().first))
    }

    /// Records that a lease begins on a port, as the first of the port's chain.
    pub fn hold(&mut self, netns: Netns, port: Port, lease: LeaseIndex) {
        let (page, index) = place(port);
        let page = self.namespaces.entry(netns).or_default().page_mut(page);
        page.leases += 1;
        page.slots[index].set_first(Some(lease));
    }

    /// Records the class of the bucket of a port that is held.
    pub fn set_class(&mut self, netns: Netns, port: Port, class: BucketClass) {
        let (page, index) = place(port);
        self.namespaces.entry(netns).or_default().page_mut(page).slots[index].set_class(class);
    }

    /// Records that a lease ends. `first` is now the first of the port's chain.
    pub fn release(
        &mut self,
        netns: Netns,
        port: Port,
        last_use: LastUse,
        first: Option<LeaseIndex>,
    ) {
        let (number, index) = place(port);
        let page = self.namespaces.entry(netns).or_default().page_mut(number);
        page.leases = page.leases.saturating_sub(1);
        page.slots[index].set_first(first);
        let past = page.past.get_or_insert_with(|| Box::new([None; PAGE_PORTS]));
        let LastUse { lease: LeaseId(lease), released } = last_use;
        // Leases are counted from 1.
        past[index] = NonZeroU64::new(lease).map(|lease| PastUse { lease, released });
        if page.leases > 0 {
            return;
        }
        page.was_used = page.is_listed;
        if !page.is_listed {
            page.is_listed = true;
            self.idle.push_back((netns, number));
            while self.idle.len() > MAX_IDLE_PAGES {
                self.forget_a_page();
            }
        }
    }

    /// Records which namespace has this inode, and forgets the earlier uses of its ports if another
    /// namespace had it before.
    pub fn set_incarnation(&mut self, netns: Netns, incarnation: Incarnation) {
        let namespace = self.namespaces.entry(netns).or_default();
        let before = namespace.incarnation.replace(incarnation);
        if before == Some(incarnation) {
            return;
        }
        let is_held = namespace.pages.iter().flatten().any(|page| page.leases > 0);
        if before.is_none() && is_held {
            // While a port is held in it, no other namespace can have its inode.
            return;
        }
        for place in &mut namespace.pages {
            match place {
                Some(page) if page.leases > 0 => page.past = None,
                Some(_) => {
                    *place = None;
                    namespace.allocated -= 1;
                }
                None => {}
            }
        }
    }

    /// Removes the page that has been idle for the longest time from the list, and forgets it
    /// unless it was in use since then.
    fn forget_a_page(&mut self) {
        let Some((netns, number)) = self.idle.pop_front() else { return };
        let Some(namespace) = self.namespaces.get_mut(&netns) else { return };
        let Some(place) = namespace.pages.get_mut(number) else { return };
        match place {
            Some(page) if page.leases > 0 => page.is_listed = false,
            Some(page) if page.was_used => {
                page.was_used = false;
                self.idle.push_back((netns, number));
            }
            Some(_) => {
                *place = None;
                namespace.allocated -= 1;
                if namespace.allocated == 0 {
                    self.namespaces.remove(&netns);
                }
            }
            // Its namespace is gone.
            None => {}
        }
    }
}

impl Namespace {
    fn page_mut(&mut self, number: usize) -> &mut Page {
        if self.pages.len() <= number {
            self.pages.resize_with(number + 1, || None);
        }
        // In range by the resize.
        let place = &mut self.pages[number];
        if place.is_none() {
            self.allocated += 1;
        }
        place.get_or_insert_with(|| Box::new(Page::NEW))
    }
}

/// The number of a port's page, and its index there, which is in range by its eight bits.
fn place(port: Port) -> (usize, usize) {
    let [page, index] = port.0.to_be_bytes();
    (usize::from(page), usize::from(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Port = Port(40_000);

    fn use_port(ports: &mut Ports, netns: u32, port: Port, lease: u64) {
        ports.hold(Netns(netns), port, LeaseIndex::from_slot(0));
        let last_use = LastUse { lease: LeaseId(lease), released: Instant::from_ns(lease) };
        ports.release(Netns(netns), port, last_use, None);
    }

    fn last_lease(ports: &Ports, netns: u32, port: Port) -> Option<u64> {
        ports.last_use(Netns(netns), port).map(|last| last.lease.0)
    }

    fn pages(ports: &Ports) -> usize {
        ports.namespaces.values().flat_map(|namespace| &namespace.pages).flatten().count()
    }

    #[test]
    fn what_namespaces_leave_behind_is_bounded() {
        let mut ports = Ports::default();
        ports.hold(Netns(1), PORT, LeaseIndex::from_slot(7));
        for netns in 2..100_000 {
            use_port(&mut ports, netns, PORT, u64::from(netns));
        }
        assert_eq!(pages(&ports), MAX_IDLE_PAGES + 1);
        assert_eq!(ports.namespaces.len(), MAX_IDLE_PAGES + 1);
        assert_eq!(
            ports.get(Netns(1), PORT).first,
            Some(LeaseIndex::from_slot(7)),
            "what is held is never forgotten"
        );
        assert_eq!(last_lease(&ports, 99_999, PORT), Some(99_999));
        assert_eq!(last_lease(&ports, 2, PORT), None);
    }

    #[test]
    fn a_port_in_use_now_and_then_is_remembered() {
        let mut ports = Ports::default();
        for netns in 2..100_000 {
            if netns % 1000 == 0 {
                use_port(&mut ports, 1, PORT, u64::from(netns));
            }
            use_port(&mut ports, netns, PORT, 1);
            assert!(netns < 1000 || last_lease(&ports, 1, PORT).is_some());
        }
        assert!(ports.idle.len() <= MAX_IDLE_PAGES);
    }

    #[test]
    fn a_namespace_does_not_inherit_from_the_one_that_had_its_inode() {
        let mut ports = Ports::default();
        let [first, second] =
            [1, 2].map(|cookie| Incarnation::from_cookie(cookie).expect("the cookie is not 0"));
        ports.set_incarnation(Netns(1), first);
        use_port(&mut ports, 1, PORT, 5);
        ports.set_incarnation(Netns(1), first);
        assert_eq!(last_lease(&ports, 1, PORT), Some(5));
        ports.set_incarnation(Netns(1), second);
        assert_eq!(last_lease(&ports, 1, PORT), None);
        // Which one it is has not been seen yet: while a port is held it cannot be another.
        ports.hold(Netns(2), Port(80), LeaseIndex::from_slot(1));
        use_port(&mut ports, 2, PORT, 6);
        ports.set_incarnation(Netns(2), first);
        assert_eq!(last_lease(&ports, 2, PORT), Some(6));
        use_port(&mut ports, 3, PORT, 7);
        ports.set_incarnation(Netns(3), first);
        assert_eq!(last_lease(&ports, 3, PORT), None);
    }
}
