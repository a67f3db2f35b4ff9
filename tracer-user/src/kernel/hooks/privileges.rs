//! What a process needs before it can load any program.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::kernel::{
    hooks::error::LoadError,
    host::capability::{Capabilities, Capability},
};

/// Checks that programs can be loaded at all, and raises the limits that loading them runs into.
///
/// # Errors
/// If a capability is missing without which no program can be loaded.
pub(crate) fn check() -> Result<Capabilities, LoadError> {
    let capabilities = Capabilities::of_this_process();
    let missing = capabilities.missing(&[Capability::Bpf, Capability::Perfmon]);
    if !missing.is_empty() {
        return Err(LoadError::Privilege(missing));
    }
    raise_limits();
    Ok(capabilities)
}

/// Locked memory: before 5.11, maps count towards this limit; since then raising it has no effect
/// that matters. Open files: the soft limit is usually kept low for the sake of select().
fn raise_limits() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure is valid for the duration of the call. A failure does not matter where
    // the limit does not apply, and shows when a map is created where it does.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    // If this fails, fewer files are kept open: see `most_open` in namespace/settings.rs.
    let _ = setrlimit(Resource::Nofile, files);
}
