//! The map in which the programs count attempts to connect to closed ports.

use aya::maps::{HashMap, MapData};
use tracer_ebpf::{Prober, Tries};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// A [`Prober`] as words, which aya takes for a key.
type Key = [u32; size_of::<Prober>() / 4];
/// [`Tries`] as words, which aya takes for a value.
type Value = [u64; size_of::<Tries>() / 8];

/// Who tried to connect to closed ports, and to which.
pub(crate) struct ProberMap(HashMap<MapData, Key, Value>);

impl ProberMap {
    pub(crate) fn new(map: HashMap<MapData, Key, Value>) -> Self {
        Self(map)
    }

    /// All entries. One that changes at the same time may be missing or come twice.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Prober, Tries)> {
        self.0.iter().filter_map(|entry| {
            let (key, value) = entry.ok()?;
            let prober = Prober::read_from_bytes(key.as_bytes()).ok()?;
            Some((prober, Tries::read_from_bytes(value.as_bytes()).ok()?))
        })
    }

    /// Removes a source: its next try counts as its first.
    pub(crate) fn remove(&mut self, prober: &Prober) {
        if let Ok(key) = Key::read_from_bytes(prober.as_bytes()) {
            // The kernel may have evicted it already.
            let _ = self.0.remove(&key);
        }
    }
}
