//! Printing an answer, and saying why a file cannot be used.

use std::io::{self, Write as _, stdout};

use anyhow::Context as _;

/// Writes an answer to stdout. A reader that has closed the pipe is not an error.
///
/// # Errors
/// If stdout cannot be written.
pub(super) fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = stdout();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            let reason = describe(&error);
            Err(error).with_context(|| format!("the answer cannot be written: {reason}"))
        }
        Ok(()) => Ok(()),
    }
}

/// Why a file cannot be opened, read or written, as a clause.
pub(super) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::StorageFull => "no space left on the device".to_owned(),
        _ => error.to_string(),
    }
}
