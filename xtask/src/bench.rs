//! What tracing costs: connections at saturation, bare and with each tracer attached, in
//! interleaved rounds, so that a slow moment of the machine hits all of them alike.

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
    load::{Close, Deed, Family, Lane, Load, Pace, Pairs},
    workspace::{cargo, execute, is_root, root},
};
use contender::{Contender, Cost};
use programs::ProgramCost;
use statistics::Sample;

#[derive(clap::Args)]
pub struct Args {
    /// More and longer rounds, as for the table in README.md.
    #[arg(long)]
    full: bool,
    /// Connections a second of each CPU, if not as many as possible.
    #[arg(long)]
    rate: Option<u32>,
    /// Destinations of the connections.
    #[arg(long, default_value_t = 16)]
    destinations: u16,
    /// Over IPv6.
    #[arg(long)]
    ipv6: bool,
    /// Only contenders whose name contains this, beside the bare load.
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
        // Before and after all others: what changed between the two is the machine's noise.
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
    println!("written to {}", file.strip_prefix(root()).unwrap_or(&file).display());
    Ok(())
}

/// One run of the load.
struct Round {
    us_per_connection: f64,
    connections: u64,
    /// What the contender used, and told.
    cost: Option<Cost>,
}

fn measure(args: &Args, seconds: u64, contender: Option<&Contender>) -> Result<Round> {
    let running = contender.map(Contender::start).transpose()?;
    if running.is_some() {
        thread::sleep(SETTLING);
    }
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let pace = args.rate.map_or(Pace::Saturated, Pace::PerSecond);
    let lanes = (0..cpus).map(|_| Lane {
        name: "connections",
        pace,
        scene: Box::new(Pairs::of(args.family(), Close::ServerFirst, args.destinations)),
    });
    let load = Load::start(lanes.collect())?;
    // The first connections open listeners and fill caches.
    thread::sleep(Duration::from_millis(200));
    let (before, began) = (load.counts().get(Deed::Connected), Instant::now());
    thread::sleep(Duration::from_secs(seconds));
    let (after, elapsed) = (load.counts().get(Deed::Connected), began.elapsed());
    let connections = load.stop()?.counts.get(Deed::Connected);
    let cost = running.map(contender::Running::stop).transpose()?;
    let made = after.saturating_sub(before).max(1);
    Ok(Round {
        // Of one CPU: each makes its own.
        us_per_connection: elapsed.as_secs_f64() * 1e6 * as_float(cpus as u64) / as_float(made),
        connections,
        cost,
    })
}

fn table(bare: &Sample, results: &[(Contender, Vec<Round>)]) -> String {
    let mut lines = vec![format!(
        "{:<34} {:>16} {:>16} {:>8} {:>8} {:>8} {:>10} {:>8}",
        "contender", "us/connection", "added us", "of bare", "CPU %", "peak MB", "told", "lost"
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
        let told: Vec<_> = rounds
            .iter()
            .filter_map(|round| {
                let told = round.cost.as_ref()?.told?;
                Some(as_float(told) / as_float(contender.per_connection * round.connections))
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
            if told.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.2}%", Sample::of(told).median * 100.0)
            },
            shown(of(|cost| cost.lost.map(as_float)), 0),
        ));
    }
    lines.join("\n")
}

/// Microseconds that each round took beyond the bare load of its time.
fn added(bare: &Sample, rounds: &[Round]) -> Sample {
    let pairs = rounds.iter().zip(&bare.values);
    Sample::of(pairs.map(|(round, bare)| round.us_per_connection - bare).collect())
}

/// What portlife adds, against what its peers add.
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
                "no ratio: what it adds is lost in the noise of this run".to_owned()
            } else if own.is_noise() {
                format!(
                    "at most {:.2} (what portlife adds is lost in the noise)",
                    (own.median.abs() + own.spread) / peer.median
                )
            } else {
                format!("{:.2}", own.median / peer.median)
            };
            Some(format!("portlife adds, of what {name} adds: {ratio}"))
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

/// A path below the directory of the bench's files.
fn file_of(directory: &std::path::Path, name: &str) -> PathBuf {
    directory.join(name.replace(|character: char| !character.is_ascii_alphanumeric(), "-"))
}
