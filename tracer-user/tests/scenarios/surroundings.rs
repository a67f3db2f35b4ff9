//! How the tracer behaves where things are missing, and how it ends.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Net, Pair, Tracer, cookie, reset_on_close, sandbox};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");
/// User and group of nobody.
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

/// Runs the tracer for a moment, in a shell of its own mount namespace that `prepare` has changed.
fn run_in_mount_namespace(prepare: &str) -> Option<Output> {
    if !is_root() {
        return None;
    }
    let script = format!("{prepare} && exec {BINARY} trace -o json --duration 0.3 \"$@\"");
    match Command::new("unshare").args(["--mount", "sh", "-c", &script]).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: unshare (util-linux) cannot be run: {error}");
            None
        }
    }
}

fn first_record(output: &Output) -> Value {
    let line = output.stdout.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(line).unwrap_or_else(|error| {
        panic!("no first record: {error}; exit {}, {}", output.status, stderr(output))
    })
}

#[test]
fn without_privilege_it_says_which_and_exits_with_3() {
    if !is_root() {
        return;
    }
    let output = Command::new(BINARY).uid(NOBODY).gid(NOBODY).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.is_empty());
    let said = stderr(&output);
    assert!(said.contains("CAP_BPF and CAP_PERFMON") && said.contains("sudo"), "{said}");
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
}

/// Runs the tracer for a moment without some capabilities.
fn run_without(capabilities: &str) -> Option<Output> {
    if !is_root() {
        return None;
    }
    let bounding_set = format!("--bounding-set={capabilities}");
    let run = Command::new("setpriv")
        .args([&bounding_set, BINARY, "trace", "-o", "json", "--duration", "0.3"])
        .output();
    run.inspect_err(|error| println!("skipped: setpriv (util-linux) cannot be run: {error}")).ok()
}

#[test]
fn without_one_capability_it_says_what_is_lost_and_goes_on() {
    let Some(output) = run_without("-syslog") else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("without CAP_SYSLOG"), "{}", stderr(&output));
}

#[test]
fn the_least_privilege_still_sees_connections() {
    let Some(output) = run_without("-net_admin,-sys_admin") else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("without CAP_NET_ADMIN") && said.contains("without CAP_SYS_ADMIN"));
    let start = first_record(&output);
    assert_eq!(start["hooks"]["inet_sock_set_state"], "tp_btf");
    let refused = start["hooks"]["sockops"].as_str().expect("it is listed");
    assert!(refused.starts_with("not attached: "), "{refused}");
}

#[test]
fn without_type_information_it_says_so_and_exits_with_3() {
    let Some(output) = run_in_mount_namespace("mount -t tmpfs none /sys/kernel/btf") else {
        return;
    };
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("CONFIG_DEBUG_INFO_BTF"), "{}", stderr(&output));
}

#[test]
fn without_kernel_symbols_only_time_waits_are_lost() {
    // Function hooks need no address.
    let prepare = "mount --bind /dev/null /proc/kallsyms && set -- --hooks tracepoints";
    let Some(output) = run_in_mount_namespace(prepare) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("the end of a TIME_WAIT is not seen"));
    let start = first_record(&output);
    assert_eq!(start["hooks"]["inet_sock_set_state"], "tp_btf");
    let refused = start["hooks"]["timer_start"].as_str().expect("it is listed");
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
    // A kernel may refuse a hook for another reason.
    assert_eq!(hooks, first_record(&usual)["hooks"]);
    for hook in ["sockops", "post_bind4", "post_bind6"] {
        let how = hooks[hook].as_str().expect("it is listed");
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
        let output = Command::new(BINARY).args(arguments).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_stderr_that_takes_nothing_is_no_reason_to_end() {
    if !is_root() {
        return;
    }
    let full = File::options().write(true).open("/dev/full").expect("there is /dev/full");
    let output = Command::new(BINARY)
        .args(["trace", "-v", "--verify", "0.1", "--duration", "1"])
        .stderr(full)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", output.status);
    assert!(!output.stdout.is_empty());
}

#[test]
fn signals_end_it_with_a_summary() {
    if !is_root() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = Command::new(BINARY)
            .args(["-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        lines.next().expect("the start record").expect("UTF-8");
        kill_process(Pid::from_child(&child), signal).expect("it runs");
        let last = lines.last().expect("the summary").expect("UTF-8");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0));
        let summary: Value = serde_json::from_str(&last).expect("JSON");
        assert_eq!(summary["type"], "summary");
    }
}

#[test]
fn a_reader_that_stops_reading_does_not_keep_it_from_ending() {
    let Some(sandbox) = sandbox() else { return };
    let mut child = Command::new(BINARY)
        .args(["-o", "json", "-n", &sandbox.netns().0.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    reader.read_line(&mut String::new()).expect("the start record");
    // More than a pipe holds (64 KiB).
    for _ in 0..300 {
        drop(Net::V4.bound(0));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert!(said.contains("does not read"), "{said}");
    drop(reader);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    if !is_root() {
        return;
    }
    let mut child = Command::new(BINARY)
        .args(["-o", "json", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    reader.read_line(&mut String::new()).expect("the start record");
    drop(reader);
    // No event is needed for it to notice.
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert_eq!(said, "");
}

#[test]
fn the_text_form_says_the_same_in_columns() {
    let Some(sandbox) = sandbox() else { return };
    let mut child = Command::new(BINARY)
        .args(["trace", "--no-snapshot", "-n", &sandbox.netns().0.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
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
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("UTF-8");
    child.wait().expect("it ends");
    let events: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(
        events,
        ["namespace", "bind", "listen", "connect", "established", "accept", "release", "release"]
    );
    let widest = text.lines().map(str::len).max().unwrap_or(0);
    assert!(widest <= 140, "{widest} columns:\n{text}");
}

#[test]
fn filters_show_what_they_name_and_nothing_else() {
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
    listener.listen(16).expect("it listens");
    let pair = Pair::connect(Net::V4.socket(), &listener);
    Net::V4.socket().bind(&Net::V4.at(20_001).into()).expect_err("it is taken");
    let [listening, client, server] = [&listener, &pair.client, &pair.server].map(cookie);
    let stories = tracers.map(Tracer::finish);
    let shown = stories
        .each_ref()
        .map(|story| [listening, client, server].map(|cookie| !story.of(cookie).is_empty()));
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
    let failures = stories.each_ref().map(|story| story.failures().len());
    assert_eq!(failures, [1, 0, 1, 0, 0, 0, 1, 0]);
}

/// aya-ebpf defines its own `memcpy`, which would replace libc's in the agent if it were linked.
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
