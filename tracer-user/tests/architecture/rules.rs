//! The rules. Each returns what breaks it, a sentence each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proc_macro2::{TokenStream, TokenTree};

use crate::{
    modules::Crate,
    references::{Literal, ROOT, Reference, References},
    sources::Sources,
    table::{Allowed, Table},
};

pub const LONGEST_FILE_LINES: usize = 700;

/// Every top-level module has its row, a row allows only what stands above it, and no module uses
/// what its row does not name.
pub fn layers(krate: &Crate, references: &References, table: &Table) -> Vec<String> {
    let mut broken = Vec::new();
    let modules: BTreeSet<_> = krate.top_level().chain([ROOT]).collect();
    for module in &modules {
        if table.row(module).is_none() {
            broken.push(format!("the table has no row for `{module}`"));
        }
    }
    let mut above = BTreeSet::new();
    for row in &table.0 {
        if !modules.contains(row.module.as_str()) {
            broken.push(format!("the table has a row for `{}`, which is no module", row.module));
        }
        if let Allowed::These(allowed) = &row.may_use {
            for name in allowed.difference(&above) {
                broken.push(format!("`{}` may use `{name}`, which is not below it", row.module));
            }
        }
        above.insert(row.module.clone());
    }
    let mut seen = BTreeSet::new();
    for Reference { file, line, from, to, path, .. } in &references.paths {
        let allowed = from == to || table.row(from).is_some_and(|row| row.may_use.includes(to));
        if !allowed && seen.insert((file, path)) {
            broken.push(format!("{file}:{line}: `{from}` uses `{path}`"));
        }
    }
    broken
}

/// No file uses, through others, what uses it. Tolerated are the imports of one file from another,
/// as long as there are any.
pub fn circles(references: &References, tolerated: &[(&str, &str)]) -> Vec<String> {
    let mut edges: BTreeMap<&str, BTreeMap<&str, &Reference>> = BTreeMap::new();
    for reference in &references.paths {
        if let Some(to) = &reference.defined_in
            && *to != reference.file
        {
            edges.entry(&reference.file).or_default().entry(to).or_insert(reference);
        }
    }
    let mut broken = Vec::new();
    for (from, to) in tolerated {
        if edges.get_mut(from).and_then(|edges| edges.remove(to)).is_none() {
            broken.push(format!("{from} no longer uses {to}, which need not be tolerated"));
        }
    }
    let mut reported = BTreeSet::new();
    for start in edges.keys() {
        if reported.contains(start) {
            continue;
        }
        let Some(circle) = shortest_circle(start, &edges) else { continue };
        let steps: Vec<_> = circle
            .iter()
            .map(|step| format!("{}:{} uses `{}`", step.file, step.line, step.path))
            .collect();
        reported.extend(circle.iter().map(|step| step.file.as_str()));
        broken.push(format!("a circle: {}", steps.join(", ")));
    }
    broken
}

/// The references that lead from a file back to it, if any do.
fn shortest_circle<'a>(
    start: &'a str,
    edges: &BTreeMap<&'a str, BTreeMap<&'a str, &'a Reference>>,
) -> Option<Vec<&'a Reference>> {
    // For each file that was reached, the last step to it.
    let mut reached: BTreeMap<&str, &Reference> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for (to, reference) in edges.get(file).into_iter().flatten() {
            if *to == start {
                let mut steps = vec![*reference];
                let mut at = file;
                while at != start {
                    steps.push(reached[at]);
                    at = &reached[at].file;
                }
                steps.reverse();
                return Some(steps);
            }
            if !reached.contains_key(to) {
                reached.insert(to, reference);
                queue.push_back(to);
            }
        }
    }
    None
}

/// No file is longer than a reader can keep in mind.
pub fn long_files(sources: &Sources) -> Vec<String> {
    sources
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE_LINES)
        .map(|(path, lines)| format!("{path} has {lines} lines"))
        .collect()
}

/// `unsafe` occurs only in these files and directories.
pub fn unsafe_code(sources: &Sources, allowed: &[&str]) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in sources.iter().filter(|(path, _)| !is_below_any(path, allowed)) {
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        for_each_token(tokens, &mut |token, _| {
            if let TokenTree::Ident(ident) = token
                && ident == "unsafe"
            {
                broken.push(format!("{path}:{}: `unsafe`", ident.span().start().line));
            }
        });
    }
    broken
}

/// String literals name the kernel's hooks only in these files and directories.
pub fn hook_names(
    references: &References,
    hooks: &BTreeSet<String>,
    allowed: &[&str],
) -> Vec<String> {
    let mut broken = Vec::new();
    let literals =
        references.literals.iter().filter(|literal| !is_below_any(&literal.file, allowed));
    for Literal { file, line, text } in literals {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| hooks.contains(*word)) {
            broken.push(format!("{file}:{line}: the literal names the hook {word}"));
        }
    }
    broken
}

/// The kernel's names of what the eBPF programs attach to: `function = "..."` in their attributes.
pub fn hooks_of(sources: &Sources, directory: &str) -> BTreeSet<String> {
    let mut hooks = BTreeSet::new();
    for (path, text) in sources.below(directory) {
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        for_each_token(tokens, &mut |token, before| {
            if let TokenTree::Literal(literal) = token
                && before.ends_with("function=")
            {
                hooks.insert(literal.to_string().trim_matches('"').to_owned());
            }
        });
    }
    hooks
}

/// Calls a function with each token and what stands before it in its group, without blanks.
fn for_each_token(tokens: TokenStream, call: &mut impl FnMut(&TokenTree, &str)) {
    let mut before = String::new();
    for token in tokens {
        call(&token, &before);
        match token {
            TokenTree::Group(group) => for_each_token(group.stream(), call),
            other => before.push_str(&other.to_string()),
        }
    }
}

fn is_below_any(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| {
        path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}
