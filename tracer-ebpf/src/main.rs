//! portlife's eBPF object: small programs that report facts about TCP ports and leave every
//! decision to the agent.
//!
//! Every program is optional: the agent tries to load each, and knows what is lost without it.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "reads kernel memory; every use says why it is sound")
)]

#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod non_preemptible;
#[cfg(target_arch = "bpf")]
mod probes;
#[cfg(target_arch = "bpf")]
mod recursion;

/// The kernel requires a GPL-compatible licence of programs that call GPL-only helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier rejects a program that could come here.
    loop {}
}

/// Does nothing on the host: `cargo xtask build-ebpf` builds this crate for the kernel.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
