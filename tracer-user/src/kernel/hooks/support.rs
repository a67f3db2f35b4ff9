//! What this kernel and this process offer to the hooks.

use std::io;

use crate::kernel::{
    hooks::{
        kallsyms::SymbolError,
        table::{Condition, Need},
    },
    host::cgroup::CgroupRoot,
    types::{
        bind_buckets::BucketFeatures,
        btf::BtfError,
        layout::{FieldGroups, KernelFeatures},
    },
};

/// Which needs are met. Each that is not comes with the sentence that says why.
#[derive(Debug)]
pub(crate) struct KernelSupport {
    task: Result<(), String>,
    files: Result<(), String>,
    time_wait: Result<(), String>,
    timer_handler_address: Result<(), String>,
    bind_buckets: Result<BucketFeatures, String>,
    syscall_registers: Result<(), String>,
    segment: Result<(), String>,
    cgroup_root: Result<(), String>,
    features: KernelFeatures,
}

impl KernelSupport {
    /// What was found by looking for it.
    pub(crate) fn new(
        groups: FieldGroups,
        bind_buckets: Result<BucketFeatures, BtfError>,
        features: KernelFeatures,
        timer_handler_address: Result<(), SymbolError>,
        cgroups: &io::Result<CgroupRoot>,
    ) -> Self {
        let FieldGroups { time_wait, task, files, syscall, segment } = groups;
        let sentence = |found: Result<(), BtfError>| found.map_err(|error| error.to_string());
        Self {
            task: sentence(task),
            files: sentence(files),
            time_wait: sentence(time_wait),
            timer_handler_address: timer_handler_address.map_err(|error| error.to_string()),
            bind_buckets: bind_buckets.map_err(|error| error.to_string()),
            syscall_registers: sentence(syscall),
            segment: sentence(segment),
            cgroup_root: match cgroups {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("the cgroup v2 root cannot be opened: {error}")),
            },
            features,
        }
    }

    /// Checks these needs.
    ///
    /// # Errors
    /// If one of them is not met: the sentence that says why the first is not.
    pub(crate) fn check(&self, needs: &[Need]) -> Result<(), String> {
        needs.iter().try_for_each(|need| self.check_one(*need))
    }

    fn check_one(&self, need: Need) -> Result<(), String> {
        match need {
            Need::Task => self.task.clone(),
            Need::Files => self.files.clone(),
            Need::TimeWait => self.time_wait.clone(),
            Need::TimerHandlerAddress => self.timer_handler_address.clone(),
            Need::BindBuckets => self.bucket_features().map(drop),
            Need::SyscallRegisters => self.syscall_registers.clone(),
            Need::Segment => self.segment.clone(),
            Need::AcceptFunction => match self.features.accept_parameters {
                Some(_) => Ok(()),
                None => Err("this kernel has no inet_csk_accept".to_owned()),
            },
            Need::CgroupRoot => self.cgroup_root.clone(),
        }
    }

    /// True if hooks with this condition are used on this kernel.
    pub(crate) fn fulfils(&self, condition: Condition) -> bool {
        let accept_takes_four = self.features.accept_parameters == Some(4);
        match condition {
            Condition::Always => true,
            Condition::NoCookieHelper => !self.features.has_cookie_helper,
            Condition::AcceptTakesTwo => !accept_takes_four,
            Condition::AcceptTakesFour => accept_takes_four,
        }
    }

    /// What the types of bind buckets show.
    ///
    /// # Errors
    /// If [`Need::BindBuckets`] is not met: the sentence that says why.
    pub(crate) fn bucket_features(&self) -> Result<BucketFeatures, String> {
        self.bind_buckets.clone()
    }

    /// True if programs at tracepoints can be preempted.
    pub(crate) fn has_preemptible_tracepoints(&self) -> bool {
        self.features.has_preemptible_tracepoints
    }
}
