//! How many ports of each namespace's range are in use, and for which destinations.
//!
//! The ledger updates these counts as leases come and go, so an answer costs the same whether
//! connect() fails once an hour or ten thousand times a second.

use std::{collections::VecDeque, hash::BuildHasher as _, num::NonZeroU32, sync::Arc};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;

use super::{level::Level, rates::RateCounter, reuse};
use crate::model::{
    Destination, Instant, LocalRange, Netns, Port, PortBits, Pressure, RangeUse, Rates, Settings,
    Substate,
};

/// The index of a destination in [`Usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DestinationIndex(NonZeroU32);

impl DestinationIndex {
    /// The index of a slot of the table. `None` beyond 2^32 - 2.
    fn new(slot: usize) -> Option<Self> {
        u32::try_from(slot).ok().and_then(|slot| NonZeroU32::MIN.checked_add(slot)).map(Self)
    }

    fn slot(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// The counts of all namespaces whose settings are known.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    namespaces: FxHashMap<Netns, NamespaceUse>,
    /// Indexes by destination. The keys are in `destinations`.
    by_destination: HashTable<DestinationIndex>,
    destinations: Slab<DestinationUse>,
    /// Destinations that no longer use a port, the longest unused first.
    idle: VecDeque<DestinationIndex>,
    pressure: Vec<Pressure>,
    /// The latest time seen.
    now: Instant,
    /// The time of the event that is being counted: not later than `now`.
    event_at: Instant,
    /// Ports that are added now were acquired at an unknown time, and do not count for rates.
    is_adopting: bool,
}

#[derive(Debug)]
struct NamespaceUse {
    settings: Arc<Settings>,
    /// The ports of the range that are not reserved.
    choosable: PortBits,
    capacity: u32,
    held: PortBits,
    held_ports: u32,
    /// Ports whose bind bucket is of class B.
    locked: PortBits,
    locked_ports: u32,
    level: Level,
    rates: RateCounter,
    /// True during a recount, in which no pressure is reported.
    is_recounting: bool,
}

#[derive(Debug)]
struct DestinationUse {
    destination: Destination,
    used: u32,
    used_locked: u32,
    /// TIME_WAITs that connect() may take over once they are old enough.
    time_waits: u32,
    young: YoungTimeWaits,
    level: Level,
    rates: RateCounter,
    /// True if it is in the list of idle destinations.
    is_listed: bool,
    /// True if it has been in use since it was listed.
    was_used: bool,
}

/// Maximum number of destinations without a port that are kept for their rates.
const MAX_IDLE: usize = 4096;
/// Pressure is reported only for destinations that use at least a tenth of the range.
const MIN_SHARE: u32 = 10;

impl DestinationUse {
    fn new(destination: Destination) -> Self {
        Self {
            destination,
            used: 0,
            used_locked: 0,
            time_waits: 0,
            young: YoungTimeWaits::default(),
            level: Level::default(),
            rates: RateCounter::default(),
            is_listed: false,
            was_used: false,
        }
    }
}

fn hash(destination: &Destination) -> u64 {
    FxBuildHasher.hash_one(destination)
}

/// TIME_WAITs that are too young to be taken over: those of the present and of the previous interval,
/// each as long as the delay. This is an upper bound.
#[derive(Clone, Copy, Debug, Default)]
struct YoungTimeWaits {
    interval: u64,
    present: u32,
    previous: u32,
}

impl YoungTimeWaits {
    fn at(self, now: Instant, delay_ns: u64) -> Self {
        let interval = now.ns() / delay_ns.max(1);
        match interval.saturating_sub(self.interval) {
            0 => self,
            1 => Self { interval, present: 0, previous: self.present },
            _ => Self { interval, present: 0, previous: 0 },
        }
    }
}

// Namespaces and their ports.
impl Usage {
    /// Sets the time of the events that follow.
    pub(crate) fn set_time(&mut self, at: Instant) {
        self.event_at = at;
        self.now = self.now.max(at);
    }

    /// Says whether ports that are added were acquired at an unknown time, so that they do not count
    /// for rates.
    pub(crate) fn set_adopting(&mut self, is_adopting: bool) {
        self.is_adopting = is_adopting;
    }

    /// The settings of a namespace. `None` if they are not known.
    pub(crate) fn settings(&self, netns: Netns) -> Option<&Arc<Settings>> {
        self.namespaces.get(&netns).map(|namespace| &namespace.settings)
    }

    /// Starts a recount with these settings: the caller must add every lease of the namespace, and
    /// then call [`end_recount`](Self::end_recount).
    pub(crate) fn begin_recount(&mut self, netns: Netns, settings: Arc<Settings>) {
        let previous = self.namespaces.remove(&netns);
        if previous.is_none() {
            self.forget_idle_destinations(netns);
        }
        let (level, rates) =
            previous.map(|previous| (previous.level, previous.rates)).unwrap_or_default();
        let mut choosable = PortBits::default();
        for port in settings.range.ports().filter(|port| !settings.reserved.contains(*port)) {
            choosable.set(port, true);
        }
        let namespace = NamespaceUse {
            capacity: settings.capacity(),
            settings,
            choosable,
            held: PortBits::default(),
            held_ports: 0,
            locked: PortBits::default(),
            locked_ports: 0,
            level,
            rates,
            is_recounting: true,
        };
        self.namespaces.insert(netns, namespace);
        for (_, counted) in &mut self.destinations {
            if counted.destination.netns == netns {
                (counted.used, counted.used_locked, counted.time_waits) = (0, 0, 0);
            }
        }
    }

    /// Ends a recount, and reports the levels that were crossed.
    pub(crate) fn end_recount(&mut self, netns: Netns) {
        if let Some(namespace) = self.namespaces.get_mut(&netns) {
            namespace.is_recounting = false;
        }
        self.range_changed(netns);
        let indexes: Vec<_> = self
            .destinations
            .iter()
            .filter(|(_, counted)| counted.destination.netns == netns)
            .filter_map(|(slot, _)| DestinationIndex::new(slot))
            .collect();
        for index in indexes {
            self.destination_changed(index);
        }
    }

    /// Forgets the settings of a namespace that has ended. Its destinations keep their rates until
    /// another namespace gets its inode.
    pub(crate) fn forget(&mut self, netns: Netns) {
        self.namespaces.remove(&netns);
    }

    fn forget_idle_destinations(&mut self, netns: Netns) {
        let idle = std::mem::take(&mut self.idle);
        for index in idle {
            let is_over = self
                .destinations
                .get(index.slot())
                .is_some_and(|counted| counted.destination.netns == netns && counted.used == 0);
            if is_over {
                self.remove(index);
            } else {
                self.idle.push_back(index);
            }
        }
    }

    /// Counts a port that was free and is now held.
    pub(crate) fn hold_port(&mut self, netns: Netns, port: Port) {
        let at = self.event_at;
        let Some(namespace) = self.namespaces.get_mut(&netns) else { return };
        if namespace.choosable.get(port) && namespace.held.set(port, true) {
            namespace.held_ports += 1;
            if !namespace.is_recounting {
                if !self.is_adopting {
                    namespace.rates.take(at);
                }
                self.range_changed(netns);
            }
        }
    }

    /// Counts a port that was held and is now free. `held_s` is the length of the last hold, if it is
    /// known.
    pub(crate) fn free_port(&mut self, netns: Netns, port: Port, at: Instant, held_s: Option<f64>) {
        self.set_locked(netns, port, false);
        let Some(namespace) = self.namespaces.get_mut(&netns) else { return };
        if namespace.held.set(port, false) {
            namespace.held_ports -= 1;
            namespace.rates.release(at);
            if let Some(held_s) = held_s {
                namespace.rates.add_hold(at, held_s);
            }
            self.range_changed(netns);
        }
    }

    /// Sets whether connect() skips the port because its bucket is of class B. Returns true if that
    /// is a change: the caller must then pass each lease on the port to [`set_connection_locked`](Self::set_connection_locked).
    pub(crate) fn set_locked(&mut self, netns: Netns, port: Port, is_locked: bool) -> bool {
        let Some(namespace) = self.namespaces.get_mut(&netns) else { return false };
        let is_change = namespace.choosable.get(port) && namespace.locked.set(port, is_locked);
        if is_change {
            adjust(&mut namespace.locked_ports, is_locked);
        }
        is_change
    }

    /// True if connect() skips the port because its bucket is of class B.
    pub(crate) fn is_locked(&self, netns: Netns, port: Port) -> bool {
        self.namespaces.get(&netns).is_some_and(|namespace| namespace.locked.get(port))
    }

    /// True if the port is in the range and not reserved.
    pub(crate) fn is_choosable(&self, netns: Netns, port: Port) -> bool {
        self.namespaces.get(&netns).is_some_and(|namespace| namespace.choosable.get(port))
    }

    /// The ports of the range that connect() skips because their bucket is of class B.
    pub(crate) fn locked_ports(&self, netns: Netns) -> impl Iterator<Item = Port> {
        self.namespaces.get(&netns).into_iter().flat_map(|namespace| namespace.locked.ports())
    }

    /// The range as seen by a bind() to port 0 of the wildcard address. `None` if the settings are not
    /// known.
    pub(crate) fn range(&self, netns: Netns) -> Option<RangeUse> {
        self.namespaces.get(&netns).map(NamespaceUse::range)
    }

    fn range_changed(&mut self, netns: Netns) {
        let Self { namespaces, pressure, now, .. } = self;
        let Some(namespace) = namespaces.get_mut(&netns) else { return };
        if namespace.is_recounting {
            return;
        }
        let range = namespace.range();
        if let Some(is_rising) = namespace.level.update(&range) {
            pressure.push(Pressure {
                at: *now,
                netns,
                destination: None,
                level_percent: namespace.level.percent(),
                is_rising,
                range,
                rates: namespace.rates.rates(*now),
            });
        }
    }
}

// Destinations.
impl Usage {
    /// Counts a connection, and returns the index of its destination. `None` if connect() may not
    /// choose its port, or if the settings are not known.
    pub(crate) fn add_connection(
        &mut self,
        destination: Destination,
        port: Port,
    ) -> Option<DestinationIndex> {
        let Self { namespaces, by_destination, destinations, event_at, is_adopting, .. } = self;
        let namespace = namespaces.get(&destination.netns)?;
        if !namespace.choosable.get(port) {
            return None;
        }
        let entry = by_destination.entry(
            hash(&destination),
            |index| destinations[index.slot()].destination == destination,
            |index| hash(&destinations[index.slot()].destination),
        );
        let index = match entry {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                let index = DestinationIndex::new(destinations.vacant_key())?;
                vacant.insert(index);
                destinations.insert(DestinationUse::new(destination));
                index
            }
        };
        let counted = destinations.get_mut(index.slot())?;
        counted.used += 1;
        counted.used_locked += u32::from(namespace.locked.get(port));
        counted.was_used = true;
        if !namespace.is_recounting {
            if !*is_adopting {
                counted.rates.take(*event_at);
            }
            self.destination_changed(index);
        }
        Some(index)
    }

    /// Removes a connection from the counts. `is_time_wait` is true if it counts as a TIME_WAIT.
    pub(crate) fn remove_connection(
        &mut self,
        index: DestinationIndex,
        port: Port,
        is_time_wait: bool,
        at: Instant,
    ) {
        let Some(counted) = self.destinations.get_mut(index.slot()) else { return };
        let namespace = self.namespaces.get(&counted.destination.netns);
        let is_locked = namespace.is_some_and(|namespace| namespace.locked.get(port));
        counted.used = counted.used.saturating_sub(1);
        counted.used_locked = counted.used_locked.saturating_sub(u32::from(is_locked));
        counted.time_waits = counted.time_waits.saturating_sub(u32::from(is_time_wait));
        counted.rates.release(at);
        self.destination_changed(index);
    }

    /// Adds the length of a hold on a port of this destination, in seconds.
    pub(crate) fn add_hold_time(&mut self, index: DestinationIndex, at: Instant, held_s: f64) {
        if let Some(counted) = self.destinations.get_mut(index.slot()) {
            counted.rates.add_hold(at, held_s);
        }
    }

    /// For how long a TIME_WAIT keeps a port from this destination, seconds: until connect() takes
    /// it over, where it may, else until it ends.
    pub(crate) fn time_wait_s(
        &self,
        index: DestinationIndex,
        substate: Substate,
        has_timestamps: Option<bool>,
    ) -> Option<f64> {
        let destination = self.destination(index)?;
        let settings = self.settings(destination.netns)?;
        Some(reuse::time_wait_s(settings, destination, substate, has_timestamps))
    }

    /// Counts a connection whose port's bucket became class B, or is no longer.
    pub(crate) fn set_connection_locked(&mut self, index: DestinationIndex, is_locked: bool) {
        if let Some(counted) = self.destinations.get_mut(index.slot()) {
            adjust(&mut counted.used_locked, is_locked);
        }
    }

    /// Counts a connection that entered or left a TIME_WAIT which connect() may take over once it is
    /// old enough.
    pub(crate) fn set_time_wait(&mut self, index: DestinationIndex, is_time_wait: bool) {
        let Some(counted) = self.destinations.get_mut(index.slot()) else { return };
        adjust(&mut counted.time_waits, is_time_wait);
        if is_time_wait
            && let Some(namespace) = self.namespaces.get(&counted.destination.netns)
            && !namespace.is_recounting
        {
            counted.young = counted.young.at(self.event_at, reuse::delay_ns(&namespace.settings));
            counted.young.present += 1;
        }
        self.destination_changed(index);
    }

    /// The destination with this index.
    pub(crate) fn destination(&self, index: DestinationIndex) -> Option<&Destination> {
        self.destinations.get(index.slot()).map(|counted| &counted.destination)
    }

    /// The index of a destination. `None` if no connection to it is or was counted.
    pub(crate) fn index(&self, destination: &Destination) -> Option<DestinationIndex> {
        let is_it =
            |index: &DestinationIndex| self.destinations[index.slot()].destination == *destination;
        self.by_destination.find(hash(destination), is_it).copied()
    }

    /// The range as seen by a connect() to this destination. `None` if the namespace's settings are
    /// not known.
    pub(crate) fn range_for(&self, destination: &Destination) -> Option<RangeUse> {
        let namespace = self.namespaces.get(&destination.netns)?;
        let index = self.index(destination);
        let counted = index.and_then(|index| self.destinations.get(index.slot()));
        Some(namespace.range_for(destination, counted, self.now))
    }

    /// How fast ports for this destination are acquired and released. `None` if no connection to it is
    /// or was counted.
    pub(crate) fn destination_rates(&self, destination: &Destination) -> Option<Rates> {
        let counted = self.destinations.get(self.index(destination)?.slot())?;
        Some(counted.rates.rates(self.now))
    }

    /// The range from which a socket with its own `IP_LOCAL_PORT_RANGE` chooses. `None` if the
    /// namespace's settings are not known.
    pub(crate) fn effective_range(&self, netns: Netns, own: (u16, u16)) -> Option<LocalRange> {
        let settings = self.settings(netns)?;
        Some(super::search::narrowed_by_ends(settings.range, own))
    }

    /// Takes the levels that were crossed since the last call, oldest first.
    pub(crate) fn take_pressure(&mut self) -> Vec<Pressure> {
        std::mem::take(&mut self.pressure)
    }

    /// The time of the event that is being counted.
    pub(crate) fn event_time(&self) -> Instant {
        self.event_at
    }

    /// True if a level was crossed since [`take_pressure`](Self::take_pressure) was last called.
    pub(crate) fn has_pressure(&self) -> bool {
        !self.pressure.is_empty()
    }

    fn destination_changed(&mut self, index: DestinationIndex) {
        let Self { namespaces, destinations, pressure, now, .. } = self;
        let Some(counted) = destinations.get_mut(index.slot()) else { return };
        let destination = counted.destination;
        // A namespace that has ended reports no pressure.
        if let Some(namespace) = namespaces.get(&destination.netns) {
            if namespace.is_recounting {
                return;
            }
            let range = namespace.range_for(&destination, Some(counted), *now);
            let fills_the_range =
                counted.level.is_raised() || range.used.saturating_mul(MIN_SHARE) >= range.capacity;
            if fills_the_range && let Some(is_rising) = counted.level.update(&range) {
                pressure.push(Pressure {
                    at: *now,
                    netns: destination.netns,
                    destination: Some(destination),
                    level_percent: counted.level.percent(),
                    is_rising,
                    range,
                    rates: counted.rates.rates(*now),
                });
            }
        }
        if counted.used == 0 {
            if !counted.is_listed {
                (counted.is_listed, counted.was_used) = (true, false);
                self.idle.push_back(index);
            }
            while self.idle.len() > MAX_IDLE {
                self.forget_an_idle_destination();
            }
        }
    }

    fn forget_an_idle_destination(&mut self) {
        let Some(index) = self.idle.pop_front() else { return };
        let Some(counted) = self.destinations.get_mut(index.slot()) else { return };
        match counted {
            counted if counted.used > 0 => counted.is_listed = false,
            counted if counted.was_used => {
                counted.was_used = false;
                self.idle.push_back(index);
            }
            _ => self.remove(index),
        }
    }

    fn remove(&mut self, index: DestinationIndex) {
        let Some(counted) = self.destinations.try_remove(index.slot()) else { return };
        let found =
            self.by_destination.find_entry(hash(&counted.destination), |known| *known == index);
        if let Ok(found) = found {
            found.remove();
        }
    }
}

impl NamespaceUse {
    fn range(&self) -> RangeUse {
        RangeUse {
            capacity: self.capacity,
            reserved: self.settings.range.len() - self.capacity,
            used: self.held_ports,
            bind_locked: 0,
            reusable: 0,
        }
    }

    fn range_for(
        &self,
        destination: &Destination,
        counted: Option<&DestinationUse>,
        now: Instant,
    ) -> RangeUse {
        let (used, used_locked, old) = counted.map_or((0, 0, 0), |counted| {
            let YoungTimeWaits { present, previous, .. } =
                counted.young.at(now, reuse::delay_ns(&self.settings));
            let old = counted.time_waits.saturating_sub(present + previous);
            (counted.used, counted.used_locked, old)
        });
        let is_reused = reuse::is_permitted(&self.settings, destination);
        RangeUse {
            used,
            bind_locked: self.locked_ports.saturating_sub(used_locked),
            reusable: if is_reused { old } else { 0 },
            ..self.range()
        }
    }
}

/// Increases or decreases a count by one.
fn adjust(count: &mut u32, is_more: bool) {
    *count = if is_more { *count + 1 } else { count.saturating_sub(1) };
}

#[cfg(test)]
mod tests;
