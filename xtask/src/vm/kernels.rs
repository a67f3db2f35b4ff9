//! Debian's kernels: found in a suite, downloaded, unpacked. Nothing is installed, and the
//! system's own sources are left alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{execute, output, root};

/// A kernel to test on.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// Its version, as the user names it.
    pub name: &'static str,
    suite: &'static str,
    /// Beginning of the package's name.
    package: &'static str,
}

const KERNELS: [Kernel; 4] = [
    Kernel { name: "5.10", suite: "bullseye", package: "linux-image-5.10." },
    Kernel { name: "6.1", suite: "bookworm", package: "linux-image-6.1." },
    Kernel { name: "6.12", suite: "trixie", package: "linux-image-6.12." },
    Kernel { name: "7", suite: "sid", package: "linux-binary-7." },
];

/// What is needed of a kernel's package.
pub struct Files {
    pub image: PathBuf,
    /// Modules without which there is no sock_diag for TCP, in the order of loading.
    pub modules: Vec<PathBuf>,
}

/// The kernels of these names, all if none is given.
pub fn named(names: &[String]) -> Result<Vec<Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.to_vec());
    }
    names
        .iter()
        .map(|name| {
            KERNELS.iter().find(|kernel| kernel.name == name).copied().with_context(|| {
                let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
                format!("there is no kernel {name} here, only {}", known.join(", "))
            })
        })
        .collect()
}

/// Downloads and unpacks a kernel, unless that was done before.
pub fn fetch(kernel: &Kernel) -> Result<Files> {
    let directory = root().join("target/vm").join(kernel.name);
    let unpacked = directory.join("unpacked");
    if !unpacked.exists() {
        let apt = Apt::for_suite(kernel.suite, &directory)?;
        let package = apt.newest(kernel.package)?;
        eprintln!("   downloading {package}");
        execute(
            apt.command("apt-get").current_dir(&directory).args(["-qq", "download", &package]),
        )?;
        let archive = find(&directory, &|name| name.ends_with(".deb"))
            .context("apt-get downloaded nothing")?;
        // Under another name first, so that an interrupted run is not taken for a whole one.
        let partial = directory.join("partial");
        execute(Command::new("dpkg").arg("-x").arg(&archive).arg(&partial))?;
        fs::rename(partial, &unpacked)?;
    }
    let image = find(&unpacked, &|name| name.starts_with("vmlinuz"))
        .with_context(|| format!("no kernel image in {}", unpacked.display()))?;
    let modules = ["inet_diag.ko", "tcp_diag.ko"]
        .iter()
        .filter_map(|module| find(&unpacked, &|name| name.starts_with(module)))
        .map(|module| uncompressed(&module, &directory))
        .collect::<Result<_>>()?;
    Ok(Files { image, modules })
}

/// apt with sources, lists and cache of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn for_suite(suite: &str, directory: &Path) -> Result<Self> {
        let [parts, lists, cache] = ["parts", "lists", "cache"].map(|name| directory.join(name));
        fs::create_dir_all(&parts)?;
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        // The system's own archive and key, with another suite.
        let own = fs::read_to_string("/etc/apt/sources.list.d/debian.sources")
            .context("this needs Debian's apt, with its sources in debian.sources")?;
        let archive = own.split("\n\n").next().unwrap_or_default();
        let other: String = archive
            .lines()
            .map(|line| {
                if line.starts_with("Suites:") {
                    format!("Suites: {suite}\n")
                } else {
                    format!("{line}\n")
                }
            })
            .collect();
        fs::write(parts.join("kernels.sources"), other)?;
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let apt = Self {
            options: vec![
                "Dir::Etc::SourceList=/dev/null".to_owned(),
                option("Dir::Etc::SourceParts", &parts),
                option("Dir::State::Lists", &lists),
                option("Dir::Cache", &cache),
            ],
        };
        execute(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    fn newest(&self, prefix: &str) -> Result<String> {
        let pattern = format!("^{}.*-cloud-amd64$", prefix.replace('.', "\\."));
        let found = output(self.command("apt-cache").args(["search", "--names-only", &pattern]));
        let found = found.unwrap_or_default();
        let mut packages: Vec<_> =
            found.lines().filter_map(|line| line.split_whitespace().next()).collect();
        packages.sort_by_key(|package| numbers(package));
        match packages.last() {
            Some(package) => Ok((*package).to_owned()),
            None => bail!("there is no package {prefix}*-cloud-amd64"),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// The numbers in a package's name, by which versions are ordered.
fn numbers(package: &str) -> Vec<u64> {
    package
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn uncompressed(module: &Path, directory: &Path) -> Result<PathBuf> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return Ok(module.to_path_buf());
    }
    let name = module.file_stem().context("a module without a name")?;
    let plain = directory.join(name);
    let content = Command::new("xz").arg("-dc").arg(module).output()?;
    if !content.status.success() {
        bail!("xz cannot unpack {}", module.display());
    }
    fs::write(&plain, content.stdout)?;
    Ok(plain)
}

fn find(directory: &Path, is_it: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if let Some(found) = find(&path, is_it) {
                return Some(found);
            }
        } else if is_it(&entry.file_name().to_string_lossy()) {
            return Some(path);
        }
    }
    None
}
