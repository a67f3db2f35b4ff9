//! Embeds the eBPF object, and refuses one that was built from other sources than those here.

#[path = "../tracer-ebpf/fingerprint.rs"]
mod fingerprint;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const OVERRIDE: &str = "PORTLIFE_BPF_OBJECT";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    if env::var_os("CARGO_FEATURE_PROGRAMS").is_none() {
        return ExitCode::SUCCESS;
    }
    match object().and_then(|object| embed(&object)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("cargo::error={problem}");
            ExitCode::FAILURE
        }
    }
}

/// The object to embed: the one that the environment names, or the committed one if it is fresh.
fn object() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os(OVERRIDE) {
        return Ok(path.into());
    }
    let crate_root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("not run by cargo")?);
    let workspace = crate_root.parent().ok_or("the crate is not in its workspace")?;
    let prebuilt = workspace.join("tracer-ebpf/prebuilt");
    for input in ["tracer-ebpf/src", "tracer-ebpf/Cargo.toml", "tracer-ebpf/prebuilt", "Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let object = prebuilt.join("portlife.bpf.o");
    let manifest = read(&prebuilt.join("manifest.toml"))?;
    let manifest = String::from_utf8_lossy(&manifest).into_owned();
    let expected = |key: &str| {
        fingerprint::manifest_value(&manifest, key)
            .ok_or_else(|| format!("the manifest of the eBPF object has no {key}"))
    };
    let sources = fingerprint::of_sources(workspace).map_err(|error| error.to_string())?;
    if sources != expected("source_sha256")? {
        return Err("the committed eBPF object was built from other sources than those in \
             tracer-ebpf: run `cargo xtask build-ebpf`"
            .to_owned());
    }
    if fingerprint::of_bytes(&read(&object)?) != expected("object_sha256")? {
        return Err("the committed eBPF object is not the one that its manifest describes: run \
             `cargo xtask build-ebpf`"
            .to_owned());
    }
    Ok(object)
}

fn embed(object: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("not run by cargo")?);
    fs::write(out.join("portlife.bpf.o"), read(object)?).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| {
        format!("cannot read {}: {error}; run `cargo xtask build-ebpf`", path.display())
    })
}
