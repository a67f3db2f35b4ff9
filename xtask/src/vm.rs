//! Runs the tests against the kernel on other kernels, in QEMU's software emulation: Debian's kernels,
//! downloaded but never installed, with an initramfs that holds the tests and nothing else.

mod image;
pub mod init;
mod kernels;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{cargo, output, root};
use kernels::Kernel;

#[derive(clap::Args)]
pub struct Args {
    /// Kernels, such as 6.1 (default: all that are known).
    kernels: Vec<String>,
    /// Only tests whose name contains this.
    #[arg(long)]
    test: Option<String>,
    /// Which of the tests against the kernel: `scenarios` or `headroom`.
    #[arg(long, default_value = "scenarios")]
    suite: String,
}

pub fn run(args: &Args) -> Result<()> {
    let kernels = kernels::named(&args.kernels)?;
    let tests = build_tests(&args.suite)?;
    let mut results = Vec::new();
    for kernel in kernels {
        let began = Instant::now();
        eprintln!("== Linux {}", kernel.name);
        let result = run_on(&kernel, &tests, args.test.as_deref());
        eprintln!("   {:.0} s", began.elapsed().as_secs_f64());
        results.push((kernel.name, result));
    }
    println!();
    let mut failed = 0;
    for (name, result) in &results {
        match result {
            Ok(summary) => {
                println!("{name:<6} {summary}");
                failed += usize::from(summary.failed > 0);
            }
            Err(error) => {
                println!("{name:<6} did not run: {error:#}");
                failed += 1;
            }
        }
    }
    println!("{} passed, {failed} failed", results.len() - failed);
    if failed > 0 {
        bail!("{failed} kernels failed");
    }
    Ok(())
}

/// What one kernel's run printed at its end.
struct Summary {
    release: String,
    passed: usize,
    failed: usize,
    skipped: usize,
    failures: Vec<String>,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { release, passed, failed, skipped, failures } = self;
        write!(f, "{release:<28} {passed} passed, {failed} failed, {skipped} skipped")?;
        failures.iter().try_for_each(|failure| write!(f, "\n         {failure}"))
    }
}

fn run_on(kernel: &Kernel, tests: &[PathBuf], filter: Option<&str>) -> Result<Summary> {
    let files = kernels::fetch(kernel)?;
    let directory = root().join("target/vm").join(kernel.name);
    let initramfs = directory.join("initramfs.cpio");
    image::write(&initramfs, tests, &files.modules)?;
    let console = directory.join("console.txt");
    let mut arguments = String::from("console=ttyS0 quiet panic=-1");
    if let Some(filter) = filter {
        arguments.push_str(&format!(" portlife.test={filter}"));
    }
    let status = Command::new("timeout")
        .args(["--kill-after=10", "1500", "qemu-system-x86_64"])
        .args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=single",
            "-cpu",
            "max",
            "-m",
            "1536",
            "-smp",
            "2",
        ])
        .args(["-nographic", "-no-reboot", "-nodefaults", "-serial"])
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(&files.image)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", &arguments])
        .status()
        .context("qemu-system-x86_64 cannot be run: apt-get install qemu-system-x86")?;
    let text = String::from_utf8_lossy(&fs::read(&console)?).replace('\r', "");
    let finished = text.lines().find_map(|line| line.strip_prefix(init::FINISHED));
    let has_run = text.contains("test result: ");
    if finished.is_none() || !has_run {
        bail!("it did not finish ({status}); see {}", console.display());
    }
    Ok(summarize(&text))
}

fn summarize(console: &str) -> Summary {
    let count = |what: &str| {
        console
            .lines()
            .filter_map(|line| line.strip_prefix("test result: "))
            .flat_map(|line| line.split(['.', ';']))
            .filter_map(|part| part.trim().strip_suffix(what)?.trim().parse::<usize>().ok())
            .sum::<usize>()
    };
    let skipped = console.lines().filter(|line| line.starts_with("skipped: ")).count();
    let failures = console
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .map(str::to_owned)
        .collect();
    Summary {
        release: console
            .lines()
            .find_map(|line| line.strip_prefix(init::RELEASE))
            .unwrap_or_default()
            .to_owned(),
        passed: count("passed").saturating_sub(skipped),
        failed: count("failed"),
        skipped,
        failures,
    }
}

/// Builds the test binaries, and returns them with the tracer that they run.
fn build_tests(suite: &str) -> Result<Vec<PathBuf>> {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["test", "--release", "--package", "tracer-user"]);
    command.args(["--test", suite, "--no-run", "--message-format", "json"]);
    let messages = output(&mut command).context("the tests cannot be built")?;
    // The path of the binary is the one field of cargo's messages that is needed.
    let binary = messages
        .lines()
        .filter(|line| line.contains(&format!("\"name\":\"{suite}\"")))
        .find_map(|line| {
            let (_, rest) = line.split_once("\"executable\":\"")?;
            rest.split_once('"').map(|(path, _)| PathBuf::from(path))
        })
        .context("cargo did not say where the tests are")?;
    Ok(vec![binary, root().join("target/release/portlife")])
}

/// Shared libraries that a binary is linked with, and its loader.
fn libraries(binary: &Path) -> Vec<PathBuf> {
    let list = output(Command::new("ldd").arg(binary)).unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}
