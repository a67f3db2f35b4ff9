//! What other processes do to mislead or to hang the tracer, and what it says if it cannot look.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, Mode, OFlags, mknodat, open},
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, sendto, socket_with},
    process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit},
};
use serde_json::Value;

use crate::support::{Net, Pair, addr, reset_on_close, sandbox};

const BINARY: &str = env!("CARGO_BIN_EXE_portlife");

/// The output of portlife while `attack` is called again and again. `None` if it does not end.
fn run_attacked(
    arguments: &[&str],
    patience: Duration,
    mut attack: impl FnMut(u32),
) -> Option<Output> {
    let mut child = Command::new(BINARY)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    let deadline = Instant::now() + patience;
    while child.try_wait().expect("it can be waited for").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("it runs");
            return None;
        }
        attack(child.id());
    }
    Some(child.wait_with_output().expect("the output can be read"))
}

/// Whoever has a namespace file open can replace it by a FIFO, which blocks who opens it.
#[test]
fn a_descriptor_that_changes_is_not_opened() {
    if sandbox().is_none() {
        return;
    }
    let directory = std::env::temp_dir().join(format!("portlife-fifo-{}", std::process::id()));
    mknodat(rustix::fs::CWD, &directory, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .expect("a FIFO can be made");
    let fifo = open(&directory, OFlags::PATH, Mode::empty()).expect("it is there");
    fs::remove_file(&directory).expect("it is there");
    let namespace = File::open("/proc/self/ns/uts").expect("every process has one");
    let mut slots: Vec<_> =
        (0..200).map(|_| namespace.as_fd().try_clone_to_owned().expect("a descriptor")).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0_usize.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                for (at, slot) in slots.iter_mut().enumerate() {
                    let file = if (at + round) % 2 == 0 { namespace.as_fd() } else { fifo.as_fd() };
                    rustix::io::dup2(file, slot).expect("both are open");
                }
            }
        });
        let wait = |_| thread::sleep(Duration::from_millis(5));
        let answers: Vec<_> =
            (0..5).map(|_| run_attacked(&["why", "22"], Duration::from_secs(60), wait)).collect();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(answers.len(), 5, "nothing blocks it");
        for answer in answers.into_iter().flatten() {
            if answer.status.code() == Some(3) {
                println!("skipped: {}", String::from_utf8_lossy(&answer.stderr).trim());
                return;
            }
            assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        }
    });
    assert!(fifo.as_raw_fd() > 0);
}

/// The port of the tracer's netlink socket is its process id, and every process of the namespace can
/// send to it.
#[test]
fn forged_netlink_messages_are_refused() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let _listener = Net::V4.listener();
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )
    .expect("any process may have one");
    // A header of length 0, at which a careless reader stays for ever.
    let forged = [0_u8; 16];
    let (mut sent, mut delivered) = (0_u32, 0_u32);
    let arguments = ["trace", "-o", "json", "-n", &netns, "--verify", "0.02", "--duration", "2"];
    let output = run_attacked(&arguments, Duration::from_secs(120), |pid| {
        for _ in 0..2000 {
            let to = netlink::SocketAddrNetlink::new(pid, 0);
            sent += 1;
            delivered += u32::from(sendto(&socket, &forged, SendFlags::DONTWAIT, &to).is_ok());
        }
    });
    let output = output.expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let records: Vec<Value> = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let verified: Vec<_> = records.iter().filter(|record| record["type"] == "verify").collect();
    assert!(verified.len() > 3, "{verified:?}");
    assert!(verified.iter().all(|record| record["missing"] == 0 && record["extra"] == 0));
    // A few arrive while the socket is being connected, and are ignored.
    assert!(delivered < sent / 1000, "the kernel refuses what other processes send: {delivered}");
}

#[test]
fn a_comparison_without_descriptors_says_that_it_is_incomplete() {
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let _listener = Net::V4.listener();
    let mut child = Command::new(BINARY)
        .args(["trace", "-o", "json", "-n", &netns, "--verify", "0.2", "--duration", "60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("portlife starts");
    let records = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let mut verified = records
        .map(|line| line.expect("the records are UTF-8"))
        .map(|line| serde_json::from_str::<Value>(&line).expect("the record is JSON"))
        .filter(|record| record["type"] == "verify");
    let complete = verified.next().expect("it compares");
    assert_eq!(complete["unlisted"], 0, "{complete}");
    let pid = Pid::from_child(&child);
    let none = Rlimit { current: Some(3), maximum: Some(3) };
    prlimit(Some(pid), Resource::Nofile, none).expect("root may limit it");
    let incomplete = verified.any(|record| record["unlisted"].as_u64() > Some(0));
    kill_process(pid, Signal::TERM).expect("portlife runs");
    verified.for_each(drop);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(incomplete, "{said}");
    assert!(said.contains("a comparison is incomplete: "), "{said}");
}

/// A process may have any name, and a terminal obeys some.
#[test]
fn no_name_reaches_the_terminal_as_it_is() {
    const NAMES: [&[u8]; 8] = [
        b"\x1b[31mRED\x1b[2J",
        b"a\nb\rc\td",
        b"q\"u\\o'te,=1",
        b"\xff\xfe\xc3(",
        "\u{202e}rtl\u{202c}".as_bytes(),
        "\u{9b}31mC1\x7f".as_bytes(),
        "\u{2028}\u{200b}\u{feff}".as_bytes(),
        "\u{e0041}\u{ad}".as_bytes(),
    ];
    let Some(sandbox) = sandbox() else { return };
    let netns = sandbox.netns().0.to_string();
    let listener = Net::V4.listener();
    let rename = |name: &[u8]| fs::write("/proc/self/comm", name).expect("it is ours");
    let connect_with = |attempt: u32| {
        rename(NAMES[attempt as usize % NAMES.len()]);
        let pair = Pair::connect(Net::V4.socket(), &listener);
        let taken = Net::V4.socket().bind(&addr(&listener).into());
        assert!(taken.is_err(), "the port is taken");
        reset_on_close(&pair.client);
        rename(b"harmless");
        thread::sleep(Duration::from_millis(1));
    };
    let mut recorded = Vec::new();
    for arguments in [
        &["trace", "--duration", "1", "--verify", "0.3", "-v"][..],
        &["trace", "--duration", "1", "-o", "json"],
        &["trace", "--duration", "1", "-o", "csv"],
        &["report", "--duration", "1", "-v"],
        &["report", "--duration", "1", "-o", "json"],
    ] {
        let arguments = [arguments, &["-n", &netns]].concat();
        let attempts = Cell::new(0);
        let output = run_attacked(&arguments, Duration::from_secs(120), |_| {
            connect_with(attempts.get());
            attempts.set(attempts.get() + 1);
        });
        let output = output.expect("it ends");
        assert_harmless(&arguments, &output);
        if arguments.contains(&"json") && arguments.contains(&"trace") {
            recorded = output.stdout;
        }
    }
    let names: BTreeSet<_> = recorded
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter_map(|record| record["comm"].as_str().map(str::to_owned))
        .collect();
    for name in NAMES {
        let name = String::from_utf8_lossy(name);
        assert!(names.contains(&*name), "{name:?} is recorded as it is: {names:?}");
    }
}

/// Everything that was printed consists of lines of printable characters.
fn assert_harmless(arguments: &[&str], output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for printed in [&output.stdout, &output.stderr] {
        let printed = str::from_utf8(printed).expect("it is UTF-8");
        let printed = printed.replace("\r\n", "\n");
        let harmful = printed.lines().find(|line| !line.chars().all(is_printable));
        assert_eq!(harmful, None, "{arguments:?}");
    }
}

fn is_printable(character: char) -> bool {
    matches!(character, ' '..='~') || character.escape_debug().nth(1).is_none()
}
