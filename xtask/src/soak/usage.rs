//! Memory and CPU time of a process.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Pid;

/// Samples of a process's memory.
#[derive(Debug)]
pub struct Usage {
    pid: Pid,
    began: Instant,
    /// Seconds since the first sample could be taken, and VmRSS in KB.
    samples: Vec<(f64, u64)>,
}

impl Usage {
    pub fn of(pid: Pid) -> Self {
        Self { pid, began: Instant::now(), samples: Vec::new() }
    }

    pub fn sample(&mut self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero()));
        let resident_kb = status.ok().and_then(|status| {
            let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            field.trim().strip_suffix(" kB")?.parse().ok()
        });
        if let Some(resident_kb) = resident_kb {
            self.samples.push((self.began.elapsed().as_secs_f64(), resident_kb));
        }
    }

    pub fn latest_kb(&self) -> u64 {
        self.samples.last().map_or(0, |(_, kb)| *kb)
    }

    /// User and system time so far, including children that have exited.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()));
        let ticks = stat.ok().and_then(|stat| {
            // The fields from the third on, which follow the name; that can contain any character.
            let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect();
            let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
            (11..=14).map(number).sum::<Option<u64>>()
        });
        let per_second = rustix::param::clock_ticks_per_second();
        Duration::from_secs(ticks.unwrap_or(0)) / u32::try_from(per_second).unwrap_or(100)
    }

    /// About twenty values in MB, spread over the whole time.
    pub fn curve(&self) -> String {
        let step = self.samples.len().div_ceil(20).max(1);
        let values: Vec<_> =
            self.samples.chunks(step).map(|chunk| (median(chunk) / 1024).to_string()).collect();
        values.join(" ")
    }

    /// Median memory in KB in the first and the second half of the time in which it should be flat.
    /// `None` if the run was too short.
    ///
    /// The first minute or so does not count, because the number of TIME_WAITs, and with it the
    /// ledger, still grows. Medians, because a comparison with the kernel briefly holds a list of
    /// all sockets.
    pub fn halves(&self) -> Option<(u64, u64)> {
        let begin = self.samples.partition_point(|(at, _)| *at < SETTLED_S);
        let settled = self.samples.get(begin..).unwrap_or_default();
        let (early, late) = settled.split_at(settled.len() / 2);
        (early.len() >= MIN_SAMPLES).then(|| (median(early), median(late)))
    }

    /// A complaint if memory in the second half exceeds that in the first by more than 5 % plus 4
    /// MB. At 10,000,000 connections in 30 minutes that is two bytes per connection.
    pub fn growth(&self) -> Option<String> {
        let (early, late) = self.halves()?;
        (late > early + early / 20 + 4096)
            .then(|| format!("memory grows from {} to {} MB (medians)", early / 1024, late / 1024))
    }
}

/// From then on TIME_WAITs end as fast as they are made: 60 s plus the rounding of the timer wheel.
const SETTLED_S: f64 = 75.0;
/// Required number of samples in each half.
const MIN_SAMPLES: usize = 30;

fn median(samples: &[(f64, u64)]) -> u64 {
    let mut values: Vec<_> = samples.iter().map(|(_, kb)| *kb).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
