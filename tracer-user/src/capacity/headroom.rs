//! How many more ports can be had: of connect() for one destination, of bind() to port 0 for one
//! address.

use super::{
    reuse::{self, ReuseRule},
    search::{self, BlindSpot, KernelRules, Search},
};
use crate::model::{
    Addr, BucketClass, Family, Holder, HolderBy, LocalRange, Port, RangeUse, Settings,
};

/// A time of `CLOCK_MONOTONIC`, as the kernel compares TIME_WAITs with it.
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
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are what is wanted")]
    pub fn from_ns(ns: u64) -> Self {
        Self { ms: (ns / 1_000_000) as u32, s: (ns / 1_000_000_000) as u32 }
    }
}

/// What a connect() that chooses its port has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The source address, bound (without a port) or from the route.
    pub source: Addr,
    /// Where to.
    pub destination: (Addr, Port),
    /// Index of the interface that the socket is bound to, or 0.
    pub device: u32,
    /// The socket's `IP_LOCAL_PORT_RANGE`.
    pub own_range: Option<LocalRange>,
}

/// What a bind() to port 0 has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAny {
    /// The address; may be unspecified.
    pub addr: Addr,
    /// The socket's family.
    pub family: Family,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// Index of the interface that the socket is bound to, or 0.
    pub device: u32,
    /// `SO_REUSEADDR`.
    pub reuse_addr: bool,
    /// The socket's `IP_LOCAL_PORT_RANGE`.
    pub own_range: Option<LocalRange>,
}

/// How many more there can be.
///
/// `least` and `most` differ only if the range has an odd number of ports: then the kernel leaves
/// one port out of each search, and chance decides which ([`BlindSpot`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// So many calls succeed in any case.
    pub least: u32,
    /// No more than so many do.
    pub most: u32,
}

impl Headroom {
    /// There is no limit: with `SO_REUSEADDR` and `ip_autobind_reuse` the ports that such sockets
    /// hold are shared once none is free.
    pub const UNLIMITED: u32 = u32::MAX;
}

/// The ports that connect() chooses from, by what they are to one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectView {
    /// The ports of the range. Those that a connect() takes over now count as used, too.
    pub range: RangeUse,
    /// How many more connect()s will get a port.
    pub headroom: Headroom,
}

/// The ports that bind() to port 0 chooses from, by what they are to one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindView {
    /// Ports of the range that are not reserved.
    pub capacity: u32,
    /// Held by somebody whose address is in the way.
    pub used: u32,
    /// How many more bind()s will get a port.
    pub headroom: Headroom,
}

/// One namespace at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// Its settings.
    pub settings: &'a Settings,
    /// How its kernel searches.
    pub rules: KernelRules,
    /// Its holders; a holder may be listed twice.
    pub holders: &'a [Holder],
    /// When.
    pub now: KernelTime,
}

impl Moment<'_> {
    /// What a connect() that chooses its port will find.
    #[must_use]
    pub fn connect(&self, query: &Connect) -> ConnectView {
        let search = search::of_connect(self.settings, self.rules, query.own_range);
        let mut uses = Uses::new(search.range);
        for holder in self.holders {
            let Some(place) = uses.of(holder.local_port) else { continue };
            // Outside a VRF; a search within one sees that VRF's buckets only.
            if holder.l3mdev != 0 {
                continue;
            }
            let is_in_the_way = is_same_connection(holder, query);
            let found = match (is_in_the_way, holder.class) {
                (true, BucketClass::Connect) if self.gives_way(holder) => Use::Reusable,
                (true, _) => Use::Destination,
                (false, BucketClass::Bind) => Use::Bound,
                (false, BucketClass::Connect) => Use::None,
            };
            *place = found.max(*place);
        }
        let mut range = RangeUse {
            reserved: self.settings.reserved.count_within(search.range),
            ..RangeUse::default()
        };
        for (_, found) in self.unreserved(&uses) {
            range.capacity += 1;
            match found {
                Use::None => {}
                Use::Reusable => {
                    range.used += 1;
                    range.reusable += 1;
                }
                Use::Bound => range.bind_locked += 1,
                Use::Destination => range.used += 1,
            }
        }
        let usable = |found: Use| matches!(found, Use::None | Use::Reusable);
        let headroom = self.headroom(&uses, search, range.headroom(), usable);
        ConnectView { range, headroom }
    }

    /// True if a connect() of a socket that is bound to this port would succeed.
    #[must_use]
    pub fn connect_from(&self, port: Port, query: &Connect) -> bool {
        self.holders.iter().all(|holder| {
            holder.local_port != port
                || holder.l3mdev != 0
                || !is_same_connection(holder, query)
                || matches!(holder.by, HolderBy::TimeWait { ts_recent_stamp_s, .. } if ts_recent_stamp_s != 0)
        })
    }

    /// What a bind() to port 0 will find.
    #[must_use]
    pub fn bind_any(&self, query: &BindAny) -> BindView {
        let search = search::of_bind(self.settings, query.own_range, query.reuse_addr);
        let mut uses = Uses::new(search.range);
        let relaxes = self.settings.autobind_reuse && query.reuse_addr;
        // Ports that a second, relaxed search would share.
        let mut shareable = relaxes.then(|| Uses::new(search.range));
        for holder in self.holders {
            if holder.l3mdev != 0 || !is_bind_conflict(holder, query) {
                continue;
            }
            if let Some(place) = uses.of(holder.local_port) {
                *place = Use::Bound;
            }
            if let Some(place) = shareable.as_mut().and_then(|uses| uses.of(holder.local_port))
                && (!holder.reuse_addr || matches!(holder.by, HolderBy::Listener))
            {
                *place = Use::Bound;
            }
        }
        let count = |uses: &Uses, wanted: Use| {
            u32::try_from(self.unreserved(uses).filter(|(_, found)| *found == wanted).count())
                .unwrap_or(u32::MAX)
        };
        let (free, used) = (count(&uses, Use::None), count(&uses, Use::Bound));
        let mut headroom = self.headroom(&uses, search, free, |found| found == Use::None);
        if let Some(uses) = shareable {
            // Any port that the relaxed search finds, it finds again and again.
            let free = count(&uses, Use::None);
            let relaxed = self.headroom(&uses, search, free, |found| found == Use::None);
            if relaxed.least > 0 {
                headroom.least = Headroom::UNLIMITED;
            }
            if relaxed.most > 0 {
                headroom.most = Headroom::UNLIMITED;
            }
        }
        BindView { capacity: free + used, used, headroom }
    }

    fn unreserved<'u>(&'u self, uses: &'u Uses) -> impl Iterator<Item = (Port, Use)> + 'u {
        let ports = uses.range.ports().zip(uses.uses.iter().copied());
        ports.filter(|(port, _)| !self.settings.reserved.contains(*port))
    }

    /// What is left of so many usable ports if the search has a blind spot.
    fn headroom(
        &self,
        uses: &Uses,
        search: Search,
        usable: u32,
        is_usable: impl Fn(Use) -> bool,
    ) -> Headroom {
        let counts = |port: Port| {
            !self.settings.reserved.contains(port) && uses.get(port).is_some_and(&is_usable)
        };
        let one_less = usable.saturating_sub(1);
        match search.blind_spot {
            BlindSpot::Port(port) if counts(port) => Headroom { least: one_less, most: one_less },
            // Whichever it leaves out stays until it is the last, and then a search may fail.
            BlindSpot::OneOf(first, last) if counts(first) || counts(last) => {
                Headroom { least: one_less, most: usable }
            }
            _ => Headroom { least: usable, most: usable },
        }
    }

    /// True if a TIME_WAIT gives its port to a connect() to the same destination
    /// (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c).
    fn gives_way(&self, holder: &Holder) -> bool {
        let HolderBy::TimeWait { peer, substate, entry_stamp_ms, ts_recent_stamp_s } = holder.by
        else {
            return false;
        };
        const LOOPBACK_IFINDEX: u32 = 1;
        let is_permitted = reuse::is_permitted_between(
            self.settings.time_wait_reuse,
            holder.local_addr,
            peer.0,
            holder.device == LOOPBACK_IFINDEX,
        );
        // Times wrap, so that their difference counts.
        #[expect(clippy::cast_possible_wrap, reason = "as time_after32 does")]
        let is_after = |now: u32, then: u32| (now.wrapping_sub(then) as i32) > 0;
        let is_old_enough = match self.rules.reuse {
            ReuseRule::NextSecond | ReuseRule::NextSecondNotFinWait2 => {
                is_after(self.now.s, ts_recent_stamp_s)
            }
            ReuseRule::Delay => entry_stamp_ms.is_some_and(|began| {
                is_after(self.now.ms, began.wrapping_add(reuse::delay_ms(self.settings)))
            }),
        };
        ts_recent_stamp_s != 0 && is_permitted && self.rules.reuse.admits(substate) && is_old_enough
    }
}

/// What a port is to a search, the later the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    None,
    Reusable,
    Bound,
    Destination,
}

/// The ports of a range.
struct Uses {
    range: LocalRange,
    uses: Vec<Use>,
}

impl Uses {
    fn new(range: LocalRange) -> Self {
        Self { range, uses: vec![Use::None; range.len() as usize] }
    }

    fn of(&mut self, port: Port) -> Option<&mut Use> {
        let index = port.0.checked_sub(self.range.low().0)?;
        self.uses.get_mut(usize::from(index))
    }

    fn get(&self, port: Port) -> Option<Use> {
        let index = port.0.checked_sub(self.range.low().0)?;
        self.uses.get(usize::from(index)).copied()
    }
}

/// True if the holder's connection has the ends that a connect() from its port would have
/// (`inet_match`, include/net/inet_hashtables.h).
fn is_same_connection(holder: &Holder, query: &Connect) -> bool {
    holder.peer() == Some(query.destination)
        && holder.local_addr == query.source
        && (holder.device == 0 || holder.device == query.device)
}

/// True if the holder keeps a bind() from its port, options aside (`inet_csk_bind_conflict` and
/// `inet_rcv_saddr_equal`, net/ipv4/inet_connection_sock.c).
fn is_bind_conflict(holder: &Holder, query: &BindAny) -> bool {
    let devices_meet = query.device == 0 || holder.device == 0 || query.device == holder.device;
    let [wanted, held] = [query.addr, holder.local_addr];
    let addresses_meet = if query.family == Family::Ipv4 || (wanted.is_ipv4() && held.is_ipv4()) {
        // To IPv4 an IPv6 socket that takes IPv4 has an IPv4 address, too: 0.0.0.0 for `::`, and
        // one that nobody has for any other.
        let either_is_any = wanted.is_unspecified() || held.is_unspecified();
        !holder.v6_only && (either_is_any || wanted == held)
    } else {
        let is_any = |addr: Addr| !addr.is_ipv4() && addr.is_unspecified();
        (is_any(wanted) && is_any(held))
            || (is_any(held) && !(holder.v6_only && wanted.is_ipv4()))
            || (is_any(wanted) && !(query.v6_only && held.is_ipv4()))
            || wanted == held
    };
    devices_meet && addresses_meet
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

    /// Is a TIME_WAIT reusable, of this kernel, setting, source, substate and age?
    fn is_reusable(
        reuse: ReuseRule,
        setting: TimeWaitReuse,
        source: &str,
        substate: Substate,
        age_ms: u32,
    ) -> bool {
        let peer = (addr("10.0.0.2"), Port(80));
        // The clock's low 32 bits pass zero meanwhile.
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
        let moment = Moment { settings: &settings, rules, holders: &holders, now };
        let query = Connect { source: addr(source), destination: peer, device: 0, own_range: None };
        assert!(moment.connect_from(Port(1000), &query), "a bound socket takes it at once");
        let view = moment.connect(&query);
        assert_eq!((view.range.capacity, view.range.used), (2, 1));
        assert_eq!(view.headroom.most, 1 + view.range.reusable);
        view.range.reusable == 1
    }

    #[test]
    fn every_kernel_has_its_rule_of_reuse() {
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
    fn addresses_meet_as_the_kernel_has_them_meet() {
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
            // A connected socket that was not bound takes IPv4, as far as bind() goes.
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
