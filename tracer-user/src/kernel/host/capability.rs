//! What this process is allowed to do.

use std::fs;

/// A capability that the tracer uses, by the kernel's number (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum Capability {
    DacReadSearch = 2,
    NetAdmin = 12,
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Syslog = 34,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    /// The capabilities without which the tracer runs, but misses something.
    pub(crate) const OPTIONAL: [Self; 5] =
        [Self::DacReadSearch, Self::NetAdmin, Self::SysPtrace, Self::SysAdmin, Self::Syslog];

    /// What a command may need: all but the last are used while it runs, and the last one to load
    /// programs on a kernel that charges them to `RLIMIT_MEMLOCK` (before 5.11).
    pub(crate) const USED: [Self; 8] = [
        Self::DacReadSearch,
        Self::NetAdmin,
        Self::SysPtrace,
        Self::SysAdmin,
        Self::Syslog,
        Self::Perfmon,
        Self::Bpf,
        Self::SysResource,
    ];

    /// The name that `setcap` and container engines use.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Syslog => "CAP_SYSLOG",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }

    /// What is lost without it: the end of a sentence.
    #[must_use]
    pub(crate) fn loss(self) -> &'static str {
        match self {
            Self::DacReadSearch => "cgroup paths and containers are not named",
            Self::NetAdmin => "ports chosen by connect() and bind() are learned late",
            Self::SysPtrace => "network namespaces of other users' processes are not entered",
            Self::SysAdmin => "TIME_WAITs of other network namespaces are not in the snapshot",
            Self::Syslog => "the end of a TIME_WAIT is not seen",
            Self::Perfmon | Self::Bpf | Self::SysResource => "no program can be loaded",
        }
    }
}

/// The effective capabilities of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    /// The capabilities of this process; all of them if the kernel does not say.
    #[must_use]
    pub(crate) fn of_this_process() -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self(Self::parse(&status).unwrap_or(u64::MAX))
    }

    /// True if the process has this one. `CAP_SYS_ADMIN` stands in for those that programs need, as
    /// it does in the kernel (`bpf_token_capable`, kernel/bpf/token.c).
    #[must_use]
    pub(crate) fn has(self, capability: Capability) -> bool {
        let bit = |capability: Capability| self.0 >> capability as u64 & 1 == 1;
        bit(capability)
            || matches!(capability, Capability::Bpf | Capability::Perfmon | Capability::NetAdmin)
                && bit(Capability::SysAdmin)
    }

    /// The ones in `wanted` that the process lacks.
    #[must_use]
    pub(crate) fn missing(self, wanted: &[Capability]) -> Vec<Capability> {
        wanted.iter().copied().filter(|capability| !self.has(*capability)).collect()
    }

    fn parse(status: &str) -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_stands_in_for_bpf() {
        let caps = Capabilities(1 << Capability::SysAdmin as u64);
        assert!(caps.has(Capability::Bpf) && caps.has(Capability::Perfmon));
        assert_eq!(caps.missing(&[Capability::Bpf, Capability::Syslog]), [Capability::Syslog]);
    }

    #[test]
    fn status_is_read() {
        assert_eq!(
            Capabilities::parse("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(Capabilities::parse("Name:\tx\n"), None);
    }
}
