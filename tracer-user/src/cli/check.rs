//! `portlife check`.

use std::{collections::BTreeSet, fs::File};

use super::{
    options::{AnswerOptions, OutputFormat, resolve_namespaces},
    output::print,
};
use crate::{
    agent::self_test::{self, CONNECTIONS, Tested},
    capacity::{self, BindAny, NamespaceState},
    kernel::{
        hooks::{loader::LoadOptions, table::HookFamily},
        host::{clock, kernel_release},
        lists::{
            holders::{HolderLists, HolderView},
            snapshot::{self, Snapshot},
        },
        namespace::{
            netns,
            scope::Scope,
            settings::{SettingsError, SettingsFiles},
        },
    },
    model::{Family, HeldBy, Instant, Netns, Port, Settings},
    record::HookReport,
    views::{
        Verbosity,
        check::{self, Check, Hook, Namespace, SelfTest, Tracer},
        stream::json::Json,
    },
};

#[derive(clap::Args)]
pub struct Args {
    /// Judge the settings of this network namespace instead of portlife's own: its inode, a path, or
    /// pid:N for that of a process
    #[arg(short, long = "netns", value_name = "NETNS")]
    namespaces: Vec<String>,
    #[command(flatten)]
    pub(super) options: AnswerOptions,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args { namespaces, options } = args;
    let mut wanted = resolve_namespaces(namespaces)?;
    let own = Netns(netns::inode_of(&File::open("/proc/thread-self/ns/net")?)?);
    if wanted.is_empty() {
        wanted.push(own);
    }
    // The ring is polled by the runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let load =
        LoadOptions { ring_bytes: 4 << 20, hooks: HookFamily::Auto, scope: Scope::default() };
    let mut tested = self_test::run(&load);
    let files = tested.as_ref().ok().and_then(|tested| tested.probes.open_files.as_ref());
    let snapshot = snapshot::take(files, None, Scope::of(&wanted), None);
    // Without every holder the ports that are left cannot be counted.
    let lists = HolderLists::load().ok().filter(HolderLists::lists_idle);
    let check = Check {
        kernel: kernel_release(),
        tracer: tested.as_mut().map(tracer).map_err(|error| error.to_string()),
        namespaces: wanted
            .iter()
            .map(|netns| judge(*netns, own, &snapshot, lists.as_ref()))
            .collect(),
    };
    let text = match options.output {
        OutputFormat::Text => check::text(&check).into_bytes(),
        OutputFormat::Json => {
            let json = Json::new(clock::realtime_offset_ns(), Verbosity::Quiet);
            json.check(Instant::from_ns(clock::monotonic_ns()), &check)
        }
    };
    print(&text)?;
    // The answer contains the error. It is returned for the exit code.
    tested.map(|_| ()).map_err(Into::into)
}

fn tracer(tested: &mut Tested) -> Tracer {
    let Tested { probes, records, costs } = tested;
    let hooks = probes.hooks.statuses().into_iter().map(|hook| Hook {
        report: HookReport::from(&hook),
        without: hook.without,
        run_ns: costs.iter().find(|cost| cost.hook == hook.name).map(|cost| cost.ns / cost.runs),
    });
    Tracer {
        hooks: hooks.collect(),
        warnings: std::mem::take(&mut probes.warnings),
        self_test: match records {
            Err(error) => {
                SelfTest::NotRun { reason: format!("no test connection could be made: {error}") }
            }
            Ok(records) if records.missing().next().is_none() => {
                SelfTest::Passed { connections: CONNECTIONS }
            }
            Ok(records) => {
                let missing: Vec<_> = records
                    .missing()
                    .map(|(name, count)| format!("{count} of {CONNECTIONS} {name}"))
                    .collect();
                SelfTest::Failed { reason: format!("only {} were reported", missing.join(", ")) }
            }
        },
    }
}

fn judge(netns: Netns, own: Netns, snapshot: &Snapshot, lists: Option<&HolderLists>) -> Namespace {
    let here = || snapshot.held.iter().filter(|held| held.netns == netns);
    let listeners: BTreeSet<Port> = here()
        .filter(|held| held.by == HeldBy::Socket(tracer_ebpf::TcpState::Listen))
        .map(|held| held.local_port)
        .collect();
    let listeners: Vec<_> = listeners.into_iter().collect();
    let time_waits = here().filter(|held| matches!(held.by, HeldBy::TimeWait(_))).count();
    let time_waits = u32::try_from(time_waits).unwrap_or(u32::MAX);
    match read_namespace(netns, own, lists) {
        Ok((settings, holders)) => Namespace {
            netns,
            verdicts: Ok(capacity::judge(&settings, &listeners, time_waits)),
            bind_any: lists.zip(holders).map(|(lists, HolderView { holders, at })| {
                let state = NamespaceState {
                    settings: &settings,
                    rules: lists.rules(),
                    holders: &holders,
                    now: at,
                };
                state.bind_any(&BindAny::to_all_addresses(Family::Ipv4))
            }),
        },
        Err(reason) => Namespace { netns, verdicts: Err(reason), bind_any: None },
    }
}

/// The settings of a namespace, and the holders of its ports if they can be listed.
///
/// # Errors
/// If the settings cannot be read: why, in a sentence.
fn read_namespace(
    netns: Netns,
    own: Netns,
    lists: Option<&HolderLists>,
) -> Result<(Settings, Option<HolderView>), String> {
    let read = |files: Result<SettingsFiles, SettingsError>| {
        files.map_err(|error| error.to_string())?.read().map_err(|error| error.to_string())
    };
    if netns == own {
        // Entering a namespace, even one's own, needs a privilege that reading does not.
        let settings = read(SettingsFiles::open())?;
        return Ok((settings, lists.and_then(|lists| lists.of_this_thread().ok())));
    }
    let handle = netns::Namespaces::discover(&[])
        .take(netns.0)
        .ok_or_else(|| "it does not exist, or nothing refers to it".to_owned())?;
    let settings = read(SettingsFiles::open_in(&handle))?;
    Ok((settings, lists.and_then(|lists| lists.of(&handle).ok())))
}
