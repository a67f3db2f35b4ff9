//! Addresses of kernel symbols.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

/// Why a symbol's address is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SymbolError {
    /// The list cannot be read.
    #[error("cannot read /proc/kallsyms")]
    Read(#[from] io::Error),
    /// The kernel hides addresses.
    #[error("the kernel hides its addresses (CAP_SYSLOG is missing, or kernel.kptr_restrict is 2)")]
    Hidden,
    /// There is no such symbol.
    #[error("this kernel has no symbol `{0}`")]
    Missing(&'static str),
}

/// The address of a symbol of the kernel itself (not of a module).
///
/// # Errors
/// If the list cannot be read, hides its addresses, or lacks the symbol.
pub(crate) fn address_of(symbol: &'static str) -> Result<u64, SymbolError> {
    let mut list = BufReader::with_capacity(1 << 16, File::open("/proc/kallsyms")?);
    let mut line = Vec::with_capacity(128);
    loop {
        line.clear();
        if list.read_until(b'\n', &mut line)? == 0 {
            return Err(SymbolError::Missing(symbol));
        }
        let mut words = line.trim_ascii_end().split(|byte| *byte == b' ');
        let (address, _kind, name) = (words.next(), words.next(), words.next());
        if name != Some(symbol.as_bytes()) {
            continue;
        }
        let address = address
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .unwrap_or(0);
        return if address == 0 { Err(SymbolError::Hidden) } else { Ok(address) };
    }
}
