//! `portlife trace`.

use std::{
    io::{IsTerminal as _, stdout},
    time::Duration,
};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::options::{self, FilterArgs, Hooks};
use crate::{
    agent::{self, Options},
    kernel::{hooks::loader::LoadOptions, host::clock, namespace::scope::Scope},
    views::{
        Verbosity, View,
        stream::{csv::Csv, json::Json, text::Text},
    },
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Output format
    #[arg(short, long, value_parser = format_parser(), default_value = FORMATS[0].name)]
    output: &'static Format,
    /// Stop after this many seconds
    #[arg(long, value_name = "SECS", value_parser = options::seconds)]
    duration: Option<Duration>,
    /// Compare the ledger with the kernel at this interval, in seconds
    #[arg(long, value_name = "SECS", value_parser = options::seconds)]
    verify: Option<Duration>,
    /// Size of the ring buffer between kernel and agent, rounded up to a power of two
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = options::ring_bytes)]
    ring_bytes: u32,
    /// Bytes that may be queued for a slow reader; then records are dropped, failures last
    #[arg(long, value_name = "N", default_value_t = Options::QUEUE_BYTES,
          value_parser = clap::value_parser!(u64).range(1..))]
    queue_bytes: u64,
    /// Which hooks to use where the kernel offers two for the same event
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
    /// Do not list the ports that are already held
    #[arg(long)]
    no_snapshot: bool,
    /// Print only errors to stderr
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Print more to stderr
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// An output format of the stream.
#[derive(Debug)]
struct Format {
    name: &'static str,
    help: &'static str,
    /// Creates the view that writes it, given the nanoseconds to add to a monotonic time to get
    /// the time of day.
    view: fn(i128, Verbosity) -> Box<dyn View>,
}

/// The output formats of the stream. The first is the default.
static FORMATS: [Format; 3] = [
    Format {
        name: "text",
        help: "Columns for reading",
        view: |offset_ns, verbosity| {
            Box::new(Text::new(offset_ns, stdout().is_terminal(), verbosity))
        },
    },
    Format {
        name: "json",
        help: "One object a line, with all fields",
        view: |offset_ns, verbosity| Box::new(Json::new(offset_ns, verbosity)),
    },
    Format {
        name: "csv",
        help: "A row a record, for spreadsheets",
        view: |offset_ns, verbosity| Box::new(Csv::new(offset_ns, verbosity)),
    },
];

fn format_parser() -> impl TypedValueParser<Value = &'static Format> {
    let names = FORMATS.iter().map(|format| PossibleValue::new(format.name).help(format.help));
    PossibleValuesParser::new(names).try_map(|name| {
        FORMATS
            .iter()
            .find(|format| format.name == name)
            .ok_or_else(|| format!("no output format `{name}`"))
    })
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
    let verbosity = options::verbosity(quiet, verbose);
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

/// Runs the agent until it ends.
pub fn observe(options: Options, output: &mut dyn View) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(agent::trace(options, output));
    // Do not wait for a snapshot that is still being taken.
    runtime.shutdown_background();
    Ok(result?)
}
