//! Where incidents happen: a network namespace of their own, with `portlife report` watching.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tracer_ebpf::TcpState;
use tracer_user::{
    kernel::{lists::sock_diag, namespace::sandbox::Sandbox},
    model::HeldBy,
};

use super::{
    Incident,
    actor::{Order, ROLE, Reply},
};

/// What an incident left behind.
pub struct Performance {
    /// What happened, in sentences.
    pub told: Vec<String>,
    /// The report.
    pub stdout: String,
    /// What the tracer said beside it.
    pub stderr: String,
}

/// Makes an incident happen while `portlife report` observes, with these further arguments. The
/// report is asked for while the incident lasts.
pub fn perform(incident: &Incident, portlife: &Path, arguments: &[&str]) -> Result<Performance> {
    ensure!(rustix::process::geteuid().is_root(), "incidents need root");
    // A thread that has entered a namespace does not leave it.
    thread::scope(|scope| {
        let performing = scope.spawn(|| {
            let sandbox = Sandbox::enter_new().context("no network namespace can be made")?;
            let observer = Observer::start(&sandbox, portlife, arguments)?;
            let mut stage = Stage { sandbox, told: Vec::new() };
            let happened = (incident.happen)(&mut stage);
            let (stdout, stderr) = observer.end()?;
            let actors = happened
                .with_context(|| format!("{} did not happen as it should", incident.name))?;
            drop(actors);
            Ok(Performance { told: stage.told, stdout, stderr })
        });
        performing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A namespace, and what happened there.
pub struct Stage {
    sandbox: Sandbox,
    told: Vec<String>,
}

impl Stage {
    /// A new process of this name.
    pub fn actor(&self, name: &str) -> Result<Actor> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ROLE, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().context("stdin is piped")?;
        let replies = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Actor { child, orders, replies })
    }

    /// Sets a sysctl of the namespace.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.sandbox.set(setting, value).with_context(|| format!("{setting} cannot be set"))
    }

    /// Notes what happens.
    pub fn tell(&mut self, what: &str) {
        self.told.push(what.to_owned());
    }

    /// Waits until no connection is on its way to or from TIME_WAIT.
    pub fn settle(&self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let began = Instant::now();
        loop {
            let mut held = Vec::new();
            sock_diag::list(self.sandbox.netns(), &mut held)?;
            let is_moving = held.iter().any(|held| {
                matches!(
                    held.by,
                    HeldBy::Socket(
                        TcpState::FinWait1
                            | TcpState::FinWait2
                            | TcpState::Closing
                            | TcpState::CloseWait
                            | TcpState::LastAck
                            | TcpState::SynSent
                            | TcpState::SynRecv
                    )
                )
            });
            if !is_moving {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "connections do not come to rest");
            // The kernel has no event to wait for but those of the tracer that is shown.
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A process that takes part. It ends, and closes everything, when this is dropped.
pub struct Actor {
    child: Child,
    orders: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Actor {
    /// Has an order obeyed.
    pub fn does(&mut self, order: &Order) -> Result<Reply> {
        self.begins(order)?;
        self.ends()
    }

    /// Gives an order; [`ends`](Self::ends) waits until it is obeyed.
    pub fn begins(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line)?;
        Ok(())
    }

    /// Waits until the order is obeyed.
    pub fn ends(&mut self) -> Result<Reply> {
        let mut line = String::new();
        ensure!(self.replies.read_line(&mut line)? > 0, "an actor has died");
        Ok(serde_json::from_str(&line)?)
    }

    /// Has it listen on all addresses.
    pub fn listens(&mut self, port: u16) -> Result<()> {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let reply = self.does(&Order::Bind { at, listen: true })?;
        ensure!(reply.done == 1, "port {port}: {reply:?}");
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `portlife report`.
struct Observer {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Observer {
    /// Starts it, and returns when it sees everything.
    fn start(sandbox: &Sandbox, portlife: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(portlife)
            .args(["report", "-n", &sandbox.netns().0.to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be run", portlife.display()))?;
        let stderr = BufReader::new(child.stderr.take().context("stderr is piped")?);
        let mut observer = Self { child, stderr, said: String::new() };
        while !observer.said.contains("observing on") {
            if observer.stderr.read_line(&mut observer.said)? == 0 {
                bail!("portlife does not start here: {}", observer.said.trim());
            }
        }
        Ok(observer)
    }

    /// Ends it, and returns what it wrote to stdout and stderr.
    fn end(mut self) -> Result<(String, String)> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let mut report = String::new();
        if let Some(stdout) = &mut self.child.stdout {
            stdout.read_to_string(&mut report)?;
        }
        self.stderr.read_to_string(&mut self.said)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "portlife ended with {status}: {}", self.said.trim());
        Ok((report, std::mem::take(&mut self.said)))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // Only one of an incident that failed still runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
