//! The settings of the namespaces that records name, for the `namespace` records.

use std::fs::File;

use rustc_hash::FxHashMap;

use crate::{
    exhaustion::Settings,
    kernel::{clock, netns, settings::SettingsFiles},
    ledger::{Instant, Netns},
};

/// When to try again what could not be opened: no process that lives in the namespace was seen.
const RETRY_NS: u64 = 1_000_000_000;
/// Namespaces whose files are kept open, eleven each. The settings of others are read again with
/// files opened anew.
const MOST_OPEN: usize = 64;

/// Namespaces remembered before those without open files are forgotten: containers come and go.
const MOST_KNOWN: usize = 4096;

/// The namespaces that were seen. Nothing is asked of the kernel for an event: settings are read
/// when a namespace is met, when a call has failed since they were read, which is once for all the
/// failures of a drain of the ring, and by [`changes`](Self::changes).
#[derive(Debug, Default)]
pub struct Namespaces {
    known: FxHashMap<Netns, Known>,
    open: usize,
}

#[derive(Debug, Default)]
struct Known {
    files: Option<SettingsFiles>,
    settings: Option<Settings>,
    /// A process that should live there.
    pid: Option<u32>,
    /// When they were read, or could not be.
    read_at_ns: u64,
    /// Something happened there since they were read.
    is_active: bool,
}

impl Namespaces {
    /// The settings of these namespaces, each with a process that should live in it, if one is
    /// known. What no process leads to is looked for among all namespaces of the host.
    pub fn meet_all(&mut self, seen: &[(Netns, Option<u32>)]) -> Vec<(Netns, Settings)> {
        for (netns, pid) in seen {
            self.meet(*netns, *pid, Instant(u64::MAX));
        }
        let is_missing = |known: &Known| known.settings.is_none();
        if self.known.values().any(is_missing) {
            let found = netns::Namespaces::discover(&[]);
            for (inode, handle) in found.iter() {
                let missing = self.known.get_mut(&Netns(inode)).filter(|known| is_missing(known));
                if let Some(known) = missing {
                    known.files = SettingsFiles::open_in(handle).ok();
                    known.settings = known.files.as_ref().and_then(|files| files.read().ok());
                    self.open += usize::from(known.files.is_some());
                }
            }
            self.close_some();
        }
        let mut met: Vec<_> = self
            .known
            .iter()
            .filter_map(|(netns, known)| Some((*netns, known.settings.clone()?)))
            .collect();
        met.sort_by_key(|(netns, _)| *netns);
        met
    }

    /// Before a record about a namespace, of this time: its settings, if they are new.
    pub fn meet(&mut self, netns: Netns, pid: Option<u32>, at: Instant) -> Option<Settings> {
        let known = self.known.entry(netns).or_default();
        known.is_active = true;
        known.pid = pid.or(known.pid);
        let is_due = known.settings.is_none() && at.0.saturating_sub(known.read_at_ns) >= RETRY_NS;
        if is_due { self.look(netns) } else { None }
    }

    /// Before the record of a failure, of this time: the settings, if they have changed.
    pub fn meet_failure(
        &mut self,
        netns: Netns,
        pid: Option<u32>,
        at: Instant,
    ) -> Option<Settings> {
        let met = self.meet(netns, pid, at);
        let known = self.known.get(&netns)?;
        let is_due = known.settings.is_some() && at.0 > known.read_at_ns;
        if is_due { met.or_else(|| self.look(netns)) } else { met }
    }

    /// The settings that have changed, of the namespaces in which something happened.
    pub fn changes(&mut self) -> Vec<(Netns, Settings)> {
        let active: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| known.is_active && known.settings.is_some())
            .map(|(netns, _)| *netns)
            .collect();
        active.into_iter().filter_map(|netns| Some((netns, self.look(netns)?))).collect()
    }

    /// Reads the settings, and returns them if they are others than before.
    fn look(&mut self, netns: Netns) -> Option<Settings> {
        let known = self.known.get_mut(&netns)?;
        // Before reading: what changes meanwhile is read again.
        known.read_at_ns = clock::monotonic_ns();
        known.is_active = false;
        let mut settings = known.files.as_ref().and_then(|files| files.read().ok());
        if settings.is_none() {
            // The namespace has ended, and another may have its inode by now.
            self.open -= usize::from(known.files.is_some());
            known.files = open(netns, known.pid);
            self.open += usize::from(known.files.is_some());
            settings = known.files.as_ref().and_then(|files| files.read().ok());
        }
        let changed = settings.filter(|settings| known.settings.as_ref() != Some(settings));
        if changed.is_some() {
            known.settings.clone_from(&changed);
        }
        self.close_some();
        changed
    }

    fn close_some(&mut self) {
        if self.known.len() > MOST_KNOWN {
            self.known.retain(|_, known| known.files.is_some());
        }
        while self.open > MOST_OPEN {
            let open = self.known.values_mut().filter(|known| known.files.is_some());
            let Some(oldest) = open.min_by_key(|known| known.read_at_ns) else { return };
            oldest.files = None;
            self.open -= 1;
        }
    }
}

/// Opens the settings of a namespace through a process that should live in it, or through this
/// one.
fn open(netns: Netns, pid: Option<u32>) -> Option<SettingsFiles> {
    let of_process = pid.map(|pid| format!("/proc/{pid}/ns/net"));
    let own = "/proc/thread-self/ns/net".to_owned();
    of_process.into_iter().chain([own]).find_map(|path| {
        let namespace = File::open(path).ok()?;
        let is_it = netns::inode_of(&namespace).is_ok_and(|inode| inode == netns.0);
        is_it.then(|| SettingsFiles::open_in(&namespace).ok()).flatten()
    })
}
