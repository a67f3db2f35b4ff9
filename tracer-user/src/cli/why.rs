//! `portlife why PORT`.

use crate::{
    cli::{Form, Question, print},
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
    pub(crate) question: Question,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { port, namespaces, question } = args;
    let namespaces = super::namespaces(namespaces)?;
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
    let text = match question.output {
        Form::Text => why::text(&answer).into_bytes(),
        Form::Json => {
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
