//! Stages an incident of port exhaustion in a network namespace of its own and shows what
//! `portlife report` says about it.
//!
//! The incidents are an example of tracer-user rather than part of this program, because they need
//! the agent. This program must build without it: it builds the eBPF object, and the agent refuses
//! to build with a stale one.

use std::process::Command;

use anyhow::Result;

use crate::workspace::{cargo, execute, is_root, root};

#[derive(clap::Args)]
pub struct Args {
    /// Name of the incident, or `all`.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// List the incidents and the expected verdict on each.
    #[arg(long)]
    list: bool,
}

pub fn run(args: &Args) -> Result<()> {
    execute(Command::new(cargo()).current_dir(root()).args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "tracer-user",
        "--bin",
        "portlife",
        "--example",
        "demo",
    ]))?;
    let demo = root().join("target/release/examples/demo");
    let mut command = if is_root() || args.list {
        Command::new(&demo)
    } else {
        eprintln!("network namespaces and tracing need root: using sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg(&demo);
        sudo
    };
    command.arg(args.name.as_deref().filter(|_| !args.list).unwrap_or("--list"));
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1));
}
