//! The initramfs: a cpio archive in "newc" format (Documentation/driver-api/early-userspace/
//! buffer-format.rst).

use std::{
    collections::BTreeSet,
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::init;
use crate::workspace::output;

/// Programs of this host that the scenarios run.
const TOOLS: [&str; 5] = ["sh", "mount", "umount", "setpriv", "unshare"];

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Writes an archive with this program as `/init`, the given programs at the same paths as here,
/// the tools that they run, all shared libraries, and the kernel modules.
pub fn write(archive: &Path, programs: &[PathBuf], modules: &[PathBuf]) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut files = vec![(PathBuf::from("/init"), own)];
    files.extend(programs.iter().map(|program| (program.clone(), program.clone())));
    for tool in TOOLS {
        files.push((Path::new("/usr/bin").join(tool), find_tool(tool)?));
    }
    let mut wanted = BTreeSet::new();
    for (_, program) in &files {
        let Libraries { found, missing } = libraries(program);
        if !missing.is_empty() {
            bail!("{} lacks {}", program.display(), missing.join(", "));
        }
        wanted.extend(found);
    }
    files.extend(wanted.into_iter().map(|library| (library.clone(), library)));
    for (index, module) in modules.iter().enumerate() {
        files.push((PathBuf::from(init::MODULES).join(index.to_string()), module.clone()));
    }
    // Tells `/init` which program to run.
    let test = programs.first().context("there are no tests")?;
    let list = archive.with_extension("tests");
    fs::write(&list, test.as_os_str().as_encoded_bytes())?;
    files.push((PathBuf::from(init::TESTS), list));

    let mut cpio = Cpio { out: BufWriter::new(fs::File::create(archive)?), inode: 0 };
    let mut directories: BTreeSet<PathBuf> =
        ["/proc", "/sys", "/dev", "/tmp"].into_iter().map(PathBuf::from).collect();
    for (name, _) in &files {
        directories.extend(name.ancestors().skip(1).map(Path::to_path_buf));
    }
    for directory in directories.iter().filter(|directory| directory.parent().is_some()) {
        cpio.entry(directory, DIRECTORY, &[])?;
    }
    for (name, source) in files {
        let content =
            fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
        cpio.entry(&name, PROGRAM, &content)?;
    }
    cpio.finish()
}

fn find_tool(name: &str) -> Result<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("the scenarios need {name}, which is not installed"))
}

/// The shared libraries of a program, and its dynamic loader.
pub struct Libraries {
    pub found: Vec<PathBuf>,
    /// Names of libraries that are not installed.
    pub missing: Vec<String>,
}

pub fn libraries(program: &Path) -> Libraries {
    let list = output(Command::new("ldd").arg(program)).unwrap_or_default();
    let mut libraries = Libraries { found: Vec::new(), missing: Vec::new() };
    for line in list.lines() {
        if let Some((name, _)) = line.split_once("=> not found") {
            libraries.missing.push(name.trim().to_owned());
        } else if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            libraries.found.push(PathBuf::from(path));
        }
    }
    libraries
}

struct Cpio<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.to_string_lossy();
        self.record(name.trim_start_matches('/'), mode, content)
    }

    fn record(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len())?;
        let name_size = u32::try_from(name.len() + 1)?;
        // inode, mode, uid, gid, links, mtime, size, device x2, special device x2, name, checksum.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.pad(header.len() + name.len() + 1, 1)?;
        self.out.write_all(content)?;
        self.pad(content.len(), 0)
    }

    /// Pads `length` bytes with at least `least` zero bytes to a multiple of four.
    fn pad(&mut self, length: usize, least: usize) -> Result<()> {
        let zeroes = least + length.wrapping_neg() % 4;
        Ok(self.out.write_all(&[0; 8][..zeroes])?)
    }

    fn finish(mut self) -> Result<()> {
        self.record("TRAILER!!!", 0, &[])?;
        Ok(self.out.flush()?)
    }
}
