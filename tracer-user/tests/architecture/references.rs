//! What the modules of a crate refer to: the paths and the string literals in their code.

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Expr, ExprCall, Item, ItemMod, ItemUse, Lit, LitStr, Macro, Meta, Path, Visibility,
    visit::{self, Visit},
};

use crate::modules::{
    Crate, Module, Target, anchor, attributes, is_reexport, is_test_only, use_leaves,
};

/// A path in the code of a module that leads to another place of the crate.
pub struct Reference {
    pub file: String,
    pub line: usize,
    /// The top-level module that it stands in; `lib` for the crate's root.
    pub from: String,
    /// The top-level module that it names.
    pub to: String,
    /// As it is written.
    pub path: String,
    /// The file that defines the item; `None` if the path names a module and nothing in it.
    pub defined_in: Option<String>,
}

pub struct Literal {
    pub file: String,
    pub line: usize,
    pub text: String,
}

#[derive(Default)]
pub struct References {
    pub paths: Vec<Reference>,
    pub literals: Vec<Literal>,
}

/// The name under which the crate's root has its row in the table of layers.
pub const ROOT: &str = "lib";

impl References {
    pub fn of(krate: &Crate) -> Self {
        let mut found = Self::default();
        for module in krate.modules() {
            let mut collector = Collector { krate, module, found: &mut found };
            for item in &module.items {
                collector.visit_item(item);
            }
        }
        found
    }
}

struct Collector<'a> {
    krate: &'a Crate,
    module: &'a Module,
    found: &'a mut References,
}

impl Collector<'_> {
    fn add(&mut self, segments: &[String], line: usize) {
        let Some(target) = self.krate.resolve(self.module, segments) else { return };
        self.add_target(segments, line, target);
    }

    fn add_target(&mut self, segments: &[String], line: usize, target: Target<'_>) {
        let defined_in = match target {
            Target::External => return,
            Target::Module(_) => None,
            Target::ItemOf(module) => Some(module.file.clone()),
        };
        let reference = Reference {
            file: self.module.file.clone(),
            line,
            from: self.top_level(&self.module.path),
            to: self.named(segments),
            path: segments.join("::"),
            defined_in,
        };
        if reference.from != reference.to || reference.defined_in.as_ref() != Some(&reference.file)
        {
            self.found.paths.push(reference);
        }
    }

    /// The top-level module that a path names, as it is written: through an import that module is
    /// named where the import stands.
    fn named(&self, segments: &[String]) -> String {
        match anchor(&self.module.path, segments) {
            (Some(start), rest) => {
                self.top_level(&start.iter().chain(rest).cloned().collect::<Vec<_>>())
            }
            (None, _) => self.top_level(&self.module.path),
        }
    }

    fn top_level(&self, path: &[String]) -> String {
        let first = path.first().filter(|first| self.krate.top_level().any(|top| top == **first));
        first.map_or_else(|| ROOT.to_owned(), String::clone)
    }

    /// The code in a macro's arguments is not parsed; what looks like a path is taken for one.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        // True after `::`, where the next name belongs to the path.
        let mut continues = false;
        let mut colons = 0;
        for token in tokens {
            match &token {
                TokenTree::Ident(ident) => {
                    if !continues {
                        self.add_scanned(&std::mem::take(&mut path), line);
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    (continues, colons) = (false, 0);
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continues = colons == 2 && !path.is_empty();
                    continue;
                }
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Literal(literal) => {
                    if let Lit::Str(text) = Lit::new(literal.clone()) {
                        self.visit_lit_str(&text);
                    }
                }
                TokenTree::Punct(_) => {}
            }
            self.add_scanned(&std::mem::take(&mut path), line);
            (continues, colons) = (false, 0);
        }
        self.add_scanned(&path, line);
    }

    fn add_scanned(&mut self, path: &[String], line: usize) {
        let is_type = path.first().is_some_and(|name| name.starts_with(char::is_uppercase));
        if path.len() > 1 || is_type {
            self.add(path, line);
        }
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test_only(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, _: &'ast ItemMod) {
        // A module is visited by itself.
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        for leaf in use_leaves(&import.tree) {
            let Some(target) = self.krate.resolve(self.module, &leaf.segments) else { continue };
            // Passing on what its own modules define, a module uses nothing of it.
            if let Target::Module(to) | Target::ItemOf(to) = target
                && is_reexport(&import.vis)
                && to.path.len() > self.module.path.len()
                && to.path.starts_with(&self.module.path)
            {
                continue;
            }
            match target {
                Target::Module(to) if leaf.name.is_none() => {
                    for offered in self.krate.offered(to) {
                        self.add_target(&leaf.segments, leaf.line, offered);
                    }
                }
                _ => self.add_target(&leaf.segments, leaf.line, target),
            }
        }
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let segments: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        let line = path.segments.first().map_or(0, |first| first.ident.span().start().line);
        // A single name in lower case is a local variable more often than an item.
        let is_variable = segments.len() == 1 && segments[0].starts_with(char::is_lowercase);
        if path.leading_colon.is_none() && !is_variable {
            self.add(&segments, line);
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if let Expr::Path(function) = &*call.func
            && let Some(ident) = function.path.get_ident()
        {
            self.add(&[ident.to_string()], ident.span().start().line);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        self.scan(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let skipped = ["doc", "cfg", "derive", "expect", "allow"];
        if let Meta::List(list) = &attribute.meta
            && !skipped.iter().any(|name| list.path.is_ident(name))
        {
            self.scan(list.tokens.clone());
        }
    }

    fn visit_lit_str(&mut self, literal: &'ast LitStr) {
        self.found.literals.push(Literal {
            file: self.module.file.clone(),
            line: literal.span().start().line,
            text: literal.value(),
        });
    }
}
