//! A visit to many network namespaces.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::netns::{self, Namespaces};
use crate::model::Netns;

/// How long a question about the whole host may take. Any user can make thousands of namespaces,
/// and for some of them the kernel goes through the whole host's table.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum number of threads: a comparison in the background must leave the host its CPUs.
const MAX_THREADS: usize = 4;

/// What a visit found.
#[derive(Debug)]
pub(crate) struct Visited<T> {
    /// What was found in each namespace, or why it could not be entered or looked into.
    pub(crate) found: Vec<(Netns, io::Result<T>)>,
    /// Namespaces that were not reached in time, in the order in which they were due.
    pub(crate) unreached: Vec<Netns>,
}

/// Calls `look` in each namespace, in several threads at once, until `deadline`. The namespace with
/// the inode `first`, or the next one, is the first.
pub(crate) fn visit<T: Send>(
    namespaces: &Namespaces,
    first: Netns,
    deadline: Instant,
    look: impl Fn(Netns) -> io::Result<T> + Sync,
) -> Visited<T> {
    let (after, before): (Vec<_>, Vec<_>) = namespaces
        .iter()
        .map(|(inode, handle)| (Netns(inode), handle))
        .partition(|(netns, _)| *netns >= first);
    let due = [after, before].concat();
    let next = AtomicUsize::new(0);
    // A thread that entered a namespace is not used for anything else.
    let visit_some = || {
        let mut found = Vec::new();
        while Instant::now() < deadline
            && let Some((netns, handle)) = due.get(next.fetch_add(1, Ordering::Relaxed))
        {
            found.push((*netns, netns::enter(handle).and_then(|()| look(*netns))));
        }
        found
    };
    let parallel = thread::available_parallelism().map_or(1, usize::from);
    let parallel = parallel.min(MAX_THREADS).min(due.len());
    let found = thread::scope(|threads| {
        let visitors: Vec<_> = (0..parallel).map(|_| threads.spawn(visit_some)).collect();
        visitors
            .into_iter()
            .flat_map(|visitor| {
                visitor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let reached = next.load(Ordering::Relaxed).min(due.len());
    Visited { found, unreached: due[reached..].iter().map(|(netns, _)| *netns).collect() }
}

impl<T> Visited<T> {
    /// What was not reached, in a sentence. `None` if everything was.
    pub(crate) fn problem(&self) -> Option<String> {
        let count = self.unreached.len();
        let patience_s = PATIENCE.as_secs();
        (count > 0).then(|| {
            format!("network namespaces that were not reached within {patience_s} s: {count}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_reached_in_time_is_known_and_comes_first_next_time() {
        let namespaces = Namespaces::discover(&[]);
        let all: Vec<_> = namespaces.iter().map(|(inode, _)| Netns(inode)).collect();
        let last = *all.last().expect("this one is found");
        let visited: Visited<()> = visit(&namespaces, last, Instant::now(), |_| panic!("too late"));
        assert!(visited.found.is_empty());
        assert_eq!(visited.unreached.first(), Some(&last));
        let problem = visited.problem().expect("there is one");
        assert_eq!(
            problem,
            format!("network namespaces that were not reached within 10 s: {}", all.len())
        );
        let mut unreached = visited.unreached;
        unreached.sort();
        assert_eq!(unreached, all);
    }
}
