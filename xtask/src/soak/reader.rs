//! Reads the tracer's output, fast enough never to delay it: of most records only the type and the
//! namespace are parsed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{BufRead as _, BufReader},
    process::{ChildStderr, ChildStdout},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

/// The threads that read stdout and stderr.
pub struct Reader {
    observed: Arc<Mutex<Observed>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// What the tracer has reported so far.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub has_started: bool,
    /// Number of comparisons with the kernel.
    pub verified: u64,
    /// The records of comparisons that found differences.
    pub differed: Vec<Value>,
    /// The differences, a sentence each.
    pub differences: Vec<String>,
    pub losses: Vec<Value>,
    pub most_leases: u64,
    pub last_leases: u64,
    summary: Value,
    /// Numbers of lease and failure records, by namespace and type.
    records: HashMap<u32, BTreeMap<String, u64>>,
}

impl Reader {
    pub fn start(stdout: ChildStdout, stderr: ChildStderr) -> Result<Self> {
        // The tracer writes megabytes at once, and a large pipe needs fewer wake-ups.
        rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES).context("cannot enlarge the pipe")?;
        let observed = Arc::new(Mutex::new(Observed::default()));
        let shared = Arc::clone(&observed);
        let records = thread::Builder::new()
            .name("reader".to_owned())
            .spawn(move || read(BufReader::with_capacity(PIPE_BYTES, stdout), &shared))?;
        let shared = Arc::clone(&observed);
        let messages = thread::spawn(move || read_messages(BufReader::new(stderr), &shared));
        Ok(Self { observed, threads: vec![records, messages] })
    }

    pub fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the tracer's output.
    pub fn finish(&mut self) -> Result<Observed> {
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("the reader panicked"))??;
        }
        Ok(self.observed().clone())
    }
}

/// The largest pipe that an unprivileged process may have by default.
const PIPE_BYTES: usize = 1 << 20;

/// Forwards the tracer's messages, and keeps those about differences.
fn read_messages(stderr: BufReader<ChildStderr>, observed: &Mutex<Observed>) -> Result<()> {
    for line in stderr.lines() {
        let line = line?;
        eprintln!("{line}");
        if let Some(difference) = line.strip_prefix("portlife: ")
            && difference.starts_with("missing in the ")
        {
            let mut observed = observed.lock().unwrap_or_else(PoisonError::into_inner);
            observed.differences.push(difference.to_owned());
        }
    }
    Ok(())
}

fn read(mut stdout: BufReader<ChildStdout>, observed: &Mutex<Observed>) -> Result<()> {
    let mut partial = Vec::new();
    loop {
        let chunk = stdout.fill_buf()?;
        if chunk.is_empty() {
            return Ok(());
        }
        let length = chunk.len();
        let mut observed = observed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            if partial.is_empty() {
                observed.take(line)?;
            } else {
                partial.extend_from_slice(line);
                observed.take(&partial)?;
                partial.clear();
            }
        }
        partial.extend_from_slice(rest);
        drop(observed);
        stdout.consume(length);
    }
}

impl Observed {
    fn take(&mut self, line: &[u8]) -> Result<()> {
        let (kind, netns) = kind_and_netns(line)
            .with_context(|| format!("not a record: {}", String::from_utf8_lossy(line)))?;
        if let Some(netns) = netns {
            let of_namespace = self.records.entry(netns).or_default();
            match of_namespace.get_mut(kind) {
                Some(count) => *count += 1,
                None => {
                    of_namespace.insert(kind.to_owned(), 1);
                }
            }
            return Ok(());
        }
        let record: Value = serde_json::from_slice(line)?;
        match kind {
            "start" => self.has_started = true,
            "verify" => {
                self.verified += 1;
                self.last_leases = record["leases"].as_u64().unwrap_or_default();
                self.most_leases = self.most_leases.max(self.last_leases);
                if record["missing"] != 0 || record["extra"] != 0 {
                    self.differed.push(record);
                }
            }
            "loss" => self.losses.push(record),
            "summary" => self.summary = record,
            _ => {}
        }
        Ok(())
    }

    /// Number of lost facts.
    pub fn lost(&self) -> u64 {
        self.losses.iter().filter_map(|loss| loss["count"].as_u64()).sum()
    }

    /// A number of the `summary` record; 0 before there is one.
    pub fn summary(&self, field: &str) -> u64 {
        self.summary[field].as_u64().unwrap_or_default()
    }

    /// Number of records of each type in these namespaces.
    pub fn of(&self, namespaces: &BTreeSet<u32>) -> BTreeMap<&str, u64> {
        let mut sum = BTreeMap::new();
        for (record, count) in
            namespaces.iter().filter_map(|netns| self.records.get(netns)).flatten()
        {
            *sum.entry(record.as_str()).or_default() += count;
        }
        sum
    }

    /// Numbers of leases that began and that ended in these namespaces.
    pub fn leases_of(&self, namespaces: &BTreeSet<u32>) -> (u64, u64) {
        let observed = self.of(namespaces);
        let of = |record| observed.get(record).copied().unwrap_or_default();
        (of("connect") + of("bind") + of("accept"), of("release"))
    }
}

/// The type of a record, and its namespace unless that is null. The tracer writes both near the
/// beginning, in this order; parsing the whole record would take longer than writing it.
fn kind_and_netns(line: &[u8]) -> Option<(&str, Option<u32>)> {
    const HEAD_BYTES: usize = 160;
    let head = &line[..line.len().min(HEAD_BYTES)];
    let after = |text: &str| {
        let start = head.windows(text.len()).position(|window| window == text.as_bytes())?;
        Some(&head[start + text.len()..])
    };
    let kind = after("\"type\":\"")?;
    let kind = &kind[..kind.iter().position(|byte| *byte == b'"')?];
    let netns = after("\"netns\":")?;
    let digits = netns.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let netns = str::from_utf8(&netns[..digits]).ok()?.parse().ok();
    Some((str::from_utf8(kind).ok()?, netns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_and_namespace_are_read_from_the_head_of_a_record() {
        let record = br#"{"v":1,"type":"bind","time":"2026","mono_ns":5,"netns":4026531840,"x":1}"#;
        assert_eq!(kind_and_netns(record), Some(("bind", Some(4_026_531_840))));
        let record = br#"{"v":1,"type":"verify","time":"2026","mono_ns":5,"netns":null,"x":1}"#;
        assert_eq!(kind_and_netns(record), Some(("verify", None)));
        assert_eq!(kind_and_netns(b"portlife: no record"), None);
    }
}
