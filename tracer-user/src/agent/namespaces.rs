//! The active namespaces and their current settings. The ledger counts ports by these settings, and
//! `namespace` records show them.

use std::{fs::File, sync::Arc};

use rustc_hash::FxHashMap;
use tracer_ebpf::TcpState;

use crate::{
    kernel::{
        host::clock,
        namespace::{
            netns,
            settings::{self, SettingsFiles},
        },
    },
    ledger::Ledger,
    model::{
        Netns, Observation, Settings,
        observation::{Closed, Endpoints, LocalEnd},
    },
};

/// The maximum age of settings when a socket binds, connects or listens. Reading them takes some
/// microseconds.
const FRESH_NS: u64 = 100_000_000;
/// The interval at which opening a namespace is retried for a record, while no process is known
/// that lives in it.
const RETRY_NS: u64 = 1_000_000_000;
/// The first interval at which it is retried when a process acts in the namespace. It doubles with
/// each attempt, up to [`FRESH_NS`].
const FIRST_RETRY_NS: u64 = 1_000_000;
/// Number of earlier retries that failed calls may cause in a second: where namespaces come and go,
/// a new one can have the inode of one that could not be opened a moment ago.
const EAGER_RETRIES: u32 = 50;
/// The interval between searches through all threads of the host for one that lives in a namespace,
/// if none of the socket's process does.
const SEARCH_NS: u64 = 5_000_000_000;
/// Maximum number of namespaces whose ports are counted (some tens of kilobytes each) and whose
/// files stay open, if the limit of descriptors permits. For others the files are opened each time.
const MAX_COUNTED: usize = 512;
/// Maximum number of known namespaces. Beyond it, those without open files are forgotten, because
/// containers come and go.
const MAX_KNOWN: usize = 4096;

/// The namespaces that were seen.
#[derive(Debug)]
pub struct Namespaces {
    known: FxHashMap<Netns, Known>,
    /// Number of namespaces whose files are open, and the maximum.
    open: usize,
    max_open: usize,
    /// Number of namespaces whose ports are counted.
    counted: usize,
    /// Time of the last search through all threads.
    searched_ns: u64,
    eager: Eager,
}

/// Number of [`EAGER_RETRIES`] that are used up in the current second.
#[derive(Debug, Default)]
struct Eager {
    second: u64,
    used: u32,
}

impl Eager {
    fn take(&mut self, at_ns: u64) -> bool {
        let second = at_ns / 1_000_000_000;
        if self.second != second {
            *self = Self { second, used: 0 };
        }
        let is_left = self.used < EAGER_RETRIES;
        self.used += u32::from(is_left);
        is_left
    }
}

#[derive(Debug, Default)]
struct Known {
    files: Option<SettingsFiles>,
    /// The settings that were read last.
    settings: Option<Settings>,
    /// True if the last attempt to read them succeeded.
    is_current: bool,
    /// Time of the last successful read. After a failed one, the time of the fact that caused the
    /// attempt: later facts may be about a new namespace with the same inode. 0 if there was no
    /// attempt, or no fact caused it.
    read_at_ns: u64,
    /// Number of failed attempts since the last successful read.
    failures: u32,
    /// The process through which the namespace was opened, or searched for.
    pid: Option<u32>,
    /// True if something has happened in the namespace since the last read.
    is_active: bool,
    /// True if the ledger counts its ports.
    is_counted: bool,
    /// True if the ledger has ever counted its ports.
    was_counted: bool,
    shown: Shown,
}

/// Which settings the latest `namespace` record has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shown {
    #[default]
    Nothing,
    /// Settings that have changed since then.
    Others,
    TheSame,
}

/// The purpose for which settings are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A record.
    Record,
    /// To count the ports that are acquired.
    Window,
    /// To explain why a call got no port.
    Failure,
}

impl Need {
    fn of(observation: &Observation<'_>) -> Self {
        match observation {
            Observation::ConnectStart(_) | Observation::ListenStart(_) | Observation::Bound(_) => {
                Self::Window
            }
            Observation::BindFailed(_)
            // connect() found no port.
            | Observation::Closed(Closed {
                from: Some(TcpState::SynSent),
                endpoints: Endpoints { local: LocalEnd { port: None, .. }, .. },
                ..
            }) => Self::Failure,
            Observation::Closed(_)
            | Observation::PortChosen(_)
            | Observation::Established(_)
            | Observation::Closing(_)
            | Observation::Destroyed(_)
            | Observation::Listening(_)
            | Observation::Accepted(_)
            | Observation::TimeWaitStart(_)
            | Observation::TimeWaitCancel(_)
            | Observation::TimeWaitExpire(_) => Self::Record,
        }
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        Self {
            known: FxHashMap::default(),
            open: 0,
            max_open: settings::max_open().min(MAX_COUNTED),
            counted: 0,
            searched_ns: 0,
            eager: Eager::default(),
        }
    }
}

impl Namespaces {
    /// Gives the ledger the namespace's current settings before an observation is applied, if they
    /// matter for it.
    pub fn refresh_for(&mut self, observation: &Observation<'_>, ledger: &mut Ledger) {
        let (netns, at_ns) = (observation.netns(), observation.at().ns());
        let need = Need::of(observation);
        let pid = observation.owner().map(|owner| owner.pid);
        let known = self.known.entry(netns).or_default();
        known.is_active = true;
        let is_due = known.is_due(need, at_ns, pid)
            || (need == Need::Failure
                && !known.is_current
                && at_ns > known.read_at_ns
                && self.eager.take(at_ns));
        // A replayed ledger counts a namespace from its first `namespace` record on.
        let must_count = is_due || (need != Need::Record && !known.is_counted);
        if is_due {
            self.look(netns, pid, at_ns, need != Need::Record, ledger);
        }
        if must_count {
            self.count(netns, ledger);
        }
    }

    /// Reads the settings of these namespaces, each given with a process that should live in it, if
    /// one is known. The others are searched for among all namespaces of the host.
    pub fn read_all(&mut self, seen: &[(Netns, Option<u32>)], ledger: &mut Ledger) {
        for (netns, pid) in seen {
            self.look(*netns, *pid, 0, false, ledger);
        }
        let is_missing = |known: &Known| !known.is_current;
        if self.known.values().any(is_missing) {
            let found = netns::Namespaces::discover(&[]);
            for (inode, handle) in found.iter() {
                let missing = self.known.get_mut(&Netns(inode)).filter(|known| is_missing(known));
                if let Some(known) = missing {
                    known.files = SettingsFiles::open_in(handle).ok();
                    self.open += usize::from(known.files.is_some());
                    self.look(Netns(inode), None, 0, false, ledger);
                }
            }
        }
        for (netns, _) in seen {
            self.count(*netns, ledger);
        }
    }

    /// The settings of a namespace that must be shown before a record about it, and true if they
    /// are the first ones. `None` if a record has shown the current ones.
    pub fn unshown(&mut self, netns: Netns) -> Option<(Settings, bool)> {
        let known = self.known.get_mut(&netns).filter(|known| known.shown != Shown::TheSame)?;
        // A new namespace with the inode of one that has ended has settings of its own.
        if known.shown == Shown::Nothing && !known.is_current {
            return None;
        }
        let settings = known.settings.clone()?;
        let before = std::mem::replace(&mut known.shown, Shown::TheSame);
        Some((settings, before == Shown::Nothing))
    }

    /// Reads the settings of all active namespaces again. Returns those that have changed since
    /// they were shown.
    pub fn changes(&mut self, ledger: &mut Ledger) -> Vec<(Netns, Settings)> {
        let is_active = |known: &Known| known.is_active && known.is_current;
        let active = self.known.iter().filter(|(_, known)| is_active(known));
        let active: Vec<_> = active.map(|(netns, _)| *netns).collect();
        for netns in active {
            self.look(netns, None, 0, false, ledger);
        }
        let changed = self.known.iter().filter(|(_, known)| known.shown == Shown::Others);
        let changed: Vec<_> = changed.map(|(netns, _)| *netns).collect();
        changed.into_iter().filter_map(|netns| Some((netns, self.unshown(netns)?.0))).collect()
    }

    /// Reads the settings because of a fact at this time. `searches` permits a search through all
    /// threads of the host.
    fn look(
        &mut self,
        netns: Netns,
        pid: Option<u32>,
        fact_ns: u64,
        searches: bool,
        ledger: &mut Ledger,
    ) {
        // Taken before reading, so that a change during the read is read again.
        let now_ns = clock::monotonic_ns();
        let known = self.known.entry(netns).or_default();
        known.is_active = false;
        let mut read = known.read();
        if read.is_none() {
            // The files were never opened, were closed to save descriptors, or belong to a
            // namespace that has ended and whose inode another may have now.
            self.open -= usize::from(known.files.is_some());
            known.pid = pid.or(known.pid);
            let mut namespace =
                known.pid.and_then(|pid| netns::of_process(pid, netns.0)).or_else(|| own(netns));
            let is_search_due = now_ns.saturating_sub(self.searched_ns) >= SEARCH_NS;
            if namespace.is_none() && searches && is_search_due {
                self.searched_ns = now_ns;
                namespace = netns::Namespaces::discover(&[]).take(netns.0);
            }
            known.files = namespace.and_then(|namespace| SettingsFiles::open_in(&namespace).ok());
            self.open += usize::from(known.files.is_some());
            read = known.read();
        }
        known.is_current = read.is_some();
        if known.is_current {
            (known.read_at_ns, known.failures) = (now_ns, 0);
        } else {
            (known.read_at_ns, known.failures) = (fact_ns, known.failures.saturating_add(1));
        }
        match read {
            Some(settings) if known.settings.as_ref() == Some(&settings) => {}
            Some(settings) => {
                if known.is_counted {
                    ledger.set_settings(netns, Arc::new(settings.clone()));
                }
                if known.shown == Shown::TheSame {
                    known.shown = Shown::Others;
                }
                known.settings = Some(settings);
            }
            None if known.is_counted => {
                ledger.forget_settings(netns);
                known.is_counted = false;
                self.counted -= 1;
            }
            None => {}
        }
        self.enforce_limits(netns, ledger);
    }

    /// Lets the ledger count the ports of a namespace, if its settings are known.
    fn count(&mut self, netns: Netns, ledger: &mut Ledger) {
        let Some(known) = self.known.get_mut(&netns) else { return };
        if let Some(settings) = known.settings.as_ref()
            && known.is_current
            && !known.is_counted
        {
            ledger.set_settings(netns, Arc::new(settings.clone()));
            known.is_counted = true;
            if known.was_counted {
                // The counts of an earlier namespace with this inode do not apply.
                known.shown = Shown::Nothing;
            }
            known.was_counted = true;
            self.counted += 1;
            self.enforce_limits(netns, ledger);
        }
    }

    /// Enforces the limits. The namespace `in_use` stays.
    fn enforce_limits(&mut self, in_use: Netns, ledger: &mut Ledger) {
        if self.open > self.max_open
            && let Some((_, oldest)) = self.oldest(in_use, |known| known.files.is_some())
        {
            oldest.files = None;
            self.open -= 1;
        }
        if self.counted > MAX_COUNTED
            && let Some((netns, oldest)) = self.oldest(in_use, |known| known.is_counted)
        {
            oldest.is_counted = false;
            self.counted -= 1;
            ledger.forget_settings(netns);
        }
        if self.known.len() > MAX_KNOWN {
            self.known.retain(|netns, known| {
                *netns == in_use || known.files.is_some() || known.is_counted
            });
        }
    }

    fn oldest(
        &mut self,
        not: Netns,
        is_one: impl Fn(&Known) -> bool,
    ) -> Option<(Netns, &mut Known)> {
        self.known
            .iter_mut()
            .filter(|(netns, known)| **netns != not && is_one(known))
            .min_by_key(|(_, known)| known.read_at_ns)
            .map(|(netns, known)| (*netns, known))
    }
}

impl Known {
    fn is_due(&self, need: Need, at_ns: u64, pid: Option<u32>) -> bool {
        let age_ns = at_ns.saturating_sub(self.read_at_ns);
        // Inodes of namespaces are reused soon, so the one that could not be opened may be a new
        // one now.
        let is_other = !self.is_current && pid.is_some_and(|pid| self.pid != Some(pid));
        is_other
            || match need {
                Need::Record => !self.is_current && age_ns >= RETRY_NS,
                Need::Window | Need::Failure if !self.is_current => age_ns >= self.retry_ns(),
                Need::Window => age_ns >= FRESH_NS,
                // Once for all the failures of a drain of the ring.
                Need::Failure => age_ns > 0,
            }
    }

    fn retry_ns(&self) -> u64 {
        let doublings = self.failures.saturating_sub(1).min(u64::BITS - 1);
        FIRST_RETRY_NS.saturating_mul(1 << doublings).min(FRESH_NS)
    }

    fn read(&self) -> Option<Settings> {
        self.files.as_ref().and_then(|files| files.read().ok())
    }
}

/// The namespace of this process, if it is this one.
fn own(netns: Netns) -> Option<File> {
    let own = File::open("/proc/thread-self/ns/net").ok()?;
    netns::inode_of(&own).is_ok_and(|inode| inode == netns.0).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: u64 = 5_000_000_000;
    const PID: Option<u32> = Some(1);

    /// The state that [`Namespaces::look`] leaves.
    fn that_failed(failures: u32, fact_ns: u64) -> Known {
        Known { pid: PID, failures, read_at_ns: fact_ns, ..Known::default() }
    }

    #[test]
    fn a_new_namespace_with_the_same_inode_is_read() {
        // No fact caused the read that saw the end of the first one.
        let ended = that_failed(1, 0);
        assert!(ended.is_due(Need::Window, NOW_NS, PID));
        assert!(ended.is_due(Need::Failure, NOW_NS, PID));
        // Or its last fact caused it, a moment ago.
        let ended = that_failed(1, NOW_NS - FIRST_RETRY_NS);
        assert!(ended.is_due(Need::Window, NOW_NS, PID));
        assert!(ended.is_due(Need::Window, NOW_NS - 1, Some(2)));
    }

    #[test]
    fn failures_may_retry_sooner_but_not_without_end() {
        let mut eager = Eager::default();
        let of_one_second = (0..1000).filter(|ms| eager.take(NOW_NS + ms * 1_000_000)).count();
        assert_eq!(of_one_second, EAGER_RETRIES as usize);
        assert!(eager.take(NOW_NS + 1_000_000_000));
    }

    #[test]
    fn a_namespace_that_cannot_be_opened_is_retried_at_growing_intervals() {
        let mut last_ns = 0;
        for failures in 1..100 {
            let known = that_failed(failures, NOW_NS);
            let retry_ns = known.retry_ns();
            assert!((last_ns..=FRESH_NS).contains(&retry_ns), "{failures}: {retry_ns}");
            for need in [Need::Window, Need::Failure] {
                assert!(!known.is_due(need, NOW_NS + retry_ns - 1, PID));
                assert!(known.is_due(need, NOW_NS + retry_ns, PID));
            }
            assert!(!known.is_due(Need::Record, NOW_NS + RETRY_NS - 1, PID));
            last_ns = retry_ns;
        }
        assert_eq!(last_ns, FRESH_NS);
    }
}
