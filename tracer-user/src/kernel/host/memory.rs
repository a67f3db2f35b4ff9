//! Returns memory to the kernel.

/// Returns freed heap pages to the kernel: reading the kernel's types takes tens of megabytes
/// that are not needed afterwards. Does nothing where libc is not glibc.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
