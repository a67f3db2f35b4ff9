//! The modules of a crate, and where a path leads.
//!
//! Test-only items are left out: the layers bind the product, not its tests.

use std::collections::{BTreeMap, BTreeSet};

use syn::{Attribute, Item, Meta, Token, UseTree, Visibility, punctuated::Punctuated};

use crate::sources::Sources;

/// The names of a module's ancestors and its own; empty for the crate's root.
pub type ModulePath = Vec<String>;

pub struct Crate {
    modules: BTreeMap<ModulePath, Module>,
    /// Files of the crate that no module declares.
    pub orphans: Vec<String>,
}

/// A module in a file of its own, or inline in another's.
pub struct Module {
    pub path: ModulePath,
    pub file: String,
    /// All but its modules and what is only for tests.
    pub items: Vec<Item>,
    /// Names of items that it defines.
    defined: BTreeSet<String>,
    /// Names that its `use` items bring in, and the paths that they stand for.
    imported: BTreeMap<String, Vec<String>>,
    /// What it imports with `*`.
    globs: Vec<Vec<String>>,
}

/// Where a path leads.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    Module(&'a Module),
    /// An item that this module defines.
    ItemOf(&'a Module),
    /// Another crate.
    External,
}

/// One path of a `use` item.
pub struct UseLeaf {
    pub segments: Vec<String>,
    /// What it is called here; `None` for `*`.
    pub name: Option<String>,
    pub line: usize,
}

/// Chains of re-exports that are longer than this are circles.
const LONGEST_CHAIN: usize = 16;

impl Crate {
    /// Reads the crate whose sources are below this directory, from its `lib.rs`. A `main.rs`
    /// beside it is a crate of its own.
    pub fn read(sources: &Sources, directory: &str) -> Self {
        let root = format!("{directory}/lib.rs");
        let mut reader = Reader { sources, modules: BTreeMap::new(), files: BTreeSet::new() };
        reader.read_file(Vec::new(), &root, directory);
        let Reader { modules, files, .. } = reader;
        let main = format!("{directory}/main.rs");
        let orphans = sources
            .below(directory)
            .map(|(path, _)| path.to_owned())
            .filter(|path| *path != main && !files.contains(path))
            .collect();
        Self { modules, orphans }
    }

    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.values()
    }

    /// Names of the modules that the crate's root declares.
    pub fn top_level(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().filter(|path| path.len() == 1).map(|path| path[0].as_str())
    }

    /// Follows a path that stands in a module. `None` if its first name is no item of the crate:
    /// a local variable, a generic parameter, something of the prelude.
    pub fn resolve<'a>(&'a self, from: &'a Module, segments: &[String]) -> Option<Target<'a>> {
        self.resolve_chained(from, segments, 0)
    }

    fn resolve_chained<'a>(
        &'a self,
        from: &'a Module,
        segments: &[String],
        chain: usize,
    ) -> Option<Target<'a>> {
        let (start, rest) = anchor(&from.path, segments);
        let Some(start) = start else { return self.walk(from, rest, chain) };
        let module = self.modules.get(&start)?;
        // Whatever is not found there, a macro defines.
        Some(self.walk(module, rest, chain).unwrap_or(Target::ItemOf(module)))
    }

    /// Follows names from a module on. `None` if it does not have the first of them.
    fn walk<'a>(
        &'a self,
        mut module: &'a Module,
        segments: &[String],
        chain: usize,
    ) -> Option<Target<'a>> {
        if chain > LONGEST_CHAIN {
            return None;
        }
        for (at, segment) in segments.iter().enumerate() {
            let rest = &segments[at + 1..];
            let import = module.imported.get(segment);
            if let Some(child) = self.child(module, segment)
                && (!rest.is_empty() || import.is_none())
            {
                module = child;
                continue;
            }
            if let Some(import) = import {
                let full: Vec<_> = import.iter().chain(rest).cloned().collect();
                let target = self.resolve_chained(module, &full, chain + 1);
                return Some(target.unwrap_or(Target::External));
            }
            if module.defined.contains(segment) {
                return Some(Target::ItemOf(module));
            }
            for glob in &module.globs {
                if let Some(Target::Module(other)) = self.resolve_chained(module, glob, chain + 1)
                    && other.path != module.path
                    && self.has(other, segment)
                {
                    return self.walk(other, &segments[at..], chain + 1);
                }
            }
            return (at > 0).then_some(Target::ItemOf(module));
        }
        Some(Target::Module(module))
    }

    /// Where the names lead that a module offers to `use module::*`.
    pub fn offered<'a>(&'a self, module: &'a Module) -> Vec<Target<'a>> {
        let imports = module.imported.values().filter_map(|path| self.resolve(module, path));
        std::iter::once(Target::ItemOf(module)).chain(imports).collect()
    }

    fn child(&self, module: &Module, name: &str) -> Option<&Module> {
        let path: Vec<_> = module.path.iter().cloned().chain([name.to_owned()]).collect();
        self.modules.get(&path)
    }

    fn has(&self, module: &Module, name: &str) -> bool {
        module.defined.contains(name)
            || module.imported.contains_key(name)
            || self.child(module, name).is_some()
    }
}

/// Splits `crate`, `self` and `super` off a path that stands in the module `from`: the module that
/// they lead to, and the names that remain. No module if the path begins with a plain name.
pub fn anchor<'a>(from: &[String], segments: &'a [String]) -> (Option<ModulePath>, &'a [String]) {
    let mut rest = segments;
    let mut start = match rest.first().map(String::as_str) {
        Some("crate") => Vec::new(),
        Some("self" | "super") => from.to_vec(),
        _ => return (None, rest),
    };
    while let Some(first) = rest.first() {
        match first.as_str() {
            "crate" | "self" => {}
            "super" => drop(start.pop()),
            _ => break,
        }
        rest = &rest[1..];
    }
    (Some(start), rest)
}

struct Reader<'a> {
    sources: &'a Sources,
    modules: BTreeMap<ModulePath, Module>,
    /// Files that some module declares, test-only ones too.
    files: BTreeSet<String>,
}

impl Reader<'_> {
    /// Reads a module from its file; its own modules have their files below `directory`.
    fn read_file(&mut self, path: ModulePath, file: &str, directory: &str) {
        let text = self.sources.get(file).unwrap_or_else(|| panic!("{file} is missing"));
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        self.files.insert(file.to_owned());
        self.add(path, file, directory, parsed.items);
    }

    fn add(&mut self, path: ModulePath, file: &str, directory: &str, items: Vec<Item>) {
        let mut module = Module {
            path: path.clone(),
            file: file.to_owned(),
            items: Vec::new(),
            defined: BTreeSet::new(),
            imported: BTreeMap::new(),
            globs: Vec::new(),
        };
        for item in items {
            let test_only = is_test_only(attributes(&item));
            match item {
                Item::Mod(declared) => {
                    let name = declared.ident.to_string();
                    let child: Vec<_> = path.iter().cloned().chain([name.clone()]).collect();
                    let below = format!("{directory}/{name}");
                    match declared.content {
                        Some(_) if test_only => {}
                        Some((_, items)) => self.add(child, file, &below, items),
                        None => {
                            let child_file = self.file_of(&below);
                            if test_only {
                                self.account_for(&child_file, &below);
                            } else {
                                self.read_file(child, &child_file, &below);
                            }
                        }
                    }
                }
                _ if test_only => {}
                Item::Use(import) => {
                    for leaf in use_leaves(&import.tree) {
                        match leaf.name {
                            Some(name) => drop(module.imported.insert(name, leaf.segments)),
                            None => module.globs.push(leaf.segments),
                        }
                    }
                    module.items.push(Item::Use(import));
                }
                other => {
                    module.defined.extend(defined_name(&other));
                    module.items.push(other);
                }
            }
        }
        // `pub(crate) use name;` lets a macro of the same module be named by a path.
        module.imported.retain(|name, target| *target != [name.as_str()]);
        self.modules.insert(path, module);
    }

    /// Notes the files of a test-only module, which has no other part in the layers.
    fn account_for(&mut self, file: &str, directory: &str) {
        let text = self.sources.get(file).unwrap_or_else(|| panic!("{file} is missing"));
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        self.files.insert(file.to_owned());
        for item in parsed.items {
            if let Item::Mod(declared) = item
                && declared.content.is_none()
            {
                let below = format!("{directory}/{}", declared.ident);
                self.account_for(&self.file_of(&below), &below);
            }
        }
    }

    fn file_of(&self, module: &str) -> String {
        let candidates = [format!("{module}.rs"), format!("{module}/mod.rs")];
        let found = candidates.iter().find(|file| self.sources.get(file).is_some());
        found.unwrap_or_else(|| panic!("none of {candidates:?} exists")).clone()
    }
}

/// The paths of a `use` item, one for each name that it brings in.
pub fn use_leaves(tree: &UseTree) -> Vec<UseLeaf> {
    let mut leaves = Vec::new();
    add_leaves(tree, &[], &mut leaves);
    leaves
}

fn add_leaves(tree: &UseTree, prefix: &[String], leaves: &mut Vec<UseLeaf>) {
    let with = |name: String| prefix.iter().cloned().chain([name]).collect::<Vec<_>>();
    match tree {
        UseTree::Path(path) => {
            add_leaves(&path.tree, &with(path.ident.to_string()), leaves);
        }
        UseTree::Name(name) => {
            let line = name.ident.span().start().line;
            let ident = name.ident.to_string();
            if ident == "self" {
                // `use module::{self}`
                let name = prefix.last().cloned();
                leaves.push(UseLeaf { segments: prefix.to_vec(), name, line });
            } else {
                leaves.push(UseLeaf { segments: with(ident.clone()), name: Some(ident), line });
            }
        }
        UseTree::Rename(rename) => {
            let line = rename.ident.span().start().line;
            let ident = rename.ident.to_string();
            let segments = if ident == "self" { prefix.to_vec() } else { with(ident) };
            leaves.push(UseLeaf { segments, name: Some(rename.rename.to_string()), line });
        }
        UseTree::Glob(glob) => {
            let line = glob.star_token.spans[0].start().line;
            leaves.push(UseLeaf { segments: prefix.to_vec(), name: None, line });
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                add_leaves(tree, prefix, leaves);
            }
        }
    }
}

/// True for `#[cfg(test)]`, and for what implies it.
pub fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<Meta>().is_ok_and(|condition| implies_test(&condition))
    })
}

fn implies_test(condition: &Meta) -> bool {
    let Meta::List(list) = condition else { return condition.path().is_ident("test") };
    let parse = Punctuated::<Meta, Token![,]>::parse_terminated;
    let Ok(parts) = list.parse_args_with(parse) else { return false };
    if list.path.is_ident("all") {
        parts.iter().any(implies_test)
    } else {
        list.path.is_ident("any") && !parts.is_empty() && parts.iter().all(implies_test)
    }
}

pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn defined_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// True if others can see what a `use` item brings in.
pub fn is_reexport(visibility: &Visibility) -> bool {
    !matches!(visibility, Visibility::Inherited)
}
