//! Builds the eBPF object from source, with any suitable toolchain on this machine.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    fingerprint,
    workspace::{execute, output, root},
};

/// The version of bpf-linker to build if there is none.
const BPF_LINKER_VERSION: &str = "0.13.0";

#[derive(clap::Args)]
pub struct Args {
    /// Rebuild and compare with the committed object instead of replacing it.
    #[arg(long)]
    check: bool,
    /// Keep aya-log in the programs, for debugging; the committed object is left alone.
    #[arg(long, conflicts_with = "check")]
    debug_log: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let toolchain = Toolchain::find()?;
    eprintln!("building with {}", toolchain.description());
    let object = strip_debug(&fs::read(toolchain.compile(args.debug_log)?)?)?;
    if args.debug_log {
        let path = root().join("target/ebpf/portlife-debug.bpf.o");
        fs::write(&path, &object)?;
        println!(
            "wrote {}; to use it, set PORTLIFE_BPF_OBJECT to this path and build the tracer",
            path.display()
        );
        return Ok(());
    }
    let manifest = toolchain.manifest(&object)?;
    let prebuilt = root().join("tracer-ebpf/prebuilt");
    if args.check {
        return check(&prebuilt, &object, &manifest);
    }
    fs::create_dir_all(&prebuilt)?;
    fs::write(prebuilt.join("portlife.bpf.o"), &object)?;
    fs::write(prebuilt.join("manifest.toml"), manifest)?;
    println!("wrote {} ({} bytes)", prebuilt.join("portlife.bpf.o").display(), object.len());
    Ok(())
}

/// Compares an object with the committed one, byte by byte if the same tools made both.
fn check(prebuilt: &Path, object: &[u8], manifest: &str) -> Result<()> {
    let rebuilt = root().join("target/ebpf/portlife.bpf.o");
    fs::write(&rebuilt, object)?;
    let committed = fs::read_to_string(prebuilt.join("manifest.toml"))
        .context("there is no committed object: run `cargo xtask build-ebpf`")?;
    let value = |text: &str, key: &str| {
        fingerprint::manifest_value(text, key).unwrap_or_default().to_owned()
    };
    if value(&committed, "source_sha256") != value(manifest, "source_sha256") {
        bail!("the committed object is stale: run `cargo xtask build-ebpf`");
    }
    for tool in ["rustc", "bpf_linker"] {
        let (theirs, ours) = (value(&committed, tool), value(manifest, tool));
        if theirs != ours {
            println!(
                "not compared byte by byte: the committed object was made with {tool} {theirs}, \
                 this one with {ours}; it is in {}",
                rebuilt.display()
            );
            return Ok(());
        }
    }
    if object != fs::read(prebuilt.join("portlife.bpf.o"))? {
        bail!(
            "the committed object differs from {}, which the same tools made from the same \
             sources",
            rebuilt.display()
        );
    }
    println!("the committed object matches its sources, byte by byte");
    Ok(())
}

/// A compiler that has the sources of `core`, its cargo, and a linker for its version of LLVM.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    version: String,
    linker: PathBuf,
    linker_version: String,
}

impl Toolchain {
    fn find() -> Result<Self> {
        let mut tried = Vec::new();
        for (cargo, rustc) in candidates() {
            let Some(sysroot) =
                output(Command::new(&rustc).args(["--print", "sysroot"])).map(PathBuf::from)
            else {
                continue;
            };
            if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
                tried.push(format!("{} lacks the sources of core", rustc.display()));
                continue;
            }
            let verbose = output(Command::new(&rustc).arg("-vV")).unwrap_or_default();
            let version = verbose.lines().next().unwrap_or_default().to_owned();
            let llvm_major = verbose
                .lines()
                .find_map(|line| line.strip_prefix("LLVM version: "))
                .and_then(|llvm| llvm.split('.').next())
                .unwrap_or_default()
                .to_owned();
            match find_linker(&llvm_major) {
                Ok((linker, linker_version)) => {
                    return Ok(Self { cargo, rustc, sysroot, version, linker, linker_version });
                }
                Err(error) => tried.push(format!("{}: {error:#}", rustc.display())),
            }
        }
        bail!(
            "no toolchain here can build eBPF programs. Install one:\n\
             \x20 on Debian:  apt-get install rustc-web cargo-web rust-web-src llvm-22-dev\n\
             \x20 elsewhere:  rustup toolchain install nightly --component rust-src\n\
             \x20             cargo install bpf-linker\n\
             tried:\n  {}",
            tried.join("\n  ")
        );
    }

    fn description(&self) -> String {
        format!("{} and {}", self.version, self.linker_version)
    }

    /// Builds the programs and returns the path of the object.
    fn compile(&self, debug_log: bool) -> Result<PathBuf> {
        let target = root().join("target/ebpf");
        let arch = std::env::consts::ARCH;
        let mut flags: Vec<OsString> = [
            format!("--cfg=bpf_target_arch=\"{arch}\""),
            // In a profile this would not apply to `core`, and the verifier rejects functions
            // without func_info.
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.linker.display()),
        ]
        .into_iter()
        .map(OsString::from)
        .collect();
        flags.extend(self.remaps().into_iter().map(OsString::from));
        let mut command = Command::new(&self.cargo);
        command
            .current_dir(root())
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\x1f")))
            // The toolchain that runs xtask must not leak into the build.
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO_TARGET_DIR")
            .args(["build", "--quiet", "--locked", "--profile", "ebpf"])
            .args(["--package", "tracer-ebpf", "--bin", "portlife-probes"])
            .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(&target);
        if debug_log {
            command.args(["--features", "debug-log"]);
        }
        execute(&mut command)?;
        Ok(target.join("bpfel-unknown-none/ebpf/portlife-probes"))
    }

    /// Removes this machine's paths from the object.
    fn remaps(&self) -> Vec<String> {
        let home = std::env::var_os("CARGO_HOME").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
            PathBuf::from,
        );
        let sources = self.sysroot.join("lib/rustlib/src/rust");
        let canonical = fs::canonicalize(&sources).unwrap_or_else(|_| sources.clone());
        let registries = fs::read_dir(home.join("registry/src"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some((entry.ok()?.path(), "/cargo")));
        [(root().to_path_buf(), "/src"), (sources, "/rust"), (canonical, "/rust")]
            .into_iter()
            .chain(registries)
            .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
            .collect()
    }

    fn manifest(&self, object: &[u8]) -> Result<String> {
        Ok(format!(
            "# Made by `cargo xtask build-ebpf`. The build refuses an object that does not match.\n\
             source_sha256 = \"{}\"\n\
             object_sha256 = \"{}\"\n\
             rustc = \"{}\"\n\
             bpf_linker = \"{}\"\n",
            fingerprint::of_sources(root())?,
            fingerprint::of_bytes(object),
            self.version,
            self.linker_version,
        ))
    }
}

/// Pairs of cargo and rustc to try, best first.
fn candidates() -> Vec<(PathBuf, PathBuf)> {
    let rustup = |toolchain: &str, tool: &str| {
        output(Command::new("rustup").args(["which", "--toolchain", toolchain, tool]))
            .map(PathBuf::from)
    };
    let mut found = Vec::new();
    for toolchain in ["nightly", "stable"] {
        if let (Some(cargo), Some(rustc)) = (rustup(toolchain, "cargo"), rustup(toolchain, "rustc"))
        {
            found.push((cargo, rustc));
        }
    }
    // Distributions package the sources of core with their compiler.
    found.push(("/usr/bin/cargo".into(), "/usr/bin/rustc".into()));
    found
}

/// A bpf-linker for this version of LLVM: from target/tools, from the PATH, or newly built.
fn find_linker(llvm_major: &str) -> Result<(PathBuf, String)> {
    let own = root().join("target/tools/bin/bpf-linker");
    let version = |linker: &Path| output(Command::new(linker).arg("--version"));
    for linker in [own.clone(), PathBuf::from("bpf-linker")] {
        if let Some(version) = version(&linker) {
            return Ok((linker, version));
        }
    }
    let llvm = PathBuf::from(format!("/usr/lib/llvm-{llvm_major}"));
    if !llvm.join("lib/libLLVM.so").exists() {
        bail!("found neither bpf-linker nor LLVM {llvm_major} to build it with");
    }
    eprintln!("building bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm_major} (about a minute)");
    execute(
        Command::new(crate::workspace::cargo())
            .env("LLVM_PREFIX", &llvm)
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm_major}")])
            .arg("--root")
            .arg(root().join("target/tools")),
    )?;
    let version = version(&own).context("the new bpf-linker does not run")?;
    Ok((own, version))
}

/// Removes DWARF, but not BTF, symbols and relocations, which the loader and the kernel need.
fn strip_debug(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = object::build::elf::Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        if name.starts_with(b".debug") || name.starts_with(b".rel.debug") {
            section.delete = true;
        }
    }
    // LLVM keeps the names of sections and symbols in one table, but the writer needs two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}
