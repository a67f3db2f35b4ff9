//! The cgroup v2 hierarchy: where programs are attached, and how a cgroup's id becomes a path.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

/// The root of the cgroup v2 hierarchy, whether or not it is mounted.
#[derive(Debug)]
pub(crate) struct CgroupRoot {
    directory: OwnedFd,
}

impl CgroupRoot {
    /// Opens the root through a mount of our own that is attached nowhere (`fsopen`, `fsmount`;
    /// Linux 5.2), so that nothing on the host changes and nothing has to be mounted.
    ///
    /// # Errors
    /// If the kernel has no cgroup v2, or mounting is not permitted.
    pub(crate) fn open() -> io::Result<Self> {
        let context = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let mount = rustix::mount::fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        // The mount's descriptor is an O_PATH one; the kernel wants a real one to attach to.
        let directory = rustix::fs::openat(
            mount.as_fd(),
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { directory })
    }

    /// The path of the cgroup with this id, from the root of the hierarchy; `None` if it is gone.
    #[must_use]
    pub(crate) fn path_of(&self, id: u64) -> Option<String> {
        let cgroup = self.open_by_id(id).ok()?;
        let link = fs::read_link(format!("/proc/thread-self/fd/{}", cgroup.as_raw_fd())).ok()?;
        let path = link.to_string_lossy();
        // The kernel adds this to the path of a cgroup that was removed and is still referenced
        // (`d_path`), but a cgroup may also have such a name.
        let removed = path.strip_suffix(" (deleted)").filter(|_| !self.is_at(&path, id));
        Some(removed.unwrap_or(&path).to_owned())
    }

    /// True if this path leads to the cgroup with this id.
    fn is_at(&self, path: &str, id: u64) -> bool {
        let relative = path.trim_start_matches('/');
        rustix::fs::statat(&self.directory, relative, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| found.st_ino == id)
    }

    /// Kernfs encodes a node's id as its file handle (`FILEID_KERNFS`, fs/kernfs/mount.c).
    fn open_by_id(&self, id: u64) -> io::Result<OwnedFd> {
        const FILEID_KERNFS: libc::c_int = 0xfe;
        #[repr(C)]
        struct Handle {
            bytes: libc::c_uint,
            kind: libc::c_int,
            id: [u8; 8],
        }
        let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
        // SAFETY: the handle is a `struct file_handle` with eight bytes of payload.
        let fd = unsafe {
            libc::open_by_handle_at(
                self.directory.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for CgroupRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The container that a cgroup path belongs to: the 64 hexadecimal digits that docker,
/// containerd, CRI-O and podman all put into it, shortened to the 12 that their tools show. The
/// outermost, because a container may make cgroups below its own and name them as it likes.
#[must_use]
pub(crate) fn container_of(path: &str) -> Option<&str> {
    const ID_DIGITS: usize = 64;
    const SHOWN_DIGITS: usize = 12;
    path.split('/').find_map(|component| {
        let stem = component.strip_suffix(".scope").unwrap_or(component);
        let id = stem.rsplit(['-', ':']).next()?;
        let is_id = id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| id.get(..SHOWN_DIGITS)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_recognised_by_their_runtimes_paths() {
        let id = "8ae5f8f2c1d94a0fbb4e9b9e5d6c7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f";
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            format!("/kubepods/besteffort/pod1/{id}"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/kubepods-pod1.slice:cri-containerd:{id}"),
        ] {
            assert_eq!(container_of(&path), Some("8ae5f8f2c1d9"), "{path}");
        }
        let other = id.replace('8', "f");
        let forged = format!("/kubepods/pod1/{id}/docker-{other}.scope");
        assert_eq!(container_of(&forged), Some("8ae5f8f2c1d9"), "the container's own choice");
        assert_eq!(container_of("/system.slice/nginx.service"), None);
        assert_eq!(container_of("/"), None);
    }

    #[test]
    fn the_root_has_a_path() {
        let root = match CgroupRoot::open() {
            Ok(root) => root,
            Err(error) => {
                println!("skipped: the cgroup v2 root cannot be opened: {error}");
                return;
            }
        };
        let inode = rustix::fs::fstat(&root).unwrap().st_ino;
        assert_eq!(root.path_of(inode).as_deref(), Some("/"));
        assert_eq!(root.path_of(u64::MAX), None);
    }

    #[test]
    fn a_name_that_looks_removed_is_kept_while_the_cgroup_exists() {
        let Ok(root) = CgroupRoot::open() else {
            println!("skipped: the cgroup v2 root cannot be opened");
            return;
        };
        let name = format!("portlife-test-{} (deleted)", std::process::id());
        if let Err(error) = rustix::fs::mkdirat(&root, &name, Mode::RWXU) {
            println!("skipped: no cgroup can be made: {error}");
            return;
        }
        let directory = rustix::fs::openat(
            &root,
            &name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let found = directory.as_ref().ok().and_then(|directory| {
            let id = rustix::fs::fstat(directory).ok()?.st_ino;
            root.path_of(id)
        });
        rustix::fs::unlinkat(&root, &name, AtFlags::REMOVEDIR).unwrap();
        assert_eq!(found, Some(format!("/{name}")));
    }
}
