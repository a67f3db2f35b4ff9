//! Runs the tests against other kernels, in QEMU's software emulation: Debian's kernels,
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
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{cargo, output, root};
use kernels::Kernel;
use qemu::{Machine, Qemu};
use report::{Column, Count, Results};

#[derive(clap::Args)]
pub struct Args {
    /// Kernels, such as 6.1 (default: all that are known).
    kernels: Vec<String>,
    /// Only scenarios whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    test: Vec<String>,
    /// Which of the tests against the kernel: `scenarios` or `headroom`.
    #[arg(long, default_value = "scenarios")]
    suite: String,
    /// The tracer's hooks.
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
    /// Print the table in Markdown, a row for each module.
    #[arg(long)]
    markdown: bool,
    /// Run nothing: print the table of the last runs again.
    #[arg(long, conflicts_with = "test")]
    last: bool,
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
    // A run without an end counts once, whatever it did before.
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
        bail!("not good on {}", names.join(", "));
    }
    Ok(())
}

fn directory(name: &str) -> PathBuf {
    root().join("target/vm").join(name)
}

/// Where a run's console and results are written.
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

/// What runs machines.
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
        // The mitigations cost an emulated processor a lot, and protect nothing in it.
        let mut arguments = String::from("console=ttyS0 quiet panic=-1 mitigations=off");
        for (name, value) in [(init::TEST, self.filter.as_deref()), (init::HOOKS, hooks)] {
            if let Some(value) = value {
                arguments.push_str(&format!(" {name}{value}"));
            }
        }
        // An earlier run's must not be taken for this one's.
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

/// Fills a column with what its run gave, after running it if there is a runner.
fn fill(column: &mut Column, runner: Option<&Runner>, kernel: &Kernel) -> Result<()> {
    let serial = Serial::of(column);
    let mut ended = "it has not run".to_owned();
    if let Some(runner) = runner {
        eprintln!("== Linux {}", column.name());
        let began = Instant::now();
        let status = runner.run(kernel, column.hooks.as_deref(), &serial)?;
        eprintln!("   {:.0} s", began.elapsed().as_secs_f64());
        ended = format!("QEMU ended with {status}");
    }
    let Serial { console, results } = serial;
    let read = |file: &Path| -> Result<String> {
        let bytes = fs::read(file).with_context(|| format!("there is no {}", file.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    };
    let said = read(&console)?;
    let line = |prefix: &str| said.lines().find_map(|line| line.strip_prefix(prefix));
    column.release = line(init::RELEASE).map(str::to_owned);
    let Results { outcomes, took_s } = report::parse(&read(&results)?);
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

/// Builds the test binaries, and returns them with the tracer that they run.
fn build_tests(suite: &str) -> Result<Vec<PathBuf>> {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["test", "--release", "--package", "tracer-user"]);
    command.args(["--test", suite, "--no-run", "--message-format", "json"]);
    command.stderr(Stdio::inherit());
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
