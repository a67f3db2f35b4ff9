//! Where an incident happens: a network namespace of its own, observed by `portlife report`.

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
    model::{HeldBy, Netns},
};

use super::{
    Incident,
    process::{Request, Response, SUBCOMMAND},
};

/// What to ask portlife about an incident. Each entry is the arguments of one run of `portlife`;
/// `-n NETNS` is added.
pub struct Questions<'a> {
    /// Reports that observe the incident from its beginning to its end.
    pub reports: &'a [&'a [&'a str]],
    /// Commands that are run afterwards, while the processes still hold their sockets.
    pub commands: &'a [&'a [&'a str]],
}

/// The result of an incident.
pub struct Outcome {
    /// What happened, in sentences.
    pub steps: Vec<String>,
    /// An answer for each of [`Questions::reports`], then one for each of
    /// [`Questions::commands`].
    pub answers: Vec<Answer>,
}

/// What a run of `portlife` printed.
pub struct Answer {
    pub stdout: String,
    pub stderr: String,
}

/// Runs an incident in a new network namespace.
///
/// # Errors
/// If this process is not root, if the incident does not happen as planned, or if a run of
/// portlife fails.
pub fn run(incident: &Incident, portlife: &Path, questions: &Questions<'_>) -> Result<Outcome> {
    ensure!(rustix::process::geteuid().is_root(), "incidents need root");
    // A thread stays in the namespace that it has entered, so this one must not enter it.
    thread::scope(|scope| {
        let running = scope.spawn(|| run_here(incident, portlife, questions));
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run_here(incident: &Incident, portlife: &Path, questions: &Questions<'_>) -> Result<Outcome> {
    let sandbox = Sandbox::enter_new().context("cannot make a network namespace")?;
    let netns = sandbox.netns();
    let observers = questions
        .reports
        .iter()
        .map(|arguments| Observer::start(netns, portlife, arguments))
        .collect::<Result<Vec<_>>>()?;
    let mut environment = Environment { sandbox, steps: Vec::new() };
    let processes = (incident.run)(&mut environment);
    let mut answers = observers.into_iter().map(Observer::stop).collect::<Result<Vec<_>>>()?;
    let processes = processes
        .with_context(|| format!("the incident {} did not happen as planned", incident.name))?;
    for arguments in questions.commands {
        answers.push(ask(netns, portlife, arguments)?);
    }
    drop(processes);
    Ok(Outcome { steps: environment.steps, answers })
}

/// Runs a command of portlife that ends by itself.
fn ask(netns: Netns, portlife: &Path, arguments: &[&str]) -> Result<Answer> {
    let output = command(netns, portlife, arguments).output();
    let output = output.with_context(|| format!("cannot run {}", portlife.display()))?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "portlife {}: {}", arguments.join(" "), stderr.trim());
    Ok(Answer { stdout: String::from_utf8(output.stdout)?, stderr })
}

fn command(netns: Netns, portlife: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(portlife);
    command.args(arguments).args(["-n", &netns.0.to_string()]);
    command
}

/// A network namespace, and a log of what happened there.
pub struct Environment {
    sandbox: Sandbox,
    steps: Vec<String>,
}

impl Environment {
    /// Starts a process with this name.
    pub fn process(&self, name: &str) -> Result<Process> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([SUBCOMMAND, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take().context("stdin is piped")?;
        let responses = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Process { child, requests, responses })
    }

    /// Sets a sysctl of the namespace, such as `ipv4/tcp_tw_reuse`.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.sandbox.set(setting, value).with_context(|| format!("cannot set {setting}"))
    }

    /// Logs what happens.
    pub fn log(&mut self, step: &str) {
        self.steps.push(step.to_owned());
    }

    /// Waits until no connection is being set up or closed.
    pub fn wait_until_quiet(&self) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(30);
        let start = Instant::now();
        loop {
            let mut held = Vec::new();
            sock_diag::list(self.sandbox.netns(), &mut held)?;
            let is_changing = held.iter().any(|held| {
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
            if !is_changing {
                return Ok(());
            }
            ensure!(start.elapsed() < TIMEOUT, "connections still change after {TIMEOUT:?}");
            // The only events to wait for would come from the tracer that is being shown.
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A process that takes part in an incident. Dropping it ends the process, which closes its
/// sockets.
pub struct Process {
    child: Child,
    requests: ChildStdin,
    responses: BufReader<ChildStdout>,
}

impl Process {
    /// Sends a request and waits for the response.
    pub fn request(&mut self, request: &Request) -> Result<Response> {
        self.send(request)?;
        self.receive()
    }

    /// Sends a request; [`receive`](Self::receive) waits for its response.
    pub fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.requests.write_all(&line)?;
        Ok(())
    }

    /// Waits for the response to a request that was sent.
    pub fn receive(&mut self) -> Result<Response> {
        let mut line = String::new();
        ensure!(self.responses.read_line(&mut line)? > 0, "a process of the incident has died");
        Ok(serde_json::from_str(&line)?)
    }

    /// Listens on this port of all addresses.
    pub fn listen(&mut self, port: u16) -> Result<()> {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let response = self.request(&Request::Bind { at, listen: true })?;
        ensure!(response.done == 1, "port {port}: {response:?}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `portlife report`.
struct Observer {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    messages: String,
}

impl Observer {
    /// Starts it, and returns once it observes the namespace.
    fn start(netns: Netns, portlife: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = command(netns, portlife, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", portlife.display()))?;
        let stderr = BufReader::new(child.stderr.take().context("stderr is piped")?);
        let mut observer = Self { child, stderr, messages: String::new() };
        while !observer.messages.contains("observing on") {
            if observer.stderr.read_line(&mut observer.messages)? == 0 {
                bail!("portlife cannot run here: {}", observer.messages.trim());
            }
        }
        Ok(observer)
    }

    /// Asks for the report, and returns it.
    fn stop(mut self) -> Result<Answer> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let mut report = String::new();
        if let Some(stdout) = &mut self.child.stdout {
            stdout.read_to_string(&mut report)?;
        }
        self.stderr.read_to_string(&mut self.messages)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "portlife exited with {status}: {}", self.messages.trim());
        Ok(Answer { stdout: report, stderr: std::mem::take(&mut self.messages) })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // It still runs if the incident failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
