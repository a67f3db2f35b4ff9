//! Shows what the programs log, for debugging them. Needs an object that logs:
//! `cargo xtask build-ebpf --debug-log`.

use aya::Ebpf;
use aya_log::EbpfLogger;

/// The programs' log.
pub(crate) type ProgramLog = EbpfLogger<&'static dyn log::Log>;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        crate::stderr::write_line!("{}: {}", record.target(), record.args());
    }

    fn flush(&self) {}
}

/// Begins to collect the log; `None`, said on stderr, if the programs do not log.
pub(crate) fn start(ebpf: &mut Ebpf) -> Option<ProgramLog> {
    let logger: &'static dyn log::Log = &Stderr;
    EbpfLogger::init_with_logger(ebpf, logger)
        .inspect_err(|error| {
            crate::stderr::write_line!("portlife: the programs do not log: {error}")
        })
        .ok()
}
