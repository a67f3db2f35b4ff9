//! Runs two things at the same time.

use std::thread;

/// Runs `here` in this thread and `beside` in another one, and waits for both.
pub(crate) fn in_parallel<A, B: Send>(
    here: impl FnOnce() -> A,
    beside: impl FnOnce() -> B + Send,
) -> (A, B) {
    thread::scope(|scope| {
        let beside = scope.spawn(beside);
        let here = here();
        (here, beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
