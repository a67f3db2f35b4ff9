//! The settings of a network namespace that decide how many ports it has, and how they can be used (`Documentation/networking/ip-sysctl.rst`).

use super::Port;

/// The settings of a network namespace. A setting that the running kernel does not have is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `ip_local_port_range`: the ports that connect() and bind() to port 0 choose from.
    pub range: LocalRange,
    /// `ip_local_reserved_ports`: the ports that they do not choose. bind() by number still works.
    pub reserved: PortSet,
    /// `ip_local_port_step_width` (7.3): the widest random step of connect()'s search; 0 or 1 for
    /// the next port. The search visits every port whatever the step.
    pub step_width: Option<u32>,
    /// `ip_autobind_reuse`: bind() to port 0 may share a port among `SO_REUSEADDR` sockets once
    /// no port is free.
    pub autobind_reuse: bool,
    /// `ip_unprivileged_port_start`: the lowest port that needs no `CAP_NET_BIND_SERVICE`.
    pub unprivileged_start: u16,
    /// `tcp_tw_reuse`: whether connect() may take over a port from a TIME_WAIT.
    pub time_wait_reuse: TimeWaitReuse,
    /// `tcp_tw_reuse_delay` (6.14): the age from which it may, in milliseconds.
    pub time_wait_reuse_delay_ms: Option<u32>,
    /// True if `tcp_timestamps` is not 0. Without timestamps, no TIME_WAIT can be taken over.
    pub timestamps: bool,
    /// `tcp_max_tw_buckets`: the maximum number of TIME_WAITs; further connections end without one.
    pub max_time_waits: u32,
    /// `tcp_fin_timeout`: how long an orphaned socket stays in FIN_WAIT2, in seconds. It does not
    /// shorten TIME_WAIT, which always lasts 60 s (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
    pub fin_timeout_s: u32,
    /// `somaxconn`: the maximum length of a listener's accept queue.
    pub max_listen_backlog: u32,
}

impl Settings {
    /// Number of ports that connect() and bind() to port 0 may choose from.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.range.len() - self.reserved.count_within(self.range)
    }

    /// Linux's defaults, for tests.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self {
            range: LocalRange { low: Port(32_768), high: Port(60_999) },
            reserved: PortSet::default(),
            step_width: None,
            autobind_reuse: false,
            unprivileged_start: 1024,
            time_wait_reuse: TimeWaitReuse::Loopback,
            time_wait_reuse_delay_ms: Some(1000),
            timestamps: true,
            max_time_waits: 1 << 17,
            fin_timeout_s: 60,
            max_listen_backlog: 4096,
        }
    }

    /// True if connect() and bind() to port 0 may choose this port.
    #[must_use]
    pub fn may_choose(&self, port: Port) -> bool {
        self.range.contains(port) && !self.reserved.contains(port)
    }
}

/// A range of ports, never empty, without port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRange {
    low: Port,
    high: Port,
}

impl LocalRange {
    /// The range from `low` to `high`, inclusive. `None` if it is empty or begins at 0.
    #[must_use]
    pub fn new(low: Port, high: Port) -> Option<Self> {
        (low.0 != 0 && low <= high).then_some(Self { low, high })
    }

    /// Parses `ip_local_port_range`: two numbers separated by white space.
    ///
    /// # Errors
    /// A sentence, if the text is malformed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fields = text.split_ascii_whitespace().map(str::parse::<u16>);
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(low)), Some(Ok(high)), None) => Self::new(Port(low), Port(high)),
            _ => None,
        }
        .ok_or_else(|| format!("`{}` is not a range of ports", text.trim()))
    }

    /// The lowest port.
    #[must_use]
    pub fn low(self) -> Port {
        self.low
    }

    /// The highest port.
    #[must_use]
    pub fn high(self) -> Port {
        self.high
    }

    /// Number of ports, at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u32 {
        u32::from(self.high.0 - self.low.0) + 1
    }

    /// True if the port is in the range.
    #[must_use]
    pub fn contains(self, port: Port) -> bool {
        self.low <= port && port <= self.high
    }

    /// Its ports, ascending.
    pub fn ports(self) -> impl DoubleEndedIterator<Item = Port> {
        (self.low.0..=self.high.0).map(Port)
    }
}

/// A set of ports, as ranges in ascending order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet {
    ranges: Vec<(u16, u16)>,
}

impl PortSet {
    /// Parses `ip_local_reserved_ports`: ports and ranges, separated by commas
    /// (`proc_do_large_bitmap`, kernel/sysctl.c). May be empty.
    ///
    /// # Errors
    /// A sentence, if the text is malformed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let malformed =
            |item: &str| format!("`{item}` is neither a port nor a range of ports such as 1-2");
        let port = |number: &str| number.trim().parse::<u16>().ok();
        let mut ranges = Vec::new();
        for item in text.split(',').filter(|item| !item.trim().is_empty()) {
            let range = match item.split_once('-') {
                Some((low, high)) => port(low).zip(port(high)),
                None => port(item).map(|port| (port, port)),
            };
            ranges.push(range.filter(|(low, high)| low <= high).ok_or_else(|| malformed(item))?);
        }
        Ok(Self::of_ranges(ranges))
    }

    fn of_ranges(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match joined.last_mut() {
                Some((_, last)) if low <= last.saturating_add(1) => *last = high.max(*last),
                _ => joined.push((low, high)),
            }
        }
        joined.shrink_to_fit();
        Self { ranges: joined }
    }

    /// True if the set contains the port.
    #[must_use]
    pub fn contains(&self, port: Port) -> bool {
        let after = self.ranges.partition_point(|(low, _)| *low <= port.0);
        after
            .checked_sub(1)
            .and_then(|at| self.ranges.get(at))
            .is_some_and(|(_, high)| port.0 <= *high)
    }

    /// Number of ports of the set that lie in the range.
    #[must_use]
    pub fn count_within(&self, range: LocalRange) -> u32 {
        self.ranges
            .iter()
            .filter_map(|(low, high)| {
                let (low, high) = (*low.max(&range.low().0), *high.min(&range.high().0));
                high.checked_sub(low).map(|more| u32::from(more) + 1)
            })
            .sum()
    }

    /// The set with this port added.
    #[must_use]
    pub fn with(&self, port: Port) -> Self {
        Self::of_ranges(self.ranges.iter().copied().chain([(port.0, port.0)]).collect())
    }
}

impl FromIterator<Port> for PortSet {
    fn from_iter<I: IntoIterator<Item = Port>>(ports: I) -> Self {
        Self::of_ranges(ports.into_iter().map(|port| (port.0, port.0)).collect())
    }
}

impl std::fmt::Display for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (low, high)) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if low == high {
                write!(f, "{comma}{low}")?;
            } else {
                write!(f, "{comma}{low}-{high}")?;
            }
        }
        Ok(())
    }
}

/// `tcp_tw_reuse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitReuse {
    /// 0: connect() takes over no port.
    Never,
    /// 1: from any TIME_WAIT.
    Always,
    /// 2, the default: from one whose connection was over the loopback interface.
    Loopback,
}

impl TimeWaitReuse {
    /// The variant for the value of the setting. `None` for a value that the kernel did not have when
    /// this was written.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Never,
            1 => Self::Always,
            2 => Self::Loopback,
            _ => return None,
        })
    }

    /// The value of the setting.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Never => 0,
            Self::Always => 1,
            Self::Loopback => 2,
        }
    }
}

/// The class that IANA puts a port in (RFC 6335, 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortClass {
    /// 0 to 1023: system ports.
    WellKnown,
    /// 1024 to 49151: user ports.
    Registered,
    /// 49152 to 65535: private and ephemeral ports.
    Dynamic,
}

impl PortClass {
    /// The class of a port.
    #[must_use]
    pub fn of(port: Port) -> Self {
        match port.0 {
            0..=1023 => Self::WellKnown,
            1024..=49151 => Self::Registered,
            49152..=65535 => Self::Dynamic,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(range: &str, reserved: &str) -> Settings {
        Settings {
            range: LocalRange::parse(range).unwrap(),
            reserved: PortSet::parse(reserved).unwrap(),
            ..Settings::sample()
        }
    }

    #[test]
    fn capacity_is_the_range_without_what_is_reserved_in_it() {
        assert_eq!(settings("32768\t60999\n", "\n").capacity(), 28_232);
        assert_eq!(settings("32768 60999", "1-32768,40000,60999-65535").capacity(), 28_229);
        assert_eq!(settings("50000 50000", "50000").capacity(), 0);
        assert!(settings("1 9", "5").may_choose(Port(4)));
        assert!(!settings("1 9", "5").may_choose(Port(5)));
        assert!(!settings("1 9", "5").may_choose(Port(10)));
    }

    #[test]
    fn malformed_text_is_rejected() {
        for wrong in ["", "1", "0 5", "9 8", "1 2 3", "1 65536", "a b"] {
            assert!(LocalRange::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["a", "2-1", "1-2-3", "65536", "-", "1 2"] {
            assert!(PortSet::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(PortSet::parse(" \n"), Ok(PortSet::default()));
    }

    #[test]
    fn touching_ranges_are_merged() {
        assert_eq!(PortSet::parse("5,1-3,4,65535,65534").unwrap().to_string(), "1-5,65534-65535");
        assert_eq!(PortSet::parse("1-9,3-4").unwrap().to_string(), "1-9");
    }

    #[test]
    fn ports_have_the_classes_of_iana() {
        for (port, class) in [
            (1, PortClass::WellKnown),
            (1023, PortClass::WellKnown),
            (1024, PortClass::Registered),
            (49_151, PortClass::Registered),
            (49_152, PortClass::Dynamic),
            (65_535, PortClass::Dynamic),
        ] {
            assert_eq!(PortClass::of(Port(port)), class);
        }
    }

    proptest! {
        #[test]
        fn a_set_is_its_ports(ports in prop::collection::btree_set(1..200_u16, 0..80), low in 1..200_u16, more in 0..100_u16) {
            let set: PortSet = ports.iter().copied().map(Port).collect();
            for port in 0..310 {
                prop_assert_eq!(set.contains(Port(port)), ports.contains(&port));
            }
            let range = LocalRange::new(Port(low), Port(low + more)).unwrap();
            let within = ports.range(low..=low + more).count();
            prop_assert_eq!(set.count_within(range) as usize, within);
            prop_assert_eq!(PortSet::parse(&set.to_string()), Ok(set));
        }
    }
}
