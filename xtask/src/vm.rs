//! Runs the scenario suite on other kernels, in QEMU's software emulation: Debian's kernels,
//! downloaded but never installed, with an initramfs that holds the tests and nothing else.

mod apt;
mod image;
pub mod init;
mod kernels;
mod qemu;
mod report;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{cargo, output, root};
use kernels::Kernel;
use qemu::{Machine, Qemu};
use report::{Column, Count};

#[derive(clap::Args)]
pub struct Args {
    /// Kernels, such as 6.1 (default: all that are known).
    kernels: Vec<String>,
    /// Only scenarios whose name contains this.
    #[arg(long)]
    test: Option<String>,
    /// The tracer's hooks.
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
    /// Print the table in Markdown, a row for each module.
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Hooks {
    /// Those that the tracer chooses.
    Auto,
    Tracepoints,
    Functions,
    /// Each kernel with tracepoints, then with functions.
    Both,
}

impl Hooks {
    /// What to ask the tracer for in each of a kernel's runs.
    fn runs(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Auto => &[None],
            Self::Tracepoints => &[Some("tracepoints")],
            Self::Functions => &[Some("functions")],
            Self::Both => &[Some("tracepoints"), Some("functions")],
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let kernels = kernels::named(&args.kernels)?;
    let qemu = Qemu::find(&directory("qemu"))?;
    eprintln!("== QEMU {}", qemu.version);
    let tests = build_tests()?;
    let mut columns = Vec::new();
    for kernel in &kernels {
        for hooks in args.hooks.runs() {
            let name =
                hooks.map_or(kernel.name.to_owned(), |hooks| format!("{} {hooks}", kernel.name));
            eprintln!("== Linux {name}");
            let began = Instant::now();
            let mut column = run_on(&qemu, kernel, &tests, args.test.as_deref(), *hooks)
                .unwrap_or_else(|error| broken(format!("{error:#}")));
            column.name = name;
            column.took_s = began.elapsed().as_secs_f64();
            let Count { passed, failed, skipped } = column.count();
            eprintln!(
                "   {}: {passed} passed, {failed} failed, {skipped} n/a, {:.0} s",
                column.release, column.took_s
            );
            columns.push(column);
        }
    }
    let table = if args.markdown { report::markdown(&columns) } else { report::table(&columns) };
    println!("\n{table}");
    let total = columns.iter().map(Column::count).fold(Count::default(), |sum, count| Count {
        passed: sum.passed + count.passed,
        failed: sum.failed + count.failed,
        skipped: sum.skipped + count.skipped,
    });
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    let bad: Vec<_> = columns.iter().filter(|column| !column.is_good()).collect();
    if !bad.is_empty() {
        let names: Vec<_> = bad.iter().map(|column| column.name.as_str()).collect();
        bail!("not good on {}", names.join(", "));
    }
    Ok(())
}

fn directory(name: &str) -> PathBuf {
    root().join("target/vm").join(name)
}

fn broken(why: String) -> Column {
    Column {
        name: String::new(),
        release: "?".to_owned(),
        outcomes: BTreeMap::new(),
        broken: Some(why),
        took_s: 0.0,
    }
}

fn run_on(
    qemu: &Qemu,
    kernel: &Kernel,
    tests: &[PathBuf],
    filter: Option<&str>,
    hooks: Option<&str>,
) -> Result<Column> {
    let directory = directory(kernel.name);
    let files = kernels::fetch(kernel, &directory)?;
    let initramfs = directory.join("initramfs.cpio");
    image::write(&initramfs, tests, &files.modules)?;
    // The mitigations cost an emulated processor a lot, and nothing runs in it that they are for.
    let mut arguments = String::from("console=ttyS0 quiet panic=-1 mitigations=off");
    for (name, value) in [(init::TEST, filter), (init::HOOKS, hooks)] {
        if let Some(value) = value {
            arguments.push_str(&format!(" {name}{value}"));
        }
    }
    let [console, results] = ["console.txt", "results.txt"].map(|name| match hooks {
        Some(hooks) => directory.join(format!("{hooks}-{name}")),
        None => directory.join(name),
    });
    let status = qemu.run(&Machine {
        kernel: &files.image,
        initramfs: &initramfs,
        arguments: &arguments,
        serial: [&console, &results],
    })?;
    let [said, printed] = [&console, &results]
        .map(|file| fs::read(file).map(|text| String::from_utf8_lossy(&text).replace('\r', "")));
    let (said, printed) = (said?, printed?);
    let (outcomes, is_complete) = report::parse(&printed);
    let line = |prefix: &str| said.lines().find_map(|line| line.strip_prefix(prefix));
    let broken = match line(init::FINISHED) {
        Some(_) if is_complete && !outcomes.is_empty() => None,
        Some(how) => Some(format!("no result ({how}); see {}", results.display())),
        None => {
            let panic = said.lines().find(|line| line.contains("Kernel panic"));
            let why = panic.map_or_else(|| status.to_string(), str::to_owned);
            Some(format!("{why}; see {}", console.display()))
        }
    };
    let release = line(init::RELEASE).unwrap_or("?").to_owned();
    Ok(Column { release, outcomes, broken, ..self::broken(String::new()) })
}

/// Builds the test binaries, and returns them with the tracer that they run.
fn build_tests() -> Result<Vec<PathBuf>> {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["test", "--release", "--package", "tracer-user"]);
    command.args(["--test", "scenarios", "--no-run", "--message-format", "json"]);
    command.stderr(Stdio::inherit());
    let messages = output(&mut command).context("the tests cannot be built")?;
    // The path of the binary is the one field of cargo's messages that is needed.
    let binary = messages
        .lines()
        .filter(|line| line.contains("\"name\":\"scenarios\""))
        .find_map(|line| {
            let (_, rest) = line.split_once("\"executable\":\"")?;
            rest.split_once('"').map(|(path, _)| PathBuf::from(path))
        })
        .context("cargo did not say where the tests are")?;
    Ok(vec![binary, root().join("target/release/portlife")])
}
