//! `portlife why PORT|ADDR:PORT`.

use std::net::{IpAddr, SocketAddr};

use super::{
    options::{AnswerOptions, OutputFormat, resolve_namespaces},
    output::print,
};
use crate::{
    kernel::{
        host::{cgroup::CgroupRoot, clock},
        namespace::scope::Scope,
    },
    model::{Addr, Instant, Port},
    sources,
    views::{
        Verbosity,
        stream::json::Json,
        why::{self, Cgroups},
    },
};

#[derive(clap::Args)]
pub struct Args {
    /// A local port, or a destination: which ports connections to it use, and how many are left
    #[arg(value_name = "PORT|ADDR:PORT", value_parser = what)]
    what: What,
    /// Only this network namespace: its inode, a path to it, or pid:N for that of a process
    #[arg(short, long = "netns", value_name = "NETNS")]
    namespaces: Vec<String>,
    #[command(flatten)]
    pub(super) options: AnswerOptions,
}

/// What the question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A local port.
    Port(Port),
    /// An address and port of a peer.
    Destination(Addr, Port),
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { what, namespaces, options } = args;
    let scope = Scope::of(&resolve_namespaces(namespaces)?);
    let root = CgroupRoot::open().ok();
    let find_cgroup = |id| sources::cgroup::by_id(root.as_ref()?, id);
    let json = || Json::new(clock::realtime_offset_ns(), Verbosity::Quiet);
    let now = || Instant::from_ns(clock::monotonic_ns());
    let answer = match *what {
        What::Port(port) => {
            let view = sources::port::look_for(port, scope)?;
            report_problems(&view.problems);
            let cgroups = Cgroups::of(view.leases(), find_cgroup);
            let answer = why::port::Answer { port, view: &view, cgroups: &cgroups };
            match options.output {
                OutputFormat::Text => why::port::text(&answer).into_bytes(),
                OutputFormat::Json => json().why(now(), &answer),
            }
        }
        What::Destination(addr, port) => {
            let view = sources::destination::look_for((addr, port), scope)?;
            report_problems(&view.problems);
            let cgroups = Cgroups::of(view.leases(), find_cgroup);
            let answer = why::destination::Answer { view: &view, cgroups: &cgroups };
            match options.output {
                OutputFormat::Text => why::destination::text(&answer).into_bytes(),
                OutputFormat::Json => json().why_destination(now(), &answer),
            }
        }
    };
    print(&answer)
}

fn report_problems(problems: &[String]) {
    for problem in problems {
        crate::stderr::write_line!("portlife: {problem}");
    }
}

fn what(text: &str) -> Result<What, String> {
    const EXPECTED: &str =
        "expected a port from 1 to 65535, or a destination: ADDR:PORT or [ADDR]:PORT";
    let port = |number: u16| (number != 0).then_some(Port(number)).ok_or(EXPECTED.to_owned());
    if let Ok(number) = text.parse::<u16>() {
        return port(number).map(What::Port);
    }
    let Ok(destination) = text.parse::<SocketAddr>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(addr)) => format!("the port is missing: expected {addr}:PORT"),
            Ok(IpAddr::V6(addr)) => format!("expected [{addr}]:PORT, with the brackets"),
            Err(_) => EXPECTED.to_owned(),
        });
    };
    if destination.ip().is_unspecified() {
        return Err(
            "that is no destination: connect() takes it for the loopback address".to_owned()
        );
    }
    Ok(What::Destination(destination.ip().into(), port(destination.port())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_destinations_are_told_apart() {
        let destination = |addr: &str, port| {
            Ok(What::Destination(addr.parse::<IpAddr>().unwrap().into(), Port(port)))
        };
        assert_eq!(what("80"), Ok(What::Port(Port(80))));
        assert_eq!(what("10.0.0.2:80"), destination("10.0.0.2", 80));
        assert_eq!(what("[fd00::2]:80"), destination("fd00::2", 80));
        assert_eq!(what("[::ffff:10.0.0.2]:80"), destination("10.0.0.2", 80));
    }

    #[test]
    fn malformed_questions_are_rejected_with_what_is_expected() {
        for text in
            ["", "0", "65536", "http", "10.0.0.2:0", "10.0.0.2:65536", "example.org:80", ":80"]
        {
            let error = what(text).unwrap_err();
            assert!(error.starts_with("expected a port from 1 to 65535"), "{text}: {error}");
        }
        for (text, hint) in [
            ("10.0.0.2", "expected 10.0.0.2:PORT"),
            ("fd00::2", "expected [fd00::2]:PORT"),
            ("0.0.0.0:80", "no destination"),
            ("[::]:80", "no destination"),
        ] {
            let error = what(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
