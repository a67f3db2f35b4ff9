//! The checker itself, on small trees that break one rule each.

use std::collections::BTreeSet;

use crate::{modules::Crate, references::References, rules, sources::Sources, table::Table};

const TABLE: &str = "
Some text.

| module | may use | what it is |
|---|---|---|
| `low/` | | the lowest |
| `middle` | `low` | |
| `high` | all above | |
| `lib` | everything | |

| other | table |
";

const ROOT: (&str, &str) = ("src/lib.rs", "mod low; mod middle; mod high;");
const LOW: (&str, &str) = ("src/low.rs", "pub struct Low;");
const MIDDLE: (&str, &str) = ("src/middle.rs", "use crate::low::Low;");
const HIGH: (&str, &str) = ("src/high.rs", "use crate::{low, middle::*};");

fn layers(files: &[(&str, &str)]) -> Vec<String> {
    let krate = Crate::read(&Sources::made_up(files), "src");
    rules::layers(&krate, &References::of(&krate), &Table::parse(TABLE))
}

fn circles(files: &[(&str, &str)]) -> Vec<String> {
    let krate = Crate::read(&Sources::made_up(files), "src");
    rules::circles(&References::of(&krate), &[])
}

/// The layers of a tree whose lowest module has this code.
fn layers_with_low(code: &str) -> Vec<String> {
    layers(&[ROOT, ("src/low.rs", code), MIDDLE, HIGH])
}

#[test]
fn a_sound_tree_breaks_nothing() {
    let tree = [ROOT, LOW, MIDDLE, HIGH];
    assert_eq!(layers(&tree), [""; 0]);
    assert_eq!(circles(&tree), [""; 0]);
}

#[test]
fn an_import_of_a_higher_floor_is_found_however_it_is_written() {
    for code in [
        "use crate::high::High;",
        "use crate::high;",
        "use crate::{middle::{self}, };",
        "use super::high::*;",
        "fn f() { use crate::high::High; }",
        "fn f() -> crate::high::High { todo!() }",
        "fn f() { super::high::call() }",
        "fn f() { println!(\"{}\", crate::high::VALUE); }",
        "macro_rules! m { () => { $crate::high::call() } }",
        "#[arg(value_parser = crate::high::parse)] struct Low;",
        "mod inner { use super::super::high::High; }",
        "pub use crate::high::High;",
    ] {
        let broken = layers_with_low(code);
        assert_eq!(broken.len(), 1, "{code}: {broken:?}");
        assert!(broken[0].starts_with("src/low.rs:1: `low` uses `"), "{}", broken[0]);
    }
}

#[test]
fn paths_that_lead_nowhere_else_are_no_imports() {
    for code in [
        "use std::high::High;",
        "use ::high::High;",
        "/// See crate::high::High.\nstruct Low; // crate::high",
        "const TEXT: &str = \"crate::high::High\";",
        "#[cfg(test)] mod tests { use crate::high::High; }",
        "#[cfg(all(test, unix))] use crate::high::High;",
        "#[cfg(test)] fn f() { crate::high::call() }",
        "pub(in crate::low) struct Low;",
        "use self::Low as Other; pub struct Low;",
        "fn f(high: u32) -> u32 { high }",
    ] {
        assert_eq!(layers_with_low(code), [""; 0], "{code}");
    }
    assert_eq!(layers_with_low("#[cfg(not(test))] use crate::high::High;").len(), 1);
    assert_eq!(layers_with_low("#[cfg(any(test, unix))] use crate::high::High;").len(), 1);
}

#[test]
fn an_item_of_the_root_is_an_import_of_lib() {
    let root =
        ("src/lib.rs", "mod low; mod middle; mod high; macro_rules! say { () => {} } use say;");
    let low = ("src/low.rs", "fn f() { crate::say!() }");
    assert_eq!(layers(&[root, low, MIDDLE, HIGH]), ["src/low.rs:1: `low` uses `crate::say`"]);
}

#[test]
fn the_table_and_the_modules_must_agree() {
    let root = ("src/lib.rs", "mod low; mod middle; mod extra;");
    let broken = layers(&[root, LOW, MIDDLE, ("src/extra.rs", "")]);
    let expected =
        ["the table has no row for `extra`", "the table has a row for `high`, which is no module"];
    assert_eq!(broken, expected);
    let upside_down = TABLE.replace("| `low/` | |", "| `low/` | `high` |");
    let krate = Crate::read(&Sources::made_up(&[ROOT, LOW, MIDDLE, HIGH]), "src");
    let table = Table::parse(&upside_down);
    let broken = rules::layers(&krate, &References::of(&krate), &table);
    assert_eq!(broken, ["`low` may use `high`, which is not below it"]);
}

#[test]
fn a_circle_is_found_through_several_files() {
    let tree = [
        ("src/lib.rs", "mod a; mod b; mod c; mod d;"),
        ("src/a.rs", "use crate::b::B; pub struct A;"),
        ("src/b.rs", "use crate::c::C; pub struct B;"),
        ("src/c.rs", "pub struct C; fn f() -> super::a::A { todo!() }"),
        ("src/d.rs", "use crate::a::A;"),
    ];
    assert_eq!(
        circles(&tree),
        ["a circle: src/a.rs:1 uses `crate::b::B`, src/b.rs:1 uses `crate::c::C`, \
          src/c.rs:1 uses `super::a::A`"]
    );
}

#[test]
fn only_imports_that_exist_can_be_tolerated() {
    let tree = [
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "use crate::b::B; pub struct A;"),
        ("src/b.rs", "use crate::a::A; pub struct B;"),
    ];
    let references = References::of(&Crate::read(&Sources::made_up(&tree), "src"));
    assert_eq!(rules::circles(&references, &[("src/b.rs", "src/a.rs")]), [""; 0]);
    let broken = rules::circles(&references, &[("src/b.rs", "src/c.rs")]);
    assert_eq!(broken.len(), 2, "{broken:?}");
}

#[test]
fn reexports_lead_to_the_file_that_defines_the_item() {
    // Siblings that use each other's items through their directory's mod.rs.
    let tree = [
        ("src/lib.rs", "mod d;"),
        ("src/d/mod.rs", "mod a; mod b; pub use a::A; pub use b::*;"),
        ("src/d/a.rs", "use super::B; pub struct A;"),
        ("src/d/b.rs", "pub struct B;"),
    ];
    assert_eq!(circles(&tree), [""; 0]);
    let mut circular = tree;
    circular[3].1 = "use crate::d::A; pub struct B;";
    assert_eq!(circles(&circular).len(), 1);
    // A module of the directory that uses what mod.rs itself defines, which uses it in turn.
    circular[1].1 = "mod a; mod b; pub use a::A; pub use b::*; pub fn make() -> A { A }";
    circular[2].1 = "use super::make; pub struct A;";
    circular[3].1 = "pub struct B;";
    let broken = circles(&circular);
    assert_eq!(broken, ["a circle: src/d/a.rs:1 uses `super::make`, src/d/mod.rs:1 uses `A`"]);
}

#[test]
fn an_imported_module_counts_for_what_is_used_of_it() {
    let tree = [
        ("src/lib.rs", "mod a; mod d;"),
        ("src/a.rs", "use crate::d; pub struct A; fn f() -> d::D { d::D }"),
        ("src/d/mod.rs", "mod b; mod c; pub use b::D; pub use c::C;"),
        ("src/d/b.rs", "pub struct D;"),
        ("src/d/c.rs", "pub struct C; use crate::a::A;"),
    ];
    assert_eq!(circles(&tree), [""; 0]);
    let mut circular = tree;
    circular[3].1 = "pub struct D; use crate::a::A;";
    let broken = circles(&circular);
    assert_eq!(broken, ["a circle: src/a.rs:1 uses `d::D`, src/d/b.rs:1 uses `crate::a::A`"]);
}

#[test]
fn a_file_that_no_module_declares_is_an_orphan() {
    let files = [
        ("src/lib.rs", "mod a; #[cfg(test)] mod tests;"),
        ("src/a/mod.rs", "mod b;"),
        ("src/a/b.rs", ""),
        ("src/a/c.rs", ""),
        ("src/tests.rs", ""),
        ("src/main.rs", ""),
    ];
    assert_eq!(Crate::read(&Sources::made_up(&files), "src").orphans, ["src/a/c.rs"]);
}

#[test]
fn a_long_file_is_found() {
    let longest = "\n".repeat(rules::LONGEST_FILE_LINES);
    assert_eq!(rules::long_files(&Sources::made_up(&[("a.rs", &longest)])), [""; 0]);
    let longer = format!("{longest}\n");
    let broken = rules::long_files(&Sources::made_up(&[("a.rs", &longer)]));
    assert_eq!(broken, ["a.rs has 701 lines"]);
}

#[test]
fn unsafe_code_is_found_also_in_macros_but_not_in_words() {
    let files = [
        ("kernel/a.rs", "unsafe fn f() {}"),
        ("kernel.rs", "// unsafe\n#![deny(unsafe_code)]\nconst A: &str = \"unsafe\";"),
        ("kernels/a.rs", "fn f() {\n    m!(unsafe { g() });\n}"),
    ];
    let broken = rules::unsafe_code(&Sources::made_up(&files), &["kernel"]);
    assert_eq!(broken, ["kernels/a.rs:2: `unsafe`"]);
}

#[test]
fn hook_names_are_found_in_literals() {
    let files = [
        ("probes/a.rs", "#[fexit(function = \"inet_bind\")] fn bind4(ctx: Context) {}"),
        ("src/lib.rs", "mod kernel; mod views;"),
        ("src/kernel.rs", "const A: &str = \"inet_bind\";"),
        (
            "src/views.rs",
            "/// inet_bind\nfn f() { say!(\"after inet_bind: {}\", inet_bind) }\n\
             const INET_BIND: &str = \"inet_binds\";",
        ),
    ];
    let sources = Sources::made_up(&files);
    let hooks = rules::hooks_of(&sources, "probes");
    assert_eq!(hooks, BTreeSet::from(["inet_bind".to_owned()]));
    let references = References::of(&Crate::read(&sources, "src"));
    let broken = rules::hook_names(&references, &hooks, &["src/kernel.rs"]);
    assert_eq!(broken, ["src/views.rs:2: the literal names the hook inet_bind"]);
}
