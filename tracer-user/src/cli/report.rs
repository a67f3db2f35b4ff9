//! `portlife report`.

use std::{
    fs::{self, File},
    io::{BufReader, IsTerminal as _, Read, stdin, stdout},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use super::{
    options::{self, FilterArgs, Hooks, OutputFormat},
    output::{describe, print},
    trace,
};
use crate::{
    agent::Options,
    kernel::{
        hooks::loader::LoadOptions,
        host::{clock, process},
        namespace::scope::Scope,
    },
    ledger::Ledger,
    record::{Record, filter::Filter},
    sources::replay::Recording,
    views::{
        Verbosity, View as _,
        report::{Form, ReportView, Services},
    },
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    /// Observe for this many seconds instead of until Ctrl-C
    #[arg(long, value_name = "SECS", value_parser = options::seconds)]
    duration: Option<Duration>,
    /// Report on a recording of `portlife trace -o json` instead of observing; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["duration", "ring_bytes", "hooks"])]
    from: Option<PathBuf>,
    /// Size of the ring buffer between kernel and agent, rounded up to a power of two
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = options::ring_bytes)]
    ring_bytes: u32,
    /// Which hooks to use where the kernel offers two for the same event
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
    /// Print only errors to stderr
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Print more to stderr
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The input contains no records.
#[derive(Debug, thiserror::Error)]
#[error("{0}: no record could be read; expected what `portlife trace -o json` writes")]
struct NothingRead(String);

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { filter, output, duration, from, ring_bytes, hooks, quiet, verbose } = args;
    let verbosity = options::verbosity(quiet, verbose);
    let filter = filter.resolve()?;
    let form = match output {
        OutputFormat::Text => Form::Text { colour: stdout().is_terminal() },
        OutputFormat::Json => Form::Json,
    };
    // Without the file, the built-in names are used.
    let services = fs::read_to_string("/etc/services").unwrap_or_default();
    let services = Services::parse(&services);
    if let Some(path) = from {
        let mut report = ReportView::new(0, form, services, filter.clone(), Verbosity::Quiet);
        let recording = read(&path, &filter, &mut report)?;
        if verbosity >= Verbosity::Normal {
            for problem in &recording.problems {
                crate::stderr::write_line!("portlife: {problem}");
            }
        }
        if recording.records == 0 {
            return Err(NothingRead(name_of(&path)).into());
        }
        report.set_realtime_offset(recording.realtime_offset_ns.unwrap_or_default());
        return print(&form.write(&report.report(recording.ledger())));
    }
    let options = Options {
        load: LoadOptions {
            ring_bytes,
            hooks: hooks.into(),
            scope: Scope::of(filter.namespaces()),
        },
        snapshot: true,
        duration,
        verify: None,
        filter: filter.clone(),
        queue_bytes: Options::QUEUE_BYTES,
    };
    let offset = clock::realtime_offset_ns();
    let mut output = ReportView::new(offset, form, services, filter, verbosity);
    trace::observe(options, &mut output)
}

/// Reads a recording as far as it can be read.
fn read(path: &Path, filter: &Filter, report: &mut ReportView) -> anyhow::Result<Recording> {
    let name = name_of(path);
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(stdin().lock())
    } else {
        let file = File::open(path);
        let reason = file.as_ref().err().map(describe).unwrap_or_default();
        Box::new(file.with_context(|| format!("{name} cannot be opened: {reason}"))?)
    };
    // What follows depends on what somebody else wrote.
    process::keep_capabilities(&[]);
    let mut recording = Recording::default();
    let input = BufReader::with_capacity(1 << 16, input);
    let take = |record: &Record<'_>, ledger: &Ledger| report.record(record, ledger);
    if let Err(error) = recording.read(input, &name, filter, take) {
        if recording.records == 0 {
            let reason = describe(&error);
            return Err(error).with_context(|| format!("{name} cannot be read: {reason}"));
        }
        recording.problems.push(format!("{name}: the rest cannot be read: {error}"));
    }
    Ok(recording)
}

fn name_of(path: &Path) -> String {
    if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() }
}
