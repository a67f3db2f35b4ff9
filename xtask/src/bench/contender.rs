//! The tools that are measured: how to start each, and how to read its results.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::file_of;
use crate::soak::usage::Usage;

/// The contender that is compared with the peers.
pub const PORTLIFE_TO_NULL: &str = "portlife json to /dev/null";
pub const PEERS: [&str; 4] =
    ["tcplife", "tcpstates", "bpftrace tcpstates one-liner", "ss each second"];

/// How long a tool may take to exit.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tool to measure.
pub struct Contender {
    pub name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// The file for its output; `None` for /dev/null.
    output: Option<PathBuf>,
    kind: Kind,
    /// Number of lines or records that it should write per connection.
    pub per_connection: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portlife,
    /// One line for each event.
    Lines,
    /// Its output does not consist of events.
    Other,
}

/// The cost of running a tool.
#[derive(Clone, Debug)]
pub struct Cost {
    /// User and system time, in percent of one CPU.
    pub cpu_percent: f64,
    pub peak_mb: f64,
    /// Number of events reported; `None` if they cannot be counted.
    pub reported: Option<u64>,
    /// Number of events lost, by its own account; `None` if it does not say.
    pub lost: Option<u64>,
}

impl Cost {
    pub fn to_json(&self) -> Value {
        let Self { cpu_percent, peak_mb, reported, lost } = self;
        json!({ "cpu_percent": cpu_percent, "peak_mb": peak_mb, "reported": reported, "lost": lost })
    }
}

/// Everything to measure besides the bare load.
pub fn all(portlife: &Path, directory: &Path) -> Vec<Contender> {
    let own = |name, arguments: &[&str], output: bool| Contender {
        name,
        program: portlife.to_path_buf(),
        arguments: ["trace", "-q"].iter().chain(arguments).map(|&a| a.to_owned()).collect(),
        output: output.then(|| file_of(directory, name)),
        kind: Kind::Portlife,
        // The one `accept` record of each connection is counted.
        per_connection: 1,
    };
    let peer = |name, program: &str, arguments: &[&str], kind, per_connection| Contender {
        name,
        program: PathBuf::from(program),
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        output: (kind == Kind::Lines).then(|| file_of(directory, name)),
        kind,
        per_connection,
    };
    let one_liner = "tracepoint:sock:inet_sock_set_state \
                     { printf(\"%d %d %d\\n\", args->sport, args->oldstate, args->newstate); }";
    let poll = "while :; do ss -Htan >/dev/null; sleep 1; done";
    vec![
        own(PORTLIFE_TO_NULL, &["-o", "json"], false),
        own("portlife json to a file", &["-o", "json"], true),
        own("portlife text to /dev/null", &[], false),
        own("portlife, all filtered", &["-o", "json", "-n", "1"], false),
        own("portlife, function hooks", &["-o", "json", "--hooks", "functions"], false),
        // A line for each end of a connection.
        peer("tcplife", "tcplife", &[], Kind::Lines, 2),
        // Client: SYN_SENT, ESTABLISHED, CLOSE_WAIT, LAST_ACK, CLOSE; server: SYN_RECV,
        // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE.
        peer("tcpstates", "tcpstates", &[], Kind::Lines, 10),
        peer("bpftrace tcpstates one-liner", "bpftrace", &["-e", one_liner], Kind::Lines, 10),
        peer("ss each second", "sh", &["-c", poll], Kind::Other, 1),
    ]
}

impl Contender {
    /// Why it cannot be measured here; `None` if it can.
    pub fn missing(&self) -> Option<String> {
        if self.name.contains("function hooks") && !self.runs() {
            return Some("this kernel does not allow function hooks".to_owned());
        }
        let is_there = self.program.is_file()
            || std::env::var_os("PATH").is_some_and(|path| {
                std::env::split_paths(&path)
                    .any(|directory| directory.join(&self.program).is_file())
            });
        (!is_there).then(|| format!("{} is not installed", self.program.display()))
    }

    fn runs(&self) -> bool {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(["--duration", "0.01"]);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    pub fn start(&self) -> Result<Running<'_>> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stderr(Stdio::null());
        match &self.output {
            Some(file) => command.stdout(File::create(file)?),
            None => command.stdout(Stdio::null()),
        };
        let child = command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        let usage = Usage::of(Pid::from_child(&child));
        let cpu = usage.cpu();
        Ok(Running { contender: self, child, usage, cpu, began: Instant::now() })
    }
}

/// A running tool.
pub struct Running<'a> {
    contender: &'a Contender,
    child: Child,
    usage: Usage,
    cpu: Duration,
    began: Instant,
}

impl Running<'_> {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stop(mut self) -> Result<Cost> {
        let spent = self.usage.cpu().saturating_sub(self.cpu);
        let cpu_percent = spent.as_secs_f64() / self.began.elapsed().as_secs_f64() * 100.0;
        let peak_mb = peak_mb(&self.child);
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).context("the tool exited by itself")?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (reported, lost) = self.reported()?;
        Ok(Cost { cpu_percent, peak_mb, reported, lost })
    }

    fn reported(&self) -> Result<(Option<u64>, Option<u64>)> {
        let Some(file) = &self.contender.output else { return Ok((None, None)) };
        let lines = BufReader::new(File::open(file)?).split(b'\n');
        let reported = match self.contender.kind {
            Kind::Other => (None, None),
            // The first line is the header.
            Kind::Lines => (Some((lines.count() as u64).saturating_sub(1)), None),
            Kind::Portlife => {
                let last = lines.map_while(Result::ok).last().unwrap_or_default();
                let summary: Value =
                    serde_json::from_slice(&last).context("portlife wrote no summary")?;
                (summary["totals"]["accept"].as_u64(), summary["lost"].as_u64())
            }
        };
        fs::remove_file(file)?;
        Ok(reported)
    }
}

fn peak_mb(child: &Child) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let kb = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|field| field.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kb.unwrap_or(0.0) / 1024.0
}
