//! The architecture: docs/ARCHITECTURE.md's table of layers, and a few rules that keep the sources
//! readable, checked against the sources themselves.

mod made_up;
mod modules;
mod references;
mod rules;
mod sources;
mod table;

use std::fs;

use modules::Crate;
use references::References;
use sources::{Sources, workspace_root};
use table::Table;

/// The crate that has layers.
const LAYERED: &str = "tracer-user/src";

/// The last is a test's: io_uring takes addresses from its user.
const UNSAFE_ALLOWED: [&str; 3] =
    ["tracer-ebpf", "tracer-user/src/kernel", "tracer-user/tests/scenarios/io_uring.rs"];

/// The witness reads the same tracepoints by itself, from tracefs, to check on the programs.
const HOOK_NAMES_ALLOWED: [&str; 2] =
    ["tracer-user/src/kernel", "tracer-user/src/testing/witness.rs"];

/// What breaks a rule today. These lists may only become shorter: a test fails on what they lack,
/// and on what they need no longer have.
const TOLERATED_USES: [&str; 0] = [];
const TOLERATED_LENGTHS: [&str; 0] = [];
/// One import of each circle: the first file's of the second.
const TOLERATED_IMPORTS: [(&str, &str); 0] = [];

fn assert_kept(broken: &[String], tolerated: &[&str]) {
    let is_tolerated = |text: &&String| tolerated.iter().any(|known| text.contains(known));
    let mut broken_anew: Vec<_> =
        broken.iter().filter(|text| !is_tolerated(text)).cloned().collect();
    for known in tolerated.iter().filter(|known| !broken.iter().any(|text| text.contains(**known)))
    {
        broken_anew.push(format!("{known}: no longer so, and need not be tolerated"));
    }
    assert!(broken_anew.is_empty(), "{} broken:\n{}", broken_anew.len(), broken_anew.join("\n"));
}

fn layered_crate() -> (Crate, References) {
    let krate = Crate::read(&Sources::of_workspace(), LAYERED);
    let references = References::of(&krate);
    (krate, references)
}

#[test]
fn modules_use_only_the_floors_below_them() {
    let markdown = fs::read_to_string(workspace_root().join("docs/ARCHITECTURE.md"))
        .expect("docs/ARCHITECTURE.md exists");
    let (krate, references) = layered_crate();
    let broken = rules::layers(&krate, &references, &Table::parse(&markdown));
    assert_kept(&broken, &TOLERATED_USES);
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let (_, references) = layered_crate();
    assert_kept(&rules::circles(&references, &TOLERATED_IMPORTS), &[]);
}

#[test]
fn every_file_belongs_to_a_module() {
    let (krate, _) = layered_crate();
    assert_kept(&krate.orphans, &[]);
}

#[test]
fn no_file_is_too_long() {
    assert_kept(&rules::long_files(&Sources::of_workspace()), &TOLERATED_LENGTHS);
}

#[test]
fn unsafe_code_is_confined() {
    assert_kept(&rules::unsafe_code(&Sources::of_workspace(), &UNSAFE_ALLOWED), &[]);
}

#[test]
fn hooks_are_named_in_the_kernel_module_only() {
    let sources = Sources::of_workspace();
    let hooks = rules::hooks_of(&sources, "tracer-ebpf/src/probes");
    assert!(hooks.contains("inet_sock_set_state"), "{hooks:?}");
    let (_, references) = layered_crate();
    assert_kept(&rules::hook_names(&references, &hooks, &HOOK_NAMES_ALLOWED), &[]);
}
