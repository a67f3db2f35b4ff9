//! The answer of `portlife check`: whether portlife can run here, and verdicts on the settings.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    capacity::{BindView, Grade, Verdict},
    foreign::Foreign,
    model::{Instant, Netns},
    record::HookReport,
    views::{
        format::{count, number},
        stream::json::Json,
    },
};

/// The answer.
#[derive(Clone, Debug)]
pub struct Check {
    /// The kernel's release.
    pub kernel: Foreign<'static>,
    /// The state of the tracer, or why it cannot run, in a sentence.
    pub tracer: Result<Tracer, String>,
    /// The namespaces whose settings are judged.
    pub namespaces: Vec<Namespace>,
}

/// A tracer that can run.
#[derive(Clone, Debug)]
pub struct Tracer {
    /// Every hook that was tried.
    pub hooks: Vec<Hook>,
    /// What cannot be observed for lack of privileges, in sentences.
    pub warnings: Vec<String>,
    /// The result of the self-test, which makes connections and checks that each is reported.
    pub self_test: SelfTest,
}

/// A hook, and what it costs.
#[derive(Clone, Debug)]
pub struct Hook {
    /// How it is attached, or why it is not.
    pub report: HookReport,
    /// The hook that replaces it if it is not attached, or what is lost.
    pub without: &'static str,
    /// Mean run time in nanoseconds. `None` if it did not run, or if the kernel keeps no statistics.
    pub run_ns: Option<u64>,
}

/// The result of the self-test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Every expected record was reported.
    Passed {
        /// Number of connections that were made.
        connections: u32,
    },
    /// Some records were missing.
    Failed {
        /// What was missing, in a sentence.
        reason: String,
    },
    /// The test connections could not be made.
    NotRun {
        /// Why, in a sentence.
        reason: String,
    },
}

/// A network namespace and the verdicts on its settings.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// The network namespace.
    pub netns: Netns,
    /// The verdicts, or why the settings cannot be read, in a sentence.
    pub verdicts: Result<Vec<Verdict>, String>,
    /// What a bind() of an IPv4 socket to port 0 and all addresses finds. `None` if the bind buckets
    /// cannot be read.
    pub bind_any: Option<BindView>,
}

/// The answer as text.
#[must_use]
pub fn text(check: &Check) -> String {
    let Check { kernel, tracer, namespaces } = check;
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "portlife {} on Linux {kernel}\n", env!("CARGO_PKG_VERSION"));
    match tracer {
        Err(reason) => {
            let _ = writeln!(text, "portlife cannot run here: {reason}");
        }
        Ok(tracer) => write_tracer(&mut text, tracer),
    }
    for namespace in namespaces {
        let _ = writeln!(text, "\nsettings of network namespace {}", namespace.netns.0);
        match &namespace.verdicts {
            Err(reason) => {
                let _ = writeln!(text, "  cannot be read: {reason}");
            }
            Ok(verdicts) => {
                for Verdict { setting, value, grade: how, meaning } in verdicts {
                    let value = if value.is_empty() { "(none)" } else { value };
                    let mark = mark(*how);
                    let _ = writeln!(text, "  {mark:<4} net.{setting} = {value}\n       {meaning}");
                }
                if let Some(BindView { capacity, used: _, headroom }) = &namespace.bind_any {
                    let mark = if headroom.min == 0 { "BAD" } else { "ok" };
                    let (left, all) = (number(headroom.min), count(*capacity, "port"));
                    let _ = writeln!(text, "  {mark:<4} {left} of {all} left for bind() to port 0");
                }
            }
        }
    }
    text
}

impl Json {
    /// The answer as one record, of type `check`.
    #[must_use]
    pub fn check(mut self, at: Instant, check: &Check) -> Vec<u8> {
        #[derive(Serialize)]
        struct Record<'a> {
            version: &'static str,
            kernel: &'a Foreign<'static>,
            can_run: bool,
            reason: Option<&'a str>,
            hooks: Vec<HookRecord<'a>>,
            warnings: &'a [String],
            self_test: Option<TestRecord<'a>>,
            namespaces: Vec<NamespaceRecord<'a>>,
        }
        #[derive(Serialize)]
        struct HookRecord<'a> {
            name: &'a Foreign<'static>,
            attached: Option<&'a Foreign<'static>>,
            reason: Option<&'a Foreign<'static>>,
            without: &'static str,
            run_ns: Option<u64>,
        }
        #[derive(Serialize)]
        struct TestRecord<'a> {
            outcome: &'static str,
            connections: u32,
            reason: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct NamespaceRecord<'a> {
            netns: u32,
            reason: Option<&'a str>,
            settings: Vec<SettingRecord<'a>>,
            bind_any: Option<BindAnyRecord>,
        }
        #[derive(Serialize)]
        struct BindAnyRecord {
            capacity: u32,
            used: u32,
            headroom: u32,
        }
        #[derive(Serialize)]
        struct SettingRecord<'a> {
            setting: &'static str,
            value: &'a str,
            verdict: &'static str,
            meaning: &'a str,
        }
        let Check { kernel, tracer, namespaces } = check;
        let running = tracer.as_ref().ok();
        let record = Record {
            version: env!("CARGO_PKG_VERSION"),
            kernel,
            can_run: running.is_some(),
            reason: tracer.as_ref().err().map(String::as_str),
            hooks: running
                .map_or(&[][..], |tracer| &tracer.hooks)
                .iter()
                .map(|Hook { report, without, run_ns }| HookRecord {
                    name: &report.name,
                    attached: report.outcome.as_ref().ok(),
                    reason: report.outcome.as_ref().err(),
                    without,
                    run_ns: *run_ns,
                })
                .collect(),
            warnings: running.map_or(&[][..], |tracer| &tracer.warnings),
            self_test: running.map(|tracer| match &tracer.self_test {
                SelfTest::Passed { connections } => {
                    TestRecord { outcome: "passed", connections: *connections, reason: None }
                }
                SelfTest::Failed { reason } => {
                    TestRecord { outcome: "failed", connections: 0, reason: Some(reason) }
                }
                SelfTest::NotRun { reason } => {
                    TestRecord { outcome: "not_run", connections: 0, reason: Some(reason) }
                }
            }),
            namespaces: namespaces
                .iter()
                .map(|Namespace { netns, verdicts, bind_any }| NamespaceRecord {
                    bind_any: bind_any.map(|view| BindAnyRecord {
                        capacity: view.capacity,
                        used: view.used,
                        headroom: view.headroom.min,
                    }),
                    netns: netns.0,
                    reason: verdicts.as_ref().err().map(String::as_str),
                    settings: verdicts
                        .as_ref()
                        .map_or(&[][..], Vec::as_slice)
                        .iter()
                        .map(|Verdict { setting, value, grade: how, meaning }| SettingRecord {
                            setting,
                            value,
                            verdict: grade(*how),
                            meaning,
                        })
                        .collect(),
                })
                .collect(),
        };
        self.write("check", at, record);
        std::mem::take(super::View::buffer(&mut self))
    }
}

fn write_tracer(text: &mut String, tracer: &Tracer) {
    let Tracer { hooks, warnings, self_test } = tracer;
    let _ = writeln!(text, "portlife can run here; hooks:");
    for Hook { report, without, run_ns } in hooks {
        let cost = run_ns.map_or_else(String::new, |ns| format!("{ns} ns a run"));
        let _ = match (&report.outcome, report.loss) {
            (Ok(how), _) => writeln!(text, "  ok   {:<28} {how:<7} {cost}", report.name),
            // The reason names the hook that replaces it.
            (Err(reason), None) => writeln!(text, "  -    {:<28} {reason}", report.name),
            (Err(reason), Some(_)) => {
                writeln!(text, "  BAD  {:<28} {reason}: {without}", report.name)
            }
        };
    }
    for warning in warnings {
        let _ = writeln!(text, "  note {warning}");
    }
    let _ = match self_test {
        SelfTest::Passed { connections } => writeln!(
            text,
            "  ok   self-test: {connections} connections made and closed, {connections} bind()s \
             failed, and each was reported"
        ),
        SelfTest::Failed { reason } => writeln!(text, "  BAD  self-test: {reason}"),
        SelfTest::NotRun { reason } => writeln!(text, "  note self-test: {reason}"),
    };
}

fn mark(how: Grade) -> &'static str {
    match how {
        Grade::Good => "ok",
        Grade::Note => "note",
        Grade::Bad => "BAD",
    }
}

fn grade(how: Grade) -> &'static str {
    match how {
        Grade::Good => "good",
        Grade::Note => "note",
        Grade::Bad => "bad",
    }
}
