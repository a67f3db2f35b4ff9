//! How many ports of a namespace's range are taken, and for which destinations. Counted as leases
//! come and go, so that the answer costs the same whether a connect() fails once an hour or ten
//! thousand times a second.

use std::hash::BuildHasher as _;

use hashbrown::{HashTable, hash_table::Entry};

use rustc_hash::{FxBuildHasher, FxHashMap};

use slab::Slab;

use crate::model::{
    Bits, Destination, Instant, Netns, Port, Pressure, Rates, Room, TakeOver, Window, seconds,
};

/// No place.
pub const NONE: u32 = u32::MAX;

/// Levels of use, in percent.
const LEVELS: [u8; 4] = [0, 70, 90, 100];

/// How far below a level use must fall for that to be told, in percent.
const HYSTERESIS_PERCENT: u64 = 5;

/// A destination that uses less than this part of the range is not what fills it.
const LEAST_SHARE: u32 = 10;

/// The counts of all namespaces whose windows are known.
#[derive(Debug, Default)]
pub struct Usage {
    namespaces: FxHashMap<Netns, Namespace>,
    /// By destination, which the counts know.
    places: HashTable<u32>,
    destinations: Slab<Counted>,
    crossed: Vec<Pressure>,
    now: Instant,
}

#[derive(Debug)]
struct Namespace {
    window: Window,
    held: Bits,
    held_ports: u32,
    locked: Bits,
    locked_ports: u32,
    load: Load,
    /// Counts are being made anew, which crosses nothing.
    is_recounting: bool,
}

#[derive(Debug)]
struct Counted {
    destination: Destination,
    used: u32,
    used_locked: u32,
    time_waits: u32,
    young: Young,
    load: Load,
}

impl Counted {
    fn none(destination: Destination) -> Self {
        Self {
            destination,
            used: 0,
            used_locked: 0,
            time_waits: 0,
            young: Young::default(),
            load: Load::default(),
        }
    }
}

fn hash(destination: &Destination) -> u64 {
    FxBuildHasher.hash_one(destination)
}

/// TIME_WAITs that are too young to be taken over: those of the present interval and those of the
/// one before, each of the length of the delay. So none that is too young is left out.
#[derive(Clone, Copy, Debug, Default)]
struct Young {
    interval: u64,
    present: u32,
    before: u32,
}

impl Young {
    fn at(self, now: Instant, delay_ns: u64) -> Self {
        let interval = now.ns() / delay_ns.max(1);
        match interval.saturating_sub(self.interval) {
            0 => self,
            1 => Self { interval, present: 0, before: self.present },
            _ => Self { interval, present: 0, before: 0 },
        }
    }
}

/// Level and rates of something that fills up.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    level: usize,
    since: Option<Instant>,
    taken: Decaying,
    released: Decaying,
    held_s: Decaying,
}

impl Usage {
    /// The time of what is counted next.
    pub fn set_now(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// True if the namespace's window is known.
    #[must_use]
    pub fn knows(&self, netns: Netns) -> bool {
        self.namespaces.contains_key(&netns)
    }

    /// Begins to count anew with this window: every lease of the namespace is to be entered, and
    /// then [`end_recount`](Self::end_recount) called.
    pub fn begin_recount(&mut self, netns: Netns, window: Window) {
        let load = self.namespaces.remove(&netns).map(|namespace| namespace.load);
        let namespace = Namespace {
            window,
            held: Bits::default(),
            held_ports: 0,
            locked: Bits::default(),
            locked_ports: 0,
            load: load.unwrap_or_default(),
            is_recounting: true,
        };
        self.namespaces.insert(netns, namespace);
        for (_, counted) in &mut self.destinations {
            if counted.destination.netns == netns {
                (counted.used, counted.used_locked, counted.time_waits) = (0, 0, 0);
            }
        }
    }

    /// Looks at what the new counts have crossed.
    pub fn end_recount(&mut self, netns: Netns) {
        if let Some(namespace) = self.namespaces.get_mut(&netns) {
            namespace.is_recounting = false;
        }
        self.range_changed(netns);
        let places: Vec<usize> = self
            .destinations
            .iter()
            .filter(|(_, counted)| counted.destination.netns == netns)
            .map(|(place, _)| place)
            .collect();
        for place in places {
            self.destination_changed(place);
        }
    }

    /// Forgets a namespace that has ended.
    pub fn forget(&mut self, netns: Netns) {
        self.namespaces.remove(&netns);
    }

    /// A port is held now that was not.
    pub fn take_port(&mut self, netns: Netns, port: Port) {
        let Self { namespaces, now, .. } = self;
        let Some(namespace) = namespaces.get_mut(&netns) else { return };
        if namespace.window.ports.get(port) && namespace.held.set(port, true) {
            namespace.held_ports += 1;
            if !namespace.is_recounting {
                namespace.load.take(*now);
                self.range_changed(netns);
            }
        }
    }

    /// A port is free now that was held, lastly for so long.
    pub fn free_port(&mut self, netns: Netns, port: Port, held_ns: Option<u64>) {
        self.set_locked(netns, port, false);
        let Self { namespaces, now, .. } = self;
        let Some(namespace) = namespaces.get_mut(&netns) else { return };
        if namespace.held.set(port, false) {
            namespace.held_ports -= 1;
            namespace.load.release(*now, held_ns);
            self.range_changed(netns);
        }
    }

    /// The port's bucket is of the class that connect() leaves out, or is no longer. True if that
    /// is news; the leases on the port are then to be told by [`lock`](Self::lock).
    pub fn set_locked(&mut self, netns: Netns, port: Port, is_locked: bool) -> bool {
        let Some(namespace) = self.namespaces.get_mut(&netns) else { return false };
        let is_change = namespace.window.ports.get(port) && namespace.locked.set(port, is_locked);
        if is_change {
            let count = &mut namespace.locked_ports;
            *count = if is_locked { *count + 1 } else { *count - 1 };
        }
        is_change
    }

    /// The port of a counted connection became locked, or is no longer.
    pub fn lock(&mut self, place: u32, is_locked: bool) {
        if let Some(counted) = self.destinations.get_mut(place as usize) {
            let count = &mut counted.used_locked;
            *count = if is_locked { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    /// Counts a connection; returns where, or [`NONE`] if its port is not one of the window.
    pub fn count(&mut self, destination: Destination, port: Port) -> u32 {
        let Self { namespaces, places, destinations, now, .. } = self;
        let Some(namespace) = namespaces.get(&destination.netns) else { return NONE };
        if !namespace.window.ports.get(port) {
            return NONE;
        }
        let entry = places.entry(
            hash(&destination),
            |place| destinations[*place as usize].destination == destination,
            |place| hash(&destinations[*place as usize].destination),
        );
        let place = match entry {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                // Fewer than leases.
                let place = u32::try_from(destinations.vacant_key()).unwrap_or(NONE);
                vacant.insert(place);
                destinations.insert(Counted::none(destination));
                place
            }
        };
        if let Some(counted) = destinations.get_mut(place as usize) {
            counted.used += 1;
            counted.used_locked += u32::from(namespace.locked.get(port));
            if !namespace.is_recounting {
                counted.load.take(*now);
                self.destination_changed(place as usize);
            }
        }
        place
    }

    /// Takes a connection off the count, which held its port for so long.
    pub fn uncount(&mut self, place: u32, port: Port, was_time_wait: bool, held_ns: Option<u64>) {
        let Some(counted) = self.destinations.get_mut(place as usize) else { return };
        let namespace = self.namespaces.get(&counted.destination.netns);
        let is_locked = namespace.is_some_and(|namespace| namespace.locked.get(port));
        counted.used = counted.used.saturating_sub(1);
        counted.used_locked = counted.used_locked.saturating_sub(u32::from(is_locked));
        counted.time_waits = counted.time_waits.saturating_sub(u32::from(was_time_wait));
        counted.load.release(self.now, held_ns);
        self.destination_changed(place as usize);
    }

    /// A counted connection is in TIME_WAIT, or is no longer.
    pub fn set_time_wait(&mut self, place: u32, is_time_wait: bool) {
        if let Some(counted) = self.destinations.get_mut(place as usize) {
            let count = &mut counted.time_waits;
            *count = if is_time_wait { *count + 1 } else { count.saturating_sub(1) };
            if is_time_wait
                && let Some(namespace) = self.namespaces.get(&counted.destination.netns)
                && !namespace.is_recounting
            {
                counted.young = counted.young.at(self.now, namespace.window.take_over_delay_ns);
                counted.young.present += 1;
            }
            self.destination_changed(place as usize);
        }
    }

    /// The destination that is counted there.
    #[must_use]
    pub fn destination(&self, place: u32) -> Option<&Destination> {
        self.destinations.get(place as usize).map(|counted| &counted.destination)
    }

    /// The ports as this destination sees them; `None` if the namespace's window is not known.
    #[must_use]
    pub fn room(&self, destination: &Destination) -> Option<Room> {
        let namespace = self.namespaces.get(&destination.netns)?;
        let place = self.place(destination);
        let counted = place.and_then(|place| self.destinations.get(place as usize));
        Some(namespace.room_of(destination, counted, self.now))
    }

    /// The ports as bind() to port 0 sees them.
    #[must_use]
    pub fn room_of_range(&self, netns: Netns) -> Option<Room> {
        self.namespaces.get(&netns).map(Namespace::room)
    }

    /// Every destination of a namespace that uses ports of its range.
    pub fn destinations(&self, netns: Netns) -> impl Iterator<Item = (&Destination, Room, Rates)> {
        let namespace = self.namespaces.get(&netns);
        self.destinations.iter().filter_map(move |(_, counted)| {
            let Counted { destination, load, .. } = counted;
            let room = namespace?.room_of(destination, Some(counted), self.now);
            (destination.netns == netns).then(|| (destination, room, load.rates(self.now)))
        })
    }

    /// What a socket's own range leaves of the namespace's: each end counts only if it lies within
    /// (`inet_sk_get_local_port_range`, net/ipv4/inet_connection_sock.c).
    #[must_use]
    pub fn narrowed(&self, netns: Netns, own: (u16, u16)) -> Option<(Port, Port)> {
        let Window { low, high, .. } = self.namespaces.get(&netns)?.window;
        let within = |end: u16, otherwise: Port| {
            if (low.0..=high.0).contains(&end) { Port(end) } else { otherwise }
        };
        Some((within(own.0, low), within(own.1, high)))
    }

    /// Where a destination is counted.
    #[must_use]
    pub fn place(&self, destination: &Destination) -> Option<u32> {
        let is_it = |place: &u32| self.destinations[*place as usize].destination == *destination;
        self.places.find(hash(destination), is_it).copied()
    }

    /// True if the port is one that connect() leaves out because somebody bound it.
    #[must_use]
    pub fn is_locked(&self, netns: Netns, port: Port) -> bool {
        self.namespaces.get(&netns).is_some_and(|namespace| namespace.locked.get(port))
    }

    /// True if the port is one of the window.
    #[must_use]
    pub fn is_of_range(&self, netns: Netns, port: Port) -> bool {
        self.namespaces.get(&netns).is_some_and(|namespace| namespace.window.ports.get(port))
    }

    /// The window's ports that connect() leaves out because somebody bound them.
    pub fn locked_ports(&self, netns: Netns) -> impl Iterator<Item = Port> {
        self.namespaces.get(&netns).into_iter().flat_map(|namespace| namespace.locked.ports())
    }

    /// The crossings that nobody has taken, oldest first.
    pub fn take_crossed(&mut self) -> Vec<Pressure> {
        std::mem::take(&mut self.crossed)
    }

    /// True if there are any.
    #[must_use]
    pub fn has_crossed(&self) -> bool {
        !self.crossed.is_empty()
    }

    fn range_changed(&mut self, netns: Netns) {
        let Self { namespaces, crossed, now, .. } = self;
        let Some(namespace) = namespaces.get_mut(&netns) else { return };
        let room = namespace.room();
        if let Some(is_rising) = namespace.load.moves(&room) {
            crossed.push(namespace.load.pressure(*now, netns, None, is_rising, room));
        }
    }

    fn destination_changed(&mut self, place: usize) {
        let Self { namespaces, places, destinations, crossed, now } = self;
        let Some(counted) = destinations.get_mut(place) else { return };
        let destination = counted.destination;
        // In a namespace that has ended nothing is crossed any more.
        if let Some(namespace) = namespaces.get(&destination.netns) {
            if namespace.is_recounting {
                return;
            }
            let room = namespace.room_of(&destination, Some(counted), *now);
            let is_what_fills_it =
                counted.load.level > 0 || room.used.saturating_mul(LEAST_SHARE) >= room.capacity;
            if is_what_fills_it && let Some(is_rising) = counted.load.moves(&room) {
                let (load, netns) = (&counted.load, destination.netns);
                crossed.push(load.pressure(*now, netns, Some(destination), is_rising, room));
            }
        }
        if counted.used == 0 {
            let found = places.find_entry(hash(&destination), |known| *known as usize == place);
            if let Ok(found) = found {
                found.remove();
            }
            destinations.remove(place);
        }
    }
}

impl Namespace {
    fn room(&self) -> Room {
        Room {
            capacity: self.window.capacity,
            reserved: self.window.reserved,
            used: self.held_ports,
            bind_locked: 0,
            reusable: 0,
        }
    }

    fn room_of(&self, destination: &Destination, counted: Option<&Counted>, now: Instant) -> Room {
        let (used, used_locked, old) = counted.map_or((0, 0, 0), |counted| {
            let Young { present, before, .. } =
                counted.young.at(now, self.window.take_over_delay_ns);
            let old = counted.time_waits.saturating_sub(present + before);
            (counted.used, counted.used_locked, old)
        });
        let is_taken_over = match self.window.take_over {
            TakeOver::Never => false,
            TakeOver::Always => true,
            TakeOver::Loopback => {
                destination.source.ip().is_loopback() || destination.peer.0.ip().is_loopback()
            }
        };
        Room {
            used,
            bind_locked: self.locked_ports.saturating_sub(used_locked),
            reusable: if is_taken_over { old } else { 0 },
            ..self.room()
        }
    }
}

impl Load {
    fn take(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        self.taken.add(now, 1.0);
    }

    fn release(&mut self, now: Instant, held_ns: Option<u64>) {
        self.released.add(now, 1.0);
        if let Some(held_ns) = held_ns {
            self.held_s.add(now, seconds(held_ns));
        }
    }

    /// Moves to the level that belongs to this use: `Some(true)` if that is a higher one.
    fn moves(&mut self, room: &Room) -> Option<bool> {
        let before = self.level;
        let of_capacity = |percent: u64| percent * u64::from(room.capacity);
        let used = u64::from(room.unavailable()) * 100;
        let reaches = |level: usize| {
            room.capacity > 0
                && LEVELS.get(level).is_some_and(|percent| used >= of_capacity(u64::from(*percent)))
        };
        while reaches(self.level + 1) {
            self.level += 1;
        }
        let is_below = |level: usize| {
            let least = LEVELS.get(level).map_or(0, |percent| u64::from(*percent));
            used < of_capacity(least.saturating_sub(HYSTERESIS_PERCENT)) || room.capacity == 0
        };
        while self.level > 0 && is_below(self.level) {
            self.level -= 1;
        }
        (self.level != before).then_some(self.level > before)
    }

    fn pressure(
        &self,
        at: Instant,
        netns: Netns,
        destination: Option<Destination>,
        is_rising: bool,
        room: Room,
    ) -> Pressure {
        Pressure {
            at,
            netns,
            destination,
            level_percent: LEVELS.get(self.level).copied().unwrap_or(100),
            is_rising,
            room,
            rates: self.rates(at),
        }
    }

    fn rates(&self, now: Instant) -> Rates {
        let Some(since) = self.since else { return Rates::default() };
        // A sum that decays is short of what it will be until it has gone on for long.
        let observed_s =
            Decaying::TIME_S * (1.0 - (-seconds(now.since(since)) / Decaying::TIME_S).exp());
        let rate = |sum: Decaying| if observed_s > 0.0 { sum.at(now) / observed_s } else { 0.0 };
        let released = self.released.at(now);
        Rates {
            taken_per_s: rate(self.taken),
            released_per_s: rate(self.released),
            hold_s: (released > 1e-6).then(|| self.held_s.at(now) / released),
        }
    }
}

/// A sum in which what is older counts less.
#[derive(Clone, Copy, Debug, Default)]
struct Decaying {
    sum: f64,
    at: Instant,
}

impl Decaying {
    /// What is so old counts a third.
    const TIME_S: f64 = 10.0;

    fn at(self, now: Instant) -> f64 {
        self.sum * (-seconds(now.since(self.at)) / Self::TIME_S).exp()
    }

    fn add(&mut self, now: Instant, value: f64) {
        self.sum = self.at(now) + value;
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Addr;

    const NETNS: Netns = Netns(1);

    fn destination(port: u16) -> Destination {
        let addr = Addr([0, 0, 0xffff_u32.to_be(), 0x0100_000a]);
        Destination { netns: NETNS, source: addr, peer: (addr, Port(port)) }
    }

    fn usage(ports: u16) -> Usage {
        let mut usage = Usage::default();
        let window =
            Window::new(Port(997), Port(999 + ports), |port| port.0 < 1000, TakeOver::Always, 1);
        usage.begin_recount(NETNS, window);
        usage.end_recount(NETNS);
        usage
    }

    fn levels(usage: &mut Usage) -> Vec<(bool, u8)> {
        usage
            .take_crossed()
            .iter()
            .filter(|pressure| pressure.destination.is_some())
            .map(|pressure| (pressure.is_rising, pressure.level_percent))
            .collect()
    }

    #[test]
    fn a_destination_crosses_levels_and_falls_back_once() {
        let mut usage = usage(20);
        let mut place = NONE;
        for port in 0..20 {
            usage.set_now(Instant::from_ns(u64::from(port) * 1_000_000_000));
            place = usage.count(destination(80), Port(1000 + port));
        }
        assert_eq!(levels(&mut usage), [(true, 70), (true, 90), (true, 100)]);
        // At 95 %, and again at 100 %: no news.
        usage.uncount(place, Port(1000), false, None);
        usage.count(destination(80), Port(1000));
        assert!(levels(&mut usage).is_empty());
        for port in 0..20 {
            usage.uncount(place, Port(1000 + port), false, Some(5_000_000_000));
        }
        assert_eq!(levels(&mut usage), [(false, 90), (false, 70), (false, 0)]);
        assert_eq!(usage.room(&destination(80)).expect("the window is known").used, 0);
    }

    #[test]
    fn bound_ports_are_lost_to_every_destination_but_not_counted_twice() {
        let mut usage = usage(10);
        for port in 1000..1004 {
            usage.take_port(NETNS, Port(port));
            assert!(usage.set_locked(NETNS, Port(port), true));
            assert!(!usage.set_locked(NETNS, Port(port), true));
        }
        // Outside the window.
        assert!(!usage.set_locked(NETNS, Port(999), true));
        assert_eq!(usage.count(destination(80), Port(999)), NONE);
        let place = usage.count(destination(80), Port(1000));
        usage.count(destination(80), Port(1009));
        let room = usage.room(&destination(80)).expect("the window is known");
        assert_eq!(room, Room { capacity: 10, reserved: 3, used: 2, bind_locked: 3, reusable: 0 });
        assert_eq!(room.headroom(), 5);
        assert_eq!(usage.room(&destination(81)).expect("known").headroom(), 6);
        assert_eq!(usage.locked_ports(NETNS).count(), 4);
        assert!(usage.set_locked(NETNS, Port(1000), false));
        usage.lock(place, false);
        assert_eq!(usage.room(&destination(80)).expect("known").bind_locked, 3);
        usage.uncount(place, Port(1000), false, None);
        assert_eq!(usage.room(&destination(80)).expect("known").used, 1);
    }

    #[test]
    fn a_time_wait_counts_as_free_when_it_is_old_enough() {
        const DELAY_NS: u64 = 1_000_000_000;
        let mut usage = Usage::default();
        let window = Window::new(Port(1), Port(10), |_| false, TakeOver::Always, DELAY_NS);
        usage.begin_recount(NETNS, window);
        usage.end_recount(NETNS);
        let mut place = NONE;
        for port in 1..=10 {
            place = usage.count(destination(80), Port(port));
        }
        let headroom = |usage: &Usage| usage.room(&destination(80)).expect("known").headroom();
        for _ in 0..4 {
            usage.set_time_wait(place, true);
        }
        assert_eq!(headroom(&usage), 0);
        usage.set_now(Instant::from_ns(DELAY_NS));
        usage.set_time_wait(place, true);
        assert_eq!(headroom(&usage), 0);
        usage.set_now(Instant::from_ns(2 * DELAY_NS));
        assert_eq!(headroom(&usage), 4);
        usage.set_now(Instant::from_ns(3 * DELAY_NS));
        assert_eq!(headroom(&usage), 5);
        usage.set_time_wait(place, false);
        assert_eq!(headroom(&usage), 4);
    }

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let mut usage = usage(1000);
        // A hundred a second for twenty seconds, each held for a second.
        for tick in 0..2000_u64 {
            usage.set_now(Instant::from_ns(tick * 10_000_000));
            let place = usage.count(destination(80), Port(1000));
            if tick >= 100 {
                usage.uncount(place, Port(1000), false, Some(1_000_000_000));
            }
        }
        let (_, room, rates) = usage.destinations(NETNS).next().expect("there is one");
        assert_eq!(room.used, 100);
        assert!((rates.taken_per_s - 100.0).abs() < 2.0, "{rates:?}");
        assert!((rates.released_per_s - 100.0).abs() < 20.0, "{rates:?}");
        assert!((rates.hold_s.expect("some were let go") - 1.0).abs() < 0.01, "{rates:?}");
    }
}
