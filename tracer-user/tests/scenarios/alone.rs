//! A process for each test.
//!
//! Between fork() and exec() a child has every socket of its parent open, so that a close() in the
//! parent frees no port. Tests that run in one process would do this to one another whenever one
//! of them starts a tracer.

use std::{
    collections::BTreeSet,
    env,
    process::{Command, Stdio},
    thread,
};

use rustix::process::{Signal, set_parent_process_death_signal};
use tracer_user::testing::witness::Witness;

/// Set in such a process: the part of the test that it runs, or nothing.
const PART: &str = "PORTLIFE_TEST_PART";
/// How often a test is tried when the kernel hides what it waits for.
const ATTEMPTS: usize = 3;

/// How this thread runs a test.
pub enum Turn {
    /// In a process of the test's own, all of it or a part.
    Now(Option<String>),
    /// Its processes have run it.
    Over,
}

/// Runs the calling test in a process of its own, or in one for each of its parts. Threads that a
/// test starts are where they belong already.
///
/// # Panics
/// If it fails there.
pub fn turn(parts: &[&str]) -> Turn {
    if let Ok(part) = env::var(PART) {
        // Nobody would wait for it.
        set_parent_process_death_signal(Some(Signal::KILL)).expect("a valid signal");
        return Turn::Now((!part.is_empty()).then_some(part));
    }
    // The runner names its threads after the tests.
    let current = thread::current();
    let Some(test) = current.name().filter(|&name| name != "main") else { return Turn::Now(None) };
    let parts = if parts.is_empty() { &[""] } else { parts };
    for attempt in 1.. {
        let mut witness = Witness::start();
        if run(test, parts) {
            break;
        }
        let hidden = witness.as_mut().and_then(|witness| witness.hidden().ok());
        let is_explained = hidden.is_some_and(|hidden| !hidden.is_nothing());
        assert!(is_explained && attempt < ATTEMPTS, "it failed in a process of its own");
        println!("ftrace saw events meanwhile that this kernel shows to no program: once more");
    }
    Turn::Over
}

/// Runs the parts at once; true if all of them passed.
fn run(test: &str, parts: &[&str]) -> bool {
    let processes: Vec<_> = parts
        .iter()
        .map(|part| {
            let mut command = Command::new(env::current_exe().expect("it has a path"));
            command.args(["--exact", test, "--nocapture"]).env(PART, part);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("this binary can be run")
        })
        .collect();
    let mut said = BTreeSet::new();
    let mut have_passed = true;
    for process in processes {
        let output = process.wait_with_output().expect("it is our child");
        have_passed &= output.status.success();
        for line in [output.stdout, output.stderr].concat().split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line).into_owned();
            // What all parts say, such as why they skip, is said once.
            if !is_of_the_runner(&line) && said.insert(line.clone()) {
                println!("{line}");
            }
        }
    }
    have_passed
}

/// True for a line that the outer runner says itself.
fn is_of_the_runner(line: &str) -> bool {
    line.is_empty() || line.starts_with("test ") || line == "running 1 test" || line == "failures:"
}
