//! The cost of a run of each eBPF program, from the kernel's statistics, under a load of
//! connections of every kind: with and without bind(), closed by either side or reset.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use object::{Object as _, ObjectSymbol as _, SymbolKind};
use serde_json::{Value, json};

use super::contender::Contender;
use crate::{
    load::{Connections, Family, Load, Pace, Worker},
    workspace::root,
};

/// Number of characters that the kernel keeps of a program's name (`BPF_OBJ_NAME_LEN` without the
/// terminating zero).
const KEPT: usize = 15;

const LOAD: Duration = Duration::from_secs(3);
const MOST_TIME_WAITS: u32 = 5000;

/// The cost of a program.
pub struct ProgramCost {
    name: String,
    runs: u64,
    /// Mean duration of a run, including some tens of nanoseconds for the statistics themselves.
    mean_ns: u64,
}

/// Measures portlife's programs.
///
/// # Errors
/// If portlife cannot be started, or the kernel keeps no statistics.
pub fn measure(
    portlife: &Contender,
    family: Family,
    settling: Duration,
) -> Result<Vec<ProgramCost>> {
    let running = portlife.start()?;
    thread::sleep(settling);
    let ids = programs_of(running.pid())?;
    let statistics = enable_stats(Stats::RunTime).context("the kernel keeps no statistics")?;
    let before = spent(&ids)?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let workers = (0..cpus as u64).map(|seed| Worker {
        name: "connections",
        pace: Pace::Saturated,
        workload: Box::new(Connections::mixed(family, MOST_TIME_WAITS, seed)),
    });
    let load = Load::start(workers.collect())?;
    thread::sleep(LOAD);
    load.stop()?;
    let after = spent(&ids)?;
    drop(statistics);
    running.stop()?;
    let mut names = names()?;
    let costs = after.into_iter().filter_map(|(id, Spent { name, runs, ns })| {
        let (runs_before, ns_before) =
            before.get(&id).map_or((0, 0), |spent| (spent.runs, spent.ns));
        // Second copies have longer names than the first, and are loaded after them.
        let is_it = |full: &String| *full == name || name.len() == KEPT && full.starts_with(&name);
        let full_name = names.iter().position(is_it);
        let name = full_name.map_or(name, |index| names.remove(index));
        let runs = runs - runs_before;
        let mean_ns = (ns - ns_before).checked_div(runs)?;
        Some(ProgramCost { name, runs, mean_ns })
    });
    Ok(costs.collect())
}

/// A line for each program.
pub fn table(costs: &[ProgramCost]) -> String {
    let lines = costs.iter().map(|ProgramCost { name, runs, mean_ns }| {
        format!("{name:<34} {mean_ns:>6} ns per run {runs:>12} runs")
    });
    lines.collect::<Vec<_>>().join("\n")
}

pub fn to_json(costs: &[ProgramCost]) -> Value {
    costs
        .iter()
        .map(|ProgramCost { name, runs, mean_ns }| {
            json!({ "name": name, "runs": runs, "mean_ns": mean_ns })
        })
        .collect()
}

struct Spent {
    /// As much of the name as the kernel keeps.
    name: String,
    runs: u64,
    ns: u64,
}

fn spent(ids: &BTreeSet<u32>) -> Result<BTreeMap<u32, Spent>> {
    let mut spent = BTreeMap::new();
    for program in loaded_programs() {
        let program = program.context("cannot list the loaded programs")?;
        if ids.contains(&program.id()) {
            let name = program.name_as_str().unwrap_or("?").to_owned();
            let ns = u64::try_from(program.run_time().as_nanos())?;
            spent.insert(program.id(), Spent { name, runs: program.run_count(), ns });
        }
    }
    Ok(spent)
}

/// The names of the programs in the object, sorted.
fn names() -> Result<Vec<String>> {
    let object = fs::read(root().join("tracer-ebpf/prebuilt/portlife.bpf.o"))?;
    let object = object::File::parse(&*object)?;
    let functions = object.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    let mut names = functions
        .map(|function| Ok(function.name()?.to_owned()))
        .collect::<Result<Vec<_>, object::Error>>()?;
    names.sort_unstable();
    Ok(names)
}

/// The ids of the programs that a process holds.
fn programs_of(pid: u32) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // It may have been closed in the meantime.
        let info = fs::read_to_string(file?.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}
