//! The holders of a namespace's ports, with their bind buckets.
//!
//! Connected sockets, listeners and TIME_WAITs come from `iter/tcp`, sockets that are bound but
//! idle from `iter/task_file`. Neither list shows a single instant: while the namespace changes,
//! numbers computed from them are only as exact as the lists.

use std::{fs::File, io, thread};

use tracer_ebpf::HolderRecord;

use crate::{
    capacity::{KernelRules, KernelTime, ReuseRule, SocketRangeRule},
    kernel::{
        hooks::{
            error::LoadError,
            iterators::{HolderIterators, IteratorObject, IteratorPrograms, LoadedIterator},
        },
        host::{clock, memory},
        namespace::netns,
        types::bind_buckets::{BucketFeatures, SocketRangeField},
    },
    model::{Holder, Netns},
};

/// Lists the holders of any namespace, any number of times and from any thread.
#[derive(Clone, Debug)]
pub struct HolderLists {
    iterators: HolderIterators,
}

/// The holders of a namespace.
#[derive(Clone, Debug)]
pub struct HolderView {
    /// Every holder at least once.
    pub holders: Vec<Holder>,
    /// When the list was complete.
    pub at: KernelTime,
}

impl HolderLists {
    /// Loads the iterators by themselves, without the tracer's hooks.
    ///
    /// # Errors
    /// If this kernel has no such iterators, or does not let this process load them.
    pub fn load() -> Result<Self, LoadError> {
        let mut object = IteratorObject::load(None)?;
        let features = object.features;
        let IteratorPrograms { open_files: _, tcp_holders, idle_holders } = object.programs();
        let iterators = HolderIterators::load(tcp_holders, idle_holders, features);
        drop(object);
        memory::trim();
        Ok(Self::new(iterators?))
    }

    /// Lists what these iterators yield.
    pub(crate) fn new(iterators: HolderIterators) -> Self {
        Self { iterators }
    }

    /// How the running kernel searches for ports.
    #[must_use]
    pub fn rules(&self) -> KernelRules {
        rules_of(self.iterators.features)
    }

    /// True if sockets that are bound but idle are listed, without which headroom is not exact.
    #[must_use]
    pub fn lists_idle(&self) -> bool {
        self.iterators.idle.is_some()
    }

    /// Lists the holders of a namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or the kernel refuses to list.
    pub fn of(&self, namespace: &File) -> io::Result<HolderView> {
        // A thread that entered a namespace is not used for anything else.
        thread::scope(|scope| {
            let lister = scope.spawn(|| {
                netns::enter(namespace)?;
                self.of_this_thread()
            });
            lister.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Lists the holders of the calling thread's namespace.
    ///
    /// # Errors
    /// If the kernel refuses to list.
    pub fn of_this_thread(&self) -> io::Result<HolderView> {
        let netns = Netns(netns::inode_of(&File::open("/proc/thread-self/ns/net")?)?);
        let mut holders = Vec::new();
        let HolderIterators { tcp, idle, features: _ } = &self.iterators;
        for iterator in std::iter::once(tcp).chain(idle) {
            self.read(iterator, |of, holder| {
                if of == netns {
                    holders.push(holder);
                }
            })?;
        }
        Ok(HolderView { holders, at: KernelTime::from_ns(clock::monotonic_ns()) })
    }

    /// Lists the connected sockets, listeners and TIME_WAITs of the calling thread's namespace.
    ///
    /// # Errors
    /// If the kernel refuses to list.
    pub(crate) fn hashed_of_this_thread(&self) -> io::Result<Vec<Holder>> {
        let mut holders = Vec::new();
        self.read(&self.iterators.tcp, |_, holder| holders.push(holder))?;
        Ok(holders)
    }

    /// Lists the sockets of all namespaces that are bound but idle, as this iterator yields them.
    ///
    /// # Errors
    /// If the kernel refuses to list.
    pub(crate) fn idle_of(&self, iterator: &LoadedIterator) -> io::Result<Vec<(Netns, Holder)>> {
        let mut holders = Vec::new();
        self.read(iterator, |netns, holder| holders.push((netns, holder)))?;
        Ok(holders)
    }

    fn read(
        &self,
        iterator: &LoadedIterator,
        mut take: impl FnMut(Netns, Holder),
    ) -> io::Result<()> {
        let has_entry_stamp = self.iterators.features.has_entry_stamp;
        iterator.for_each_record(|record: &HolderRecord| {
            if let Some(holder) = Holder::from_record(record, has_entry_stamp) {
                take(Netns(record.netns), holder);
            }
            Ok(())
        })
    }
}

/// How a kernel with these types searches for ports.
fn rules_of(features: BucketFeatures) -> KernelRules {
    let BucketFeatures { has_entry_stamp, has_bhash2, socket_range } = features;
    KernelRules {
        reuse: match (has_entry_stamp, has_bhash2) {
            (true, _) => ReuseRule::Delay,
            // The types do not show the change that excludes FIN_WAIT2; of the kernels that are
            // still maintained, those with the second bind hash (6.1) have it.
            (false, true) => ReuseRule::NextSecondNotFinWait2,
            (false, false) => ReuseRule::NextSecond,
        },
        // Since the range is one word, a search with it visits the ports in turn (6.8).
        socket_range: match socket_range {
            SocketRangeField::Word => SocketRangeRule::InTurn,
            SocketRangeField::Structure => SocketRangeRule::ByParity,
            SocketRangeField::Absent => SocketRangeRule::Absent,
        },
    }
}
