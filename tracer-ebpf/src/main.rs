//! portlife's eBPF object: small programs that report facts about TCP ports, and decide nothing
//! that the agent can decide.
//!
//! Each program is optional; the agent tries every one and knows what is lost without it.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "kernel memory is read here; every use says why it is sound")
)]

#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod probes;
#[cfg(target_arch = "bpf")]
mod twice;
#[cfg(target_arch = "bpf")]
mod unpreempted;

/// The licence that the kernel demands of programs which call GPL-only helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier refuses a program in which it is not.
    loop {}
}

/// On the host there is nothing to run: `cargo xtask build-ebpf` builds this for the kernel.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
