//! Messages on stderr.

use std::{
    fmt,
    io::{self, Write as _},
};

use crate::foreign::escape;

/// Formats a line as `println!` does and writes it to stderr. What is in it cannot end the line: a
/// path, a message of the kernel or a word of a recording may have any characters.
macro_rules! write_line {
    ($($argument:tt)*) => {
        $crate::stderr::write(format_args!($($argument)*))
    };
}
pub(crate) use write_line;

/// Writes a line. Unlike `eprintln!`, it does not panic if stderr is closed or full: a message that
/// cannot be written is no reason to end.
pub(crate) fn write(line: fmt::Arguments<'_>) {
    let line = line.to_string();
    drop(writeln!(io::stderr(), "{}", escape(&line)));
}
