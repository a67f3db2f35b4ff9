//! How the tracer behaves where privileges or files are missing, and how it exits.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Net, Pair, Tracer, cookie, reset_on_close, sandbox};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");
/// The user and group id of `nobody`.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: this needs root");
    }
    is_root
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the tracer briefly in a mount namespace of its own, after the shell commands in `prepare`.
fn run_in_mount_namespace(prepare: &str) -> Option<Output> {
    if !is_root() {
        return None;
    }
    let script = format!("{prepare} && exec {BINARY} trace -o json --duration 0.3 \"$@\"");
    match Command::new("unshare").args(["--mount", "sh", "-c", &script]).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: cannot run unshare (util-linux): {error}");
            None
        }
    }
}

fn first_record(output: &Output) -> Value {
    let line = output.stdout.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(line).unwrap_or_else(|error| {
        panic!("no first record: {error}; {}, {}", output.status, stderr(output))
    })
}

#[test]
fn without_privilege_it_names_the_missing_capabilities_and_exits_with_3() {
    if !is_root() {
        return;
    }
    let output = Command::new(BINARY).uid(NOBODY).gid(NOBODY).output().expect("portlife runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.is_empty());
    let messages = stderr(&output);
    assert!(
        messages.contains("CAP_BPF and CAP_PERFMON") && messages.contains("sudo"),
        "{messages}"
    );
    assert_eq!(messages.lines().count(), 1, "one sentence: {messages}");
}

/// Runs the tracer briefly without some capabilities.
fn run_without(capabilities: &str) -> Option<Output> {
    if !is_root() {
        return None;
    }
    let bounding_set = format!("--bounding-set={capabilities}");
    let run = Command::new("setpriv")
        .args([&bounding_set, BINARY, "trace", "-o", "json", "--duration", "0.3"])
        .output();
    run.inspect_err(|error| println!("skipped: cannot run setpriv (util-linux): {error}")).ok()
}

#[test]
fn without_one_capability_it_names_what_is_lost_and_continues() {
    let Some(output) = run_without("-syslog") else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("without CAP_SYSLOG"), "{}", stderr(&output));
}

#[test]
fn the_least_privilege_still_sees_connections() {
    let Some(output) = run_without("-net_admin,-sys_admin") else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let messages = stderr(&output);
    assert!(
        messages.contains("without CAP_NET_ADMIN") && messages.contains("without CAP_SYS_ADMIN")
    );
    let start = first_record(&output);
    assert_eq!(start["hooks"]["inet_sock_set_state"], "tp_btf");
    let refused = start["hooks"]["sockops"].as_str().expect("the hook is listed");
    assert!(refused.starts_with("not attached: "), "{refused}");
}

#[test]
fn without_btf_it_says_so_and_exits_with_3() {
    let Some(output) = run_in_mount_namespace("mount -t tmpfs none /sys/kernel/btf") else {
        return;
    };
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("CONFIG_DEBUG_INFO_BTF"), "{}", stderr(&output));
}

#[test]
fn without_kernel_symbols_only_time_waits_are_lost() {
    // Function hooks do not need the address.
    let prepare = "mount --bind /dev/null /proc/kallsyms && set -- --hooks tracepoints";
    let Some(output) = run_in_mount_namespace(prepare) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("the end of a TIME_WAIT is not seen"));
    let start = first_record(&output);
    assert_eq!(start["hooks"]["inet_sock_set_state"], "tp_btf");
    let refused = start["hooks"]["timer_start"].as_str().expect("the hook is listed");
    assert!(refused.contains("tw_timer_handler"), "{refused}");
}

#[test]
fn nothing_needs_to_be_mounted() {
    let umount = "umount -R -l /sys/fs/cgroup; umount -l /sys/fs/bpf; \
                  umount -l /sys/kernel/tracing; umount -l /sys/kernel/debug; true";
    let Some(usual) = run_in_mount_namespace("true") else { return };
    let Some(output) = run_in_mount_namespace(umount) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let hooks = first_record(&output)["hooks"].clone();
    // The kernel may refuse a hook for another reason.
    assert_eq!(hooks, first_record(&usual)["hooks"]);
    for hook in ["sockops", "post_bind4", "post_bind6"] {
        let how = hooks[hook].as_str().expect("the hook is listed");
        assert!(!how.starts_with("not attached"), "{hook}: {how}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["-P", "0"],
        &["-d", "example"],
        &["-e", "nothing"],
        &["-n", "/dev/null"],
        &["--ring-bytes", "1"],
        &["--duration", "-1"],
        &["--duration", "1e19"],
    ] {
        let output = Command::new(BINARY).args(arguments).output().expect("portlife runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn it_keeps_running_if_stderr_cannot_be_written() {
    if !is_root() {
        return;
    }
    let full = File::options().write(true).open("/dev/full").expect("there is /dev/full");
    let output = Command::new(BINARY)
        .args(["trace", "-v", "--verify", "0.1", "--duration", "1"])
        .stderr(full)
        .output()
        .expect("portlife runs");
    assert!(output.status.success(), "{}", output.status);
    assert!(!output.stdout.is_empty());
}

#[test]
fn it_keeps_running_if_nobody_reads_stderr() {
    if !is_root() {
        return;
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let filler = writer.try_clone().expect("a descriptor");
    rustix::io::ioctl_fionbio(&filler, true).expect("a pipe need not block");
    while (&filler).write(&[b'x'; 4096]).is_ok() {}
    // The description is shared, and the tracer's stderr blocks.
    rustix::io::ioctl_fionbio(&filler, false).expect("a pipe can block");
    let mut child = Command::new(BINARY)
        .args(["trace", "-v", "--verify", "0.1", "--duration", "1", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .expect("portlife starts");
    let lines = BufReader::new(child.stdout.take().expect("the stream is piped")).lines();
    let last = lines.last().expect("the summary").expect("UTF-8");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert!(last.contains(r#""type":"summary""#), "{last}");
    drop(reader);
}

#[test]
fn a_file_that_may_not_grow_is_an_error_in_a_sentence() {
    let script = format!("ulimit -f 0; exec {BINARY} why 1 > \"$1\"");
    let file = std::env::temp_dir().join(format!("portlife-limit-{}", std::process::id()));
    let output = Command::new("bash").args(["-c", &script, "bash"]).arg(&file).output();
    let _ = std::fs::remove_file(&file);
    let output = match output {
        Ok(output) => output,
        Err(error) => return println!("skipped: cannot run bash: {error}"),
    };
    if output.status.code() == Some(3) {
        return println!("skipped: {}", stderr(&output).trim());
    }
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("the answer cannot be written"), "{}", stderr(&output));
}

/// The fields of proc(5)'s `status` that say what a process may do.
fn privileges(pid: Pid) -> (u64, u64, bool) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let status = status.expect("it runs");
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
        u64::from_str_radix(value.trim(), 16).expect("a number")
    };
    (field("CapEff:"), field("CapPrm:"), field("NoNewPrivs:") == 1)
}

/// The table of docs/security.md, for `trace`.
#[test]
fn a_trace_keeps_the_capabilities_that_it_uses() {
    let Some(sandbox) = sandbox() else { return };
    let tracer = Tracer::start(&sandbox);
    let used = [2, 12, 19, 21, 24, 34, 38, 39].map(|number| 1_u64 << number);
    let used = used.iter().fold(0, |set, bit| set | bit);
    let ours = privileges(rustix::process::getpid()).0;
    assert_eq!(privileges(tracer.pid()), (ours & used, ours & used, true));
}

/// The table of docs/security.md, for `report --from`.
#[test]
fn a_recording_is_read_without_capabilities() {
    let mut child = Command::new(BINARY)
        .args(["report", "-q", "--from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("portlife starts");
    let mut input = child.stdin.take().expect("stdin is piped");
    // More than the pipe takes, so some of it was read.
    input.write_all(&[b'\n'; 1 << 20]).expect("it reads");
    assert_eq!(privileges(Pid::from_child(&child)), (0, 0, true));
    drop(input);
    child.wait().expect("it ends");
}

#[test]
fn signals_stop_it_with_a_summary() {
    if !is_root() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut child = Command::new(BINARY)
            .args(["-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("portlife starts");
        let mut lines = BufReader::new(child.stdout.take().expect("the stream is piped")).lines();
        lines.next().expect("the start record").expect("UTF-8");
        kill_process(Pid::from_child(&child), signal).expect("portlife runs");
        let last = lines.last().expect("the summary").expect("UTF-8");
        let status = child.wait().expect("the process exits");
        assert_eq!(status.code(), Some(0));
        let summary: Value = serde_json::from_str(&last).expect("JSON");
        assert_eq!(summary["type"], "summary");
    }
}

#[test]
fn it_exits_even_if_its_reader_has_stopped_reading() {
    let Some(sandbox) = sandbox() else { return };
    let mut child = Command::new(BINARY)
        .args(["-o", "json", "-n", &sandbox.netns().0.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    let mut reader = BufReader::new(child.stdout.take().expect("the stream is piped"));
    reader.read_line(&mut String::new()).expect("the start record");
    // More output than fits into a pipe (64 KiB).
    for _ in 0..300 {
        drop(Net::V4.bound(0));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).expect("portlife runs");
    let status = child.wait().expect("the process exits");
    assert_eq!(status.code(), Some(0));
    let mut messages = String::new();
    child.stderr.take().expect("the stream is piped").read_to_string(&mut messages).expect("UTF-8");
    assert!(messages.contains("does not read"), "{messages}");
    drop(reader);
}

#[test]
fn it_exits_quietly_if_its_reader_goes_away() {
    if !is_root() {
        return;
    }
    let mut child = Command::new(BINARY)
        .args(["-o", "json", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    let mut reader = BufReader::new(child.stdout.take().expect("the stream is piped"));
    reader.read_line(&mut String::new()).expect("the start record");
    drop(reader);
    // It notices even without any event.
    let status = child.wait().expect("the process exits");
    assert_eq!(status.code(), Some(0));
    let mut messages = String::new();
    child.stderr.take().expect("the stream is piped").read_to_string(&mut messages).expect("UTF-8");
    assert_eq!(messages, "");
}

#[test]
fn text_output_shows_the_same_in_columns() {
    let Some(sandbox) = sandbox() else { return };
    let mut child = Command::new(BINARY)
        .args(["trace", "--no-snapshot", "-n", &sandbox.netns().0.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    let mut reader = BufReader::new(child.stdout.take().expect("the stream is piped"));
    let mut header = String::new();
    reader.read_line(&mut header).expect("the header");
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        ["TIME", "EVENT", "NETNS", "PID", "COMM", "LOCAL", "PEER", "HELD", "DETAIL"]
    );
    let listener = Net::V4.listener();
    let pair = Pair::connect(Net::V4.socket(), &listener);
    reset_on_close(&pair.client);
    drop(pair);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("portlife runs");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("UTF-8");
    child.wait().expect("the process exits");
    let events: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(
        events,
        ["namespace", "bind", "listen", "connect", "established", "accept", "release", "release"]
    );
    let widest = text.lines().map(str::len).max().unwrap_or(0);
    assert!(widest <= 140, "{widest} columns:\n{text}");
}

#[test]
fn filters_show_only_what_they_select() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let pid = std::process::id().to_string();
    let run = |arguments: &[&str]| {
        let mut all = vec!["-n", &netns];
        all.extend(arguments);
        Tracer::start_with(&all)
    };
    let tracers = [
        run(&["-p", &pid]),
        run(&["-p", "1"]),
        run(&["-P", "20001"]),
        run(&["-P", "20000-20009", "--kind", "accept"]),
        run(&["-d", "127.0.0.0/8:20001"]),
        run(&["-6"]),
        run(&["-x"]),
        run(&["-e", "listen"]),
    ];
    let listener = Net::V4.bound(20_001);
    listener.listen(16).expect("listen() succeeds");
    let pair = Pair::connect(Net::V4.socket(), &listener);
    Net::V4.socket().bind(&Net::V4.at(20_001).into()).expect_err("it is taken");
    let [listening, client, server] = [&listener, &pair.client, &pair.server].map(cookie);
    let stories = tracers.map(Tracer::finish);
    let shown = stories.each_ref().map(|recording| {
        [listening, client, server].map(|cookie| !recording.of(cookie).is_empty())
    });
    assert_eq!(
        shown,
        [
            [true, true, true],
            [false, false, false],
            [true, false, true],
            [false, false, true],
            [false, true, false],
            [false, false, false],
            [false, false, false],
            [true, false, false],
        ]
    );
    let failures = stories.each_ref().map(|recording| recording.failures().len());
    assert_eq!(failures, [1, 0, 1, 0, 0, 0, 1, 0]);
}

/// aya-ebpf defines a `memcpy`, which would replace libc's if it were linked into the agent.
#[test]
fn the_agent_links_no_code_of_the_programs() {
    let binary = std::fs::read(BINARY).expect("the binary");
    let file = object::File::parse(&*binary).expect("an ELF file");
    use object::{Object as _, ObjectSymbol as _};
    let defined: Vec<_> = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(object::ObjectSymbol::is_definition)
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| ["memcpy", "memmove", "memset"].contains(name))
        .collect();
    assert_eq!(defined, Vec::<&str>::new());
    assert!(file.symbols().next().is_some(), "a stripped binary would prove nothing");
}
