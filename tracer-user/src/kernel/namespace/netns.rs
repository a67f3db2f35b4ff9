//! The network namespaces of the host, and how to look into one.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, fstatfs},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// A namespace file that a process holds open: such a namespace may have no process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamespaceFile {
    /// The process.
    pub(crate) pid: u32,
    /// Its descriptor.
    pub(crate) fd: i32,
    /// Inode of the namespace, which need not be a network namespace.
    pub(crate) inode: u32,
}

/// An open socket of a process, in a namespace that may have nothing else to be reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketFile {
    /// The process.
    pub(crate) pid: u32,
    /// Its descriptor.
    pub(crate) fd: i32,
}

/// Network namespaces by inode, each with a handle to enter it by.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    handles: BTreeMap<u32, File>,
    /// Namespaces that exist and could not be opened.
    unopened: BTreeMap<u32, io::Error>,
}

impl Namespaces {
    /// Finds every network namespace that a thread lives in, that is mounted somewhere (as
    /// `ip netns` does), or that one of `files` keeps alive.
    #[must_use]
    pub(crate) fn discover(files: &[NamespaceFile]) -> Self {
        let mut found = Self::default();
        found.add(Path::new("/proc/thread-self/ns/net"));
        for process in numeric_entries(Path::new("/proc")) {
            for thread in numeric_entries(&process.join("task")) {
                found.add(&thread.join("ns/net"));
            }
        }
        for mount in mounted() {
            found.add(&mount);
        }
        for NamespaceFile { pid, fd, inode } in files {
            if !found.handles.contains_key(inode) {
                found.add(Path::new(&format!("/proc/{pid}/fd/{fd}")));
            }
        }
        found
    }

    /// Adds the namespaces that can be reached only through a socket: a process may have moved to
    /// another namespace and kept the socket open.
    pub(crate) fn add_of_sockets(&mut self, sockets: &BTreeMap<u32, SocketFile>) {
        for (inode, socket) in sockets {
            if !self.handles.contains_key(inode)
                && let Ok(handle) = namespace_of(*socket)
                && inode_of(&handle).is_ok_and(|found| found == *inode)
            {
                self.handles.insert(*inode, handle);
            }
        }
    }

    /// Keeps the namespaces whose inode `is_wanted` accepts.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(u32) -> bool) {
        self.handles.retain(|inode, _| is_wanted(*inode));
        self.unopened.retain(|inode, _| is_wanted(*inode));
    }

    /// The handle of the namespace with this inode.
    #[must_use]
    pub(crate) fn take(mut self, inode: u32) -> Option<File> {
        self.handles.remove(&inode)
    }

    /// The inode and handle of each namespace.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &File)> {
        self.handles.iter().map(|(inode, handle)| (*inode, handle))
    }

    /// The inodes of namespaces that exist and could not be opened, and why.
    pub(crate) fn unopened(&self) -> impl Iterator<Item = (u32, &io::Error)> {
        let unopened = self.unopened.iter().map(|(inode, error)| (*inode, error));
        unopened.filter(|(inode, _)| !self.handles.contains_key(inode))
    }

    /// Processes and namespaces come and go: a file that is not there is skipped.
    fn add(&mut self, path: &Path) {
        // A link in /proc names the inode, which saves opening most of them.
        let known = fs::read_link(path).ok().and_then(|link| inode_in(link.as_os_str()));
        if known.is_some_and(|inode| self.handles.contains_key(&inode)) {
            return;
        }
        match open(path) {
            Ok(handle) => {
                if let Ok(inode) = inode_of(&handle) {
                    self.handles.entry(inode).or_insert(handle);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.unopened.extend(known.map(|inode| (inode, error)));
            }
        }
    }
}

/// Opens a namespace file. Anything else is never opened: whoever owns a process chooses what its
/// descriptors are, and opening can block (a FIFO) or have an effect (a device).
///
/// # Errors
/// If the path leads to no namespace file, of whatever kind, or it cannot be opened.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // include/uapi/linux/magic.h.
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    let reference = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let file_system = fstatfs(&reference)?.f_type;
    if u64::try_from(file_system) != Ok(NSFS_MAGIC) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // The same file, whatever the path leads to by now.
    File::open(format!("/proc/thread-self/fd/{}", reference.as_raw_fd()))
}

/// Moves the calling thread into the namespace. It does not come back: use a thread of its own.
///
/// # Errors
/// If `CAP_SYS_ADMIN` is missing.
pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// The namespace with this inode, if a thread of the process lives in it.
#[must_use]
pub(crate) fn of_process(pid: u32, inode: u32) -> Option<File> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let threads = numeric_entries(&process.join("task"));
    std::iter::once(process).chain(threads).map(|of| of.join("ns/net")).find_map(|path| {
        // The link names the inode, which saves opening most of them.
        let is_it = fs::read_link(&path)
            .is_ok_and(|link| inode_in(link.as_os_str()).is_none_or(|found| found == inode));
        let namespace = is_it.then(|| open(&path).ok()).flatten()?;
        inode_of(&namespace).is_ok_and(|found| found == inode).then_some(namespace)
    })
}

/// The inode of a network namespace's file.
///
/// # Errors
/// If it is not such a file.
pub(crate) fn inode_of(file: &File) -> io::Result<u32> {
    // _IO(NSIO, 0x3), include/uapi/linux/nsfs.h.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNET {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let inode = rustix::fs::fstat(file)?.st_ino;
    u32::try_from(inode).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The namespace of another process's socket (`SIOCGSKNS`, include/uapi/linux/sockios.h).
fn namespace_of(socket: SocketFile) -> io::Result<File> {
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    let pid = i32::try_from(socket.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let socket = pidfd_getfd(&process, socket.fd, PidfdGetfdFlags::empty())?;
    // SAFETY: the request takes no argument and returns a new descriptor.
    let namespace = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if namespace < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(namespace) })
}

/// `net:[4026531840]` names its inode.
fn inode_in(link: &OsStr) -> Option<u32> {
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Where namespaces are mounted (the root column of an nsfs mount says which kind it is).
fn mounted() -> Vec<PathBuf> {
    let mounts = fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(3);
            let root = fields.next()?;
            root.starts_with(b"net:[").then(|| fields.next()).flatten()
        })
        .map(|path| PathBuf::from(OsString::from_vec(unescaped(path))))
        .collect()
}

/// The kernel writes white space, `#` and the backslash as a backslash and three octal digits
/// (`mangle_path`, fs/seq_file.c).
fn unescaped(escaped: &[u8]) -> Vec<u8> {
    let octal = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok();
    let mut path = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((first, others)) = rest.split_first() {
        let byte = others.get(..3).filter(|_| *first == b'\\').and_then(octal);
        path.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &others[3..] } else { others };
    }
    path
}

fn numeric_entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        name.to_str()?.bytes().all(|byte| byte.is_ascii_digit()).then(|| entry.path())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_escape_of_a_mount_point_is_undone() {
        for (escaped, path) in [
            ("/run/netns/blue", "/run/netns/blue"),
            ("/a\\040b\\011c\\012d\\134e\\043f", "/a b\tc\nd\\e#f"),
            ("/odd\\", "/odd\\"),
            ("/odd\\04", "/odd\\04"),
            ("/odd\\999", "/odd\\999"),
        ] {
            assert_eq!(unescaped(escaped.as_bytes()), path.as_bytes(), "{escaped}");
        }
    }
}
