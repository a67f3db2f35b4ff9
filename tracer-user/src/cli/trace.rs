//! `portlife trace`.

use std::{
    fs::File,
    io::{ErrorKind, IsTerminal as _, stdout},
    time::Duration,
};

use clap::{
    ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};

use crate::{
    agent::{self, Options},
    kernel::{
        hooks::{loader::LoadOptions, table::HookFamily},
        host::clock,
        namespace::{
            netns::{self, Namespaces},
            scope::Scope,
        },
    },
    model::{Family, Netns},
    record::{
        RecordType,
        filter::{Criterion, Filter, KindPattern, PeerPattern, PortRange},
    },
    views::{
        Verbosity, View,
        stream::{csv::Csv, json::Json, text::Text},
    },
};

/// A value on the command line that parses but means nothing here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Form of the records on stdout
    #[arg(short, long, value_parser = form_parser(), default_value = FORMS[0].name)]
    output: &'static Form,
    /// End after this many seconds
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Compare the ledger with the kernel every so many seconds
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    verify: Option<Duration>,
    /// Size of the ring buffer between kernel and agent, rounded up to a power of two
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = ring_bytes)]
    ring_bytes: u32,
    /// Bytes of records that may wait for a slow reader; more are dropped, failures last
    #[arg(long, value_name = "N", default_value_t = Options::QUEUE_BYTES,
          value_parser = clap::value_parser!(u64).range(1..))]
    queue_bytes: u64,
    /// Which hooks to use where two kinds tell the same
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
    /// Do not show what is held already
    #[arg(long)]
    no_snapshot: bool,
    /// Say nothing on stderr but errors
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more on stderr
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A form of the stream.
#[derive(Debug)]
struct Form {
    name: &'static str,
    help: &'static str,
    /// Creates the view that writes it, with the time of day minus the monotonic time.
    view: fn(i128, Verbosity) -> Box<dyn View>,
}

/// The forms of the stream. The first is the default.
static FORMS: [Form; 3] = [
    Form {
        name: "text",
        help: "Columns for people",
        view: |offset_ns, verbosity| {
            Box::new(Text::new(offset_ns, stdout().is_terminal(), verbosity))
        },
    },
    Form {
        name: "json",
        help: "One object a line, with everything that is known",
        view: |offset_ns, verbosity| Box::new(Json::new(offset_ns, verbosity)),
    },
    Form {
        name: "csv",
        help: "A row a record, for spreadsheets",
        view: |offset_ns, verbosity| Box::new(Csv::new(offset_ns, verbosity)),
    },
];

fn form_parser() -> impl TypedValueParser<Value = &'static Form> {
    let names = FORMS.iter().map(|form| PossibleValue::new(form.name).help(form.help));
    PossibleValuesParser::new(names).try_map(|name| {
        FORMS.iter().find(|form| form.name == name).ok_or_else(|| format!("no form `{name}`"))
    })
}

/// Conditions; each may be given several times, and then any of its values will do.
#[derive(clap::Args)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
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
    /// Only leases that began like this
    #[arg(long = "kind", value_enum, value_name = "KIND")]
    kinds: Vec<KindPattern>,
    /// Only records of this type
    #[arg(short = 'e', long = "event", value_name = "TYPE")]
    types: Vec<RecordType>,
    /// Only failures
    #[arg(short = 'x', long)]
    failures: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Hooks {
    /// Function hooks (fentry, fexit) where the kernel permits them, else tracepoints
    Auto,
    /// Tracepoints, even where function hooks would cost less
    Tracepoints,
    /// Function hooks, or nothing
    Functions,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        filter,
        output,
        duration,
        verify,
        ring_bytes,
        queue_bytes,
        hooks,
        no_snapshot,
        quiet,
        verbose,
    } = args;
    let verbosity = self::verbosity(quiet, verbose);
    let filter = filter.resolve()?;
    let scope = Scope::of(filter.namespaces());
    let options = Options {
        load: LoadOptions { ring_bytes, hooks: hooks.into(), scope },
        snapshot: !no_snapshot,
        duration,
        verify,
        filter,
        queue_bytes,
    };
    let mut view = (output.view)(clock::realtime_offset_ns(), verbosity);
    observe(options, view.as_mut())
}

/// Runs the agent to its end.
pub fn observe(options: Options, output: &mut dyn View) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(agent::trace(options, output));
    // A snapshot that is still being taken need not be waited for.
    runtime.shutdown_background();
    Ok(result?)
}

/// What `-q` and `-v` ask for.
pub fn verbosity(quiet: bool, verbose: u8) -> Verbosity {
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
            .and(Criterion::Netns, super::namespaces(&namespaces)?)
            .and(Criterion::Cgroup, cgroups.into_iter().map(below_root).collect())
            .and(Criterion::Family, families)
            .and(Criterion::Kind, kinds)
            .and(Criterion::Type, types)
            .and(Criterion::Type, failures.then_some(RecordType::Fail).into_iter().collect()))
    }
}

/// The cgroup that `-c` names, as /proc/PID/cgroup has it: below the root of the hierarchy, not
/// where that is mounted.
fn below_root(path: String) -> String {
    match path.strip_prefix("/sys/fs/cgroup") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.to_owned(),
        _ => path,
    }
}

/// The namespace that `-n` names.
pub(crate) fn namespace(name: &str) -> Result<Netns, UsageError> {
    if let Ok(inode) = name.parse() {
        if Namespaces::discover(&[]).take(inode).is_none() {
            crate::stderr::write_line!(
                "portlife: no thread lives in network namespace {inode} now, and no mount shows it"
            );
        }
        return Ok(Netns(inode));
    }
    let (path, what) = match name.strip_prefix("pid:") {
        Some(pid) => (format!("/proc/{pid}/ns/net"), format!("process {pid}")),
        None => (name.to_owned(), name.to_owned()),
    };
    let file = File::open(&path).map_err(|error| {
        let is_name = error.kind() == ErrorKind::NotFound && !name.contains(['/', ':']);
        let hint = if is_name { format!("; is it /run/netns/{name}?") } else { String::new() };
        UsageError(format!("{what}: {}{hint}", super::why_not(&error)))
    })?;
    let inode = netns::inode_of(&file);
    inode.map(Netns).map_err(|_| UsageError(format!("{what} is not a network namespace")))
}

pub fn seconds(text: &str) -> Result<Duration, String> {
    /// Ten years: a time that far from now can still be computed with.
    const MOST_S: f64 = 10.0 * 365.0 * 86_400.0;
    text.parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0 && *seconds <= MOST_S)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("give a positive number of seconds, at most {MOST_S}"))
}

pub fn ring_bytes(text: &str) -> Result<u32, String> {
    const LEAST: u32 = 4096;
    const MOST: u32 = 1 << 30;
    text.parse::<u32>()
        .ok()
        .filter(|bytes| (LEAST..=MOST).contains(bytes))
        .and_then(u32::checked_next_power_of_two)
        .ok_or_else(|| format!("give a number of bytes from {LEAST} to {MOST}"))
}
