//! The command line: one file for each subcommand.

mod check;
mod report;
mod trace;
mod why;

use std::{
    io::{self, Write as _, stdout},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

use crate::{agent::AgentError, kernel::hooks::error::LoadError, model::Netns};

/// Everything went as asked.
const DONE: u8 = 0;
/// Something failed while running.
const FAILED: u8 = 1;
/// The command line is wrong (clap's own exit code, too).
const USAGE: u8 = 2;
/// It cannot run here: privilege or kernel.
const CANNOT_RUN: u8 = 3;

#[derive(Parser)]
#[command(
    name = "portlife",
    version,
    about = "Who holds which local TCP port, since when, until when, and why is there none left",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    trace: trace::Args,
}

#[derive(Subcommand)]
enum Command {
    /// Show what is held now, then every lease event as it happens (the default)
    Trace(Box<trace::Args>),
    /// Observe, or read what was recorded, then say who holds the ports and why none is left
    Report(Box<report::Args>),
    /// Show whether it can run here, what each hook costs, and what the settings mean for ports
    Check(check::Args),
    /// Show who holds a port, when it will be free, and what it is good for meanwhile
    Why(why::Args),
}

/// The form of what goes to stdout.
#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// What every question that is answered at once can be asked with.
#[derive(clap::Args)]
struct Question {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
    /// Say more on stderr
    #[arg(short, long)]
    verbose: bool,
}

/// Writes an answer to stdout.
fn print(text: &[u8]) -> anyhow::Result<()> {
    match stdout().write_all(text) {
        // Nobody reads it, and nobody misses it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            let reason = why_not(&error);
            Err(error).with_context(|| format!("the answer cannot be written: {reason}"))
        }
        Ok(()) => Ok(()),
    }
}

/// Why a file cannot be opened, read or written, in words.
fn why_not(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not open it".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::StorageFull => "no space is left there".to_owned(),
        _ => error.to_string(),
    }
}

/// The network namespaces that are named.
fn namespaces(names: &[String]) -> Result<Vec<Netns>, trace::UsageError> {
    names.iter().map(|name| trace::namespace(name)).collect()
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    let Cli { command, trace } = Cli::parse();
    let (verbose, outcome) = match command {
        None => (trace.verbose > 0, trace::run(trace)),
        Some(Command::Trace(args)) => (args.verbose > 0, trace::run(*args)),
        Some(Command::Report(args)) => (args.verbose > 0, report::run(*args)),
        Some(Command::Check(args)) => (args.question.verbose, check::run(&args)),
        Some(Command::Why(args)) => (args.question.verbose, why::run(&args)),
    };
    let code = match outcome {
        Ok(()) => DONE,
        Err(error) => {
            say(&error, verbose);
            exit_code(&error)
        }
    };
    ExitCode::from(code)
}

/// One sentence; the chain of causes only if asked for.
fn say(error: &anyhow::Error, verbose: bool) {
    crate::stderr::write_line!("portlife: {error}");
    if verbose {
        for cause in error.chain().skip(1) {
            crate::stderr::write_line!("  because: {cause}");
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<trace::UsageError>() {
        return USAGE;
    }
    let load = match error.downcast_ref::<AgentError>() {
        Some(AgentError::Load(error)) => Some(error),
        _ => error.downcast_ref::<LoadError>(),
    };
    match load {
        Some(
            LoadError::Privilege(_)
            | LoadError::Btf(_)
            | LoadError::Layout(_)
            | LoadError::Refused { .. }
            | LoadError::NoFunctions(_)
            | LoadError::Object(_),
        ) => CANNOT_RUN,
        _ => FAILED,
    }
}
