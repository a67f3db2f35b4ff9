//! What this process gives up, and what may not end it silently.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::capability::Capability;

/// Gives up the chance to gain privileges by execve(), for this thread and those that it starts
/// (`PR_SET_NO_NEW_PRIVS`). portlife runs no other program.
pub(crate) fn give_up_new_privileges() {
    // Only a kernel before 3.5 refuses.
    let _ = rustix::thread::set_no_new_privs(true);
}

/// Gives up all capabilities but these, for this thread and those that it starts. A
/// capability that the process lacks is not gained.
pub(crate) fn keep_capabilities(kept: &[Capability]) {
    let bits = kept.iter().map(|capability| 1 << *capability as u32).fold(0, |set, bit| set | bit);
    let kept = CapabilitySet::from_bits_retain(bits);
    // To give up capabilities is permitted to every process.
    let _ = capabilities(None).and_then(|CapabilitySets { effective, permitted, .. }| {
        set_capabilities(
            None,
            CapabilitySets {
                effective: effective & kept,
                permitted: permitted & kept,
                inheritable: CapabilitySet::empty(),
            },
        )
    });
}

/// Makes a write beyond the limit on the size of files (`ulimit -f`) an error, which can be
/// reported, instead of the end of the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: to ignore a signal installs no handler that could run.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
