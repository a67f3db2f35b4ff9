//! The namespaces in which something happens, with their settings as they are when it happens: the
//! ledger counts their ports by them, and `namespace` records tell them.

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

/// How old settings may be when a socket binds, connects or listens. Reading them takes some
/// microseconds.
const FRESH_NS: u64 = 100_000_000;
/// When to try again what could not be opened, for the sake of a record: no process that lives in
/// the namespace was seen.
const RETRY_NS: u64 = 1_000_000_000;
/// Likewise for what a process does there, if it was tried once; twice as long with each further
/// time, up to [`FRESH_NS`].
const FIRST_RETRY_NS: u64 = 1_000_000;
/// How often, in a second, failures may have it tried sooner: where namespaces come and go, one
/// has the number of another that could not be opened any more a moment ago.
const EAGER_RETRIES: u32 = 50;
/// How often to walk through all threads of the host for one that lives in a namespace, if no
/// thread of the process does whose socket it is.
const SEARCH_NS: u64 = 5_000_000_000;
/// Namespaces in which ports are counted, some tens of kilobytes each, and whose files are kept
/// open if there may be so many. The settings of others are read with files opened anew.
const MOST_COUNTED: usize = 512;
/// Namespaces remembered before those without open files are forgotten: containers come and go.
const MOST_KNOWN: usize = 4096;

/// The namespaces that were seen.
#[derive(Debug)]
pub struct Namespaces {
    known: FxHashMap<Netns, Known>,
    /// Of how many the files are open, and may be.
    open: usize,
    most_open: usize,
    /// In how many ports are counted.
    counted: usize,
    /// When all threads were walked through for a namespace.
    searched_ns: u64,
    eager: Eager,
}

/// How many of the [`EAGER_RETRIES`] of a second are used up.
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
    /// As they were read last.
    settings: Option<Settings>,
    /// They could be read at the last look.
    is_current: bool,
    /// When they were read last. If they could not be, then the time of the fact for which that was
    /// tried: the facts that follow may be of another namespace, to which the inode was given. 0 if
    /// neither, or for no fact.
    read_at_ns: u64,
    /// How often they could not be read, since they were.
    failures: u32,
    /// The process through which the namespace was looked for.
    pid: Option<u32>,
    /// Something happened there since they were read.
    is_active: bool,
    /// The ledger counts its ports.
    is_counted: bool,
    /// The ledger has counted its ports before.
    was_counted: bool,
    shown: Shown,
}

/// Which of a namespace's settings the latest record about them has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shown {
    #[default]
    Nothing,
    /// Settings that have changed since.
    Others,
    TheSame,
}

/// What the settings are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A record.
    Record,
    /// To count ports that are taken.
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
            most_open: settings::most_open().min(MOST_COUNTED),
            counted: 0,
            searched_ns: 0,
            eager: Eager::default(),
        }
    }
}

impl Namespaces {
    /// Before an observation is applied: makes the ledger count by the settings that the namespace
    /// has now, where that will matter.
    pub fn prepare(&mut self, observation: &Observation<'_>, ledger: &mut Ledger) {
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
        let must_count = need != Need::Record && (is_due || !known.is_counted);
        if is_due {
            self.look(netns, pid, at_ns, need != Need::Record, ledger);
        }
        if must_count {
            self.count(netns, ledger);
        }
    }

    /// Looks at the settings of these namespaces, each with a process that should live in it, if
    /// one is known. What no process leads to is looked for among all namespaces of the host.
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

    /// Before a record about a namespace: its settings, if no record has shown them, and whether no
    /// record has shown any settings of it.
    pub fn unshown(&mut self, netns: Netns) -> Option<(Settings, bool)> {
        let known = self.known.get_mut(&netns).filter(|known| known.shown != Shown::TheSame)?;
        // Those of a namespace that has ended are not those of the next one with its inode.
        if known.shown == Shown::Nothing && !known.is_current {
            return None;
        }
        let settings = known.settings.clone()?;
        let before = std::mem::replace(&mut known.shown, Shown::TheSame);
        Some((settings, before == Shown::Nothing))
    }

    /// Looks again where something has happened. Returns the settings that have changed since they
    /// were shown.
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

    /// Reads the settings, for the sake of a fact of that time; `searches` if all threads of the
    /// host may be walked through for it.
    fn look(
        &mut self,
        netns: Netns,
        pid: Option<u32>,
        fact_ns: u64,
        searches: bool,
        ledger: &mut Ledger,
    ) {
        // Before reading: what changes meanwhile is read again.
        let now_ns = clock::monotonic_ns();
        let known = self.known.entry(netns).or_default();
        known.is_active = false;
        let mut read = known.read();
        if read.is_none() {
            // Never opened, closed for want of room, or of a namespace that has ended, whose inode
            // another may have by now.
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
        self.forget_some(netns, ledger);
    }

    /// Makes the ledger count the ports of a namespace, if its settings are known.
    fn count(&mut self, netns: Netns, ledger: &mut Ledger) {
        let Some(known) = self.known.get_mut(&netns) else { return };
        if let Some(settings) = known.settings.as_ref()
            && known.is_current
            && !known.is_counted
        {
            ledger.set_settings(netns, Arc::new(settings.clone()));
            known.is_counted = true;
            if known.was_counted {
                // Counted anew, without what an earlier namespace with this inode left behind.
                known.shown = Shown::Nothing;
            }
            known.was_counted = true;
            self.counted += 1;
            self.forget_some(netns, ledger);
        }
    }

    /// Keeps what is remembered within its limits; this namespace is the one in use.
    fn forget_some(&mut self, not: Netns, ledger: &mut Ledger) {
        if self.open > self.most_open
            && let Some((_, oldest)) = self.oldest(not, |known| known.files.is_some())
        {
            oldest.files = None;
            self.open -= 1;
        }
        if self.counted > MOST_COUNTED
            && let Some((netns, oldest)) = self.oldest(not, |known| known.is_counted)
        {
            oldest.is_counted = false;
            self.counted -= 1;
            ledger.forget_settings(netns);
        }
        if self.known.len() > MOST_KNOWN {
            self.known
                .retain(|netns, known| *netns == not || known.files.is_some() || known.is_counted);
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
        // Numbers of namespaces are used again soon, so that one which could not be opened may be
        // another by now.
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

    /// As [`Namespaces::look`] leaves it.
    fn that_failed(failures: u32, fact_ns: u64) -> Known {
        Known { pid: PID, failures, read_at_ns: fact_ns, ..Known::default() }
    }

    #[test]
    fn what_follows_in_a_namespace_of_the_same_number_is_looked_at() {
        // The look that saw the end of the first was made for no fact.
        let ended = that_failed(1, 0);
        assert!(ended.is_due(Need::Window, NOW_NS, PID));
        assert!(ended.is_due(Need::Failure, NOW_NS, PID));
        // Or for its last fact, a moment ago.
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
    fn what_cannot_be_opened_is_tried_ever_more_seldom() {
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
