//! Incidents of port exhaustion, staged in network namespaces of their own, and what
//! `portlife report` says about them. `cargo xtask demo` runs this.

mod incidents;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use incidents::{
    Expected, INCIDENTS, Incident,
    environment::{self, Questions},
    process,
};

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some(process::SUBCOMMAND) => process::serve(),
        Some("--list") => list(),
        Some("all") => show(INCIDENTS.iter().collect()),
        Some(name) => named(name).and_then(|incident| show(vec![incident])),
        None => Err(anyhow::anyhow!("give the name of an incident, `all` or `--list`")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the other subcommands can fail")]
fn list() -> Result<()> {
    for incident in INCIDENTS {
        let Expected { severity, kind, cause, owner } = &incident.expected;
        let cause = cause.map(|cause| format!(", cause {cause}")).unwrap_or_default();
        let owner = owner.map(|owner| format!(", by {owner}")).unwrap_or_default();
        println!("{:<20} {}", incident.name, incident.summary);
        println!("{:<20} -> {severity}: {kind}{cause}{owner}", "");
    }
    Ok(())
}

fn named(name: &str) -> Result<&'static Incident> {
    let found = INCIDENTS.iter().find(|incident| incident.name == name);
    found.with_context(|| format!("there is no incident `{name}`; `--list` lists them"))
}

fn show(incidents: Vec<&'static Incident>) -> Result<()> {
    let portlife = portlife()?;
    let questions = Questions { reports: &[&["report", "-o", "text"]], commands: &[] };
    let mut unexpected = Vec::new();
    for incident in incidents {
        println!("=== {}: {}\n", incident.name, incident.summary);
        let outcome = environment::run(incident, &portlife, &questions)?;
        for step in outcome.steps {
            println!("  {step}");
        }
        for environment::Answer { stdout, stderr } in outcome.answers {
            println!("\n$ portlife report\n{stdout}");
            if !stdout.starts_with(incident.expected.severity) {
                eprintln!("{stderr}");
                unexpected.push(incident.name);
            }
        }
    }
    if !unexpected.is_empty() {
        bail!("unexpected verdict on: {}", unexpected.join(", "));
    }
    Ok(())
}

/// The tracer, which cargo builds as `target/PROFILE/portlife`; this program is
/// `target/PROFILE/examples/demo`.
fn portlife() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own.parent().and_then(|examples| examples.parent());
    let portlife = profile.context("this is not where cargo puts examples")?.join("portlife");
    if !portlife.exists() {
        bail!("{} is not built: `cargo xtask demo` builds it", portlife.display());
    }
    Ok(portlife)
}
