//! The table of leases, and the chains by which they are found.

use std::ops::{Index, IndexMut};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::{
    LeaseIndex,
    cookies::ByCookie,
    entry::{Entry, Holders, NewLease, SnapshotNumber},
    keys::{Claim, ConnectionKey},
    ports::{LastUse, PortSlot, Ports},
};
use crate::model::{
    Addr, BucketClass, Cookie, Family, Incarnation, Instant, Lease, LeaseId, Netns, Phase, Port,
    Reuse,
};

/// All leases. Each is in the chain of its socket's cookie, in which a socket's own lease and those
/// of the TIME_WAITs that it left behind follow one another, and in the chain of its port.
#[derive(Debug)]
pub(in crate::ledger) struct Leases {
    entries: Slab<Entry>,
    by_cookie: ByCookie,
    ports: Ports,
    listeners: FxHashMap<(Netns, Port), Vec<LeaseIndex>>,
    next_id: LeaseId,
}

impl Default for Leases {
    fn default() -> Self {
        Self {
            entries: Slab::new(),
            by_cookie: ByCookie::default(),
            ports: Ports::default(),
            listeners: FxHashMap::default(),
            next_id: LeaseId(1),
        }
    }
}

impl Index<LeaseIndex> for Leases {
    type Output = Entry;

    fn index(&self, index: LeaseIndex) -> &Entry {
        &self.entries[index.slot()]
    }
}

impl IndexMut<LeaseIndex> for Leases {
    fn index_mut(&mut self, index: LeaseIndex) -> &mut Entry {
        &mut self.entries[index.slot()]
    }
}

// Finding leases.
impl Leases {
    /// Number of leases.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Every [slot](LeaseIndex::slot) is below this number.
    pub fn slots(&self) -> usize {
        self.entries.capacity()
    }

    /// All leases, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseIndex, &Entry)> {
        self.entries.iter().map(|(slot, entry)| (LeaseIndex::from_slot(slot), entry))
    }

    /// All leases, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().map(|(_, entry)| entry)
    }

    /// The lease of this number, if it is still there.
    pub fn live(&self, index: LeaseIndex, id: LeaseId) -> Option<&Entry> {
        self.entries.get(index.slot()).filter(|entry| entry.lease.id == id)
    }

    /// The lease at this place, whichever it is now.
    pub fn get(&self, index: LeaseIndex) -> Option<&Entry> {
        self.entries.get(index.slot())
    }

    /// The leases on a port.
    #[inline]
    pub fn on_port(&self, netns: Netns, port: Port) -> impl Iterator<Item = (LeaseIndex, &Entry)> {
        self.chain(self.ports.get(netns, port).first, |entry| entry.next_of_port)
    }

    /// Calls this for each lease on a port, of which it may change everything but the links.
    pub fn for_each_on_port(
        &mut self,
        netns: Netns,
        port: Port,
        mut change: impl FnMut(LeaseIndex, &mut Entry),
    ) {
        let mut next = self.ports.get(netns, port).first;
        while let Some(index) = next {
            let entry = &mut self[index];
            next = entry.next_of_port;
            change(index, entry);
        }
    }

    /// The leases of a namespace.
    pub fn in_netns(&self, netns: Netns) -> impl Iterator<Item = (LeaseIndex, &Entry)> {
        self.ports
            .chains_of(netns)
            .flat_map(|first| self.chain(Some(first), |entry| entry.next_of_port))
    }

    /// The lease that a socket itself holds.
    pub fn of_socket(&self, cookie: Cookie) -> Option<LeaseIndex> {
        self.of_cookie(cookie).find(|(_, entry)| entry.holders.has_socket()).map(|(index, _)| index)
    }

    /// The lease that a TIME_WAIT holds.
    pub fn of_time_wait(&self, cookie: Cookie, key: &ConnectionKey) -> Option<LeaseIndex> {
        self.of_cookie(cookie)
            .find(|(_, entry)| {
                entry.holders.has_time_wait()
                    && ConnectionKey::of_lease(&entry.lease).as_ref() == Some(key)
            })
            .map(|(index, _)| index)
    }

    /// The listener that a connection to this address belongs to. `None` if there is none, or if
    /// several share the address.
    pub fn listener_of(
        &self,
        netns: Netns,
        port: Port,
        family: Family,
        local: Addr,
    ) -> Option<LeaseIndex> {
        let listeners = self.listeners.get(&(netns, port))?;
        // A child is of its listener's family, also if its addresses are IPv4-mapped.
        let candidates = |is_match: fn(Addr, Addr) -> bool| {
            listeners.iter().copied().filter(move |listener| {
                let lease = &self[*listener].lease;
                lease.family == family && is_match(lease.local_addr, local)
            })
        };
        let mut exact = candidates(|listening, local| listening == local);
        if let Some(first) = exact.next() {
            return exact.next().is_none().then_some(first);
        }
        let mut wildcard = candidates(|listening, _| listening.is_unspecified());
        let first = wildcard.next()?;
        wildcard.next().is_none().then_some(first)
    }

    /// True if a socket listens on the port.
    pub fn has_listener(&self, netns: Netns, port: Port) -> bool {
        self.listeners.contains_key(&(netns, port))
    }

    /// The lease that keeps a socket from binding this address and port. `of` is the cookie of that
    /// socket, whose own leases do not count.
    pub fn in_the_way(
        &self,
        netns: Netns,
        port: Port,
        claim: Claim,
        of: Cookie,
    ) -> Option<LeaseIndex> {
        // A listener or bound socket is what the user looks for, rather than one of its children.
        let rank = |phase: Phase| match phase {
            Phase::Listen => 0,
            Phase::Bound => 1,
            Phase::Connecting | Phase::Established | Phase::Closing => 2,
            Phase::TimeWait(_) => 3,
        };
        self.on_port(netns, port)
            .filter(|(_, Entry { lease, .. })| {
                lease.cookie != of && Claim::of_lease(lease).overlaps(claim)
            })
            .min_by_key(|(_, entry)| rank(entry.lease.phase))
            .map(|(index, _)| index)
    }

    /// The leases of a socket and its TIME_WAITs.
    fn of_cookie(&self, cookie: Cookie) -> impl Iterator<Item = (LeaseIndex, &Entry)> {
        let first = self.by_cookie.first(cookie, cookie_of(&self.entries));
        self.chain(first, |entry| entry.next_of_cookie)
    }

    #[inline]
    fn chain(
        &self,
        first: Option<LeaseIndex>,
        next: impl Fn(&Entry) -> Option<LeaseIndex>,
    ) -> impl Iterator<Item = (LeaseIndex, &Entry)> {
        let at = |index: LeaseIndex| (index, &self[index]);
        std::iter::successors(first.map(at), move |(_, entry)| next(entry).map(at))
    }
}

// Ports and namespaces.
impl Leases {
    /// The bucket of a port: whether it is in use, and its class if it is.
    pub fn slot(&self, netns: Netns, port: Port) -> PortSlot {
        self.ports.get(netns, port)
    }

    /// Notes the class of the bucket of a port that is held.
    pub fn set_class(&mut self, netns: Netns, port: Port, class: BucketClass) {
        self.ports.set_class(netns, port, class);
    }

    /// True if a port of the namespace is held.
    pub fn has_any_in(&self, netns: Netns) -> bool {
        self.ports.chains_of(netns).next().is_some()
    }

    /// The latest use of a port, as seen by a lease that begins at this time.
    pub fn reuse(&self, netns: Netns, port: Port, at: Instant) -> Option<Reuse> {
        let LastUse { lease, released } = self.ports.last_use(netns, port)?;
        Some(Reuse { previous: lease, idle_ns: at.since(released), from_time_wait: false })
    }

    /// Notes which namespace has this inode.
    pub fn set_incarnation(&mut self, netns: Netns, incarnation: Incarnation) {
        self.ports.set_incarnation(netns, incarnation);
    }
}

// Adding and removing leases.
impl Leases {
    /// Adds a lease, as the first of its chains.
    pub fn insert(
        &mut self,
        new: NewLease,
        holders: Holders,
        changed: SnapshotNumber,
    ) -> LeaseIndex {
        let NewLease {
            cookie,
            netns,
            family,
            v6_only,
            local_addr,
            local_port,
            peer,
            kind,
            phase,
            owner,
            acquired,
            has_timestamps,
        } = new;
        let id = self.next_id;
        self.next_id = LeaseId(id.0 + 1);
        let first_of_port = self.ports.get(netns, local_port).first;
        let entry = Entry {
            lease: Lease {
                id,
                cookie,
                netns,
                kind,
                family,
                v6_only,
                local_addr,
                local_port,
                peer,
                phase,
                owner,
                acquired,
                established: None,
                closing: None,
                closed_by: None,
                time_wait: None,
                timer_armed: None,
                has_timestamps,
            },
            holders,
            awaited: None,
            close_reason: None,
            socket_end: None,
            address_class: BucketClass::Connect,
            destination: None,
            is_counted_reusable: false,
            changed,
            next_of_cookie: None,
            next_of_port: first_of_port,
            previous_of_port: None,
        };
        let index = LeaseIndex::from_slot(self.entries.insert(entry));
        let next_of_cookie = self.by_cookie.put_first(cookie, index, cookie_of(&self.entries));
        self[index].next_of_cookie = next_of_cookie;
        if let Some(next) = first_of_port {
            self[next].previous_of_port = Some(index);
        }
        self.ports.hold(netns, local_port, index);
        if phase == Phase::Listen {
            self.add_listener(index);
        }
        index
    }

    /// Removes a lease that ends at this time. Returns it, and the first lease that is left on its
    /// port.
    pub fn remove(&mut self, index: LeaseIndex, at: Instant) -> (Lease, Option<LeaseIndex>) {
        self.remove_listener(index);
        self.leave_cookie(index);
        let Entry { lease, next_of_port, previous_of_port, .. } = self.entries.remove(index.slot());
        if let Some(next) = next_of_port {
            self[next].previous_of_port = previous_of_port;
        }
        let first = match previous_of_port {
            None => next_of_port,
            Some(previous) => {
                self[previous].next_of_port = next_of_port;
                self.ports.get(lease.netns, lease.local_port).first
            }
        };
        let last_use = LastUse { lease: lease.id, released: at };
        self.ports.release(lease.netns, lease.local_port, last_use, first);
        (lease, first)
    }

    /// Notes that a lease's socket listens.
    pub fn add_listener(&mut self, index: LeaseIndex) {
        let Lease { netns, local_port, .. } = self[index].lease;
        self.listeners.entry((netns, local_port)).or_default().push(index);
    }

    /// Notes that a lease's socket does not listen, or no longer.
    pub fn remove_listener(&mut self, index: LeaseIndex) {
        let Lease { netns, local_port, .. } = self[index].lease;
        if let Some(listeners) = self.listeners.get_mut(&(netns, local_port)) {
            listeners.retain(|listener| *listener != index);
            if listeners.is_empty() {
                self.listeners.remove(&(netns, local_port));
            }
        }
    }

    /// Takes a lease out of the chain of its cookie, which hardly ever has a second one.
    fn leave_cookie(&mut self, index: LeaseIndex) {
        let Entry { lease: Lease { cookie, .. }, next_of_cookie, .. } = self[index];
        let first = self.by_cookie.first(cookie, cookie_of(&self.entries));
        if first == Some(index) {
            self.by_cookie.replace_first(cookie, index, next_of_cookie);
            return;
        }
        let mut previous = first;
        while let Some(entry) = previous.map(|previous| &mut self[previous]) {
            if entry.next_of_cookie == Some(index) {
                entry.next_of_cookie = next_of_cookie;
                break;
            }
            previous = entry.next_of_cookie;
        }
    }
}

fn cookie_of(entries: &Slab<Entry>) -> impl Fn(LeaseIndex) -> Cookie {
    |index| entries[index.slot()].lease.cookie
}
