//! Runs each test in a process of its own.
//!
//! Between fork() and exec() a child holds every socket of its parent, so a close() in the parent
//! does not release the port. Tests that share a process would disturb each other like this
//! whenever one of them starts a tracer.

use std::{
    collections::BTreeSet,
    env,
    process::{Command, Stdio},
    thread,
};

use rustix::process::{Signal, set_parent_process_death_signal};
use tracer_user::testing::witness::Witness;

/// Environment variable that is set in such a process: the part of the test to run, or empty.
const PART: &str = "PORTLIFE_TEST_PART";
/// How often to run a test while the kernel hides events from all programs.
const ATTEMPTS: usize = 3;

/// The process in which the calling test runs.
pub enum Process {
    /// The test's own process, with the part of the test to run, if it has parts.
    Child(Option<String>),
    /// The parent. The test has already run in processes of its own.
    Parent,
}

/// Runs the calling test in a process of its own, or in one for each of its parts. A thread that a
/// test has started is in that process already.
///
/// # Panics
/// If the test fails in one of them.
pub fn isolate(parts: &[&str]) -> Process {
    if let Ok(part) = env::var(PART) {
        // The process must not outlive the runner.
        set_parent_process_death_signal(Some(Signal::KILL)).expect("a valid signal");
        return Process::Child((!part.is_empty()).then_some(part));
    }
    // The runner names threads after their tests.
    let current = thread::current();
    let Some(test) = current.name().filter(|&name| name != "main") else {
        return Process::Child(None);
    };
    let parts = if parts.is_empty() { &[""] } else { parts };
    for attempt in 1.. {
        let mut witness = Witness::start();
        if run(test, parts) {
            break;
        }
        let hidden = witness.as_mut().and_then(|witness| witness.hidden().ok());
        let is_explained = hidden.is_some_and(|hidden| !hidden.is_nothing());
        assert!(is_explained && attempt < ATTEMPTS, "the test failed in its own process");
        println!(
            "ftrace recorded events that the kernel hid from all eBPF programs; running the test again"
        );
    }
    Process::Parent
}

/// Runs the parts concurrently. True if all of them passed.
fn run(test: &str, parts: &[&str]) -> bool {
    let processes: Vec<_> = parts
        .iter()
        .map(|part| {
            let mut command = Command::new(env::current_exe().expect("this program has a path"));
            command.args(["--exact", test, "--nocapture"]).env(PART, part);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("this program can be started")
        })
        .collect();
    let mut printed = BTreeSet::new();
    let mut have_passed = true;
    for process in processes {
        let output = process.wait_with_output().expect("the process is a child of this one");
        have_passed &= output.status.success();
        for line in [output.stdout, output.stderr].concat().split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line).into_owned();
            // Prints lines that several parts have in common, such as why they are skipped, once.
            if !is_of_the_runner(&line) && printed.insert(line.clone()) {
                println!("{line}");
            }
        }
    }
    have_passed
}

/// True for a line that the runner in the parent prints as well.
fn is_of_the_runner(line: &str) -> bool {
    line.is_empty() || line.starts_with("test ") || line == "running 1 test" || line == "failures:"
}
