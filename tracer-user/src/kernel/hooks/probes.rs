//! The attached programs, as the agent uses them.

use std::io;

use tracer_ebpf::HookCounters;

use crate::{
    kernel::{
        hooks::{
            attached::AttachedHooks,
            iterators::{HolderIterators, LoadedIterator},
            probers::ProberMap,
            ring::Ring,
            table::Reports,
        },
        host::cgroup::CgroupRoot,
    },
    model::{Instant, Visibility},
};

/// The attached programs and everything that they report. Dropping this detaches them all.
pub(crate) struct Probes {
    /// The ring that the programs write to.
    pub(crate) ring: Ring,
    pub(crate) hooks: AttachedHooks,
    /// The cgroup v2 root, if it can be opened.
    pub(crate) cgroups: Option<CgroupRoot>,
    /// What is lost for want of privileges, in sentences.
    pub(crate) warnings: Vec<String>,
    /// What the programs log.
    #[cfg(feature = "debug-log")]
    pub(crate) log: Option<super::debug_log::ProgramLog>,
    /// Lists the files that processes have open, if this kernel can.
    pub(crate) open_files: Option<LoadedIterator>,
    /// Lists holders with their bind buckets, if this kernel can.
    pub(crate) holders: Option<HolderIterators>,
    /// Who tried to connect to closed ports, if this kernel reports it.
    pub(crate) probers: Option<ProberMap>,
    /// This kernel marks sockets whose port connect() chose.
    pub(crate) marks_connect: bool,
    /// When the last hook was attached.
    pub(crate) attached_at: Instant,
}

/// What the hooks counted since they were attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    /// Facts of all hooks.
    pub(crate) facts: HookCounters,
    /// See [`AttachedHooks::unseen_firings`].
    pub(crate) unseen_firings: u64,
    /// See [`AttachedHooks::doubtful_firings`].
    pub(crate) doubtful_firings: u64,
}

impl Probes {
    /// What the ledger can rely on, by the hooks that are attached.
    pub(crate) fn visibility(&self) -> Visibility {
        Visibility {
            ports_chosen: self.hooks.reports(Reports::ChosenPorts),
            accepts: self.hooks.reports(Reports::Accepts),
            marks_connect: self.marks_connect,
            bound_idle: self.open_files.is_some(),
            since: self.attached_at,
        }
    }

    /// What the hooks counted so far.
    ///
    /// # Errors
    /// If the kernel refuses to read the counters.
    pub(crate) fn counters(&self) -> io::Result<Counters> {
        Ok(Counters {
            facts: self.ring.counters()?,
            unseen_firings: self.hooks.unseen_firings(),
            doubtful_firings: self.hooks.doubtful_firings(),
        })
    }
}
