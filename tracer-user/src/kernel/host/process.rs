//! What this process gives up, and what may not end it silently.

/// Gives up the chance to gain privileges by execve(), for this thread and those that it starts
/// (`PR_SET_NO_NEW_PRIVS`). portlife runs no other program.
pub(crate) fn give_up_new_privileges() {
    // Only a kernel before 3.5 refuses.
    let _ = rustix::thread::set_no_new_privs(true);
}

/// Makes a write beyond the limit on the size of files (`ulimit -f`) an error, which can be
/// reported, instead of the end of the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: to ignore a signal installs no handler that could run.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
