//! Debian's kernels, and where to get them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::apt::Apt;

/// A kernel to test on.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// The version, as given on the command line.
    pub name: &'static str,
    suites: &'static str,
    /// Prefix of the package's name.
    package: &'static str,
}

const KERNELS: [Kernel; 5] = [
    Kernel { name: "5.10", suites: "bullseye", package: "linux-image-5.10." },
    Kernel { name: "6.1", suites: "bookworm", package: "linux-image-6.1." },
    Kernel { name: "6.12", suites: "trixie", package: "linux-image-6.12." },
    Kernel { name: "6.18", suites: "trixie-backports", package: "linux-image-6.18." },
    Kernel { name: "7", suites: "sid trixie-backports", package: "linux-binary-7." },
];

/// The files needed from a kernel's packages.
pub struct Files {
    pub image: PathBuf,
    /// Modules for TCP's sock_diag and for VRF, in the order in which to load them.
    pub modules: Vec<PathBuf>,
}

/// The kernels with these names, or all if there are no names.
pub fn named(names: &[String]) -> Result<Vec<Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.to_vec());
    }
    names
        .iter()
        .map(|name| {
            KERNELS.iter().find(|kernel| kernel.name == name).copied().with_context(|| {
                let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
                format!("unknown kernel {name}; known are {}", known.join(", "))
            })
        })
        .collect()
}

/// Downloads and unpacks a kernel below `directory`, unless it is there already.
pub fn fetch(kernel: &Kernel, directory: &Path) -> Result<Files> {
    let unpacked = directory.join("unpacked");
    if !unpacked.exists() {
        let apt = Apt::for_suites(kernel.suites, directory)?;
        let image = apt.newest(kernel.package, "-cloud-amd64")?;
        // The package contains the image and the modules, or only the image.
        match image.strip_prefix("linux-binary-") {
            Some(version) => {
                apt.unpack(&[&image, &format!("linux-modules-{version}")], &unpacked)?;
            }
            None => apt.unpack(&[&image], &unpacked)?,
        }
    }
    let image = find(&unpacked, &|name| name.starts_with("vmlinuz"))
        .with_context(|| format!("no kernel image in {}", unpacked.display()))?;
    let modules = ["inet_diag.ko", "tcp_diag.ko", "vrf.ko"]
        .iter()
        .filter_map(|module| find(&unpacked, &|name| name.starts_with(module)))
        .map(|module| uncompressed(&module, directory))
        .collect::<Result<_>>()?;
    Ok(Files { image, modules })
}

fn uncompressed(module: &Path, directory: &Path) -> Result<PathBuf> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return Ok(module.to_path_buf());
    }
    let name = module.file_stem().context("a module has no name")?;
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
