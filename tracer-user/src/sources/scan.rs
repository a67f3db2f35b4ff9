//! Port scans: sources that try many closed ports.
//!
//! Invariant: pure. Attempts go in, scans come out.

use rustc_hash::FxHashMap;

use tracer_ebpf::{Prober, Tries};

use crate::model::{Addr, Instant, Netns, Port, Scan};

/// Number of different closed ports that make a source a scanner. Clients of services that are down
/// try one or a few.
const MIN_PORTS: u32 = 16;

/// A source without attempts for this number of nanoseconds is forgotten.
const SILENCE_NS: u64 = 60_000_000_000;

/// Scans under way.
#[derive(Debug, Default)]
pub struct Scans {
    /// Number of attempts of each source at its latest report.
    reported: FxHashMap<Prober, u64>,
}

impl Scans {
    /// Evaluates the attempts so far. A scan is reported when it is recognised, whenever its
    /// attempts have doubled, and when it is over. Returns the scans to report, and the sources
    /// that can be forgotten.
    pub fn look(
        &mut self,
        now: Instant,
        all: impl Iterator<Item = (Prober, Tries)>,
    ) -> (Vec<Scan>, Vec<Prober>) {
        let (mut scans, mut over) = (Vec::new(), Vec::new());
        // The kernel forgets sources, and one that changes its address leaves many behind.
        let before = std::mem::take(&mut self.reported);
        for (prober, tries) in all {
            let is_over = now.since(Instant::from_ns(tries.last_ns)) > SILENCE_NS;
            if let Some(scan) = scan_of(&prober, &tries) {
                // A source that was forgotten in the meantime begins anew.
                let reported =
                    before.get(&prober).copied().filter(|reported| *reported <= scan.tries);
                let reported = reported.unwrap_or(0);
                let is_due = scan.tries >= reported.saturating_mul(2).max(1);
                if !is_over {
                    self.reported.insert(prober, if is_due { scan.tries } else { reported });
                }
                if is_due || (is_over && scan.tries > reported) {
                    scans.push(scan);
                }
            }
            if is_over {
                over.push(prober);
            }
        }
        (scans, over)
    }

    /// The scans that have grown since their latest report, at the end.
    pub fn rest(&mut self, all: impl Iterator<Item = (Prober, Tries)>) -> Vec<Scan> {
        all.filter_map(|(prober, tries)| {
            let scan = scan_of(&prober, &tries)?;
            let reported = self.reported.insert(prober, scan.tries).unwrap_or(0);
            (scan.tries > reported).then_some(scan)
        })
        .collect()
    }
}

fn scan_of(prober: &Prober, tries: &Tries) -> Option<Scan> {
    let ports = tries.ports();
    let port = |port: u32| u16::try_from(port).ok().map(Port);
    (ports >= MIN_PORTS).then_some(Scan {
        netns: Netns(prober.netns),
        source: Addr(prober.addr),
        ports,
        port_low: port(tries.port_low)?,
        port_high: port(tries.port_high)?,
        tries: tries.count,
        first: Instant::from_ns(tries.first_ns),
        last: Instant::from_ns(tries.last_ns),
    })
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::mapped;

    use super::*;

    const PROBER: Prober =
        Prober { netns: 4, addr: mapped(u32::from_be_bytes([10, 0, 0, 1]).to_be()) };

    fn second(second: u64) -> Instant {
        Instant::from_ns(second * 1_000_000_000)
    }

    fn try_ports(tries: &mut Tries, ports: std::ops::Range<u16>, at: Instant) {
        for port in ports {
            tries.add(port, at.ns());
        }
    }

    #[test]
    fn a_scan_is_reported_as_it_grows_and_when_it_is_over() {
        let (mut scans, mut tries) = (Scans::default(), Tries::default());
        let mut look = |now, tries: &Tries| scans.look(now, std::iter::once((PROBER, *tries)));
        try_ports(&mut tries, 20..35, second(1));
        assert_eq!(look(second(1), &tries), (vec![], vec![]), "fifteen ports are not enough");
        try_ports(&mut tries, 35..40, second(2));
        let (reported, over) = look(second(2), &tries);
        let [scan] = reported[..] else { panic!("{reported:?}") };
        assert!(over.is_empty());
        assert_eq!((scan.ports, scan.port_low, scan.port_high), (20, Port(20), Port(39)));
        assert_eq!((scan.source.ip().to_string(), scan.tries), ("10.0.0.1".to_owned(), 20));
        assert_eq!(scan.rate_per_s(), Some(20.0));
        try_ports(&mut tries, 40..59, second(3));
        assert_eq!(look(second(3), &tries), (vec![], vec![]), "not twice as much");
        try_ports(&mut tries, 59..60, second(4));
        assert_eq!(look(second(4), &tries).0.len(), 1);
        try_ports(&mut tries, 60..61, second(5));
        assert_eq!(look(second(65), &tries), (vec![], vec![]));
        let (reported, over) = look(second(66), &tries);
        assert_eq!((reported.len(), over), (1, vec![PROBER]));
    }

    #[test]
    fn sources_that_the_kernel_has_forgotten_are_forgotten() {
        let mut scans = Scans::default();
        for source in 0..1000 {
            let mut tries = Tries::default();
            try_ports(&mut tries, 20..40, second(1));
            let prober = Prober { addr: mapped(source), ..PROBER };
            assert_eq!(scans.look(second(1), std::iter::once((prober, tries))).0.len(), 1);
            assert_eq!(scans.reported.len(), 1);
        }
    }

    #[test]
    fn a_client_that_repeats_itself_is_no_scan() {
        let (mut scans, mut tries) = (Scans::default(), Tries::default());
        for at in 1..1000 {
            try_ports(&mut tries, 80..82, second(at));
        }
        assert_eq!(scans.look(second(1000), std::iter::once((PROBER, tries))), (vec![], vec![]));
        assert_eq!(scans.rest(std::iter::once((PROBER, tries))), []);
    }
}
