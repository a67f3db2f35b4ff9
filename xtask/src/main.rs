//! portlife's development tasks: `cargo xtask --help`.

mod bench;
mod build_ebpf;
mod demo;
#[path = "../../tracer-ebpf/fingerprint.rs"]
mod fingerprint;
mod load;
mod run;
mod soak;
mod test;
mod vm;
mod workspace;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "portlife's development tasks")]
enum Task {
    /// Measure what tracing costs, beside other tracers (as root).
    Bench(bench::Args),
    /// Build the eBPF object from source and commit it to tracer-ebpf/prebuilt.
    BuildEbpf(build_ebpf::Args),
    /// Build the tracer and trace this host (as root; asks sudo if need be).
    Run(run::Args),
    /// Make an incident of port exhaustion happen and show the report (as root; asks sudo if need be).
    Demo(demo::Args),
    /// Run all tests, with those that need root and this kernel.
    Test(test::Args),
    /// Load the tracer with millions of connections and check that it misses nothing (as root).
    Soak(soak::Args),
    /// Run the scenarios on other kernels, in virtual machines.
    Vm(vm::Args),
}

fn main() -> anyhow::Result<()> {
    if vm::init::is_it() {
        vm::init::run();
    }
    match Task::parse() {
        Task::Bench(args) => bench::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Run(args) => run::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Vm(args) => vm::run(&args),
    }
}
