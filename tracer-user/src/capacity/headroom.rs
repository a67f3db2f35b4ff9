//! Headroom: how many more ports connect() can get for one destination, or bind() to port 0 for one
//! address.

use super::{
    reuse::{self, ReuseRule},
    search::{self, BlindSpot, KernelRules, Search},
};
use crate::model::{
    Addr, BucketClass, Family, Holder, HolderBy, LocalRange, Port, RangeUse, Settings,
};

/// A time of `CLOCK_MONOTONIC` in the units in which the kernel determines the age of a TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelTime {
    /// Milliseconds, the low 32 bits (`tcp_clock_ms`).
    pub ms: u32,
    /// Seconds, the low 32 bits (`ktime_get_seconds`).
    pub s: u32,
}

impl KernelTime {
    /// From nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "only the low 32 bits are kept")]
    pub fn from_ns(ns: u64) -> Self {
        Self { ms: (ns / 1_000_000) as u32, s: (ns / 1_000_000_000) as u32 }
    }

    /// The first time at which what began now is older than this.
    pub(super) fn later(self, ms: u32) -> Self {
        Self { ms: self.ms.wrapping_add(ms).wrapping_add(1), s: self.s.wrapping_add(ms / 1000 + 1) }
    }
}

/// The parameters of a connect() that chooses its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The source address, bound (without a port) or from the route.
    pub source: Addr,
    /// The peer's address and port.
    pub destination: (Addr, Port),
    /// Index of the interface that the socket is bound to, or 0.
    pub device: u32,
    /// The socket's `IP_LOCAL_PORT_RANGE`. `None` if it is not set.
    pub own_range: Option<LocalRange>,
}

/// The parameters of a bind() to port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAny {
    /// The address; unspecified for all addresses.
    pub addr: Addr,
    /// The socket's family.
    pub family: Family,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// Index of the interface that the socket is bound to, or 0.
    pub device: u32,
    /// `SO_REUSEADDR`.
    pub reuse_addr: bool,
    /// The socket's `IP_LOCAL_PORT_RANGE`. `None` if it is not set.
    pub own_range: Option<LocalRange>,
}

impl BindAny {
    /// A bind() of an ordinary socket to port 0 and all addresses.
    #[must_use]
    pub fn to_all_addresses(family: Family) -> Self {
        Self {
            addr: Addr::unspecified(family),
            family,
            v6_only: false,
            device: 0,
            reuse_addr: false,
            own_range: None,
        }
    }
}

/// How many more calls will get a port.
///
/// `min` and `max` differ only if the range has an odd number of ports: then the kernel skips one
/// port in each search, chosen at random (`BlindSpot`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// At least this many calls succeed.
    pub min: u32,
    /// At most this many calls succeed.
    pub max: u32,
}

impl Headroom {
    /// No limit: with `SO_REUSEADDR` and `ip_autobind_reuse`, sockets share ports once none is free.
    pub const UNLIMITED: u32 = u32::MAX;
}

/// The ports that connect() chooses from, as seen for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectView {
    /// The use of the range. Ports that connect() could take over from a TIME_WAIT count as used.
    pub range: RangeUse,
    /// How many more connect()s will get a port.
    pub headroom: Headroom,
}

/// The ports that bind() to port 0 chooses from, as seen for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindView {
    /// Ports of the range that are not reserved.
    pub capacity: u32,
    /// Ports whose holder's address conflicts.
    pub used: u32,
    /// How many more bind()s will get a port.
    pub headroom: Headroom,
}

/// The state of a network namespace at one moment.
///
/// # Examples
///
/// Of two ports one is connected to the destination. A connect() to it gets the other one, a
/// connect() to another destination gets both:
///
/// ```
/// use std::net::IpAddr;
/// use tracer_user::{
///     capacity::{Connect, KernelRules, KernelTime, NamespaceState, ReuseRule, SocketRangeRule},
///     model::{
///         Addr, BucketClass, Cookie, Family, Holder, HolderBy, LocalRange, Netns, Port, PortSet,
///         Settings, TimeWaitReuse,
///     },
/// };
///
/// let settings = Settings {
///     range: LocalRange::parse("40000 40001")?,
///     reserved: PortSet::default(),
///     step_width: None,
///     autobind_reuse: false,
///     unprivileged_start: 1024,
///     time_wait_reuse: TimeWaitReuse::Loopback,
///     time_wait_reuse_delay_ms: Some(1000),
///     timestamps: true,
///     max_time_waits: 131_072,
///     fin_timeout_s: 60,
///     max_listen_backlog: 4096,
/// };
/// let source: Addr = "10.0.0.1".parse::<IpAddr>()?.into();
/// let server: Addr = "10.0.0.2".parse::<IpAddr>()?.into();
/// let connected = Holder {
///     cookie: Cookie(1),
///     netns: Netns(7),
///     family: Family::Ipv4,
///     v6_only: false,
///     local_addr: source,
///     local_port: Port(40_000),
///     device: 0,
///     l3mdev: 0,
///     class: BucketClass::Connect,
///     is_connect_bind: true,
///     reuse_addr: false,
///     reuse_port: false,
///     by: HolderBy::Connection { peer: (server, Port(443)) },
/// };
/// let state = NamespaceState {
///     settings: &settings,
///     rules: KernelRules { reuse: ReuseRule::Delay, socket_range: SocketRangeRule::InTurn },
///     holders: &[connected],
///     now: KernelTime::from_ns(0),
/// };
/// let to = |port| Connect { source, destination: (server, port), device: 0, own_range: None };
/// assert_eq!(state.connect(&to(Port(443))).headroom.min, 1);
/// assert_eq!(state.connect(&to(Port(80))).headroom.min, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct NamespaceState<'a> {
    /// Its settings.
    pub settings: &'a Settings,
    /// How the kernel searches for ports.
    pub rules: KernelRules,
    /// The holders of its ports; a holder may be listed twice.
    pub holders: &'a [Holder],
    /// The time of the listing.
    pub now: KernelTime,
}

impl NamespaceState<'_> {
    /// The ports and the headroom for a connect() that chooses its port.
    #[must_use]
    pub fn connect(&self, query: &Connect) -> ConnectView {
        let (search, uses) = self.connect_uses(query);
        let mut range = RangeUse {
            reserved: self.settings.reserved.count_within(search.range),
            ..RangeUse::default()
        };
        for (_, found) in self.unreserved(&uses) {
            range.capacity += 1;
            match found {
                PortUse::None => {}
                PortUse::Reusable => {
                    range.used += 1;
                    range.reusable += 1;
                }
                PortUse::Bound => range.bind_locked += 1,
                PortUse::Destination => range.used += 1,
            }
        }
        let usable = |found: PortUse| matches!(found, PortUse::None | PortUse::Reusable);
        let headroom = self.headroom(&uses, search, range.headroom(), usable);
        ConnectView { range, headroom }
    }

    /// The ports that connect() does not choose only because they are bound: those that
    /// [`RangeUse::bind_locked`] counts, ascending.
    #[must_use]
    pub fn bind_locked_ports(&self, query: &Connect) -> Vec<Port> {
        let (_, uses) = self.connect_uses(query);
        let bound = self.unreserved(&uses).filter(|(_, found)| *found == PortUse::Bound);
        bound.map(|(port, _)| port).collect()
    }

    /// Milliseconds until connect() can choose each port that is in use for the destination, in the
    /// order of the ports: 0 if it can now, `None` while a socket holds the port. `left_ms` is the
    /// time that is left on the timer of a TIME_WAIT.
    #[must_use]
    pub fn used_ports_free_in_ms(
        &self,
        query: &Connect,
        left_ms: impl Fn(&Holder) -> Option<u32>,
    ) -> Vec<Option<u32>> {
        let (search, uses) = self.connect_uses(query);
        // For each port of the range, when the last of its holders is out of the way.
        let mut free_in_ms = vec![Some(0); search.range.len() as usize];
        for holder in self.holders.iter().filter(|holder| holder.l3mdev == 0) {
            let slot = uses.index(holder.local_port).and_then(|index| free_in_ms.get_mut(index));
            let Some(slot) = slot else { continue };
            let ready_in_ms = match (is_same_connection(holder, query), holder.class) {
                (false, BucketClass::Connect) => continue,
                // The bucket lasts, and keeps its class, until its last owner is gone.
                (_, BucketClass::Bind) => left_ms(holder),
                (true, BucketClass::Connect) => {
                    [left_ms(holder), self.reusable_in_ms(holder)].into_iter().flatten().min()
                }
            };
            *slot = slot.zip(ready_in_ms).map(|(one, other)| one.max(other));
        }
        let is_used = |found| matches!(found, PortUse::Destination | PortUse::Reusable);
        let used = self.unreserved(&uses).filter(|(_, found)| is_used(*found));
        used.filter_map(|(port, _)| free_in_ms.get(uses.index(port)?).copied()).collect()
    }

    /// What a bind() to port 0 will find.
    #[must_use]
    pub fn bind_any(&self, query: &BindAny) -> BindView {
        let search = search::of_bind(self.settings, query.own_range, query.reuse_addr);
        let mut uses = PortUses::new(search.range);
        let relaxes = self.settings.autobind_reuse && query.reuse_addr;
        // Ports that a second, relaxed search would share.
        let mut shareable = relaxes.then(|| PortUses::new(search.range));
        for holder in self.holders {
            if holder.l3mdev != 0 || !is_bind_conflict(holder, query) {
                continue;
            }
            if let Some(entry) = uses.entry(holder.local_port) {
                *entry = PortUse::Bound;
            }
            if let Some(entry) = shareable.as_mut().and_then(|uses| uses.entry(holder.local_port))
                && (!holder.reuse_addr || matches!(holder.by, HolderBy::Listener))
            {
                *entry = PortUse::Bound;
            }
        }
        let count = |uses: &PortUses, wanted: PortUse| {
            u32::try_from(self.unreserved(uses).filter(|(_, found)| *found == wanted).count())
                .unwrap_or(u32::MAX)
        };
        let (free, used) = (count(&uses, PortUse::None), count(&uses, PortUse::Bound));
        let mut headroom = self.headroom(&uses, search, free, |found| found == PortUse::None);
        if let Some(uses) = shareable {
            // Any port that the relaxed search finds, it finds again and again.
            let free = count(&uses, PortUse::None);
            let relaxed = self.headroom(&uses, search, free, |found| found == PortUse::None);
            if relaxed.min > 0 {
                headroom.min = Headroom::UNLIMITED;
            }
            if relaxed.max > 0 {
                headroom.max = Headroom::UNLIMITED;
            }
        }
        BindView { capacity: free + used, used, headroom }
    }

    /// The ports that a search visits, and how each is used as seen by this connect().
    fn connect_uses(&self, query: &Connect) -> (Search, PortUses) {
        let search = search::of_connect(self.settings, self.rules, query.own_range);
        let mut uses = PortUses::new(search.range);
        for holder in self.holders {
            let Some(entry) = uses.entry(holder.local_port) else { continue };
            // A search within a VRF sees only that VRF's buckets; only the one outside is supported.
            if holder.l3mdev != 0 {
                continue;
            }
            let is_in_the_way = is_same_connection(holder, query);
            let found = match (is_in_the_way, holder.class) {
                (true, BucketClass::Connect) if self.reusable_in_ms(holder) == Some(0) => {
                    PortUse::Reusable
                }
                (true, _) => PortUse::Destination,
                (false, BucketClass::Bind) => PortUse::Bound,
                (false, BucketClass::Connect) => PortUse::None,
            };
            *entry = found.max(*entry);
        }
        (search, uses)
    }

    fn unreserved<'u>(&'u self, uses: &'u PortUses) -> impl Iterator<Item = (Port, PortUse)> + 'u {
        let ports = uses.range.ports().zip(uses.uses.iter().copied());
        ports.filter(|(port, _)| !self.settings.reserved.contains(*port))
    }

    /// The headroom for this number of usable ports, given the blind spot of the search.
    fn headroom(
        &self,
        uses: &PortUses,
        search: Search,
        usable: u32,
        is_usable: impl Fn(PortUse) -> bool,
    ) -> Headroom {
        let counts = |port: Port| {
            !self.settings.reserved.contains(port) && uses.get(port).is_some_and(&is_usable)
        };
        let one_less = usable.saturating_sub(1);
        match search.blind_spot {
            BlindSpot::Port(port) if counts(port) => Headroom { min: one_less, max: one_less },
            // The skipped port may be the last one that is left, and then the search fails.
            BlindSpot::OneOf(first, last) if counts(first) || counts(last) => {
                Headroom { min: one_less, max: usable }
            }
            _ => Headroom { min: usable, max: usable },
        }
    }

    /// Milliseconds until a connect() to the same destination may take over the port of this
    /// TIME_WAIT, 0 if it may now (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c). `None` if it never may,
    /// or if the holder is a socket. Kernels that count whole seconds are up to a second early.
    fn reusable_in_ms(&self, holder: &Holder) -> Option<u32> {
        const LOOPBACK_IFINDEX: u32 = 1;
        let HolderBy::TimeWait { peer, substate, entry_stamp_ms, ts_recent_stamp_s } = holder.by
        else {
            return None;
        };
        let is_permitted = reuse::is_permitted_between(
            self.settings.time_wait_reuse,
            holder.local_addr,
            peer.0,
            holder.device == LOOPBACK_IFINDEX,
        );
        if ts_recent_stamp_s == 0 || !is_permitted || !self.rules.reuse.admits(substate) {
            return None;
        }
        match self.rules.reuse {
            ReuseRule::NextSecond | ReuseRule::NextSecondNotFinWait2 => {
                Some(until_after(self.now.s, ts_recent_stamp_s).saturating_mul(1000))
            }
            ReuseRule::Delay => {
                let old_enough = entry_stamp_ms?.wrapping_add(reuse::delay_ms(self.settings));
                Some(until_after(self.now.ms, old_enough))
            }
        }
    }
}

/// How long it takes until `now` is after `then`, as `time_after32` compares them: times wrap around,
/// so their difference counts.
#[expect(clippy::cast_possible_wrap, reason = "as time_after32 does")]
fn until_after(now: u32, then: u32) -> u32 {
    let is_after = (now.wrapping_sub(then) as i32) > 0;
    if is_after { 0 } else { then.wrapping_sub(now).saturating_add(1) }
}

/// The state of a port as seen by a search, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PortUse {
    None,
    Reusable,
    Bound,
    Destination,
}

/// The ports of a range.
struct PortUses {
    range: LocalRange,
    uses: Vec<PortUse>,
}

impl PortUses {
    fn new(range: LocalRange) -> Self {
        Self { range, uses: vec![PortUse::None; range.len() as usize] }
    }

    /// The index of a port, beyond the end for a port above the range. `None` below it.
    fn index(&self, port: Port) -> Option<usize> {
        port.0.checked_sub(self.range.low().0).map(usize::from)
    }

    fn entry(&mut self, port: Port) -> Option<&mut PortUse> {
        let index = self.index(port)?;
        self.uses.get_mut(index)
    }

    fn get(&self, port: Port) -> Option<PortUse> {
        self.uses.get(self.index(port)?).copied()
    }
}

/// True if a connect() from the holder's port would have the same addresses and ports
/// (`inet_match`, include/net/inet_hashtables.h).
fn is_same_connection(holder: &Holder, query: &Connect) -> bool {
    holder.peer() == Some(query.destination)
        && holder.local_addr == query.source
        && (holder.device == 0 || holder.device == query.device)
}

/// True if the holder conflicts with a bind() to its port, regardless of socket options (`inet_csk_bind_conflict` and
/// `inet_rcv_saddr_equal`, net/ipv4/inet_connection_sock.c).
fn is_bind_conflict(holder: &Holder, query: &BindAny) -> bool {
    let devices_conflict = query.device == 0 || holder.device == 0 || query.device == holder.device;
    let [wanted, held] = [query.addr, holder.local_addr];
    let addresses_conflict = if query.family == Family::Ipv4 || (wanted.is_ipv4() && held.is_ipv4())
    {
        // An IPv6 socket that also accepts IPv4 counts as bound to 0.0.0.0 if it is bound to `::`,
        // and to no IPv4 address otherwise.
        let either_is_any = wanted.is_unspecified() || held.is_unspecified();
        !holder.v6_only && (either_is_any || wanted == held)
    } else {
        let is_any = |addr: Addr| !addr.is_ipv4() && addr.is_unspecified();
        (is_any(wanted) && is_any(held))
            || (is_any(held) && !(holder.v6_only && wanted.is_ipv4()))
            || (is_any(wanted) && !(query.v6_only && held.is_ipv4()))
            || wanted == held
    };
    devices_conflict && addresses_conflict
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        capacity::SocketRangeRule,
        model::{Cookie, Netns, Substate, TimeWaitReuse},
    };

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("it is an address").into()
    }

    fn settings(reuse: TimeWaitReuse) -> Settings {
        Settings {
            range: LocalRange::new(Port(1000), Port(1001)).expect("it is a range"),
            time_wait_reuse: reuse,
            ..Settings::sample()
        }
    }

    fn holder(local: &str, by: HolderBy) -> Holder {
        let local_addr = addr(local);
        Holder {
            cookie: Cookie(1),
            netns: Netns(1),
            family: if local.contains(':') { Family::Ipv6 } else { Family::Ipv4 },
            v6_only: false,
            local_addr,
            local_port: Port(1000),
            device: 0,
            l3mdev: 0,
            class: BucketClass::Connect,
            is_connect_bind: true,
            reuse_addr: false,
            reuse_port: false,
            by,
        }
    }

    /// Whether a TIME_WAIT is reusable, by kernel, setting, source, substate and age.
    fn is_reusable(
        reuse: ReuseRule,
        setting: TimeWaitReuse,
        source: &str,
        substate: Substate,
        age_ms: u32,
    ) -> bool {
        let peer = (addr("10.0.0.2"), Port(80));
        // The low 32 bits of the clock wrap around in between.
        let began = u32::MAX - 100;
        let time_wait = HolderBy::TimeWait {
            peer,
            substate,
            entry_stamp_ms: (reuse == ReuseRule::Delay).then_some(began),
            ts_recent_stamp_s: 50,
        };
        let settings = settings(setting);
        let holders = [holder(source, time_wait)];
        let now = KernelTime { ms: began.wrapping_add(age_ms), s: 50 + age_ms / 1000 };
        let rules = KernelRules { reuse, socket_range: SocketRangeRule::InTurn };
        let state = NamespaceState { settings: &settings, rules, holders: &holders, now };
        let query = Connect { source: addr(source), destination: peer, device: 0, own_range: None };
        let view = state.connect(&query);
        assert_eq!((view.range.capacity, view.range.used), (2, 1));
        assert_eq!(view.headroom.max, 1 + view.range.reusable);
        view.range.reusable == 1
    }

    #[test]
    fn each_kernel_has_its_own_reuse_rule() {
        use ReuseRule::{Delay, NextSecond, NextSecondNotFinWait2};
        use Substate::{FinWait2, TimeWait};
        use TimeWaitReuse::{Always, Loopback, Never};
        for rule in [NextSecond, NextSecondNotFinWait2, Delay] {
            assert!(!is_reusable(rule, Never, "127.0.0.1", TimeWait, 60_000));
            assert!(!is_reusable(rule, Loopback, "10.0.0.1", TimeWait, 60_000));
            assert!(is_reusable(rule, Loopback, "127.0.0.1", TimeWait, 60_000));
            assert!(is_reusable(rule, Always, "10.0.0.1", TimeWait, 1001));
            assert!(!is_reusable(rule, Always, "10.0.0.1", TimeWait, 999));
            let takes_fin_wait2 = is_reusable(rule, Always, "10.0.0.1", FinWait2, 5000);
            assert_eq!(takes_fin_wait2, rule == NextSecond);
        }
        assert!(!is_reusable(Delay, Always, "10.0.0.1", TimeWait, 1000));
        assert!(is_reusable(NextSecond, Always, "10.0.0.1", TimeWait, 1000));
    }

    #[test]
    fn addresses_conflict_as_in_the_kernel() {
        let conflicts = |held: &str, held_v6_only: bool, wanted: &str, v6_only: bool| {
            let family = if wanted.contains(':') { Family::Ipv6 } else { Family::Ipv4 };
            let holder = Holder { v6_only: held_v6_only, ..holder(held, HolderBy::Idle) };
            is_bind_conflict(
                &holder,
                &BindAny {
                    addr: addr(wanted),
                    family,
                    v6_only,
                    device: 0,
                    reuse_addr: false,
                    own_range: None,
                },
            )
        };
        for (held, v6_only, wanted, wanted_v6_only, expected) in [
            ("127.0.0.1", false, "127.0.0.1", false, true),
            ("127.0.0.1", false, "127.0.0.2", false, false),
            ("0.0.0.0", false, "127.0.0.2", false, true),
            ("127.0.0.1", false, "0.0.0.0", false, true),
            ("::", false, "127.0.0.1", false, true),
            ("::", true, "127.0.0.1", false, false),
            ("127.0.0.1", false, "::", false, true),
            ("127.0.0.1", false, "::", true, false),
            ("::1", true, "::", true, true),
            ("::1", true, "127.0.0.1", false, false),
            ("::1", true, "0.0.0.0", false, false),
            // For bind(), a connected socket that was not bound also occupies IPv4.
            ("::1", false, "0.0.0.0", false, true),
            ("::ffff:127.0.0.1", false, "127.0.0.1", false, true),
        ] {
            assert_eq!(
                conflicts(held, v6_only, wanted, wanted_v6_only),
                expected,
                "{wanted} against {held}"
            );
        }
    }
}
