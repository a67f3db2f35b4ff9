//! The settings of the namespaces in which something happens, as they are when it happens.

use std::fs::File;

use rustc_hash::FxHashMap;
use tracer_ebpf::{Fact, FactKind, Owner, TcpState};

use crate::{
    exhaustion::Settings,
    kernel::{netns, settings::SettingsFiles},
    ledger::{Ledger, Netns},
};

/// How old settings may be when a socket binds, connects or listens. Reading them takes some
/// microseconds.
const FRESH_NS: u64 = 100_000_000;
/// How old they may be when a call got no port, and they are what explains it.
const FRESH_FOR_FAILURE_NS: u64 = 5_000_000;
/// When to try again what could not be opened: no process that lives in the namespace was seen.
const RETRY_NS: u64 = 1_000_000_000;
/// Namespaces whose files are kept open, eleven each.
const MOST_OPEN: usize = 64;

/// The namespaces that were seen, and their settings.
#[derive(Debug, Default)]
pub struct Windows {
    known: FxHashMap<Netns, Known>,
    open: usize,
}

#[derive(Debug)]
struct Known {
    files: Option<SettingsFiles>,
    settings: Option<Settings>,
    read_at_ns: u64,
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
        let age_ns = self
            .known
            .get(&netns)
            .map_or(u64::MAX, |known| now_ns.saturating_sub(known.read_at_ns));
        let is_open = self.known.get(&netns).is_some_and(|known| known.files.is_some());
        if age_ns >= if is_open { fresh_ns } else { RETRY_NS } {
            self.look(netns, now_ns, owner, ledger);
        }
    }

    fn look(&mut self, netns: Netns, now_ns: u64, owner: Option<&Owner>, ledger: &mut Ledger) {
        let known = self.known.entry(netns).or_insert(Known {
            files: None,
            settings: None,
            read_at_ns: now_ns,
        });
        known.read_at_ns = now_ns;
        if known.files.is_none() {
            known.files = open(netns, owner);
            self.open += usize::from(known.files.is_some());
        }
        let Some(files) = &known.files else { return };
        match files.read() {
            Ok(settings) if known.settings.as_ref() == Some(&settings) => {}
            Ok(settings) => {
                ledger.set_window(netns, settings.window());
                known.settings = Some(settings);
            }
            // The namespace has ended; if it has not, it will be opened anew.
            Err(_) => {
                self.known.remove(&netns);
                self.open -= 1;
                ledger.forget_window(netns);
            }
        }
        if self.open > MOST_OPEN {
            self.close_oldest(netns);
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
            self.open -= 1;
        }
    }
}

/// Opens the settings of a namespace through a process that should live in it: the one whose
/// socket it is, or this one.
fn open(netns: Netns, owner: Option<&Owner>) -> Option<SettingsFiles> {
    let of_owner = owner.map(|owner| format!("/proc/{}/ns/net", owner.pid));
    let own = "/proc/thread-self/ns/net".to_owned();
    of_owner.into_iter().chain([own]).find_map(|path| {
        let namespace = File::open(path).ok()?;
        let is_it = netns::inode_of(&namespace).is_ok_and(|inode| inode == netns.0);
        is_it.then(|| SettingsFiles::open_in(&namespace).ok()).flatten()
    })
}
