//! The settings of the namespaces in which something happens, as they are when it happens.

use rustc_hash::FxHashMap;
use tracer_ebpf::{Fact, FactKind, Owner, TcpState};

use crate::{
    exhaustion::Settings,
    kernel::{
        netns::{self, Namespaces},
        settings::SettingsFiles,
    },
    ledger::{Ledger, Netns},
};

/// How old settings may be when a socket binds, connects or listens. Reading them takes some
/// microseconds.
const FRESH_NS: u64 = 100_000_000;
/// How old they may be when a call got no port, and they are what explains it.
const FRESH_FOR_FAILURE_NS: u64 = 5_000_000;
/// How often to walk through all threads of the host for one that lives in a namespace, if no
/// thread of the process does whose socket it is.
const SEARCH_NS: u64 = 5_000_000_000;
/// Namespaces whose files are kept open, eleven each.
const MOST_OPEN: usize = 64;
/// Namespaces in which ports are counted: some tens of kilobytes each.
const MOST_KNOWN: usize = 512;

/// The namespaces that were seen, and their settings.
#[derive(Debug, Default)]
pub struct Windows {
    known: FxHashMap<Netns, Known>,
    /// When all threads were walked through for a namespace.
    searched_ns: u64,
}

#[derive(Debug)]
struct Known {
    files: Option<SettingsFiles>,
    settings: Option<Settings>,
    read_at_ns: u64,
    /// The process through which the namespace was looked for.
    tried: Option<u32>,
}

impl Windows {
    /// Before a fact is entered: makes the ledger count in the window that the namespace has now,
    /// where that will matter.
    pub fn prepare(
        &mut self,
        kind: FactKind,
        fact: &Fact,
        owner: Option<&Owner>,
        ledger: &mut Ledger,
    ) {
        let fresh_ns = match kind {
            FactKind::ConnectStart | FactKind::ListenStart | FactKind::Bound => FRESH_NS,
            FactKind::BindFailed => FRESH_FOR_FAILURE_NS,
            FactKind::Closed if fact.state == TcpState::SynSent as u8 && fact.local_port == 0 => {
                FRESH_FOR_FAILURE_NS
            }
            _ => return,
        };
        let netns = Netns(fact.netns);
        let now_ns = fact.time_ns;
        let pid = owner.map(|owner| owner.pid);
        let is_due = self.known.get(&netns).is_none_or(|known| {
            let age_ns = now_ns.saturating_sub(known.read_at_ns);
            // Numbers of namespaces are used again soon, so that one which could not be opened may
            // be another by now.
            let is_other = known.files.is_none() && pid.is_some_and(|pid| known.tried != Some(pid));
            age_ns >= fresh_ns || is_other
        });
        if is_due {
            self.look(netns, now_ns, pid, ledger);
        }
    }

    fn look(&mut self, netns: Netns, now_ns: u64, pid: Option<u32>, ledger: &mut Ledger) {
        let mut known = self.known.remove(&netns).unwrap_or(Known {
            files: None,
            settings: None,
            read_at_ns: now_ns,
            tried: None,
        });
        known.read_at_ns = now_ns;
        let mut read = known.files.as_ref().and_then(|files| files.read().ok());
        if read.is_none() {
            // Never opened, closed for want of room, or of a namespace that has ended.
            known.tried = pid.or(known.tried);
            let mut namespace = known.tried.and_then(|pid| netns::of_process(pid, netns.0));
            if namespace.is_none() && now_ns.saturating_sub(self.searched_ns) >= SEARCH_NS {
                self.searched_ns = now_ns;
                namespace = Namespaces::discover(&[]).take(netns.0);
            }
            known.files = namespace.and_then(|namespace| SettingsFiles::open_in(&namespace).ok());
            read = known.files.as_ref().and_then(|files| files.read().ok());
        }
        match read {
            Some(settings) if known.settings.as_ref() == Some(&settings) => {}
            Some(settings) => {
                ledger.set_window(netns, settings.window());
                known.settings = Some(settings);
            }
            None => {
                ledger.forget_window(netns);
                (known.files, known.settings) = (None, None);
            }
        }
        self.known.insert(netns, known);
        if self.known.values().filter(|known| known.files.is_some()).count() > MOST_OPEN {
            self.close_oldest(netns);
        }
        if self.known.len() > MOST_KNOWN {
            self.forget_oldest(ledger);
        }
    }

    fn close_oldest(&mut self, not: Netns) {
        let oldest = self
            .known
            .iter_mut()
            .filter(|(netns, known)| **netns != not && known.files.is_some())
            .min_by_key(|(_, known)| known.read_at_ns);
        if let Some((_, known)) = oldest {
            known.files = None;
        }
    }

    fn forget_oldest(&mut self, ledger: &mut Ledger) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.read_at_ns);
        if let Some(netns) = oldest.map(|(netns, _)| *netns) {
            self.known.remove(&netns);
            ledger.forget_window(netns);
        }
    }
}
