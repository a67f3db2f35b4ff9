//! The first process of the virtual machine.

use std::{
    fs::{self, File},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
};

/// The directory of kernel modules in the initramfs, numbered in the order in which to load them.
pub const MODULES: &str = "/modules";
/// The file that contains the path of the test binary.
pub const TESTS: &str = "/tests";
/// The serial line for the output of the tests only.
const RESULTS: &str = "/dev/ttyS1";
/// Prefix of the kernel parameter with a part of the tests' names.
pub const TEST: &str = "portlife.test=";
/// Prefix of the kernel parameter with the tracer's hooks.
pub const HOOKS: &str = "portlife.hooks=";
/// Beginning of the last line.
pub const FINISHED: &str = "vm: finished: ";
/// Beginning of the line with the release of the kernel.
pub const RELEASE: &str = "vm: Linux ";

/// True if this process is the init of the virtual machine.
pub fn is_init() -> bool {
    std::process::id() == 1 && fs::exists(TESTS).unwrap_or(false)
}

/// Runs the tests and switches the machine off.
pub fn run() -> ! {
    match run_tests() {
        Ok(outcome) => println!("{FINISHED}{outcome}"),
        Err(error) => println!("vm: {error:#}"),
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    // If init exits the kernel panics, which ends the machine as well.
    std::process::exit(1);
}

fn run_tests() -> Result<String> {
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {target}"))?;
    }
    let [release, version] =
        ["osrelease", "version"].map(|name| fs::read_to_string(format!("/proc/sys/kernel/{name}")));
    println!("{RELEASE}{} {}", release?.trim(), version?.trim());
    for index in 0.. {
        let Ok(module) = File::open(format!("{MODULES}/{index}")) else { break };
        if let Err(error) = finit_module(&module, c"", 0) {
            println!("vm: cannot load module {index}: {error}");
        }
    }
    let tests = fs::read_to_string(TESTS)?;
    let mut command = Command::new(&tests);
    // Several at once, although an emulated processor is about twenty times slower: many tests wait
    // for the end of a TIME_WAIT.
    command.env("RUST_TEST_THREADS", "4").env("PATH", "/usr/bin:/bin");
    // The host may be busy as well.
    command.env("PORTLIFE_TEST_PATIENCE", "240");
    // The number of random states to test on each kernel.
    command.env("PORTLIFE_HEADROOM_CASES", "100");
    let arguments = fs::read_to_string("/proc/cmdline")?;
    let argument =
        |name: &str| arguments.split_whitespace().find_map(|word| word.strip_prefix(name));
    if let Some(hooks) = argument(HOOKS) {
        command.env("PORTLIFE_TEST_HOOKS", hooks);
    }
    let names = argument(TEST).into_iter().flat_map(|names| names.split(','));
    command.args(names).arg("--show-output");
    let results = File::options().write(true).open(RESULTS);
    command.stdout(results.with_context(|| format!("cannot open {RESULTS}"))?);
    let status = command.status().with_context(|| format!("cannot run {tests}"))?;
    Ok(status.to_string())
}
