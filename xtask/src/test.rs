//! Runs every test and lists the skipped and the failed ones at the end.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    outcomes::{self, Outcome},
    workspace::{cargo, is_root, root},
};

/// More threads than CPUs, because scenario tests mostly wait for the kernel.
const TEST_THREADS: &str = "8";

#[derive(clap::Args)]
pub struct Args {
    /// Arguments for `cargo test`, such as the name of a test or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<()> {
    if !is_root() {
        eprintln!(
            "not root: the tests that trace the kernel are skipped (with root one takes over a minute)"
        );
    }
    let mut totals = Totals::default();
    let targets = ["--lib", "--bins", "--tests", "--examples"];
    let mut all_passed = run_and_count(&targets, &args.arguments, &mut totals)?;
    // Arguments select targets or tests, and cargo runs doctests on their own only.
    if args.arguments.is_empty() {
        all_passed &= run_and_count(&["--doc"], &[], &mut totals)?;
    }
    println!();
    for reason in &totals.skipped {
        println!("{reason}");
    }
    for failure in &totals.failures {
        println!("FAIL {failure}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        totals.passed(),
        totals.failed,
        totals.skipped.len()
    );
    if !all_passed {
        bail!("the tests failed");
    }
    Ok(())
}

/// Runs the tests of some targets, and returns whether all passed.
fn run_and_count(targets: &[&str], arguments: &[OsString], totals: &mut Totals) -> Result<bool> {
    let mut command = Command::new(cargo());
    command
        .current_dir(root())
        .env("RUST_TEST_THREADS", TEST_THREADS)
        .args(["test", "--workspace", "--release"])
        .args(targets)
        .args(arguments)
        .stdout(Stdio::piped());
    if !arguments.iter().any(|argument| argument == "--") {
        command.arg("--");
    }
    // A skipped test prints the reason, which the runner would otherwise capture.
    command.arg("--show-output");
    let mut child = command.spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("stdout is not piped")?;
    let mut printed = String::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        totals.count(&line);
        printed.push_str(&line);
        printed.push('\n');
    }
    for (name, outcome) in outcomes::parse(&printed).outcomes {
        if let Outcome::Failed(why) = outcome {
            totals.failures.push(format!("{name}: {why}"));
        }
    }
    Ok(child.wait()?.success())
}

#[derive(Default)]
struct Totals {
    /// As counted by the runner, to which a skipped test has passed.
    ok: usize,
    failed: usize,
    /// The lines in which tests said why they were skipped.
    skipped: Vec<String>,
    /// The failed tests, each with its panic's location and message.
    failures: Vec<String>,
}

impl Totals {
    fn count(&mut self, line: &str) {
        if line.starts_with("skipped: ") {
            self.skipped.push(line.to_owned());
        }
        // test result: ok. 3 passed; 0 failed; 0 ignored; ...
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            if let (Some(Ok(number)), Some(what)) =
                (words.next().map(str::parse::<usize>), words.next())
            {
                match what {
                    "passed" => self.ok += number,
                    "failed" => self.failed += number,
                    _ => {}
                }
            }
        }
    }

    fn passed(&self) -> usize {
        self.ok.saturating_sub(self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_sums_and_skipped_tests_do_not_count_as_passed() {
        let mut totals = Totals::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "skipped: this needs root",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            totals.count(line);
        }
        assert_eq!((totals.passed(), totals.failed, totals.skipped.len()), (3, 2, 1));
    }
}
