//! Which records the user wants to see.

use std::{net::IpAddr, ops::RangeInclusive, str::FromStr};

use tracer_ebpf::Owner;

use crate::{
    model::{Addr, Family, Kind, Lease, Netns, Operation, Port},
    record::{Body, Cgroup, Record, RecordType},
};

/// A conjunction of conditions, each of which holds if any of its alternatives does, or if it has
/// none.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Processes.
    pub pids: Vec<u32>,
    /// Names of processes.
    pub comms: Vec<String>,
    /// Local ports.
    pub ports: Vec<PortRange>,
    /// Peers.
    pub destinations: Vec<Destination>,
    /// Network namespaces.
    pub namespaces: Vec<Netns>,
    /// Cgroups, each with all below it.
    pub cgroups: Vec<String>,
    /// Socket families.
    pub families: Vec<Family>,
    /// How leases began.
    pub kinds: Vec<KindFilter>,
    /// Types of records.
    pub types: Vec<RecordType>,
    /// Only calls that got no port.
    pub failures_only: bool,
}

/// What a record is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The record's type.
    pub record: RecordType,
    /// Where.
    pub netns: Netns,
    /// The socket's family; `None` if the record is of both.
    pub family: Option<Family>,
    /// The lease's kind; of a failure, that of the lease that was wanted.
    pub kind: Kind,
    /// Local port, 0 if none.
    pub local_port: u16,
    /// The peer.
    pub peer: Option<(Addr, Port)>,
    /// The process.
    pub owner: Option<&'a Owner>,
    /// Its cgroup.
    pub cgroup: Option<&'a Cgroup>,
}

impl<'a> Subject<'a> {
    /// A record of this type about a lease.
    #[must_use]
    pub fn of(record: RecordType, lease: &'a Lease, cgroup: Option<&'a Cgroup>) -> Self {
        Self {
            record,
            netns: lease.netns,
            family: Some(lease.family),
            kind: lease.kind,
            local_port: lease.local_port.0,
            peer: lease.peer.get(),
            owner: lease.owner.as_deref(),
            cgroup,
        }
    }
}

impl Filter {
    /// True if the record is to be shown.
    #[must_use]
    pub fn admits(&self, subject: &Subject<'_>) -> bool {
        let Self {
            pids,
            comms,
            ports,
            destinations,
            namespaces,
            cgroups,
            families,
            kinds,
            types,
            failures_only,
        } = self;
        let owner = subject.owner;
        any(pids, |pid| owner.is_some_and(|owner| owner.pid == *pid))
            && any(comms, |comm| owner.is_some_and(|owner| is_named(owner, comm)))
            && any(ports, |range| range.0.contains(&subject.local_port))
            && any(destinations, |destination| {
                subject.peer.is_some_and(|(addr, port)| destination.matches(addr.ip(), port.0))
            })
            && any(namespaces, |netns| *netns == subject.netns)
            && any(cgroups, |path| {
                subject.cgroup.is_some_and(|cgroup| is_within(&cgroup.path, path))
            })
            && any(families, |family| subject.family.is_none_or(|of_it| *family == of_it))
            && any(kinds, |kind| kind.matches(subject.kind))
            && any(types, |wanted| *wanted == subject.record)
            && (!failures_only || subject.record == RecordType::Fail)
    }

    /// True if the record is to be shown.
    #[must_use]
    pub fn admits_record(&self, record: &Record<'_>) -> bool {
        match record.body {
            Body::Start(_) | Body::Loss(_) | Body::Verify(_) | Body::Summary(_) => true,
            Body::Namespace { netns, .. } => {
                self.admits_settings() && any(&self.namespaces, |wanted| *wanted == netns)
            }
            Body::Lease { event, cgroup } => {
                self.admits(&Subject::of(RecordType::of(&event.change), event.lease, cgroup))
            }
            Body::Fail { failure, cgroup, .. } => self.admits(&Subject {
                record: RecordType::Fail,
                netns: failure.netns,
                family: Some(failure.family),
                kind: match failure.operation {
                    Operation::Bind => Kind::Bind,
                    Operation::Connect => Kind::Connect,
                    Operation::Listen => Kind::Listen,
                },
                local_port: failure.local_port,
                peer: failure.peer,
                owner: failure.owner.as_ref(),
                cgroup,
            }),
            Body::Pressure(pressure) => {
                let destination = pressure.destination;
                self.admits(&Subject {
                    record: RecordType::Pressure,
                    netns: pressure.netns,
                    // A range is that of both families.
                    family: destination.map(|destination| match destination.peer.0.is_ipv4() {
                        true => Family::Ipv4,
                        false => Family::Ipv6,
                    }),
                    kind: if destination.is_some() { Kind::Connect } else { Kind::BindAuto },
                    local_port: 0,
                    peer: destination.map(|destination| destination.peer),
                    owner: None,
                    cgroup: None,
                })
            }
            Body::Scan(scan) => {
                let tried = scan.port_low.0..=scan.port_high.0;
                self.admits_scan(scan.netns, scan.source.ip(), &tried)
            }
        }
    }

    /// True if the settings of the namespaces that are shown are to be shown, too.
    #[must_use]
    pub fn admits_settings(&self) -> bool {
        !self.failures_only && any(&self.types, |wanted| *wanted == RecordType::Namespace)
    }

    /// True if the scan is to be shown. It has no lease, and no process of this host: whoever asks
    /// for one or the other does not mean scans.
    #[must_use]
    pub fn admits_scan(&self, netns: Netns, source: IpAddr, tried: &RangeInclusive<u16>) -> bool {
        let Self {
            pids,
            comms,
            ports,
            destinations,
            namespaces,
            cgroups,
            families,
            kinds,
            types,
            failures_only,
        } = self;
        let family = if source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        pids.is_empty()
            && comms.is_empty()
            && cgroups.is_empty()
            && kinds.is_empty()
            && destinations.is_empty()
            && !failures_only
            && any(ports, |range| range.0.start() <= tried.end() && tried.start() <= range.0.end())
            && any(namespaces, |wanted| *wanted == netns)
            && any(families, |wanted| *wanted == family)
            && any(types, |wanted| *wanted == RecordType::Scan)
    }

    /// True if some condition asks for a cgroup's name.
    #[must_use]
    pub fn needs_cgroup(&self) -> bool {
        !self.cgroups.is_empty()
    }
}

/// True if any of the alternatives holds, or if there is none.
fn any<T>(alternatives: &[T], holds: impl Fn(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(holds)
}

fn is_named(owner: &Owner, comm: &str) -> bool {
    // The kernel keeps fifteen bytes of a name.
    let wanted = comm.as_bytes();
    let wanted = wanted.get(..15).unwrap_or(wanted);
    let end = owner.comm.iter().position(|byte| *byte == 0).unwrap_or(owner.comm.len());
    owner.comm.get(..end) == Some(wanted)
}

fn is_within(path: &str, ancestor: &str) -> bool {
    let ancestor = ancestor.trim_end_matches('/');
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `PORT` or `LO-HI`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("`{text}` is not a port from 1 to 65535"))
        };
        let range = match text.split_once('-') {
            Some((low, high)) => port(low)?..=port(high)?,
            None => {
                let port = port(text)?;
                port..=port
            }
        };
        if range.is_empty() {
            return Err(format!("`{text}` ends before it begins"));
        }
        Ok(Self(range))
    }
}

/// `ADDR`, `ADDR/LEN`, and either with `:PORT` (an IPv6 address then in brackets).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    addr: IpAddr,
    prefix_bits: u32,
    port: Option<u16>,
}

impl Destination {
    fn matches(&self, addr: IpAddr, port: u16) -> bool {
        let is_port = self.port.is_none_or(|wanted| wanted == port);
        let is_addr = match (self.addr, addr) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let host_bits = 32 - self.prefix_bits;
                let differing = net.to_bits() ^ addr.to_bits();
                differing.checked_shr(host_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let host_bits = 128 - self.prefix_bits;
                let differing = net.to_bits() ^ addr.to_bits();
                differing.checked_shr(host_bits).unwrap_or(0) == 0
            }
            _ => false,
        };
        is_port && is_addr
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || {
            format!("`{text}` is not ADDR[/LEN][:PORT], such as 10.0.0.0/8:443 or [2001:db8::1]:80")
        };
        let port_of = |text: &str| text.parse::<u16>().map_err(|_| malformed());
        let (net, port) = if let Some(rest) = text.strip_prefix('[') {
            // [ADDR]:PORT, [ADDR/LEN]:PORT or [ADDR]/LEN:PORT.
            let (inside, after) = rest.split_once(']').ok_or_else(malformed)?;
            let (length, port) = match after.split_once(':') {
                Some((length, port)) => (length, Some(port_of(port)?)),
                None => (after, None),
            };
            (format!("{inside}{length}"), port)
        } else if text.matches(':').count() == 1 {
            let (net, port) = text.split_once(':').ok_or_else(malformed)?;
            (net.to_owned(), Some(port_of(port)?))
        } else {
            (text.to_owned(), None)
        };
        let (addr, length) = match net.split_once('/') {
            Some((addr, length)) => (addr, Some(length.parse::<u32>().map_err(|_| malformed())?)),
            None => (net.as_str(), None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| malformed())?;
        // Mapped addresses are shown, and so looked for, as IPv4.
        let (addr, length) = match (addr.to_canonical(), length) {
            (canonical, Some(bits)) if canonical.is_ipv4() && addr.is_ipv6() => {
                (canonical, Some(bits.checked_sub(96).ok_or_else(malformed)?))
            }
            (canonical, length) => (canonical, length),
        };
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let prefix_bits = length.unwrap_or(bits);
        if prefix_bits > bits {
            return Err(malformed());
        }
        Ok(Self { addr, prefix_bits, port })
    }
}

/// The kinds that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[expect(missing_docs, reason = "the names are those of the interface")]
pub enum KindFilter {
    Connect,
    Bind,
    Listen,
    Accept,
}

impl KindFilter {
    fn matches(self, kind: Kind) -> bool {
        match self {
            Self::Connect => kind == Kind::Connect,
            Self::Bind => matches!(kind, Kind::Bind | Kind::BindAuto),
            Self::Listen => kind == Kind::Listen,
            Self::Accept => kind == Kind::Accept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read() {
        let matches = |text: &str, addr: &str, port| {
            Destination::from_str(text).unwrap().matches(addr.parse().unwrap(), port)
        };
        assert!(matches("10.0.0.0/8", "10.200.3.4", 1));
        assert!(!matches("10.0.0.0/8", "11.0.0.1", 1));
        assert!(matches("10.0.0.1:443", "10.0.0.1", 443));
        assert!(!matches("10.0.0.1:443", "10.0.0.1", 80));
        assert!(matches("0.0.0.0/0", "255.1.1.1", 80));
        assert!(!matches("0.0.0.0/0", "::1", 80));
        assert!(matches("::1", "::1", 80));
        assert!(matches("[2001:db8::/32]:80", "2001:db8:1::1", 80));
        assert!(matches("[2001:db8::]/32:80", "2001:db8:1::1", 80));
        assert!(matches("::/0", "::1", 80));
        assert!(matches("::ffff:10.0.0.1", "10.0.0.1", 80));
        assert!(matches("[::ffff:10.0.0.0/104]:80", "10.9.8.7", 80));
        assert!(Destination::from_str("::ffff:10.0.0.1/64").is_err());
        for wrong in ["", "10.0.0.1/33", "10.0.0.1:99999", "host:80", "[::1", "::/129"] {
            assert!(Destination::from_str(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn port_ranges_are_read() {
        assert_eq!(PortRange::from_str("80"), Ok(PortRange(80..=80)));
        assert_eq!(PortRange::from_str("1-65535"), Ok(PortRange(1..=65535)));
        for wrong in ["", "0", "65536", "9-8", "a-b", "-5"] {
            assert!(PortRange::from_str(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cgroup_includes_what_is_below_it() {
        assert!(is_within("/a/b", "/a"));
        assert!(is_within("/a", "/a/"));
        assert!(is_within("/a", "/"));
        assert!(!is_within("/ab", "/a"));
    }
}
