//! Runs the tracer over the whole host, under load, with the ledger compared with the kernel all
//! the time; then compares what it told with what the load did.

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
        Counts, Deed, Done, Failures, Family, Lane, Load, Long, Namespaces, Pace, Pairs, SmallRange,
    },
    workspace::{cargo, execute, is_root, root},
};
use reader::{Reader, Told};
use usage::Usage;

#[derive(clap::Args)]
pub struct Args {
    /// How long to load.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// What the random choices of the load begin with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds between comparisons with the kernel.
    #[arg(long, default_value_t = 1.0)]
    verify: f64,
    /// Connections a second, if not as many as possible.
    #[arg(long)]
    rate: Option<u32>,
    /// Namespaces a second that come and go.
    #[arg(long, default_value_t = 10)]
    namespaces: u32,
    /// TIME_WAITs that each of the two busiest namespaces may have.
    #[arg(long, default_value_t = 20_000)]
    time_waits: u32,
}

/// Differences that are printed: a softirq that the kernel hides can end hundreds of TIME_WAITs.
const MOST_SHOWN: usize = 20;
/// How often there is a word on stderr.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// How often the tracer's memory is looked at.
const USAGE_INTERVAL: Duration = Duration::from_millis(500);
/// How long the kernel may take to tear the last namespaces down, and the tracer to tell it.
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
    let load = Load::start(lanes(args))?;
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
            progress(began, load.counts(), &tracer.reader.told(), &usage);
        }
    }
    let loaded = began.elapsed();
    let cpu = usage.cpu();
    let done = load.stop()?;
    tracer.settle(&done);
    let told = tracer.finish()?;
    let hidden = witness.map(|mut witness| witness.hidden()).transpose()?;
    let report = Report { done, told, hidden, usage, cpu, loaded };
    report.print();
    report.judge()
}

/// The mixture: two threads that saturate the CPUs, or keep the given rate, and the rarer things at
/// a pace that leaves most of the time to those.
fn lanes(args: &Args) -> Vec<Lane> {
    let pace = args.rate.map_or(Pace::Saturated, |rate| Pace::PerSecond(rate / 2));
    let pairs = |family, seed| Box::new(Pairs::mixed(family, args.time_waits, seed));
    vec![
        Lane { name: "IPv4", pace, scene: pairs(Family::Ipv4, args.seed) },
        Lane { name: "IPv6", pace, scene: pairs(Family::Ipv6, args.seed + 1) },
        Lane {
            name: "failures, IPv4",
            pace: Pace::PerSecond(100),
            scene: Box::new(Failures::new(Family::Ipv4)),
        },
        Lane {
            name: "failures, IPv6",
            pace: Pace::PerSecond(100),
            scene: Box::new(Failures::new(Family::Ipv6)),
        },
        Lane {
            name: "small range",
            pace: Pace::PerSecond(1000),
            scene: Box::new(SmallRange::new(Family::Ipv4)),
        },
        Lane {
            name: "long connections",
            pace: Pace::PerSecond(200),
            scene: Box::new(Long::new(Family::Ipv6, 2000, args.seed + 2)),
        },
        Lane {
            name: "namespaces",
            pace: Pace::PerSecond(args.namespaces),
            scene: Box::new(Namespaces),
        },
    ]
}

/// The tracer, and who reads what it tells.
struct Tracer {
    child: Child,
    reader: Reader,
}

impl Tracer {
    /// Starts it, and returns when it sees everything.
    fn start(binary: &Path, verify_s: f64) -> Result<Self> {
        let mut child = Command::new(binary)
            .args(["trace", "-o", "json", "-v", "--verify", &verify_s.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let stdout = child.stdout.take().context("its output is not piped")?;
        let stderr = child.stderr.take().context("its messages are not piped")?;
        let reader = Reader::start(stdout, stderr)?;
        let mut tracer = Self { child, reader };
        while !tracer.reader.told().has_started {
            if !tracer.is_running()? {
                bail!("the tracer ended before it began");
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

    /// Waits until it has told the end of all that the load held.
    fn settle(&mut self, done: &Done) {
        let deadline = Instant::now() + SETTLING;
        loop {
            let (begun, ended) = self.reader.told().leases_of(&done.namespaces);
            if ended >= begun || Instant::now() > deadline {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends it and returns what it told.
    fn finish(mut self) -> Result<Told> {
        kill_process(self.pid(), Signal::TERM)?;
        let told = self.reader.finish()?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the tracer ended with {status}");
        }
        Ok(told)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Only after a failure does it still run.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn progress(began: Instant, counts: Counts, told: &Told, usage: &Usage) {
    let seconds = began.elapsed().as_secs_f64();
    let connections = counts.get(Deed::Connected);
    eprintln!(
        "{seconds:>6.0} s  {connections:>9} connections ({:.0}/s)  {} verified, {} differed  \
         {} lost  {} MB",
        connections as f64 / seconds,
        told.verified,
        told.differed.len(),
        told.lost(),
        usage.latest_kb() / 1024,
    );
}

/// Everything that is known at the end.
struct Report {
    done: Done,
    told: Told,
    /// What the kernel hid from the tracer, if that could be recorded.
    hidden: Option<Hidden>,
    usage: Usage,
    /// CPU time of the tracer while the load ran.
    cpu: Duration,
    loaded: Duration,
}

impl Report {
    fn print(&self) {
        let Self { done, told, hidden, usage, cpu, loaded } = self;
        let seconds = loaded.as_secs_f64();
        println!("load, {seconds:.1} s:");
        for (what, count) in done.counts.iter() {
            println!("  {count:>12} {what} ({:.0}/s)", count as f64 / seconds);
        }
        println!("told:");
        for (record, count) in told.of(&done.namespaces) {
            println!("  {count:>12} {record}");
        }
        println!(
            "facts: {} seen, {} received, {} lost",
            told.summary("facts_seen"),
            told.summary("facts_received"),
            told.summary("lost")
        );
        for loss in &told.losses {
            println!("  {loss}");
        }
        println!("compared with the kernel: {} times, {} differed", told.verified, {
            told.differed.len()
        });
        for record in &told.differed {
            println!("  {record}");
        }
        for difference in told.differences.iter().take(MOST_SHOWN) {
            println!("  {difference}");
        }
        match hidden {
            Some(Hidden { ports, time_waits }) => println!(
                "  hidden from all eBPF programs by the kernel: changes of {} sockets, ends of \
                 {time_waits} TIME_WAITs",
                ports.len()
            ),
            None => println!("  without tracefs it is not known what the kernel hides"),
        }
        println!("  {} leases at most, {} at the last", told.most_leases, told.last_leases);
        println!(
            "CPU of the tracer: {:.1} s, {:.0} % of one; {:.2} us a fact",
            cpu.as_secs_f64(),
            100.0 * cpu.as_secs_f64() / seconds,
            cpu.as_secs_f64() * 1e6 / told.summary("facts_received").max(1) as f64
        );
        println!("memory of the tracer (VmRSS, MB): {}", usage.curve());
        match usage.halves() {
            Some((early, late)) => {
                println!("  medians after the first minute: {early} KB, then {late} KB");
            }
            None => println!("  too short a run to judge it"),
        }
    }

    fn judge(&self) -> Result<()> {
        let Self { done, told, hidden, usage, .. } = self;
        let mut faults = Vec::new();
        if told.verified == 0 {
            faults.push("the ledger was never compared with the kernel".to_owned());
        }
        let hidden = hidden.clone().unwrap_or_default();
        let unexplained = hidden.unexplained(&told.differences);
        if !unexplained.is_empty() {
            faults.push(format!("{} differences with the kernel", unexplained.len()));
        } else if told.differences.is_empty() && !told.differed.is_empty() {
            faults.push(format!("{} comparisons with the kernel differed", told.differed.len()));
        }
        let unhealed = told.losses.iter().filter(|loss| loss["healed"] != true).count();
        if unhealed > 0 {
            faults.push(format!("{unhealed} losses were not healed"));
        }
        // What was hidden is not told either.
        if told.lost() == 0 && told.differed.is_empty() {
            faults.extend(self.miscounts());
        }
        faults.extend(usage.growth());
        if told.summary("facts_seen") != told.summary("facts_received") + told.summary("lost") {
            faults.push("facts are unaccounted for".to_owned());
        }
        if faults.is_empty() {
            println!("passed: {} connections", done.counts.get(Deed::Connected));
            return Ok(());
        }
        bail!("{}", faults.join("; "))
    }

    /// What the tracer told and the load did must be the same, one for one.
    fn miscounts(&self) -> Vec<String> {
        let Self { done: Done { counts, namespaces }, told, .. } = self;
        let told = told.of(namespaces);
        let of = |record: &str| told.get(record).copied().unwrap_or_default();
        let failed = counts.get(Deed::ConnectFailed)
            + counts.get(Deed::BindFailed)
            + counts.get(Deed::ListenFailed);
        let begun = of("connect") + of("bind") + of("accept");
        [
            ("connect", counts.get(Deed::Chosen)),
            ("established", counts.get(Deed::Connected) + counts.get(Deed::Aborted)),
            ("accept", counts.get(Deed::Connected) + counts.get(Deed::Aborted)),
            ("bind", counts.get(Deed::Bound)),
            ("listen", counts.get(Deed::Listened)),
            ("fail", failed),
            ("release", begun),
        ]
        .into_iter()
        .filter(|(record, expected)| of(record) != *expected)
        .map(|(record, expected)| {
            format!("{} records '{record}' were told instead of {expected}", of(record))
        })
        .collect()
    }
}
