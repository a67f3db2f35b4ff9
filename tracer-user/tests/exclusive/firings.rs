//! Each time a hook fires, its program runs, or the kernel counts a recursion miss. perf counts how
//! often hooks fire.

use std::{collections::HashMap, fs, thread};

use perf_event::{Builder, Counter, events::Tracepoint};

use crate::{
    alone, churn,
    support::{Tracer, sandbox},
};

/// Tracepoints, the programs attached to them, and the least number of times that the churn fires
/// them.
const HOOKS: [(&str, &[&str], u64); 5] = [
    ("sock/inet_sock_set_state", &["inet_sock_set_state", "inet_sock_set_state_backup"], 1000),
    ("tcp/tcp_destroy_sock", &["tcp_destroy_sock", "tcp_destroy_sock_backup"], 600),
    ("timer/timer_start", &["timer_start"], 100),
    ("timer/timer_cancel", &["timer_cancel"], 100),
    ("timer/timer_expire_entry", &["timer_expire_entry"], 0),
];
/// Repetitions, because the host is active between readings that should be simultaneous.
const ATTEMPTS: usize = 20;
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

#[test]
fn runs_and_misses_are_all_firings() {
    let _turn = alone();
    let Some(sandbox) = sandbox() else { return };
    let Some(_statistics) = Statistics::enable() else { return };
    let netns = sandbox.netns().0.to_string();
    let tracer = Tracer::start_with(&["-n", &netns, "--hooks", "tracepoints"]);
    for (tracepoint, programs, least) in HOOKS {
        let Some(mut counters) = firings_of(tracepoint) else { return };
        for name in programs {
            let program = Program::of(&tracer, name);
            let mut seen = Vec::new();
            let is_exact = (0..ATTEMPTS).any(|_| {
                let before = (read(&mut counters), program.runs_and_misses());
                churn(400);
                let after = (program.runs_and_misses(), read(&mut counters));
                let (runs, fired) = (after.0 - before.1, after.1 - before.0);
                seen.push((runs, fired));
                runs == fired && runs >= least
            });
            assert!(is_exact, "{name}: runs and misses differ from firings: {seen:?}");
            // A program without a second copy never interrupts itself.
            if programs.len() == 1 {
                assert_eq!(program.misses(), 0, "{name} was skipped");
            }
        }
    }
}

/// Enables the kernel's statistics of programs, which have a cost, until dropped.
struct Statistics {
    before: String,
}

impl Statistics {
    fn enable() -> Option<Self> {
        let before = fs::read_to_string(STATISTICS).ok();
        let Some(before) = before.filter(|_| fs::write(STATISTICS, "1").is_ok()) else {
            println!("skipped: the kernel keeps no statistics of programs ({STATISTICS})");
            return None;
        };
        Some(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(STATISTICS, &self.before);
    }
}

/// A program of the tracer, as described by its fdinfo.
struct Program {
    info: String,
}

impl Program {
    fn of(tracer: &Tracer, name: &str) -> Self {
        // The kernel keeps 15 characters of a name.
        let kept = &name[..name.len().min(15)];
        let ids: HashMap<String, bool> = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| program.name_as_str() == Some(kept))
            .map(|program| (program.id().to_string(), true))
            .collect();
        let directory = format!("/proc/{}/fdinfo", tracer.pid().as_raw_nonzero());
        let mut found: Vec<(u64, String)> = fs::read_dir(&directory)
            .expect("the tracer runs")
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let text = fs::read_to_string(&path).ok()?;
                // Links name the program as well, but have no statistics.
                field(&text, "run_cnt:")?;
                let id = field(&text, "prog_id:")?;
                ids.contains_key(&id.to_string()).then(|| (id, path.display().to_string()))
            })
            .collect();
        // Of programs with the same truncated name, the second copy was loaded last.
        found.sort_unstable();
        let index = usize::from(name.ends_with("_backup") && found.len() > 1);
        let (_, info) = found.swap_remove(index);
        Self { info }
    }

    fn runs_and_misses(&self) -> u64 {
        self.number("run_cnt:") + self.misses()
    }

    fn misses(&self) -> u64 {
        self.number("recursion_misses:")
    }

    fn number(&self, name: &str) -> u64 {
        let text = fs::read_to_string(&self.info).expect("the tracer runs");
        field(&text, name).expect("fdinfo has this field")
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// Counters of a tracepoint's firings, one per CPU. `None`, after printing why, if perf cannot
/// count them.
fn firings_of(tracepoint: &str) -> Option<Vec<Counter>> {
    let path = format!("/sys/kernel/tracing/events/{tracepoint}/id");
    let Some(id) = fs::read_to_string(&path).ok().and_then(|id| id.trim().parse().ok()) else {
        println!("skipped: {path} cannot be read (is tracefs mounted?)");
        return None;
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let counters: Result<Vec<_>, _> = (0..cpus)
        .map(|cpu| {
            let mut counter = Builder::new(Tracepoint::with_id(id))
                .any_pid()
                .one_cpu(cpu)
                .include_kernel()
                .include_hv()
                .build()?;
            counter.enable().map(|()| counter)
        })
        .collect();
    match counters {
        Ok(counters) => Some(counters),
        Err(error) => {
            println!("skipped: perf cannot count {tracepoint}: {error}");
            None
        }
    }
}

fn read(counters: &mut [Counter]) -> u64 {
    counters.iter_mut().map(|counter| counter.read().expect("perf counts")).sum()
}
