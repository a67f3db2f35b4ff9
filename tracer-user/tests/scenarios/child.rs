//! Helper processes of the scenarios: further instances of this test binary.

use std::{
    io::{BufRead as _, BufReader, IoSliceMut, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};
use socket2::Socket;

const TASK: &str = "PORTLIFE_TEST_TASK";
const TEST: &str = "child::runs_as_helper";

/// What a helper does with its stdin.
#[derive(Clone, Copy, Debug)]
pub enum Task {
    /// Keeps the file open.
    Keep,
    /// Receives a file descriptor from the socket, and keeps that.
    Receive,
    /// Connects the socket to the peer given as argument, and reports the result.
    Connect,
    /// Like `Connect`, but with a timeout of an hour. It is never reached; but only a connect()
    /// with a timeout fails with EINTR after the process was stopped and continued (signal(7)).
    ConnectWithTimeout,
    /// Accepts a connection from the listener.
    Accept,
}

impl Task {
    const ALL: [Self; 5] =
        [Self::Keep, Self::Receive, Self::Connect, Self::ConnectWithTimeout, Self::Accept];

    fn name(self) -> String {
        format!("{self:?}")
    }

    fn run(self, argument: &str) {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().expect("stdin is open");
        let connect = |socket: &Socket| {
            let peer: std::net::SocketAddr = argument.parse().expect("an address");
            report("begins");
            match socket.connect(&peer.into()) {
                Ok(()) => report("connected"),
                Err(error) => report(&format!("{:?}", error.kind())),
            }
        };
        let mut _held: Option<OwnedFd> = None;
        match self {
            Self::Keep => report("keeps"),
            Self::Receive => {
                _held = Some(receive(&stdin));
                report("received");
            }
            Self::Connect => connect(&Socket::from(stdin)),
            Self::ConnectWithTimeout => {
                let socket = Socket::from(stdin);
                socket.set_write_timeout(Some(Duration::from_secs(3600))).expect("SO_SNDTIMEO");
                connect(&socket);
            }
            Self::Accept => {
                report("begins");
                let (server, _) = Socket::from(stdin).accept().expect("accept() succeeds");
                _held = Some(server.into());
                report("accepted");
            }
        }
        // Waits to be killed.
        loop {
            std::thread::park();
        }
    }
}

/// Not a test, but the code of the processes that [`Helper`] starts.
#[test]
#[ignore = "it is run as a helper process by other tests"]
fn runs_as_helper() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (name, argument) = task.split_once(' ').expect("a role and its argument");
    let task = Task::ALL.into_iter().find(|task| task.name() == name).expect("a role");
    task.run(argument);
}

/// Prefix of a helper's messages, among the output of the test harness.
const PREFIX: &str = "helper: ";

fn report(what: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{PREFIX}{what}, pid {}", own_pid()).expect("stdout is open");
    stdout.flush().expect("stdout is open");
}

/// The id of this process in the pid namespace of the mounted /proc.
fn own_pid() -> u32 {
    let own = std::fs::read_link("/proc/self").expect("/proc is mounted");
    own.to_string_lossy().parse().expect("a number")
}

fn receive(from: &OwnedFd) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .expect("a message comes");
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        })
        .expect("a file descriptor comes")
}

/// A helper process, which is killed when this is dropped.
pub struct Helper {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts a helper with this file as stdin. The file is closed in this process, so that the
    /// helper holds the last reference.
    pub fn start(task: Task, argument: &str, stdin: impl Into<OwnedFd>) -> Self {
        Self::start_by(Command::new(own_binary()), task, argument, stdin)
            .expect("this program can be started")
    }

    /// Like [`start`](Self::start), but in a pid namespace of its own. `None`, after printing why,
    /// if that is not possible.
    pub fn start_in_pid_namespace(task: Task, stdin: impl Into<OwnedFd>) -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).arg(own_binary());
        Self::start_by(command, task, "", stdin)
            .inspect_err(|error| {
                println!("skipped: cannot run unshare (util-linux): {error}");
            })
            .ok()
    }

    fn start_by(
        mut command: Command,
        task: Task,
        argument: &str,
        stdin: impl Into<OwnedFd>,
    ) -> std::io::Result<Self> {
        let mut child = command
            .args(["--exact", TEST, "--ignored", "--nocapture"])
            .env(TASK, format!("{} {argument}", task.name()))
            .stdin(stdin.into())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child, stdout })
    }

    /// Waits for this message. Returns the id of the helper in the pid namespace of the mounted
    /// /proc.
    pub fn wait_until(&mut self, what: &str) -> u32 {
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            self.stdout.read_line(&mut line).expect("it writes UTF-8");
            assert!(
                !line.is_empty(),
                "the helper exited before it printed {what}; it printed:\n{printed}"
            );
            printed.push_str(&line);
            let message = line.split_once(PREFIX).map(|(_, message)| message.trim_end());
            if let Some((reported, pid)) = message.and_then(|message| message.split_once(", pid "))
            {
                assert_eq!(reported, what);
                return pid.parse().expect("a number");
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("portlife runs");
    }

    /// Sends SIGSTOP and waits until the helper has stopped.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let status = waitpid(Some(Pid::from_child(&self.child)), WaitOptions::UNTRACED);
        let (_, status) = status.expect("the process is a child of this one").expect("it stops");
        assert!(status.stopped(), "{status:?}");
    }

    /// Kills the helper and waits for it.
    pub fn kill(mut self) {
        self.child.kill().expect("portlife runs");
        self.child.wait().expect("the process is a child of this one");
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail after `kill`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own_binary() -> std::path::PathBuf {
    std::env::current_exe().expect("this program has a path")
}

/// The two ends of a connection between this process and a helper.
pub fn unix_pair() -> [UnixStream; 2] {
    let (own, actors) = UnixStream::pair().expect("a pair of sockets");
    [own, actors]
}
