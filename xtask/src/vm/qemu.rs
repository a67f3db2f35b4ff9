//! The emulator: the installed one if it is recent enough, else the one from Debian backports.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, bail};

use super::{apt::Apt, image::libraries};
use crate::workspace::output;

/// The oldest usable major version. QEMU 7.2 miscomputes the flags register, so that Linux 6.12
/// crashes at random; 10.0 runs every kernel.
const OLDEST_MAJOR: u32 = 10;
const PROGRAM: &str = "qemu-system-x86_64";
/// Timeout of one machine, in seconds.
const LONGEST_S: &str = "1500";

pub struct Qemu {
    program: PathBuf,
    /// Directories of its firmware; none if it finds it by itself.
    firmware: Vec<PathBuf>,
    /// The version, such as "10.0.2".
    pub version: String,
}

/// A virtual machine to run.
pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// The kernel's command line.
    pub arguments: &'a str,
    /// Files for the output of its serial lines, ttyS0 and ttyS1.
    pub serial: [&'a Path; 2],
}

impl Qemu {
    /// Finds QEMU, or downloads it to a place below `directory`.
    pub fn find(directory: &Path) -> Result<Self> {
        let system = Self::at(PathBuf::from(PROGRAM), Vec::new());
        let system_has = match system {
            Some(qemu) if qemu.is_new_enough() => return Ok(qemu),
            Some(qemu) => format!("only QEMU {}", qemu.version),
            None => "no QEMU".to_owned(),
        };
        let unpacked = directory.join("unpacked");
        if !unpacked.exists() {
            let suite = backports().with_context(|| {
                format!("{system_has} is installed: install QEMU {OLDEST_MAJOR} or newer")
            })?;
            fs::create_dir_all(directory)?;
            let apt = Apt::for_suites(&suite, directory)?;
            // All from one suite, because their versions must match.
            let packages = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"]
                .map(|package| format!("{package}/{suite}"));
            apt.unpack(&packages.each_ref().map(String::as_str), &unpacked)?;
        }
        let program = unpacked.join("usr/bin").join(PROGRAM);
        let missing = libraries(&program).missing;
        if !missing.is_empty() {
            // Libraries are not unpacked. Installing the system's QEMU provides them.
            bail!("QEMU lacks {}: apt-get install qemu-system-x86", missing.join(", "));
        }
        let firmware =
            ["qemu", "seabios"].map(|name| unpacked.join("usr/share").join(name)).to_vec();
        let qemu = Self::at(program, firmware).context("the downloaded QEMU does not run")?;
        if !qemu.is_new_enough() {
            bail!(
                "Debian backports have QEMU {}, but {OLDEST_MAJOR} or newer is needed",
                qemu.version
            );
        }
        Ok(qemu)
    }

    fn at(program: PathBuf, firmware: Vec<PathBuf>) -> Option<Self> {
        let said = output(Command::new(&program).arg("--version"))?;
        let version = said.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
        Some(Self { program, firmware, version: version.to_owned() })
    }

    fn is_new_enough(&self) -> bool {
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        major.is_some_and(|major| major >= OLDEST_MAJOR)
    }

    /// Runs a machine until it powers off.
    pub fn run(&self, machine: &Machine) -> Result<ExitStatus> {
        let Machine { kernel, initramfs, arguments, serial } = machine;
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", LONGEST_S]).arg(&self.program);
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]);
        command.args(["-m", "1536", "-display", "none", "-no-reboot", "-nodefaults"]);
        for file in serial {
            command.arg("-serial").arg(format!("file:{}", file.display()));
        }
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
        command.args(["-append", arguments]).status().context("cannot run QEMU")
    }
}

/// The backports suite of the installed Debian release.
fn backports() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(format!("{name}-backports"))
}
