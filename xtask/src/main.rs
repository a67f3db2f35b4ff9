//! portlife's development tasks: `cargo xtask --help`.

mod bench;
mod build_ebpf;
mod demo;
#[path = "../../tracer-ebpf/fingerprint.rs"]
mod fingerprint;
mod load;
mod outcomes;
mod run;
mod soak;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "portlife's development tasks")]
enum Task {
    /// Measure the cost of tracing and compare it with other tracers (as root).
    Bench(bench::Args),
    /// Build the eBPF object from source and commit it to tracer-ebpf/prebuilt.
    BuildEbpf(build_ebpf::Args),
    /// Build the tracer and trace this host (uses sudo if not root).
    Run(run::Args),
    /// Stage an incident of port exhaustion and show the report (uses sudo if not root).
    Demo(demo::Args),
    /// Run all tests, including those that need root and this kernel.
    Test(test::Args),
    /// Put the tracer under load and check that it misses nothing (as root).
    Soak(soak::Args),
    /// Run the scenarios on other kernels, in virtual machines.
    Vm(vm::Args),
}

fn main() -> ExitCode {
    if vm::init::is_init() {
        vm::init::run();
    }
    let result = match Task::parse() {
        Task::Bench(args) => bench::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Run(args) => run::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Vm(args) => vm::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Without the backtrace that `anyhow` adds in some environments: it would bury the closing
        // lines of the tests.
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
