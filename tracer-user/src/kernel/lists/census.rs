//! Whether a network namespace has more sockets than are known, by its own counters. If not, the
//! kernel need not be asked for a list.

use std::{collections::HashMap, fs};

use rustc_hash::FxBuildHasher;
use tracer_ebpf::TcpState;

use crate::model::{Cookie, Held, HeldBy, Netns};

/// The number of sockets, connected or listening, that are known in each namespace.
#[derive(Debug, Default)]
pub(crate) struct Census(HashMap<Netns, usize, FxBuildHasher>);

impl Census {
    /// Counts the sockets among these holds, each once.
    pub(crate) fn of(held: &[Held]) -> Self {
        let is_hashed = |held: &&Held| {
            // Two sockets without a cookie cannot be told apart, so none of them counts as known.
            held.cookie != Cookie(0) && !matches!(held.by, HeldBy::Socket(TcpState::Close))
        };
        let mut sockets: Vec<(Netns, Cookie)> =
            held.iter().filter(is_hashed).map(|held| (held.netns, held.cookie)).collect();
        sockets.sort_unstable();
        sockets.dedup();
        let mut census = Self::default();
        for (netns, _) in sockets {
            *census.0.entry(netns).or_default() += 1;
        }
        census
    }

    /// True if the calling thread's namespace, which is `netns`, has no more sockets than are known,
    /// and no TIME_WAIT. To list it, the kernel would go through the whole host's table and find
    /// nothing else.
    ///
    /// The counters are read later than the sockets were counted, so the answer can be outdated.
    pub(crate) fn is_complete(&self, netns: Netns) -> bool {
        let known = self.0.get(&netns).copied().unwrap_or_default();
        counted() == Some(Counted { sockets: known, time_waits: 0 }) && !holds_mptcp()
    }
}

/// The TCP counters of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    /// Sockets that are connected or listen.
    sockets: usize,
    time_waits: usize,
}

/// The counters of the calling thread's namespace. `None` if they cannot be read.
fn counted() -> Option<Counted> {
    // TCP: inuse 5 orphan 0 tw 2 alloc 6 mem 1 (sockstat_seq_show, net/ipv4/proc.c; orphans and what
    // follows `tw` are the whole host's).
    let count = |file: &str, name: &str| -> Option<usize> {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("TCP"))?;
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        words.nth(1)?.parse().ok()
    };
    // Without IPv6 there is no second file.
    let has_v6 = fs::exists("/proc/thread-self/net/sockstat6").unwrap_or(true);
    let v6 = if has_v6 { count("sockstat6", "inuse")? } else { 0 };
    let (v4, time_waits) = (count("sockstat", "inuse")?, count("sockstat", "tw")?);
    Some(Counted { sockets: v4 + v6, time_waits })
}

/// True unless the calling thread's namespace has no MPTCP socket: some kernels (6.18.15) count its
/// subflows over IPv6 for another protocol.
fn holds_mptcp() -> bool {
    // protocol  size sockets  memory ... (proto_seq_printf, net/core/sock.c)
    let Ok(text) = fs::read_to_string("/proc/thread-self/net/protocols") else { return true };
    text.lines()
        .filter(|line| line.starts_with("MPTCP"))
        .any(|line| line.split_whitespace().nth(2).is_none_or(|sockets| sockets != "0"))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::kernel::{lists::sock_diag, namespace::sandbox::Sandbox};

    /// What the namespace counts is compared with what its list shows.
    #[test]
    fn a_census_is_complete_if_nothing_is_unknown() {
        let test = || {
            let sandbox = match Sandbox::enter_new() {
                Ok(sandbox) => sandbox,
                Err(error) => return println!("skipped: no network namespace: {error}"),
            };
            let netns = sandbox.netns();
            let list = || {
                let mut held = Vec::new();
                sock_diag::list(netns, &mut held).expect("the kernel lists its sockets");
                held
            };
            assert!(Census::default().is_complete(netns), "it is empty");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
            assert!(!Census::default().is_complete(netns), "the listener is unknown");
            assert!(Census::of(&[list(), list()].concat()).is_complete(netns), "it is known");
            let known = list();
            let address = listener.local_addr().expect("it is bound");
            let client = TcpStream::connect(address).expect("it listens");
            assert!(!Census::of(&known).is_complete(netns), "two sockets are unknown");
            let (server, _) = listener.accept().expect("it is there");
            assert!(Census::of(&list()).is_complete(netns), "all are known");
            // The client's FIN is acknowledged before shutdown() returns, as is the server's: the
            // client is a TIME_WAIT, and the server is gone.
            client.shutdown(std::net::Shutdown::Write).expect("it is connected");
            drop(server);
            drop(client);
            assert_eq!(list().len(), 2, "a listener and a TIME_WAIT");
            assert!(!Census::of(&list()).is_complete(netns), "TIME_WAITs are always listed");
        };
        std::thread::spawn(test).join().expect("the test passes");
    }
}
