//! Measures the cost of tracing: the time per connection at saturation, without a tracer and with
//! each of several. The rounds are interleaved, so that a slow phase of the machine affects all
//! alike.

mod contender;
mod programs;
mod statistics;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::{
    load::{Close, Connections, Event, Family, Load, Pace, Worker},
    workspace::{cargo, execute, is_root, root},
};
use contender::{Contender, Cost};
use programs::ProgramCost;
use statistics::Sample;

#[derive(clap::Args)]
pub struct Args {
    /// Run more and longer rounds, as for the published numbers.
    #[arg(long)]
    full: bool,
    /// Connections per second and CPU (default: as many as possible).
    #[arg(long)]
    rate: Option<u32>,
    /// Number of destinations.
    #[arg(long, default_value_t = 16)]
    destinations: u16,
    /// Use IPv6.
    #[arg(long)]
    ipv6: bool,
    /// Only measure contenders whose name contains this, besides the bare load.
    #[arg(long)]
    only: Option<String>,
}

impl Args {
    fn family(&self) -> Family {
        if self.ipv6 { Family::Ipv6 } else { Family::Ipv4 }
    }
}

/// How long a tool may take to attach.
const SETTLING: Duration = Duration::from_secs(2);
const PORTLIFE: &str = "target/release/portlife";

pub fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("tracing needs root");
    }
    let (rounds, seconds) = if args.full { (9, 4) } else { (5, 2) };
    execute(Command::new(cargo()).current_dir(root()).args([
        "build",
        "--release",
        "--package",
        "tracer-user",
    ]))?;
    let directory = root().join("target/bench");
    fs::create_dir_all(&directory)?;
    let contenders: Vec<_> = contender::all(&root().join(PORTLIFE), &directory)
        .into_iter()
        .filter(|contender| args.only.as_ref().is_none_or(|part| contender.name.contains(part)))
        .collect();
    let mut bare = Vec::new();
    let mut results: Vec<(Contender, Vec<Round>)> =
        contenders.into_iter().map(|contender| (contender, Vec::new())).collect();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let before = measure(args, seconds, None)?;
        for (contender, measured) in &mut results {
            if contender.missing().is_none() {
                measured.push(measure(args, seconds, Some(contender))?);
            }
        }
        // Measured before and after all others, to average out a drift of the machine.
        let after = measure(args, seconds, None)?;
        bare.push((before.us_per_connection + after.us_per_connection) / 2.0);
    }
    let bare = Sample::of(bare);
    println!("{}", table(&bare, &results));
    println!("{}", ratios(&bare, &results));
    let own = results.iter().find(|(contender, _)| contender.name == contender::PORTLIFE_TO_NULL);
    let programs = match own {
        Some((portlife, _)) => programs::measure(portlife, args.family(), SETTLING)?,
        None => Vec::new(),
    };
    println!("{}", programs::table(&programs));
    let file = directory.join("bench.json");
    fs::write(&file, serde_json::to_vec_pretty(&record(args, &bare, &results, &programs))?)?;
    println!("wrote {}", file.strip_prefix(root()).unwrap_or(&file).display());
    Ok(())
}

/// One run of the load.
struct Round {
    us_per_connection: f64,
    connections: u64,
    /// What the contender used and reported; `None` for the bare load.
    cost: Option<Cost>,
}

fn measure(args: &Args, seconds: u64, contender: Option<&Contender>) -> Result<Round> {
    let running = contender.map(Contender::start).transpose()?;
    if running.is_some() {
        thread::sleep(SETTLING);
    }
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let pace = args.rate.map_or(Pace::Saturated, Pace::PerSecond);
    let workers = (0..cpus).map(|_| Worker {
        name: "connections",
        pace,
        workload: Box::new(Connections::uniform(
            args.family(),
            Close::ServerFirst,
            args.destinations,
        )),
    });
    let load = Load::start(workers.collect())?;
    // Lets the first connections open listeners and fill caches.
    thread::sleep(Duration::from_millis(200));
    let (before, began) = (load.counts().get(Event::Connected), Instant::now());
    thread::sleep(Duration::from_secs(seconds));
    let (after, elapsed) = (load.counts().get(Event::Connected), began.elapsed());
    let connections = load.stop()?.counts.get(Event::Connected);
    let cost = running.map(contender::Running::stop).transpose()?;
    let made = after.saturating_sub(before).max(1);
    Ok(Round {
        // CPU time, because each CPU makes connections of its own.
        us_per_connection: elapsed.as_secs_f64() * 1e6 * as_float(cpus as u64) / as_float(made),
        connections,
        cost,
    })
}

fn table(bare: &Sample, results: &[(Contender, Vec<Round>)]) -> String {
    let mut lines = vec![format!(
        "{:<34} {:>16} {:>16} {:>8} {:>8} {:>8} {:>10} {:>8}",
        "contender", "us/connection", "added us", "of bare", "CPU %", "peak MB", "reported", "lost"
    )];
    lines.push(format!("{:<34} {:>16}", "bare", bare.to_string()));
    for (contender, rounds) in results {
        let name = contender.name;
        if let Some(reason) = contender.missing() {
            lines.push(format!("{name:<34} skipped: {reason}"));
            continue;
        }
        let us = Sample::of(rounds.iter().map(|round| round.us_per_connection).collect());
        let added = added(bare, rounds);
        let of = |number: fn(&Cost) -> Option<f64>| {
            let values: Vec<_> =
                rounds.iter().filter_map(|round| number(round.cost.as_ref()?)).collect();
            (!values.is_empty()).then(|| Sample::of(values).median)
        };
        let reported: Vec<_> = rounds
            .iter()
            .filter_map(|round| {
                let reported = round.cost.as_ref()?.reported?;
                Some(as_float(reported) / as_float(contender.per_connection * round.connections))
            })
            .collect();
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        lines.push(format!(
            "{name:<34} {:>16} {:>16} {:>7.1}% {:>8} {:>8} {:>10} {:>8}",
            us.to_string(),
            added.to_string(),
            bare.median / us.median * 100.0,
            shown(of(|cost| Some(cost.cpu_percent)), 0),
            shown(of(|cost| Some(cost.peak_mb)), 1),
            if reported.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.2}%", Sample::of(reported).median * 100.0)
            },
            shown(of(|cost| cost.lost.map(as_float)), 0),
        ));
    }
    lines.join("\n")
}

/// Microseconds per connection that each round took longer than the bare load in the same round.
fn added(bare: &Sample, rounds: &[Round]) -> Sample {
    let pairs = rounds.iter().zip(&bare.values);
    Sample::of(pairs.map(|(round, bare)| round.us_per_connection - bare).collect())
}

/// What portlife adds to a connection, relative to what its peers add.
fn ratios(bare: &Sample, results: &[(Contender, Vec<Round>)]) -> String {
    let of = |name: &str| {
        results
            .iter()
            .find(|(contender, rounds)| contender.name == name && !rounds.is_empty())
            .map(|(_, rounds)| added(bare, rounds))
    };
    let Some(own) = of(contender::PORTLIFE_TO_NULL) else { return String::new() };
    let lines: Vec<_> = contender::PEERS
        .iter()
        .filter_map(|name| {
            let peer = of(name)?;
            let ratio = if peer.is_noise() {
                "none, its cost is below the noise of this run".to_owned()
            } else if own.is_noise() {
                format!(
                    "at most {:.2} (the cost of portlife is below the noise)",
                    (own.median.abs() + own.spread) / peer.median
                )
            } else {
                format!("{:.2}", own.median / peer.median)
            };
            Some(format!("cost of portlife relative to {name}: {ratio}"))
        })
        .collect();
    lines.join("\n")
}

fn record(
    args: &Args,
    bare: &Sample,
    results: &[(Contender, Vec<Round>)],
    programs: &[ProgramCost],
) -> Value {
    let contenders: Vec<_> = results
        .iter()
        .map(|(contender, rounds)| {
            json!({
                "name": contender.name,
                "skipped": contender.missing(),
                "rounds": rounds.iter().map(|round| json!({
                    "us_per_connection": round.us_per_connection,
                    "connections": round.connections,
                    "cost": round.cost.as_ref().map(Cost::to_json),
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "full": args.full,
        "rate": args.rate,
        "destinations": args.destinations,
        "ipv6": args.ipv6,
        "bare_us_per_connection": bare.values,
        "contenders": contenders,
        "programs": programs::to_json(programs),
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn as_float(count: u64) -> f64 {
    count as f64
}

/// The path of a contender's file in the benchmark's directory.
fn file_of(directory: &std::path::Path, name: &str) -> PathBuf {
    directory.join(name.replace(|character: char| !character.is_ascii_alphanumeric(), "-"))
}
