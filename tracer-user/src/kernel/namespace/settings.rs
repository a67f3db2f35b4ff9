//! Reads the settings of a network namespace.
//!
//! A file below /proc/sys/net belongs to the namespace of the thread that opened it, for good:
//! the kernel resolves the namespace when it looks the name up (`net_ctl_root_lookup`,
//! net/sysctl_net.c), and hands the handler that namespace's variable. So the files are opened
//! once, in a thread that entered the namespace, and read again from anywhere for the price of a
//! few system calls. They do not keep the namespace alive.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
};

use rustix::process::{Resource, getrlimit};

use crate::{
    kernel::namespace::netns,
    model::{LocalRange, PortSet, Settings, TimeWaitReuse},
};

/// Why the settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The namespace cannot be entered.
    #[error("the network namespace cannot be entered")]
    Enter(#[source] io::Error),
    /// The file of a setting that every kernel has cannot be read.
    #[error("/proc/sys/net/{name} cannot be read")]
    Read {
        /// The file's name below /proc/sys/net.
        name: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file's content is not understood.
    #[error("/proc/sys/net/{name} is not understood: {reason}")]
    Malformed {
        /// The file's name below /proc/sys/net.
        name: &'static str,
        /// The reason, a sentence.
        reason: String,
    },
}

/// The open files of a namespace's settings.
#[derive(Debug)]
pub struct SettingsFiles {
    range: Setting,
    reserved: Setting,
    step_width: Option<Setting>,
    autobind_reuse: Setting,
    unprivileged_start: Setting,
    time_wait_reuse: Setting,
    time_wait_reuse_delay: Option<Setting>,
    timestamps: Setting,
    max_time_waits: Setting,
    fin_timeout: Setting,
    max_listen_backlog: Option<Setting>,
}

/// The number of namespaces whose files may be open at once: they take half of the descriptors that
/// this process may have.
#[must_use]
pub(crate) fn max_open() -> usize {
    /// All fields of [`SettingsFiles`] are files.
    const FILES: u64 = (size_of::<SettingsFiles>() / size_of::<Setting>()) as u64;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 2 / FILES).unwrap_or(usize::MAX)
}

impl SettingsFiles {
    /// Opens the files of the calling thread's namespace.
    ///
    /// # Errors
    /// If one is missing that every kernel since 5.10 has.
    pub fn open() -> Result<Self, SettingsError> {
        Ok(Self {
            range: Setting::open("ipv4/ip_local_port_range")?,
            reserved: Setting::open("ipv4/ip_local_reserved_ports")?,
            step_width: Setting::open_if_there("ipv4/ip_local_port_step_width")?,
            autobind_reuse: Setting::open("ipv4/ip_autobind_reuse")?,
            unprivileged_start: Setting::open("ipv4/ip_unprivileged_port_start")?,
            time_wait_reuse: Setting::open("ipv4/tcp_tw_reuse")?,
            time_wait_reuse_delay: Setting::open_if_there("ipv4/tcp_tw_reuse_delay")?,
            timestamps: Setting::open("ipv4/tcp_timestamps")?,
            max_time_waits: Setting::open("ipv4/tcp_max_tw_buckets")?,
            fin_timeout: Setting::open("ipv4/tcp_fin_timeout")?,
            max_listen_backlog: Setting::open_if_there("core/somaxconn")?,
        })
    }

    /// Opens the files of a namespace.
    ///
    /// # Errors
    /// See [`SettingsError`]; entering a namespace needs `CAP_SYS_ADMIN`.
    pub fn open_in(namespace: &File) -> Result<Self, SettingsError> {
        // A thread that entered a namespace is not used for anything else.
        thread::scope(|scope| {
            let opener = scope.spawn(|| {
                netns::enter(namespace).map_err(SettingsError::Enter)?;
                Self::open()
            });
            opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Reads the settings as they are now, from whatever thread.
    ///
    /// # Errors
    /// If a file cannot be read, because the namespace has ended, or is not understood.
    pub fn read(&self) -> Result<Settings, SettingsError> {
        let Self {
            range,
            reserved,
            step_width,
            autobind_reuse,
            unprivileged_start,
            time_wait_reuse,
            time_wait_reuse_delay,
            timestamps,
            max_time_waits,
            fin_timeout,
            max_listen_backlog,
        } = self;
        Ok(Settings {
            range: range.parsed(LocalRange::parse)?,
            reserved: reserved.parsed(PortSet::parse)?,
            step_width: step_width.as_ref().map(Setting::number).transpose()?,
            autobind_reuse: autobind_reuse.number()? != 0,
            unprivileged_start: unprivileged_start.parsed(|text| {
                text.trim().parse().map_err(|_| format!("`{}` is not a port", text.trim()))
            })?,
            time_wait_reuse: time_wait_reuse.parsed(|text| {
                let number = text.trim().parse().ok();
                number
                    .and_then(TimeWaitReuse::from_number)
                    .ok_or_else(|| format!("`{}` is not 0, 1 or 2", text.trim()))
            })?,
            time_wait_reuse_delay_ms: time_wait_reuse_delay
                .as_ref()
                .map(Setting::number)
                .transpose()?,
            timestamps: timestamps.number()? != 0,
            max_time_waits: max_time_waits.number()?,
            fin_timeout_s: fin_timeout.number()?,
            max_listen_backlog: max_listen_backlog
                .as_ref()
                .map(Setting::number)
                .transpose()?
                .unwrap_or(128),
        })
    }
}

/// One file below /proc/sys/net.
#[derive(Debug)]
struct Setting {
    name: &'static str,
    file: File,
}

/// Most settings, and a list of some reserved ports.
const USUAL_BYTES: usize = 512;
/// The longest list: two of every three ports reserved, 21846 ranges such as `65533-65534,`.
const MAX_BYTES: usize = 21_846 * 12 + 1;

impl Setting {
    fn open(name: &'static str) -> Result<Self, SettingsError> {
        let file = File::open(path(name)).map_err(|source| SettingsError::Read { name, source })?;
        Ok(Self { name, file })
    }

    fn open_if_there(name: &'static str) -> Result<Option<Self>, SettingsError> {
        match Self::open(name) {
            Err(SettingsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn number(&self) -> Result<u32, SettingsError> {
        // `tcp_max_tw_buckets` and others are signed in the kernel; below zero is as good as zero.
        self.parsed(|text| {
            text.trim()
                .parse::<i64>()
                .map(|number| u32::try_from(number.max(0)).unwrap_or(u32::MAX))
                .map_err(|_| format!("`{}` is not a number", text.trim()))
        })
    }

    fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, SettingsError> {
        let name = self.name;
        let mut usual = [0; USUAL_BYTES];
        let mut long = Vec::new();
        // The kernel writes the whole value at once, or as much of it as there is room for.
        let read = |buffer: &mut [u8]| {
            self.file.read_at(buffer, 0).map_err(|source| SettingsError::Read { name, source })
        };
        let length = read(&mut usual)?;
        let bytes = if length < USUAL_BYTES {
            usual.get(..length)
        } else {
            long.resize(MAX_BYTES, 0);
            let length = read(&mut long)?;
            long.get(..length)
        };
        let bytes = bytes.unwrap_or_default();
        let malformed = |reason| SettingsError::Malformed { name, reason };
        let text = std::str::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
        parse(text).map_err(malformed)
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}
