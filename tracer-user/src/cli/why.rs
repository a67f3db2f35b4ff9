//! `portlife why PORT`.

use super::{
    options::{AnswerOptions, OutputFormat, resolve_namespaces},
    output::print,
};
use crate::{
    kernel::{
        host::{
            cgroup::{CgroupRoot, container_of},
            clock,
        },
        namespace::scope::Scope,
    },
    model::{Instant, Port},
    record::Cgroup,
    sources::occupants,
    views::{
        Verbosity,
        stream::json::Json,
        why::{self, Answer},
    },
};

#[derive(clap::Args)]
pub struct Args {
    /// The port
    #[arg(value_name = "PORT", value_parser = port)]
    port: Port,
    /// Only this network namespace: its inode, a path to it, or pid:N for that of a process
    #[arg(short, long = "netns", value_name = "NETNS")]
    namespaces: Vec<String>,
    #[command(flatten)]
    pub(super) options: AnswerOptions,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { port, namespaces, options } = args;
    let namespaces = resolve_namespaces(namespaces)?;
    let view = occupants::look_for(*port, Scope::of(&namespaces))?;
    for problem in &view.problems {
        crate::stderr::write_line!("portlife: {problem}");
    }
    let cgroups = CgroupRoot::open().ok();
    let cgroup_of = |id| {
        let path = cgroups.as_ref()?.path_of(id)?;
        let container = container_of(&path).map(str::to_owned);
        Some(Cgroup { path, container })
    };
    let answer = Answer { port: *port, view: &view, cgroup_of: &cgroup_of };
    let text = match options.output {
        OutputFormat::Text => why::text(&answer).into_bytes(),
        OutputFormat::Json => {
            let json = Json::new(clock::realtime_offset_ns(), Verbosity::Quiet);
            json.why(Instant::from_ns(clock::monotonic_ns()), &answer)
        }
    };
    print(&text)
}

fn port(text: &str) -> Result<Port, String> {
    text.parse::<u16>()
        .ok()
        .filter(|number| *number != 0)
        .map(Port)
        .ok_or_else(|| "give a port from 1 to 65535".to_owned())
}
