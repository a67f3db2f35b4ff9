//! Incidents of port exhaustion, made on purpose in network namespaces of their own, and what
//! `portlife report` says of them. `cargo xtask demo` runs this.

mod incidents;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use incidents::{Expected, INCIDENTS, Incident, actor, stage};

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some(actor::ROLE) => actor::act(),
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

#[expect(clippy::unnecessary_wraps, reason = "as the other commands")]
fn list() -> Result<()> {
    for incident in INCIDENTS {
        let Expected { word, kind, cause, owner } = &incident.expected;
        let cause = cause.map(|cause| format!(", cause {cause}")).unwrap_or_default();
        let owner = owner.map(|owner| format!(", by {owner}")).unwrap_or_default();
        println!("{:<20} {}", incident.name, incident.title);
        println!("{:<20} -> {word}: {kind}{cause}{owner}", "");
    }
    Ok(())
}

fn named(name: &str) -> Result<&'static Incident> {
    let found = INCIDENTS.iter().find(|incident| incident.name == name);
    found.with_context(|| format!("there is no incident `{name}`; --list names them"))
}

fn show(incidents: Vec<&'static Incident>) -> Result<()> {
    let portlife = portlife()?;
    let mut surprises = Vec::new();
    for incident in incidents {
        println!("=== {}: {}\n", incident.name, incident.title);
        let stage::Performance { told, stdout, stderr } =
            stage::perform(incident, &portlife, &["-o", "text"])?;
        for line in told {
            println!("  {line}");
        }
        println!("\n$ portlife report\n{stdout}");
        if !stdout.starts_with(incident.expected.word) {
            eprintln!("{stderr}");
            surprises.push(incident.name);
        }
    }
    if !surprises.is_empty() {
        bail!("not the verdict that was expected: {}", surprises.join(", "));
    }
    Ok(())
}

/// The tracer, which is built beside this: target/PROFILE/examples/demo, target/PROFILE/portlife.
fn portlife() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own.parent().and_then(|examples| examples.parent());
    let portlife = profile.context("this is not where cargo puts examples")?.join("portlife");
    if !portlife.exists() {
        bail!("{} is not built: `cargo xtask demo` builds it", portlife.display());
    }
    Ok(portlife)
}
