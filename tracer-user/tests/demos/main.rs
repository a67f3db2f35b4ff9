//! The incidents of `cargo xtask demo`. The report must name the cause and the owner of each, and
//! must raise no alarm where nothing is wrong; and every screen must be its golden file's.
//!
//! This test has a runner of its own because its program also serves as the processes that take
//! part in the incidents.

#[path = "../golden/file.rs"]
mod golden_file;
#[path = "../../examples/demo/incidents/mod.rs"]
mod incidents;
#[path = "../golden/normalise.rs"]
mod normalise;
mod screens;

use std::{panic, path::Path, process::ExitCode, thread};

use serde_json::Value;

use incidents::{
    INCIDENTS, Incident,
    environment::{self, Outcome, Questions},
    process,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == process::SUBCOMMAND) {
        return match process::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    // As with cargo's runner, names select tests; options would change how it prints.
    let wanted: Vec<_> = arguments.filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |incident: &&Incident| {
        wanted.is_empty() || wanted.iter().any(|part| incident.name.contains(part.as_str()))
    };
    let selected: Vec<_> = INCIDENTS.iter().filter(is_wanted).collect();
    println!("\nrunning {} tests", selected.len());
    if !rustix::process::geteuid().is_root() {
        for incident in &selected {
            println!("skipped: the incident {} needs root", incident.name);
        }
        println!("\ntest result: ok. {} passed; 0 failed; 0 ignored", selected.len());
        return ExitCode::SUCCESS;
    }
    let failed = thread::scope(|scope| {
        let running: Vec<_> = selected
            .iter()
            .map(|incident| (incident.name, scope.spawn(|| test(incident))))
            .collect();
        let failed = running.into_iter().filter_map(|(name, test)| {
            let outcome = test.join();
            println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
            outcome.is_err().then_some(name)
        });
        failed.collect::<Vec<_>>()
    });
    let passed = selected.len() - failed.len();
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {} failed; 0 ignored", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn test(incident: &Incident) {
    let portlife = Path::new(env!("CARGO_BIN_EXE_portlife"));
    let commands = screens::commands(incident.name);
    let questions =
        Questions { reports: &[&["report", "-o", "json"], &["report", "-o", "text"]], commands };
    let outcome = environment::run(incident, portlife, &questions)
        .unwrap_or_else(|error| panic!("{}: {error:#}", incident.name));
    let Outcome { steps, answers } = outcome;
    let [json, text, answers @ ..] = &*answers else { panic!("there are two reports") };
    assert_verdict(incident, &steps, json);
    screens::assert_report(incident.name, &text.stdout);
    for (arguments, answer) in commands.iter().zip(answers) {
        screens::assert_command(incident.name, arguments, &answer.stdout);
    }
}

/// The report blames the right process for the right thing.
fn assert_verdict(incident: &Incident, steps: &[String], answer: &environment::Answer) {
    let environment::Answer { stdout, stderr } = answer;
    let report: Value = serde_json::from_str(stdout)
        .unwrap_or_else(|error| panic!("{stdout} is not JSON: {error}; {stderr}"));
    let verdict = &report["verdict"];
    let context =
        format!("{}: {}:\n{}\n{report:#}", incident.name, incident.summary, steps.join("\n"));
    assert_eq!(report["type"], "report", "{context}");
    assert_eq!(verdict["severity"], incident.expected.severity.to_lowercase(), "{context}");
    assert_eq!(verdict["kind"], incident.expected.kind, "{context}");
    assert_eq!(verdict["cause"].as_str(), incident.expected.cause, "{context}");
    assert_eq!(verdict["owner"]["comm"].as_str(), incident.expected.owner, "{context}");
    assert_eq!(report["observed"]["lost"], 0, "{context}");
    let is_healthy = incident.expected.owner.is_none();
    let has = |what: &str| report[what].as_array().is_some_and(|all| !all.is_empty());
    assert!(!is_healthy || !has("findings"), "{context}");
    assert_eq!(has("advice"), !is_healthy, "{context}");
}
