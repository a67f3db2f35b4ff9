//! Runs the real tracer against this kernel, in a network namespace and a process of the test's
//! own.

#[path = "isolation.rs"]
mod isolation;

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tracer_user::kernel::{host::clock, namespace::sandbox::Sandbox};

use isolation::Process;

/// How long to wait for an event that the kernel does not delay.
const PATIENCE: Duration = Duration::from_secs(60);
/// Environment variable with a longer timeout in seconds, for slow machines.
const LONGER_PATIENCE: &str = "PORTLIFE_TEST_PATIENCE";

/// True on a machine that is too slow for scenarios with many connections.
pub fn is_slow_machine() -> bool {
    longer_patience().is_some()
}

pub fn longer_patience() -> Option<Duration> {
    std::env::var(LONGER_PATIENCE).ok()?.parse().ok().map(Duration::from_secs)
}

/// Environment variable with the hooks that the tracer uses where a test does not choose them. If
/// it is not set, the tracer chooses.
const HOOKS: &str = "PORTLIFE_TEST_HOOKS";

/// Enters a new namespace, in a process of the test's own. `None`, after printing why, if this
/// process lacks the privilege; also `None` in the parent, once the test has run in its own
/// process.
pub fn sandbox() -> Option<Sandbox> {
    match isolation::isolate(&[]) {
        Process::Child(_) => new_namespace(),
        Process::Parent => None,
    }
}

fn new_namespace() -> Option<Sandbox> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the scenarios need root");
        return None;
    }
    match Sandbox::enter_new() {
        Ok(sandbox) => {
            // Differs enough from TIME_WAIT's 60 seconds for the timer to move to another slot when
            // a FIN_WAIT2 becomes a TIME_WAIT. Where it does not move, there is no event to wait
            // for.
            sandbox.set("ipv4/tcp_fin_timeout", "30").expect("the setting can be written");
            Some(sandbox)
        }
        Err(error) => {
            println!("skipped: cannot make a network namespace: {error}");
            None
        }
    }
}

/// A running tracer that shows one namespace only.
pub struct Tracer {
    child: Child,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Tracer {
    /// Starts it, and returns once it traces.
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::start_with(&["-n", &sandbox.netns().0.to_string()])
    }

    /// Starts it with periodic comparisons of the ledger with the kernel, for
    /// [`verify`](Self::verify).
    pub fn start_verifying(sandbox: &Sandbox) -> Self {
        Self::start_with(&["-n", &sandbox.netns().0.to_string(), "--verify", "0.2", "-v"])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portlife"));
        command.args(["trace", "-o", "json"]).args(arguments).stdout(Stdio::piped());
        if let Ok(hooks) = std::env::var(HOOKS)
            && !arguments.contains(&"--hooks")
        {
            command.args(["--hooks", &hooks]);
        }
        let mut child = command.spawn().expect("the tracer starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            // A killed tracer can leave a partial line at the end.
            while reader.read_line(&mut line).expect("the tracer writes UTF-8") > 0
                && line.ends_with('\n')
            {
                let record = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("{line} is not JSON: {error}"));
                line.clear();
                if sender.send(record).is_err() {
                    return;
                }
            }
        });
        let mut tracer = Self { child, lines, seen: Vec::new() };
        tracer.wait_for("start", |record| record["type"] == "start");
        tracer
    }

    /// How the hook is attached, or why it is not; null if the tracer did not try.
    pub fn hook(&mut self, hook: &str) -> Value {
        let start = self.wait_for("start", |record| record["type"] == "start");
        start["hooks"][hook].clone()
    }

    /// True if the hook is attached. If it is not, prints that the test is skipped.
    pub fn sees(&mut self, hook: &str) -> bool {
        let how = self.hook(hook);
        let how = how.as_str().unwrap_or("not attached: unknown");
        let is_attached = !how.starts_with("not attached");
        if !is_attached {
            println!("skipped: the hook {hook} is {how}");
        }
        is_attached
    }

    /// True if the tracer knows which process accepts a connection. If it does not, prints that the
    /// test is skipped.
    pub fn sees_accepts(&mut self) -> bool {
        self.sees_by(&["sys_exit", "inet_csk_accept"], "the accepting process")
    }

    /// True if the tracer sees failing bind() calls. If it does not, prints that the test is
    /// skipped.
    pub fn sees_failed_binds(&mut self) -> bool {
        self.sees_by(&["sys_exit", "inet_bind"], "failing bind() calls")
    }

    fn sees_by(&mut self, hooks: &[&str], what: &str) -> bool {
        let start = self.wait_for("start", |record| record["type"] == "start");
        let is_attached = hooks.iter().any(|hook| {
            start["hooks"][hook].as_str().is_some_and(|how| !how.starts_with("not attached"))
        });
        if !is_attached {
            println!("skipped: no hook shows {what}: {}", start["hooks"]);
        }
        is_attached
    }

    /// Waits for a record, which may have come already.
    pub fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.wait_long_for(what, longer_patience().unwrap_or(PATIENCE), is_it)
    }

    pub fn wait_long_for(
        &mut self,
        what: &str,
        patience: Duration,
        is_it: impl Fn(&Value) -> bool,
    ) -> Value {
        if let Some(found) = self.seen.iter().find(|record| is_it(record)) {
            return found.clone();
        }
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(record) => {
                    self.seen.push(record.clone());
                    if is_it(&record) {
                        return record;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {what} within {patience:?}; records:\n{}", self.dump())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the tracer exited before {what}; records:\n{}", self.dump())
                }
            }
        }
    }

    /// Waits for a comparison of the ledger with the kernel that started after this call. It must
    /// find no difference.
    pub fn verify(&mut self) {
        let mut after = clock::monotonic_ns();
        // The first one may have started earlier.
        for _ in 0..2 {
            let record = self.wait_for("verify", |record| {
                record["type"] == "verify" && record["mono_ns"].as_u64() > Some(after)
            });
            after = record["mono_ns"].as_u64().expect("a number");
            assert_eq!((&record["missing"], &record["extra"]), (&0.into(), &0.into()), "{record}");
        }
    }

    /// Stops the tracer, which must have lost no facts, and returns its records.
    pub fn finish(self) -> Recording {
        let recording = self.finish_with_losses();
        let summary = recording.records.last().expect("there is a summary");
        assert_eq!(summary["lost"], 0, "lost facts");
        recording
    }

    /// Like [`finish`](Self::finish), but first waits until these sockets have released their
    /// ports. A process that lists open files briefly holds references to them, and can drop the
    /// last one.
    pub fn finish_after_release(mut self, cookies: &[u64]) -> Recording {
        for cookie in cookies {
            self.wait_for_release(*cookie);
        }
        self.finish()
    }

    /// Waits until this socket has released its port, for any reason.
    pub fn wait_for_release(&mut self, cookie: u64) {
        self.wait_for("release", |record| {
            record["type"] == "release" && record["cookie"] == cookie
        });
    }

    /// Like [`finish`](Self::finish), for scenarios in which tasks preempt each other. `None`,
    /// after printing why, if that hid facts, as it can since Linux 7.0. They must then have been
    /// counted and the ledger healed.
    pub fn finish_unless_preempted(self) -> Option<Recording> {
        let recording = self.finish_with_losses();
        let summary = recording.records.last().expect("there is a summary");
        let lost = summary["lost"].as_u64().expect("a number");
        if lost == 0 {
            return Some(recording);
        }
        let start = recording.records.first().expect("there is a start record");
        let release = start["kernel"].as_str().expect("a release");
        let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
        assert!(major >= Some(7), "{lost} facts were lost on Linux {release}");
        let losses = recording.records.iter().filter(|record| record["type"] == "loss");
        let mut healed = 0;
        for loss in losses {
            assert_eq!((&loss["where"], &loss["healed"]), (&"recursion".into(), &true.into()));
            healed += loss["count"].as_u64().expect("a number");
        }
        assert_eq!(healed, lost);
        println!("skipped: preempted programs hid {lost} facts, which were healed");
        None
    }

    /// Stops the tracer and returns its records.
    pub fn finish_with_losses(mut self) -> Recording {
        self.signal(Signal::TERM);
        self.seen.extend(self.lines.iter());
        let status = self.wait();
        assert!(status.success(), "the tracer exited with {status}");
        let last = self.seen.last().expect("there was a start record");
        assert_eq!(last["type"], "summary", "the last record");
        Recording { records: std::mem::take(&mut self.seen) }
    }

    pub fn signal(&mut self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the tracer still runs");
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("the tracer exits")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn dump(&self) -> String {
        self.seen.iter().map(|record| format!("{record}\n")).collect()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It still runs only if the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All records of a run.
pub struct Recording {
    pub records: Vec<Value>,
}

impl Recording {
    /// The records about one socket, each in its [`brief`] form, without those that only a
    /// slow machine has.
    pub fn of(&self, cookie: u64) -> Vec<String> {
        let mut brief = self.all_of(cookie);
        if longer_patience().is_some() {
            // On an emulated machine close() can take longer than the tracer waits for its end.
            while let Some(at) = brief
                .windows(2)
                .position(|two| two[0] == "update:bound" && two[1].starts_with("release:"))
            {
                brief.remove(at);
            }
        }
        brief
    }

    /// All records about one socket, each in its [`brief`] form.
    pub fn all_of(&self, cookie: u64) -> Vec<String> {
        self.records_of(cookie).map(brief).collect()
    }

    pub fn records_of(&self, cookie: u64) -> impl Iterator<Item = &Value> {
        self.records.iter().filter(move |record| record["cookie"] == cookie)
    }

    /// The only record of this type about this socket.
    pub fn only(&self, cookie: u64, kind: &str) -> &Value {
        let mut found = self.records_of(cookie).filter(|record| record["type"] == kind);
        let first = found.next().unwrap_or_else(|| {
            panic!("no {kind} of {cookie} among {:#?}", self.of(cookie));
        });
        assert!(found.next().is_none(), "several {kind} of {cookie}: {:#?}", self.of(cookie));
        first
    }

    pub fn failures(&self) -> Vec<&Value> {
        self.records.iter().filter(|record| record["type"] == "fail").collect()
    }
}

/// The type of a record and its most distinctive field, such as `release:closed` or
/// `closing:local`.
pub fn brief(record: &Value) -> String {
    let kind = record["type"].as_str().unwrap_or("?");
    let mark = match kind {
        "release" => &record["reason"],
        "closing" => &record["by"],
        "time_wait" => &record["substate"],
        "held" | "update" => &record["phase"],
        "fail" => &record["error"],
        _ => return kind.to_owned(),
    };
    format!("{kind}:{}", mark.as_str().unwrap_or("?"))
}

/// Matches records by socket and [`brief`] form.
pub fn is(of: u64, what: &str) -> impl Fn(&Value) -> bool {
    move |record| record["cookie"] == of && brief(record) == what
}

/// The kinds of sockets and addresses for which scenarios run.
#[derive(Clone, Copy, Debug)]
pub enum Net {
    V4,
    V6,
    /// IPv6 sockets with IPv4-mapped addresses.
    Mapped,
}

impl Net {
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
            Self::Mapped => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        }
    }

    /// The loopback address as shown in records.
    pub fn shown(self) -> String {
        self.loopback().to_canonical().to_string()
    }

    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.loopback(), port)
    }

    pub fn family(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 | Self::Mapped => "ipv6",
        }
    }

    pub fn socket(self) -> Socket {
        let domain = match self {
            Self::V4 => Domain::IPV4,
            Self::V6 | Self::Mapped => Domain::IPV6,
        };
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).expect("a socket")
    }

    /// A socket bound to the loopback address and this port. With port 0 the kernel chooses.
    pub fn bound(self, port: u16) -> Socket {
        let socket = self.socket();
        socket.bind(&self.at(port).into()).expect("the port is free");
        socket
    }

    pub fn listener(self) -> Socket {
        self.listener_on(0)
    }

    pub fn listener_on(self, port: u16) -> Socket {
        let socket = self.bound(port);
        socket.listen(1024).expect("listen() succeeds");
        socket
    }
}

pub fn cookie(socket: impl AsFd) -> u64 {
    rustix::net::sockopt::socket_cookie(socket).expect("sockets have cookies")
}

pub fn addr(socket: &Socket) -> SocketAddr {
    socket.local_addr().expect("the socket has an address").as_socket().expect("an IP socket")
}

/// Both sockets of a connection.
pub struct Pair {
    pub client: Socket,
    pub server: Socket,
}

impl Pair {
    pub fn connect(client: Socket, listener: &Socket) -> Self {
        client.connect(&addr(listener).into()).expect("connect() succeeds");
        let (server, _) = listener.accept().expect("accept() succeeds");
        Self { client, server }
    }
}

impl Pair {
    /// Closes the client, then the server, and waits for the client's TIME_WAIT. Returns the
    /// cookies of both.
    pub fn close_client_first(self, tracer: &mut Tracer) -> [u64; 2] {
        let Self { client, server } = self;
        let cookies = [&client, &server].map(cookie);
        drop(client);
        read_to_end(&server);
        drop(server);
        tracer.wait_for("TIME_WAIT", is(cookies[0], "time_wait:time_wait"));
        cookies
    }
}

/// The side of a connection that was closed first, and the other side.
pub struct ClosedFirst {
    pub cookie: u64,
    pub other: Socket,
}

/// Waits until a minisocket in FIN_WAIT2 holds the port of a socket that is being closed. False,
/// after printing why, if there will be none: if the ACK of the FIN arrives while close() still
/// holds the socket, the kernel keeps the full socket until `tcp_fin_timeout` is over and then resets
/// the connection (`tcp_rcv_state_process`, net/ipv4/tcp_input.c; `tcp_keepalive_timer`,
/// net/ipv4/tcp_timer.c).
pub fn reaches_fin_wait2(tracer: &mut Tracer, cookie: u64) -> bool {
    let [in_fin_wait2, reset] =
        ["time_wait:fin_wait2", "release:reset_out"].map(|what| is(cookie, what));
    let next = tracer.wait_for("FIN_WAIT2", |record| in_fin_wait2(record) || reset(record));
    if next["type"] == "time_wait" {
        return true;
    }
    assert!(next["held_s"].as_f64() >= Some(2.0), "too early a reset: {next}");
    println!("skipped: the ACK of the FIN came during close(), which leaves no minisocket");
    false
}

/// Connects, and closes the side that `split` returns first, so that a minisocket in FIN_WAIT2
/// holds its port. If the kernel makes none, this tries again.
pub fn close_into_fin_wait2(
    tracer: &mut Tracer,
    connect: impl Fn() -> Pair,
    split: impl Fn(Pair) -> [Socket; 2],
) -> ClosedFirst {
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        let [closed, other] = split(connect());
        let cookie = cookie(&closed);
        drop(closed);
        if reaches_fin_wait2(tracer, cookie) {
            return ClosedFirst { cookie, other };
        }
    }
    panic!("the ACK came during close() in each of {ATTEMPTS} attempts");
}

/// A listener that answers no SYN because its accept queue is full (`tcp_conn_request`,
/// net/ipv4/tcp_input.c), so that connect() to it stays in SYN_SENT.
pub struct UnresponsiveListener {
    pub listener: Socket,
    /// The connection that fills its accept queue.
    _filler: Socket,
}

impl UnresponsiveListener {
    pub fn new(net: Net) -> Self {
        let listener = net.bound(0);
        listener.listen(0).expect("listen() succeeds");
        let filler = net.socket();
        filler.connect(&addr(&listener).into()).expect("there is room for one");
        wait_until_readable(&listener);
        Self { listener, _filler: filler }
    }

    /// Starts a non-blocking connect() to it.
    pub fn attempt(&self, socket: Socket) -> Socket {
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let error = socket.connect(&addr(&self.listener).into()).expect_err("it is deaf");
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        socket
    }

    /// Accepts a connection, which makes room in the queue. The next SYN is then answered; clients
    /// retransmit it within seconds.
    pub fn accept(&self) -> Socket {
        self.listener.accept().expect("the filler waits").0
    }
}

/// Waits until there is something to read or accept.
pub fn wait_until_readable(socket: &Socket) {
    let mut poll = [PollFd::new(socket, PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut poll, None).expect("it can be polled"), 1);
}

/// Reads until the peer has sent its FIN.
pub fn read_to_end(socket: &Socket) {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
    while socket.recv(&mut buffer).expect("the connection is orderly") > 0 {}
}

/// Resets the connection when the socket is closed.
pub fn reset_on_close(socket: &Socket) {
    socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

/// Runs the body once for each kind of address, each time in a namespace and process of its own.
pub fn for_each_net(body: fn(Net, &Sandbox)) {
    let name = |net: Net| format!("{net:?}");
    let names = Net::ALL.map(name);
    let Process::Child(part) = isolation::isolate(&names.each_ref().map(String::as_str)) else {
        return;
    };
    for net in
        Net::ALL.into_iter().filter(|&net| part.as_ref().is_none_or(|part| *part == name(net)))
    {
        let Some(sandbox) = new_namespace() else { return };
        body(net, &sandbox);
    }
}
