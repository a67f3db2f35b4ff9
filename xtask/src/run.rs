//! Builds the tracer and runs it as root.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::workspace::{cargo, execute, is_root, root};

#[derive(clap::Args)]
pub struct Args {
    /// Arguments for portlife.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<()> {
    execute(Command::new(cargo()).current_dir(root()).args([
        "build",
        "--release",
        "--package",
        "tracer-user",
        "--bin",
        "portlife",
    ]))?;
    let binary = root().join("target/release/portlife");
    let mut command = if is_root() {
        Command::new(&binary)
    } else {
        eprintln!("tracing needs root: using sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg(&binary);
        sudo
    };
    let status = command.args(&args.arguments).status()?;
    std::process::exit(status.code().unwrap_or(1));
}
