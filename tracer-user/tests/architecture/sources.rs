//! The text of source files, read from the workspace or made up by a test.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Rust files by their path relative to the workspace's root, with `/` between its parts.
pub struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Every Rust file of the workspace, build products aside.
    pub fn of_workspace() -> Self {
        let mut files = BTreeMap::new();
        read_directory(&workspace_root(), "", &mut files);
        Self(files)
    }

    pub fn made_up(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
    }

    pub fn get(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The files below a directory, which is given without a trailing `/`.
    pub fn below(&self, directory: &str) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(move |(path, _)| {
            path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
        })
    }
}

pub fn workspace_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package is a directory of the workspace").to_path_buf()
}

fn read_directory(directory: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).expect("the workspace can be read") {
        let entry = entry.expect("the workspace can be read");
        let name = entry.file_name().into_string().expect("paths are UTF-8");
        let path = format!("{prefix}{name}");
        if entry.file_type().expect("the workspace can be read").is_dir() {
            if name != "target" && !name.starts_with('.') {
                read_directory(&entry.path(), &format!("{path}/"), files);
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).expect("sources are UTF-8");
            files.insert(path, text);
        }
    }
}
