//! Options that several commands have.

use std::{io::ErrorKind, path::Path, time::Duration};

use clap::ValueEnum;

use super::output::describe;
use crate::{
    kernel::{
        hooks::table::HookFamily,
        namespace::netns::{self, Namespaces},
    },
    model::{Family, Netns},
    record::{
        RecordType,
        filter::{Criterion, Filter, KindPattern, PeerPattern, PortRange},
    },
    views::Verbosity,
};

/// An argument that is well-formed but cannot be used, such as the path of a file that does not
/// exist.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct UsageError(String);

/// Options of the commands that print one answer and exit.
#[derive(clap::Args)]
pub(super) struct AnswerOptions {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// Show the causes of an error
    #[arg(short, long)]
    pub verbose: bool,
}

/// The output format of commands that print one answer.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum OutputFormat {
    Text,
    Json,
}

/// Filters: a record must match one of the values of each option that is given.
#[derive(clap::Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct FilterArgs {
    /// Only leases of this process
    #[arg(short, long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Only leases of processes of this name
    #[arg(long = "comm", value_name = "NAME")]
    comms: Vec<String>,
    /// Only these local ports
    #[arg(short = 'P', long = "port", value_name = "PORT|LO-HI")]
    ports: Vec<PortRange>,
    /// Only leases with this peer
    #[arg(short, long = "destination", value_name = "ADDR[/LEN][:PORT]")]
    destinations: Vec<PeerPattern>,
    /// Only this network namespace: its inode, a path to it, or pid:N for that of a process
    #[arg(short, long = "netns", value_name = "NETNS")]
    namespaces: Vec<String>,
    /// Only this cgroup and those below it
    #[arg(short, long = "cgroup", value_name = "CGROUP")]
    cgroups: Vec<String>,
    /// Only IPv4 sockets
    #[arg(short = '4')]
    ipv4: bool,
    /// Only IPv6 sockets
    #[arg(short = '6')]
    ipv6: bool,
    /// Only leases that began this way
    #[arg(long = "kind", value_enum, value_name = "KIND")]
    kinds: Vec<KindPattern>,
    /// Only records of this type
    #[arg(short = 'e', long = "event", value_name = "TYPE")]
    types: Vec<RecordType>,
    /// Only failures
    #[arg(short = 'x', long)]
    failures: bool,
}

/// Which hooks to use where the kernel offers two for the same event.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Hooks {
    /// Function hooks (fentry, fexit) where the kernel permits them, else tracepoints
    Auto,
    /// Tracepoints, even where function hooks would cost less
    Tracepoints,
    /// Function hooks, or nothing
    Functions,
}

/// The verbosity that `-q` and `-v` ask for.
pub(super) fn verbosity(quiet: bool, verbose: u8) -> Verbosity {
    match verbose {
        _ if quiet => Verbosity::Quiet,
        0 => Verbosity::Normal,
        _ => Verbosity::Verbose,
    }
}

impl From<Hooks> for HookFamily {
    fn from(hooks: Hooks) -> Self {
        match hooks {
            Hooks::Auto => Self::Auto,
            Hooks::Tracepoints => Self::Tracepoints,
            Hooks::Functions => Self::Functions,
        }
    }
}

impl FilterArgs {
    /// The filter that these options describe.
    ///
    /// # Errors
    /// If a namespace cannot be found.
    pub fn resolve(self) -> Result<Filter, UsageError> {
        let Self {
            pids,
            comms,
            ports,
            destinations,
            namespaces,
            cgroups,
            ipv4,
            ipv6,
            kinds,
            types,
            failures,
        } = self;
        let families = [(ipv4, Family::Ipv4), (ipv6, Family::Ipv6)]
            .into_iter()
            .filter_map(|(wanted, family)| wanted.then_some(family))
            .collect();
        Ok(Filter::default()
            .and(Criterion::Pid, pids)
            .and(Criterion::Comm, comms)
            .and(Criterion::Port, ports)
            .and(Criterion::Peer, destinations)
            .and(Criterion::Netns, resolve_namespaces(&namespaces)?)
            .and(Criterion::Cgroup, cgroups.into_iter().map(cgroup_path).collect())
            .and(Criterion::Family, families)
            .and(Criterion::Kind, kinds)
            .and(Criterion::Type, types)
            .and(Criterion::Type, failures.then_some(RecordType::Fail).into_iter().collect()))
    }
}

/// Converts the argument of `-c` to a path relative to the root of the cgroup hierarchy, as in
/// /proc/PID/cgroup.
fn cgroup_path(path: String) -> String {
    match path.strip_prefix("/sys/fs/cgroup") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.to_owned(),
        _ => path,
    }
}

/// The namespaces that `-n` names.
///
/// # Errors
/// If one cannot be found.
pub(super) fn resolve_namespaces(names: &[String]) -> Result<Vec<Netns>, UsageError> {
    names.iter().map(|name| resolve_namespace(name)).collect()
}

fn resolve_namespace(name: &str) -> Result<Netns, UsageError> {
    if let Ok(inode) = name.parse() {
        if Namespaces::discover(&[]).take(inode).is_none() {
            crate::stderr::write_line!(
                "portlife: no process is in network namespace {inode} now, and it is not mounted anywhere"
            );
        }
        return Ok(Netns(inode));
    }
    let (path, what) = match name.strip_prefix("pid:") {
        Some(pid) => (format!("/proc/{pid}/ns/net"), format!("process {pid}")),
        None => (name.to_owned(), name.to_owned()),
    };
    let none = || UsageError(format!("{what} is not a network namespace"));
    let file = netns::open(Path::new(&path)).map_err(|error| {
        if error.kind() == ErrorKind::InvalidInput {
            return none();
        }
        let is_name = error.kind() == ErrorKind::NotFound && !name.contains(['/', ':']);
        let hint = if is_name { format!("; is it /run/netns/{name}?") } else { String::new() };
        UsageError(format!("{what}: {}{hint}", describe(&error)))
    })?;
    let inode = netns::inode_of(&file);
    inode.map(Netns).map_err(|_| none())
}

/// Parses a number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    /// Ten years. `Instant` can represent a time that far in the future.
    const MAX_S: f64 = 10.0 * 365.0 * 86_400.0;
    text.parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0 && *seconds <= MAX_S)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("expected a positive number of seconds, at most {MAX_S}"))
}

/// Parses the size of the ring buffer in bytes, and rounds it up to a power of two.
pub(super) fn ring_bytes(text: &str) -> Result<u32, String> {
    const MIN: u32 = 4096;
    const MAX: u32 = 1 << 30;
    text.parse::<u32>()
        .ok()
        .filter(|bytes| (MIN..=MAX).contains(bytes))
        .and_then(u32::checked_next_power_of_two)
        .ok_or_else(|| format!("expected a number of bytes from {MIN} to {MAX}"))
}
