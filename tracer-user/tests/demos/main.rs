//! The incidents of `cargo xtask demo`: the report must name the cause and the owner of each, and
//! must not raise an alarm where there is none. Not the usual runner, because this very program
//! also plays the processes that take part.

#[path = "../../examples/demo/incidents/mod.rs"]
mod incidents;

use std::{panic, path::Path, process::ExitCode, thread};

use serde_json::Value;

use incidents::{INCIDENTS, Incident, actor, stage};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == actor::ROLE) {
        return match actor::act() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    // As the usual runner: a name selects, options are about its output.
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
            .map(|incident| (incident.name, scope.spawn(|| report_names(incident))))
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

fn report_names(incident: &Incident) {
    let portlife = Path::new(env!("CARGO_BIN_EXE_portlife"));
    let performance = stage::perform(incident, portlife, &["-o", "json"])
        .unwrap_or_else(|error| panic!("{}: {error:#}", incident.name));
    let stage::Performance { told, stdout, stderr } = performance;
    let report: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{stdout} is not JSON: {error}; {stderr}"));
    let told = told.join("\n");
    let verdict = &report["verdict"];
    let said = format!("{}: {}:\n{told}\n{report:#}", incident.name, incident.title);
    assert_eq!(report["type"], "report", "{said}");
    assert_eq!(verdict["severity"], incident.expected.word.to_lowercase(), "{said}");
    assert_eq!(verdict["kind"], incident.expected.kind, "{said}");
    assert_eq!(verdict["cause"].as_str(), incident.expected.cause, "{said}");
    assert_eq!(verdict["owner"]["comm"].as_str(), incident.expected.owner, "{said}");
    assert_eq!(report["observed"]["lost"], 0, "{said}");
    let is_healthy = incident.expected.owner.is_none();
    let has = |what: &str| report[what].as_array().is_some_and(|all| !all.is_empty());
    assert!(!is_healthy || !has("findings"), "{said}");
    assert_eq!(has("advice"), !is_healthy, "{said}");
}
