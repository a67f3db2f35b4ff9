//! Runs the tests on other kernels under QEMU's software emulation. The kernels are Debian's,
//! downloaded but never installed; the initramfs contains the tests and what they need.

mod apt;
mod image;
pub mod init;
mod kernels;
mod qemu;
mod report;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    outcomes::{self, Results},
    workspace::{cargo, output, root},
};
use kernels::Kernel;
use qemu::{Machine, Qemu};
use report::{Column, Count};

#[derive(clap::Args)]
pub struct Args {
    /// Kernels to test on, such as 6.1 (default: all known ones).
    kernels: Vec<String>,
    /// Only run scenarios whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    test: Vec<String>,
    /// Which test suite to run: `scenarios` or `headroom`.
    #[arg(long, default_value = "scenarios")]
    suite: String,
    /// Which hooks the tracer uses.
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
    /// Print the table in Markdown, with a row for each module.
    #[arg(long)]
    markdown: bool,
    /// Run nothing, and print the results of the last runs again.
    #[arg(long, conflicts_with = "test")]
    last: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Hooks {
    /// Let the tracer choose.
    Auto,
    Tracepoints,
    Functions,
    /// Run each kernel with tracepoints, then with functions.
    Both,
}

impl Hooks {
    /// The tracer's hooks in each run of a kernel; `None` lets the tracer choose.
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
    let runner = if args.last { None } else { Some(Runner::new(&args.suite, &args.test)?) };
    let mut columns = Vec::new();
    for kernel in &kernels {
        for hooks in args.hooks.runs() {
            let mut column = Column {
                kernel: kernel.name.to_owned(),
                hooks: hooks.map(str::to_owned),
                release: None,
                outcomes: BTreeMap::new(),
                broken: None,
                took_s: 0.0,
            };
            if let Err(error) = fill(&mut column, runner.as_ref(), kernel) {
                column.broken = Some(format!("{error:#}"));
            }
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
    // A run that did not finish counts as one failure.
    let broken = columns.iter().filter(|column| column.broken.is_some()).count();
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed,
        total.failed + broken,
        total.skipped
    );
    let bad: Vec<_> = columns.iter().filter(|column| !column.is_good()).collect();
    if !bad.is_empty() {
        let names: Vec<_> = bad.iter().map(|column| column.name()).collect();
        bail!("failed on {}", names.join(", "));
    }
    Ok(())
}

fn directory(name: &str) -> PathBuf {
    root().join("target/vm").join(name)
}

/// The files of a run's console and results.
struct Serial {
    console: PathBuf,
    results: PathBuf,
}

impl Serial {
    fn of(column: &Column) -> Self {
        let hooks = column.hooks.as_deref().unwrap_or("auto");
        let file = |name| directory(&column.kernel).join(format!("{name}-{hooks}.txt"));
        Self { console: file("console"), results: file("results") }
    }
}

/// What is needed to run machines.
struct Runner {
    qemu: Qemu,
    tests: Vec<PathBuf>,
    filter: Option<String>,
}

impl Runner {
    fn new(suite: &str, names: &[String]) -> Result<Self> {
        let filter = (!names.is_empty()).then(|| names.join(","));
        let qemu = Qemu::find(&directory("qemu"))?;
        eprintln!("== QEMU {}", qemu.version);
        Ok(Self { qemu, tests: build_tests(suite)?, filter })
    }

    /// Runs the scenarios on a kernel.
    fn run(&self, kernel: &Kernel, hooks: Option<&str>, serial: &Serial) -> Result<ExitStatus> {
        let directory = directory(kernel.name);
        let files = kernels::fetch(kernel, &directory)?;
        let initramfs = directory.join("initramfs.cpio");
        image::write(&initramfs, &self.tests, &files.modules)?;
        // Mitigations slow an emulated processor down considerably and protect nothing.
        let mut arguments = String::from("console=ttyS0 quiet panic=-1 mitigations=off");
        for (name, value) in [(init::TEST, self.filter.as_deref()), (init::HOOKS, hooks)] {
            if let Some(value) = value {
                arguments.push_str(&format!(" {name}{value}"));
            }
        }
        // The files of an earlier run must not be mistaken for those of this one.
        for file in [&serial.console, &serial.results] {
            fs::write(file, [])?;
        }
        self.qemu.run(&Machine {
            kernel: &files.image,
            initramfs: &initramfs,
            arguments: &arguments,
            serial: [&serial.console, &serial.results],
        })
    }
}

/// Fills a column with the results of its run, which is started first if there is a runner.
fn fill(column: &mut Column, runner: Option<&Runner>, kernel: &Kernel) -> Result<()> {
    let serial = Serial::of(column);
    let mut ended = "it was never run".to_owned();
    if let Some(runner) = runner {
        eprintln!("== Linux {}", column.name());
        let began = Instant::now();
        let status = runner.run(kernel, column.hooks.as_deref(), &serial)?;
        eprintln!("   {:.0} s", began.elapsed().as_secs_f64());
        ended = format!("QEMU exited with {status}");
    }
    let Serial { console, results } = serial;
    let read = |file: &Path| -> Result<String> {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    };
    let said = read(&console)?;
    let line = |prefix: &str| said.lines().find_map(|line| line.strip_prefix(prefix));
    column.release = line(init::RELEASE).map(str::to_owned);
    let Results { outcomes, took_s } = outcomes::parse(&read(&results)?);
    column.outcomes = outcomes;
    column.took_s = took_s.unwrap_or_default();
    match line(init::FINISHED) {
        Some(_) if took_s.is_some() && !column.outcomes.is_empty() => Ok(()),
        Some(how) => bail!("no results ({how}); see {}", results.display()),
        None => {
            let panic = said.lines().find(|line| line.contains("Kernel panic"));
            bail!("{}; see {}", panic.unwrap_or(&ended), console.display())
        }
    }
}

/// Builds the test binary, and returns its path and the paths of the programs that it runs.
fn build_tests(suite: &str) -> Result<Vec<PathBuf>> {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["test", "--release", "--package", "tracer-user"]);
    command.args(["--test", suite, "--no-run", "--message-format", "json"]);
    command.stderr(Stdio::inherit());
    let messages = output(&mut command).context("cannot build the tests")?;
    // The only field of cargo's messages that matters here is the path of the binary.
    let binary = messages
        .lines()
        .filter(|line| line.contains(&format!("\"name\":\"{suite}\"")))
        .find_map(|line| {
            let (_, rest) = line.split_once("\"executable\":\"")?;
            rest.split_once('"').map(|(path, _)| PathBuf::from(path))
        })
        .context("cargo did not report the path of the tests")?;
    Ok(vec![binary, root().join("target/release/portlife")])
}
