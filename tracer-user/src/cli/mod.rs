//! The command line: one file for each subcommand, and what they share.

mod check;
mod options;
mod output;
mod report;
mod trace;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use options::UsageError;

use crate::{
    agent::AgentError,
    kernel::{
        hooks::error::LoadError,
        host::{capability::Capability, process},
    },
};

/// Success.
const DONE: u8 = 0;
/// An error while running.
const FAILED: u8 = 1;
/// A wrong command line. clap exits with the same code.
const USAGE: u8 = 2;
/// This host lacks a privilege or a feature of the kernel.
const CANNOT_RUN: u8 = 3;

#[derive(Parser)]
#[command(
    name = "portlife",
    version,
    about = "Which process holds each local TCP port, since when, until when, and why are none left",
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
    /// Show the ports that are held, then every event as it happens (the default)
    Trace(Box<trace::Args>),
    /// Observe, or read a recording, then report who holds the ports and why none is left
    Report(Box<report::Args>),
    /// Show whether portlife can run here, what each hook costs, and which settings limit the ports
    Check(check::Args),
    /// Show who holds a port, when it will be free, and what can use it until then
    Why(why::Args),
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    process::give_up_new_privileges();
    process::keep_capabilities(&Capability::USED);
    process::ignore_file_size_signal();
    let Cli { command, trace } = Cli::parse();
    let (verbose, outcome) = match command {
        None => (trace.verbose > 0, trace::run(trace)),
        Some(Command::Trace(args)) => (args.verbose > 0, trace::run(*args)),
        Some(Command::Report(args)) => (args.verbose > 0, report::run(*args)),
        Some(Command::Check(args)) => (args.options.verbose, check::run(&args)),
        Some(Command::Why(args)) => (args.options.verbose, why::run(&args)),
    };
    let code = match outcome {
        Ok(()) => DONE,
        Err(error) => {
            print_error(&error, verbose);
            exit_code(&error)
        }
    };
    ExitCode::from(code)
}

/// Prints an error: one sentence, and the chain of causes if `verbose`.
fn print_error(error: &anyhow::Error, verbose: bool) {
    crate::stderr::write_line!("portlife: {error}");
    if verbose {
        for cause in error.chain().skip(1) {
            // The kernel's verifier explains itself in many lines.
            for (number, line) in cause.to_string().lines().enumerate() {
                let begin = if number == 0 { "because:" } else { "        " };
                crate::stderr::write_line!("  {begin} {line}");
            }
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<UsageError>() {
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
