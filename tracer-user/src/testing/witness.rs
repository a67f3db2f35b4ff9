//! What the kernel keeps from every eBPF program.
//!
//! Some kernels (seen: a 6.18 made for microVMs) run no eBPF program while a thread of the first
//! process is current, whatever the program is attached to, and count no miss. A softirq that
//! interrupts such a thread does the TCP work of others unseen; only a comparison with the kernel
//! finds it. ftrace sees those events. So a difference that they explain, port by port, is the
//! kernel's doing and not the tracer's. For tests: tracing costs more than comparing.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// An ftrace instance of our own that records the TCP events in softirqs that interrupt the first
/// process.
#[derive(Debug)]
pub struct Witness {
    instance: PathBuf,
    /// `None` only while this is dropped.
    pipe: Option<File>,
    text: Vec<u8>,
    threads: BTreeSet<String>,
}

/// What it saw.
#[derive(Clone, Debug, Default)]
pub struct Hidden {
    /// Local ports of sockets that changed their state.
    pub ports: BTreeSet<u16>,
    /// TIME_WAITs that ended.
    pub time_waits: usize,
}

const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const EVENTS: [&str; 2] = ["sock/inet_sock_set_state", "timer/timer_expire_entry"];

impl Witness {
    /// Begins to record. `None` if tracefs is not mounted or lacks the events: then every
    /// difference counts.
    #[must_use]
    pub fn start() -> Option<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let tracefs =
            TRACEFS.into_iter().map(Path::new).find(|path| path.join("events").exists())?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("instances/portlife-{}-{number}", std::process::id());
        let instance = tracefs.join(name);
        fs::create_dir(&instance).ok()?;
        // From here on the instance is removed again whatever happens.
        let pipe = File::open(instance.join("trace_pipe"));
        let mut witness = match pipe {
            Ok(pipe) => {
                Self { instance, pipe: Some(pipe), text: Vec::new(), threads: BTreeSet::new() }
            }
            Err(_) => {
                let _ = fs::remove_dir(&instance);
                return None;
            }
        };
        rustix::io::ioctl_fionbio(witness.pipe.as_ref()?, true).ok()?;
        witness.follow().ok()?;
        Some(witness)
    }

    /// Looks at the threads of the first process anew, and takes what was recorded.
    ///
    /// # Errors
    /// If /proc or tracefs cannot be read or written.
    pub fn follow(&mut self) -> io::Result<()> {
        let threads: BTreeSet<String> = fs::read_dir("/proc/1/task")?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        if threads != self.threads {
            let conditions: Vec<_> =
                threads.iter().map(|thread| format!("common_pid == {thread}")).collect();
            for event in EVENTS {
                let event = self.instance.join("events").join(event);
                fs::write(event.join("filter"), conditions.join(" || "))?;
                fs::write(event.join("enable"), "1")?;
            }
            self.threads = threads;
        }
        if let Some(pipe) = &mut self.pipe {
            // Ends with EAGAIN.
            let _ = pipe.read_to_end(&mut self.text);
        }
        Ok(())
    }

    /// What was recorded so far.
    ///
    /// # Errors
    /// As [`follow`](Self::follow).
    pub fn hidden(&mut self) -> io::Result<Hidden> {
        self.follow()?;
        Ok(Hidden::read(&String::from_utf8_lossy(&self.text)))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        for event in EVENTS {
            let _ = fs::write(self.instance.join("events").join(event).join("enable"), "0");
        }
        // While it is being read it cannot be removed.
        self.pipe = None;
        let _ = fs::remove_dir(&self.instance);
    }
}

impl Hidden {
    /// True if every event was seen.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        let Self { ports, time_waits } = self;
        ports.is_empty() && *time_waits == 0
    }

    fn read(text: &str) -> Self {
        let mut hidden = Self::default();
        for line in text.lines() {
            let field = |name: &str| {
                line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            };
            if line.contains(" inet_sock_set_state: ") {
                hidden.ports.extend(field("sport").and_then(|port| port.parse::<u16>().ok()));
            } else if line.contains(" timer_expire_entry: ") && line.contains("tw_timer_handler") {
                hidden.time_waits += 1;
            }
        }
        hidden
    }

    /// The differences, as a comparison words them, that this does not explain.
    #[must_use]
    pub fn unexplained<'a>(&self, differences: &'a [String]) -> Vec<&'a String> {
        let mut time_waits = self.time_waits;
        differences
            .iter()
            .filter(|difference| {
                let is_hidden = port_of(difference).is_some_and(|port| self.ports.contains(&port));
                if is_hidden {
                    return false;
                }
                let is_time_wait = difference.contains("TimeWait") && time_waits > 0;
                time_waits -= usize::from(is_time_wait);
                !is_time_wait
            })
            .collect()
    }
}

/// The local port in a sentence such as `missing in the kernel: socket 5, 127.0.0.1:80 in 4026..`.
fn port_of(difference: &str) -> Option<u16> {
    let (before, _) = difference.split_once(" in 4")?;
    before.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_explained_by_its_port() {
        let hidden = Hidden::read(
            " tokio-75 [001] ..s1. 1.1: inet_sock_set_state: family=AF_INET sport=58633 dport=9 x\n\
             tokio-75 [001] ..s1. 1.2: timer_expire_entry: timer=1 function=tw_timer_handler now=1\n\
             tokio-75 [001] ..s1. 1.3: timer_expire_entry: timer=1 function=process_timeout now=1\n",
        );
        assert_eq!(hidden.ports, BTreeSet::from([58_633]));
        assert_eq!(hidden.time_waits, 1);
        let of = |port: u16, holder: &str| {
            format!("missing in the ledger: socket 5, ::1:{port} in 4026532315, {holder}")
        };
        let differences = [of(58_633, "TimeWait(TimeWait)"), of(9, "Socket(Established)")];
        assert_eq!(hidden.unexplained(&differences), [&differences[1]]);
        let ends = [of(1, "TimeWait(TimeWait)"), of(2, "TimeWait(TimeWait)")];
        assert_eq!(hidden.unexplained(&ends), [&ends[1]]);
    }
}
