//! The answer of `portlife check`: whether it can run here, and what the settings mean for ports.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    capacity::{Grade, Verdict},
    model::{Instant, Netns},
    record::HookReport,
    views::stream::json::Json,
};

/// What there is to say.
#[derive(Clone, Debug)]
pub struct Check {
    /// The kernel's release.
    pub kernel: String,
    /// What the tracer can do here, or the sentence that says why it cannot run.
    pub tracer: Result<Tracer, String>,
    /// The namespaces whose settings were asked for.
    pub namespaces: Vec<Namespace>,
}

/// A tracer that runs.
#[derive(Clone, Debug)]
pub struct Tracer {
    /// Every hook.
    pub hooks: Vec<Hook>,
    /// What is not seen for want of privileges, in sentences.
    pub warnings: Vec<String>,
    /// What came of connections that were made to see whether the hooks tell of them.
    pub self_test: SelfTest,
}

/// A hook, and what it costs.
#[derive(Clone, Debug)]
pub struct Hook {
    /// How it is attached, or why it is not.
    pub report: HookReport,
    /// What tells the same without it, or what is not told.
    pub without: &'static str,
    /// Nanoseconds of a run, on average, where the kernel keeps statistics and it ran.
    pub run_ns: Option<u64>,
}

/// How the self-test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Every record came.
    Passed {
        /// Connections that were made.
        connections: u32,
    },
    /// Some records did not come.
    Failed {
        /// What was missing, in a sentence.
        reason: String,
    },
    /// No connection could be made.
    NotRun {
        /// Why, in a sentence.
        reason: String,
    },
}

/// A namespace and its settings.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Which.
    pub netns: Netns,
    /// The settings with their verdicts, or why they cannot be read.
    pub verdicts: Result<Vec<Verdict>, String>,
}

/// The answer for people.
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
            kernel: &'a str,
            can_run: bool,
            reason: Option<&'a str>,
            hooks: Vec<HookRecord<'a>>,
            warnings: &'a [String],
            self_test: Option<TestRecord<'a>>,
            namespaces: Vec<NamespaceRecord<'a>>,
        }
        #[derive(Serialize)]
        struct HookRecord<'a> {
            name: &'a str,
            attached: Option<&'a str>,
            reason: Option<&'a str>,
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
                    attached: report.outcome.as_deref().ok(),
                    reason: report.outcome.as_ref().err().map(String::as_str),
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
                .map(|Namespace { netns, verdicts }| NamespaceRecord {
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
            // The reason says who tells it instead.
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
