//! The host: its kernel's release, clocks, capabilities, cgroups, memory.

#[cfg(feature = "programs")]
use crate::foreign::Foreign;

#[cfg(feature = "programs")]
pub mod capability;
#[cfg(feature = "programs")]
pub(crate) mod cgroup;
pub mod clock;
#[cfg(feature = "programs")]
pub(crate) mod memory;
#[cfg(feature = "programs")]
pub(crate) mod parallel;
#[cfg(feature = "programs")]
pub(crate) mod process;

/// The kernel's release, as `uname -r` prints it.
#[cfg(feature = "programs")]
pub(crate) fn kernel_release() -> Foreign<'static> {
    rustix::system::uname().release().to_string_lossy().into_owned().into()
}
