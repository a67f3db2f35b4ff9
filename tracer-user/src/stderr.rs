//! Messages on stderr.

/// Formats a line as `println!` does and writes it to stderr. Unlike `eprintln!`, it does not panic
/// if stderr is closed or full: a message that cannot be written is no reason to end.
macro_rules! write_line {
    ($($argument:tt)*) => {
        drop(std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{}\n", format_args!($($argument)*)),
        ))
    };
}
pub(crate) use write_line;
