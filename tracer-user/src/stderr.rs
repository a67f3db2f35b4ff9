//! Messages on stderr.

use std::{
    fmt,
    io::{self, Write as _},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::foreign::escape;

/// Formats a line as `println!` does and writes it to stderr. What is in it cannot end the line: a
/// path, a message of the kernel or a word of a recording may have any characters.
macro_rules! write_line {
    ($($argument:tt)*) => {
        $crate::stderr::write(format_args!($($argument)*))
    };
}
pub(crate) use write_line;

/// How long to wait for a reader of stderr that does not read. After that, lines are dropped without
/// waiting until it reads again.
const PATIENCE: Duration = Duration::from_millis(200);
/// Maximum length of a line: a pipe that can be written takes this much at once (`PIPE_BUF`).
const MAX_BYTES: usize = 4096;

/// Number of lines that were dropped because nobody reads, and not yet mentioned.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Writes a line. Unlike `eprintln!`, it does not panic if stderr is closed or full, and does not
/// wait for a reader that does not read: a message that cannot be written is no reason to end or to
/// stop.
pub(crate) fn write(line: fmt::Arguments<'_>) {
    let dropped = DROPPED.load(Ordering::Relaxed);
    let patience = if dropped == 0 { PATIENCE } else { Duration::ZERO };
    if !is_writable(patience) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut text = escape(&line.to_string()).into_owned();
    if dropped > 0 {
        DROPPED.fetch_sub(dropped, Ordering::Relaxed);
        text.insert_str(0, &format!("portlife: messages that nobody read: {dropped}\n"));
    }
    text.truncate(text.floor_char_boundary(MAX_BYTES - 1));
    text.push('\n');
    drop(io::stderr().write_all(text.as_bytes()));
}

/// True if a write to stderr does not wait: there is room within `patience`, or the write fails.
fn is_writable(patience: Duration) -> bool {
    let stderr = io::stderr();
    let mut of_stderr = [PollFd::new(&stderr, PollFlags::OUT)];
    let patience = Timespec::try_from(patience).unwrap_or_default();
    !matches!(poll(&mut of_stderr, Some(&patience)), Ok(0))
}
