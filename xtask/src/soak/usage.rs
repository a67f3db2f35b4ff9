//! The memory and CPU time that a process uses.

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
    /// Seconds since the beginning, and VmRSS in KB.
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

    /// User and system time so far, also of children that have ended.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()));
        let ticks = stat.ok().and_then(|stat| {
            // After the name, which may contain anything, the fields from the third on.
            let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect();
            let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
            (11..=14).map(number).sum::<Option<u64>>()
        });
        let per_second = rustix::param::clock_ticks_per_second();
        Duration::from_secs(ticks.unwrap_or(0)) / u32::try_from(per_second).unwrap_or(100)
    }

    /// Twenty values over the whole time.
    pub fn curve(&self) -> String {
        let step = self.samples.len().div_ceil(20).max(1);
        let values: Vec<_> =
            self.samples.chunks(step).map(|chunk| (median(chunk) / 1024).to_string()).collect();
        values.join(" ")
    }

    /// The medians, in KB, of the first and the second half of the time in which memory should be
    /// flat. `None` if the run was too short for that.
    ///
    /// The number of TIME_WAITs, and with it the ledger, grows for the first minute or so, which
    /// therefore does not count. Medians, because a comparison with the kernel holds the list of
    /// all sockets for a moment.
    pub fn halves(&self) -> Option<(u64, u64)> {
        let begin = self.samples.partition_point(|(at, _)| *at < SETTLED_S);
        let settled = self.samples.get(begin..).unwrap_or_default();
        let (early, late) = settled.split_at(settled.len() / 2);
        (early.len() >= LEAST_SAMPLES).then(|| (median(early), median(late)))
    }

    /// A sentence, if the second half needs more memory than the first, and a twentieth and 4 MB
    /// beyond. At 10,000,000 connections in 30 minutes that is two bytes a connection.
    pub fn growth(&self) -> Option<String> {
        let (early, late) = self.halves()?;
        (late > early + early / 20 + 4096)
            .then(|| format!("memory grows: from {} to {} MB (medians)", early / 1024, late / 1024))
    }
}

/// When TIME_WAITs begin to end as fast as they are made: 60 s and the timer wheel's rounding.
const SETTLED_S: f64 = 75.0;
/// In each half.
const LEAST_SAMPLES: usize = 30;
fn median(samples: &[(f64, u64)]) -> u64 {
    let mut values: Vec<_> = samples.iter().map(|(_, kb)| *kb).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
