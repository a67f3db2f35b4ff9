//! Makes an incident of port exhaustion happen, in a network namespace of its own, and shows what
//! `portlife report` says of it.
//!
//! The incidents are an example of tracer-user, not part of this program: they need the agent's
//! code, and what builds the eBPF object must not depend on what refuses a stale one.

use std::process::Command;

use anyhow::Result;

use crate::workspace::{cargo, execute, is_root, root};

#[derive(clap::Args)]
pub struct Args {
    /// The incident, or `all`.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Name the incidents, and what the report must say of each.
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
        eprintln!("network namespaces and tracing need root: running the demo with sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg(&demo);
        sudo
    };
    command.arg(args.name.as_deref().filter(|_| !args.list).unwrap_or("--list"));
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1));
}
