//! Closed ports that were tried, as the programs count them.

use aya::maps::{HashMap, MapData};
use tracer_ebpf::{Prober, Tries};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// A [`Prober`], as the words that it is made of.
type Key = [u32; size_of::<Prober>() / 4];
/// [`Tries`] likewise.
type Value = [u64; size_of::<Tries>() / 8];

/// The programs' table of who tried closed ports.
pub struct TriedPorts(HashMap<MapData, Key, Value>);

impl TriedPorts {
    pub(crate) fn new(map: HashMap<MapData, Key, Value>) -> Self {
        Self(map)
    }

    /// Everybody in the table. Entries that change meanwhile may be left out or come twice.
    pub fn all(&self) -> impl Iterator<Item = (Prober, Tries)> {
        self.0.iter().filter_map(|entry| {
            let (key, value) = entry.ok()?;
            let prober = Prober::read_from_bytes(key.as_bytes()).ok()?;
            Some((prober, Tries::read_from_bytes(value.as_bytes()).ok()?))
        })
    }

    /// Takes a source off the table: its next try is its first.
    pub fn forget(&mut self, prober: &Prober) {
        if let Ok(key) = Key::read_from_bytes(prober.as_bytes()) {
            // If it is gone already, all is well.
            let _ = self.0.remove(&key);
        }
    }
}
