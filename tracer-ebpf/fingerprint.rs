// The fingerprint of everything that decides what the eBPF object contains. Compiled into both
// the builder of the object (xtask) and the build script that embeds it (tracer-user), so that
// the two cannot disagree.

use std::{fs, io, path::Path};

use sha2::{Digest, Sha256};

/// Hash of the sources in `tracer-ebpf` and of the locked versions of the crates they use.
pub fn of_sources(workspace: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let crate_root = workspace.join("tracer-ebpf");
    let mut files = vec![crate_root.join("Cargo.toml")];
    collect(&crate_root.join("src"), &mut files)?;
    files.sort();
    for file in &files {
        let name = file.strip_prefix(&crate_root).unwrap_or(file);
        let content = fs::read(file)?;
        hash.update(name.to_string_lossy().as_bytes());
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(&content);
    }
    let lock = fs::read_to_string(workspace.join("Cargo.lock"))?;
    for package in lock.split("[[package]]") {
        let is_used = ["name = \"aya-ebpf", "name = \"zerocopy"]
            .iter()
            .any(|name| package.trim_start().starts_with(name));
        if is_used {
            // Name, version and source; the checksum differs between registries' mirrors never,
            // but the dependency list may name what only the host uses.
            package
                .lines()
                .take_while(|line| !line.starts_with("dependencies"))
                .for_each(|line| hash.update(line.as_bytes()));
        }
    }
    Ok(hex(hash))
}

/// Hash of some bytes.
pub fn of_bytes(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hex(hash)
}

/// The value of `key = "value"` in a manifest.
pub fn manifest_value<'a>(manifest: &'a str, key: &str) -> Option<&'a str> {
    manifest.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

fn collect(directory: &Path, files: &mut Vec<std::path::PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
