//! Runs the tracer on the whole host under load, comparing the ledger with the kernel all the time,
//! then compares the tracer's records with what the load did.

mod reader;
pub mod usage;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tracer_user::testing::witness::{Hidden, Witness};

use crate::{
    load::{
        Connections, Counts, Event, Failures, Family, Load, LoadResult, LongLived, Namespaces,
        Pace, SmallRange, Worker,
    },
    workspace::{cargo, execute, is_root, root},
};
use reader::{Observed, Reader};
use usage::Usage;

#[derive(clap::Args)]
pub struct Args {
    /// Duration of the load.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Seed of the load's random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds between comparisons with the kernel.
    #[arg(long, default_value_t = 1.0)]
    verify: f64,
    /// Connections per second (default: as many as possible).
    #[arg(long)]
    rate: Option<u32>,
    /// Namespaces to create and destroy per second.
    #[arg(long, default_value_t = 10)]
    namespaces: u32,
    /// Limit on TIME_WAITs in each of the two busiest namespaces.
    #[arg(long, default_value_t = 20_000)]
    time_waits: u32,
}

/// The most differences to print: one softirq hidden by the kernel can end hundreds of TIME_WAITs.
const MOST_SHOWN: usize = 20;
/// Interval of progress messages on stderr.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of memory samples.
const USAGE_INTERVAL: Duration = Duration::from_millis(500);
/// How long the kernel may take to tear down the last namespaces, and the tracer to report it.
const SETTLING: Duration = Duration::from_secs(30);

pub fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("tracing needs root: run this task as root");
    }
    execute(Command::new(cargo()).current_dir(root()).args([
        "build",
        "--release",
        "--package",
        "tracer-user",
        "--bin",
        "portlife",
    ]))?;
    let mut witness = Witness::start();
    let mut tracer = Tracer::start(&root().join("target/release/portlife"), args.verify)?;
    let began = Instant::now();
    let load = Load::start(workers(args))?;
    let until = began + Duration::try_from_secs_f64(args.minutes * 60.0)?;
    let mut usage = Usage::of(tracer.pid());
    let mut next_word = began + PROGRESS_INTERVAL;
    while load.is_running() && Instant::now() < until && tracer.is_running()? {
        thread::sleep(USAGE_INTERVAL.min(until.saturating_duration_since(Instant::now())));
        usage.sample();
        if Instant::now() >= next_word {
            next_word += PROGRESS_INTERVAL;
            if let Some(witness) = &mut witness {
                witness.follow()?;
            }
            progress(began, load.counts(), &tracer.reader.observed(), &usage);
        }
    }
    let loaded = began.elapsed();
    let cpu = usage.cpu();
    let done = load.stop()?;
    tracer.settle(&done);
    let observed = tracer.finish()?;
    let hidden = witness.map(|mut witness| witness.hidden()).transpose()?;
    let report = Report { done, observed, hidden, usage, cpu, loaded };
    report.print();
    report.judge()
}

/// The mixture: two workers that saturate the CPUs or keep the given rate, and the rarer workloads
/// at rates that leave most of the time to those two.
fn workers(args: &Args) -> Vec<Worker> {
    let pace = args.rate.map_or(Pace::Saturated, |rate| Pace::PerSecond(rate / 2));
    let pairs = |family, seed| Box::new(Connections::mixed(family, args.time_waits, seed));
    vec![
        Worker { name: "IPv4", pace, workload: pairs(Family::Ipv4, args.seed) },
        Worker { name: "IPv6", pace, workload: pairs(Family::Ipv6, args.seed + 1) },
        Worker {
            name: "failures, IPv4",
            pace: Pace::PerSecond(100),
            workload: Box::new(Failures::new(Family::Ipv4)),
        },
        Worker {
            name: "failures, IPv6",
            pace: Pace::PerSecond(100),
            workload: Box::new(Failures::new(Family::Ipv6)),
        },
        Worker {
            name: "small range",
            pace: Pace::PerSecond(1000),
            workload: Box::new(SmallRange::new(Family::Ipv4)),
        },
        Worker {
            name: "long connections",
            pace: Pace::PerSecond(200),
            workload: Box::new(LongLived::new(Family::Ipv6, 2000, args.seed + 2)),
        },
        Worker {
            name: "namespaces",
            pace: Pace::PerSecond(args.namespaces),
            workload: Box::new(Namespaces),
        },
    ]
}

/// The tracer, and the reader of its output.
struct Tracer {
    child: Child,
    reader: Reader,
}

impl Tracer {
    /// Starts it, and returns once it traces.
    fn start(binary: &Path, verify_s: f64) -> Result<Self> {
        let mut child = Command::new(binary)
            .args(["trace", "-o", "json", "-v", "--verify", &verify_s.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let stdout = child.stdout.take().context("stdout is not piped")?;
        let stderr = child.stderr.take().context("stderr is not piped")?;
        let reader = Reader::start(stdout, stderr)?;
        let mut tracer = Self { child, reader };
        while !tracer.reader.observed().has_started {
            if !tracer.is_running()? {
                bail!("the tracer exited before it traced anything");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(tracer)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until it has reported the end of every lease of the load.
    fn settle(&mut self, done: &LoadResult) {
        let deadline = Instant::now() + SETTLING;
        loop {
            let (begun, ended) = self.reader.observed().leases_of(&done.namespaces);
            if ended >= begun || Instant::now() > deadline {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Stops it and returns what it reported.
    fn finish(mut self) -> Result<Observed> {
        kill_process(self.pid(), Signal::TERM)?;
        let observed = self.reader.finish()?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the tracer exited with {status}");
        }
        Ok(observed)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It still runs only after a failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn progress(began: Instant, counts: Counts, observed: &Observed, usage: &Usage) {
    let seconds = began.elapsed().as_secs_f64();
    let connections = counts.get(Event::Connected);
    eprintln!(
        "{seconds:>6.0} s  {connections:>9} connections ({:.0}/s)  {} comparisons, {} differed  \
         {} lost  {} MB",
        connections as f64 / seconds,
        observed.verified,
        observed.differed.len(),
        observed.lost(),
        usage.latest_kb() / 1024,
    );
}

/// The results of a run.
struct Report {
    done: LoadResult,
    observed: Observed,
    /// What the kernel hid from the tracer; `None` if that could not be recorded.
    hidden: Option<Hidden>,
    usage: Usage,
    /// CPU time that the tracer used while the load ran.
    cpu: Duration,
    loaded: Duration,
}

impl Report {
    fn print(&self) {
        let Self { done, observed, hidden, usage, cpu, loaded } = self;
        let seconds = loaded.as_secs_f64();
        println!("load, {seconds:.1} s:");
        for (what, count) in done.counts.iter() {
            println!("  {count:>12} {what} ({:.0}/s)", count as f64 / seconds);
        }
        println!("reported:");
        for (record, count) in observed.of(&done.namespaces) {
            println!("  {count:>12} {record}");
        }
        println!(
            "facts: {} seen, {} received, {} lost",
            observed.summary("facts_seen"),
            observed.summary("facts_received"),
            observed.summary("lost")
        );
        for loss in &observed.losses {
            println!("  {loss}");
        }
        println!(
            "comparisons with the kernel: {}, of which {} found differences",
            observed.verified,
            { observed.differed.len() }
        );
        for record in &observed.differed {
            println!("  {record}");
        }
        for difference in observed.differences.iter().take(MOST_SHOWN) {
            println!("  {difference}");
        }
        match hidden {
            Some(Hidden { ports, time_waits }) => println!(
                "  hidden from all eBPF programs by the kernel: state changes of {} sockets, the \
                 ends of {time_waits} TIME_WAITs",
                ports.len()
            ),
            None => println!("  tracefs is not available, so it is unknown what the kernel hid"),
        }
        println!(
            "  at most {} leases, {} in the last comparison",
            observed.most_leases, observed.last_leases
        );
        println!(
            "CPU time of the tracer: {:.1} s, {:.0} % of one CPU; {:.2} us per fact",
            cpu.as_secs_f64(),
            100.0 * cpu.as_secs_f64() / seconds,
            cpu.as_secs_f64() * 1e6 / observed.summary("facts_received").max(1) as f64
        );
        println!("memory of the tracer over time (VmRSS, MB): {}", usage.curve());
        match usage.halves() {
            Some((early, late)) => {
                println!(
                    "  median of the two halves after the first minute: {early} KB, {late} KB"
                );
            }
            None => println!("  the run was too short to judge it"),
        }
    }

    fn judge(&self) -> Result<()> {
        let Self { done, observed, hidden, usage, .. } = self;
        let mut faults = Vec::new();
        if observed.verified == 0 {
            faults.push("the ledger was never compared with the kernel".to_owned());
        }
        let hidden = hidden.clone().unwrap_or_default();
        let unexplained = hidden.unexplained(&observed.differences);
        if !unexplained.is_empty() {
            faults.push(format!("{} differences with the kernel", unexplained.len()));
        } else if observed.differences.is_empty() && !observed.differed.is_empty() {
            faults.push(format!(
                "{} comparisons with the kernel found differences",
                observed.differed.len()
            ));
        }
        let unhealed = observed.losses.iter().filter(|loss| loss["healed"] != true).count();
        if unhealed > 0 {
            faults.push(format!("{unhealed} losses were not healed"));
        }
        // What the kernel hid is missing from the records as well.
        if observed.lost() == 0 && observed.differed.is_empty() {
            faults.extend(self.miscounts());
        }
        faults.extend(usage.growth());
        if observed.summary("facts_seen")
            != observed.summary("facts_received") + observed.summary("lost")
        {
            faults.push("facts are unaccounted for".to_owned());
        }
        if faults.is_empty() {
            println!("passed: {} connections", done.counts.get(Event::Connected));
            return Ok(());
        }
        bail!("{}", faults.join("; "))
    }

    /// The tracer must report exactly what the load did, record by record.
    fn miscounts(&self) -> Vec<String> {
        let Self { done: LoadResult { counts, namespaces }, observed, .. } = self;
        let observed = observed.of(namespaces);
        let of = |record: &str| observed.get(record).copied().unwrap_or_default();
        let failed = counts.get(Event::ConnectFailed)
            + counts.get(Event::BindFailed)
            + counts.get(Event::ListenFailed);
        let begun = of("connect") + of("bind") + of("accept");
        [
            ("connect", counts.get(Event::Chosen)),
            ("established", counts.get(Event::Connected) + counts.get(Event::Aborted)),
            ("accept", counts.get(Event::Connected) + counts.get(Event::Aborted)),
            ("bind", counts.get(Event::Bound)),
            ("listen", counts.get(Event::Listened)),
            ("fail", failed),
            ("release", begun),
        ]
        .into_iter()
        .filter(|(record, expected)| of(record) != *expected)
        .map(|(record, expected)| {
            format!("{} '{record}' records instead of {expected}", of(record))
        })
        .collect()
    }
}
