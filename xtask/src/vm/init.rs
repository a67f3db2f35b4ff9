//! What runs as the first process of the virtual machine.

use std::{
    fs::{self, File},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
};

/// Where the initramfs keeps modules, numbered in the order of loading.
pub const MODULES: &str = "/modules";
/// The file that names the tests' binary.
pub const TESTS: &str = "/tests";
/// The serial line for what the tests print, where nothing else comes between.
const RESULTS: &str = "/dev/ttyS1";
/// Words of the kernel's command line: a part of the tests' names, and the tracer's hooks.
pub const TEST: &str = "portlife.test=";
pub const HOOKS: &str = "portlife.hooks=";
/// Begins the last line.
pub const FINISHED: &str = "vm: finished: ";
/// Begins the line that names the kernel.
pub const RELEASE: &str = "vm: Linux ";

/// True in the virtual machine.
pub fn is_it() -> bool {
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
    // The first process must not end: the kernel would panic, which ends the machine as well.
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
            println!("vm: module {index} is not loaded: {error}");
        }
    }
    let tests = fs::read_to_string(TESTS)?;
    let mut command = Command::new(&tests);
    // An emulated processor is some twenty times slower, but many tests wait for a TIME_WAIT's end.
    command.env("RUST_TEST_THREADS", "4").env("PATH", "/usr/bin:/bin");
    // And the machine that emulates it may have other work.
    command.env("PORTLIFE_TEST_PATIENCE", "240");
    // As many random states as are asked of each kernel.
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
    command.stdout(results.with_context(|| format!("there is no {RESULTS}"))?);
    let status = command.status().with_context(|| format!("cannot run {tests}"))?;
    Ok(status.to_string())
}
