//! The signals that end a session.

use std::{fs, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP, caught from now on.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if this process was started to ignore it (`nohup`).
    hangup: Option<Signal>,
}

impl Signals {
    /// Catches the signals.
    ///
    /// # Errors
    /// If no handler can be installed.
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for one of the signals.
    pub(super) async fn received(&mut self) {
        let Self { interrupt, terminate, hangup } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hung_up => {}
        }
    }
}

/// True if SIGHUP is among the signals that this process ignores: `SigIgn` in proc(5), where the
/// signal with number 1 is the lowest bit.
fn is_hangup_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 != 0)
}
