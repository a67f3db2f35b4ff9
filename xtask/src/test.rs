//! Runs every test.

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::workspace::{cargo, execute, is_root, root};

/// Scenario tests wait for the kernel rather than compute; several can wait at once.
const TEST_THREADS: &str = "8";

#[derive(clap::Args)]
pub struct Args {
    /// Arguments of `cargo test`, such as a test's name or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<()> {
    let mut command = Command::new(cargo());
    command
        .current_dir(root())
        .env("RUST_TEST_THREADS", TEST_THREADS)
        .args(["test", "--workspace", "--release"])
        .args(&args.arguments);
    if !is_root() {
        eprintln!("the tests that need root will print that they skip: run this as root for all");
    }
    execute(&mut command)
}
