//! Patterns that select ports, peers and kinds, and how they are written on the command line.

use std::{net::IpAddr, ops::RangeInclusive, str::FromStr};

use crate::model::Kind;

/// Ports, as `PORT` or `LO-HI`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl PortRange {
    /// True if they have a port in common.
    pub(super) fn overlaps(&self, ports: &RangeInclusive<u16>) -> bool {
        self.0.start() <= ports.end() && ports.start() <= self.0.end()
    }
}

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

/// Peers, as `ADDR` or `ADDR/LEN`, either with `:PORT`; an IPv6 address is then in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPattern {
    addr: IpAddr,
    prefix_bits: u32,
    port: Option<u16>,
}

impl PeerPattern {
    /// True if it includes this address and port.
    pub(super) fn includes(&self, addr: IpAddr, port: u16) -> bool {
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

impl FromStr for PeerPattern {
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

/// The kinds that can be selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[expect(missing_docs, reason = "the names are those of the interface")]
pub enum KindPattern {
    Connect,
    Bind,
    Listen,
    Accept,
}

impl KindPattern {
    /// True if it includes this kind; `Bind` includes bind() to port 0.
    pub(super) fn includes(self, kind: Kind) -> bool {
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
            PeerPattern::from_str(text).unwrap().includes(addr.parse().unwrap(), port)
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
        assert!(PeerPattern::from_str("::ffff:10.0.0.1/64").is_err());
        for wrong in ["", "10.0.0.1/33", "10.0.0.1:99999", "host:80", "[::1", "::/129"] {
            assert!(PeerPattern::from_str(wrong).is_err(), "{wrong}");
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
}
