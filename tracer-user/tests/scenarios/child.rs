//! Processes of the scenarios' own: this test binary once more, in a role.

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

const ROLE: &str = "PORTLIFE_TEST_ROLE";
const TEST: &str = "child::plays_its_role";

/// What a process does with what it has as stdin.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Keeps it open.
    Keep,
    /// Receives a file descriptor from it, and closes it.
    Receive,
    /// Connects it to the peer that its argument names, and says with which result.
    Connect,
    /// The same, but does not wait longer than an hour, which it never does: after it was stopped,
    /// the kernel ends a connect() that has a timeout (signal(7)).
    ConnectWithTimeout,
    /// Accepts a connection from it.
    Accept,
}

impl Role {
    const ALL: [Self; 5] =
        [Self::Keep, Self::Receive, Self::Connect, Self::ConnectWithTimeout, Self::Accept];

    fn name(self) -> String {
        format!("{self:?}")
    }

    fn play(self, argument: &str) {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().expect("stdin is open");
        let connect = |socket: &Socket| {
            let peer: std::net::SocketAddr = argument.parse().expect("an address");
            say("begins");
            match socket.connect(&peer.into()) {
                Ok(()) => say("connected"),
                Err(error) => say(&format!("{:?}", error.kind())),
            }
        };
        let mut _held: Option<OwnedFd> = None;
        match self {
            Self::Keep => say("keeps"),
            Self::Receive => {
                _held = Some(receive(&stdin));
                say("received");
            }
            Self::Connect => connect(&Socket::from(stdin)),
            Self::ConnectWithTimeout => {
                let socket = Socket::from(stdin);
                socket.set_write_timeout(Some(Duration::from_secs(3600))).expect("SO_SNDTIMEO");
                connect(&socket);
            }
            Self::Accept => {
                say("begins");
                let (server, _) = Socket::from(stdin).accept().expect("it is accepted");
                _held = Some(server.into());
                say("accepted");
            }
        }
        // Until it is killed.
        loop {
            std::thread::park();
        }
    }
}

/// Not a test: what the processes run that [`Actor`] starts.
#[test]
#[ignore = "other tests run it as a process of theirs"]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (name, argument) = role.split_once(' ').expect("a role and its argument");
    let role = Role::ALL.into_iter().find(|role| role.name() == name).expect("a role");
    role.play(argument);
}

/// The mark of what an actor says, among what the test harness says.
const MARK: &str = "actor: ";

fn say(what: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{MARK}{what}, pid {}", own_pid()).expect("somebody listens");
    stdout.flush().expect("somebody listens");
}

/// This process's id in the pid namespace of the mounted /proc.
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

/// A process in a role. It is killed when this is dropped.
pub struct Actor {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Actor {
    /// Starts a process whose stdin is this file. The file is closed in this process, so that the
    /// actor is the last who has it.
    pub fn start(role: Role, argument: &str, stdin: impl Into<OwnedFd>) -> Self {
        Self::start_by(Command::new(own_binary()), role, argument, stdin)
            .expect("this binary can be run")
    }

    /// The same, in a pid namespace of its own; `None`, said aloud, if that is not possible.
    pub fn start_in_pid_namespace(role: Role, stdin: impl Into<OwnedFd>) -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).arg(own_binary());
        Self::start_by(command, role, "", stdin)
            .inspect_err(|error| {
                println!("skipped: unshare (util-linux) cannot be run: {error}");
            })
            .ok()
    }

    fn start_by(
        mut command: Command,
        role: Role,
        argument: &str,
        stdin: impl Into<OwnedFd>,
    ) -> std::io::Result<Self> {
        let mut child = command
            .args(["--exact", TEST, "--ignored", "--nocapture"])
            .env(ROLE, format!("{} {argument}", role.name()))
            .stdin(stdin.into())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { child, stdout })
    }

    /// Waits until it says this; returns its process id in the initial pid namespace.
    pub fn wait_until_it(&mut self, what: &str) -> u32 {
        let mut heard = String::new();
        loop {
            let mut line = String::new();
            self.stdout.read_line(&mut line).expect("it writes UTF-8");
            assert!(!line.is_empty(), "it ended before it said {what}; it said:\n{heard}");
            heard.push_str(&line);
            let said = line.split_once(MARK).map(|(_, said)| said.trim_end());
            if let Some((what_it_said, pid)) = said.and_then(|said| said.split_once(", pid ")) {
                assert_eq!(what_it_said, what);
                return pid.parse().expect("a number");
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Stops it, and waits until it has stopped.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let status = waitpid(Some(Pid::from_child(&self.child)), WaitOptions::UNTRACED);
        let (_, status) = status.expect("it is our child").expect("it stops");
        assert!(status.stopped(), "{status:?}");
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // After `kill` both fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own_binary() -> std::path::PathBuf {
    std::env::current_exe().expect("it has a path")
}

/// The two ends of a connection between this process and an actor.
pub fn unix_pair() -> [UnixStream; 2] {
    let (own, actors) = UnixStream::pair().expect("a pair of sockets");
    [own, actors]
}
