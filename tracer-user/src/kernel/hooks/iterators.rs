//! Iterator programs. They are not attached to anything: the kernel runs them while the list that
//! they write is being read.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::Arc,
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness,
    programs::{Iter, Program, ProgramError},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    kernel::{
        hooks::{
            error::LoadError,
            object::OBJECT,
            privileges,
            programs::Programs,
            table::{IDLE_HOLDERS, IteratorSpec, OPEN_FILES, TCP_HOLDERS},
        },
        host::parallel::in_parallel,
        types::{
            bind_buckets::BucketFeatures,
            btf::{self, Btf},
            layout::{self, FieldGroups, Resolved},
        },
    },
    model::Port,
};

/// The iterator programs of an object, none of them loaded yet.
pub(crate) struct IteratorPrograms<'a> {
    /// Lists the sockets and namespaces that processes have open, as [`OwnedFact`]s.
    ///
    /// [`OwnedFact`]: tracer_ebpf::OwnedFact
    pub(crate) open_files: IteratorProgram<'a>,
    /// Lists connected sockets, listeners and TIME_WAITs of a namespace with their bind buckets,
    /// as [`HolderRecord`]s.
    ///
    /// [`HolderRecord`]: tracer_ebpf::HolderRecord
    pub(crate) tcp_holders: IteratorProgram<'a>,
    /// Lists, in the same way, the sockets of all namespaces that are bound but idle.
    pub(crate) idle_holders: IteratorProgram<'a>,
}

impl<'a> IteratorPrograms<'a> {
    /// Takes the iterator programs out.
    pub(crate) fn take(programs: &mut Programs<'a>, btf: &'a AyaBtf) -> Self {
        let mut take = |spec: IteratorSpec| IteratorProgram {
            program: programs.take(spec.program),
            spec,
            btf,
        };
        Self {
            open_files: take(OPEN_FILES),
            tcp_holders: take(TCP_HOLDERS),
            idle_holders: take(IDLE_HOLDERS),
        }
    }
}

/// An iterator program that is not loaded yet.
pub(crate) struct IteratorProgram<'a> {
    program: Option<&'a mut Program>,
    spec: IteratorSpec,
    btf: &'a AyaBtf,
}

impl IteratorProgram<'_> {
    /// Loads the program.
    ///
    /// # Errors
    /// If this kernel has no such iterator, or does not let this process load the program.
    pub(crate) fn load(self) -> Result<LoadedIterator, ProgramError> {
        let program: &mut Iter = self.program.ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(self.spec.target, self.btf)?;
        Ok(LoadedIterator(Arc::new(program.fd()?.as_fd().try_clone_to_owned()?)))
    }
}

/// A loaded iterator program: its list can be read any number of times and from any thread.
#[derive(Clone, Debug)]
pub(crate) struct LoadedIterator(Arc<OwnedFd>);

impl LoadedIterator {
    /// Reads the list to its end. An iterator that lists one network namespace lists that of the
    /// calling thread.
    ///
    /// # Errors
    /// If the kernel refuses to make the list or to read it, or `consume` fails.
    pub(crate) fn for_each_record<R: Copy + FromBytes + IntoBytes>(
        &self,
        mut consume: impl FnMut(&R) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut list = self.open()?;
        let mut records = [R::new_zeroed(); 512];
        let mut filled = 0;
        loop {
            let read = match list.read(&mut records.as_mut_bytes()[filled..]) {
                Err(error) if is_worth_retrying(&error) => continue,
                other => other?,
            };
            filled += read;
            let complete = filled / size_of::<R>();
            for record in &records[..complete] {
                consume(record)?;
            }
            records.as_mut_bytes().copy_within(complete * size_of::<R>()..filled, 0);
            filled -= complete * size_of::<R>();
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn open(&self) -> io::Result<File> {
        // Commands and attach type of bpf(2): include/uapi/linux/bpf.h.
        const BPF_LINK_CREATE: libc::c_long = 28;
        const BPF_ITER_CREATE: libc::c_long = 33;
        const BPF_TRACE_ITER: u32 = 28;
        /// The attributes of both commands begin like this; the kernel takes missing ones as zero.
        #[repr(C)]
        struct Attributes {
            fd: u32,
            target_or_flags: u32,
            attach_type: u32,
            flags: u32,
        }
        let call = |command: libc::c_long, fd: BorrowedFd<'_>, attach_type: u32| {
            let attributes = Attributes {
                fd: u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX),
                target_or_flags: 0,
                attach_type,
                flags: 0,
            };
            let size = if command == BPF_LINK_CREATE { size_of::<Attributes>() } else { 8 };
            // SAFETY: the attributes live through the call and are at least `size` bytes long.
            let result =
                unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size) };
            let fd = i32::try_from(result).unwrap_or(-1);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let link = call(BPF_LINK_CREATE, self.0.as_fd(), BPF_TRACE_ITER)?;
        call(BPF_ITER_CREATE, link.as_fd(), 0).map(File::from)
    }
}

/// After a million objects for which the program wrote nothing, the kernel returns `EAGAIN` to let
/// others run (`bpf_seq_read`, kernel/bpf/bpf_iter.c).
fn is_worth_retrying(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// The loaded iterators that list holders with their bind buckets.
#[derive(Clone, Debug)]
pub(crate) struct HolderIterators {
    /// Connected sockets, listeners and TIME_WAITs of the calling thread's namespace.
    pub(crate) tcp: LoadedIterator,
    /// Sockets of all namespaces that are bound but idle. `None` before 5.11, which has no way
    /// from a file to its socket (`bpf_sock_from_file`).
    pub(crate) idle: Option<LoadedIterator>,
    pub(crate) features: BucketFeatures,
}

impl HolderIterators {
    /// Loads both iterators.
    ///
    /// # Errors
    /// If the kernel refuses the one over TCP sockets.
    pub(crate) fn load(
        tcp: IteratorProgram<'_>,
        idle: IteratorProgram<'_>,
        features: BucketFeatures,
    ) -> Result<Self, ProgramError> {
        let (tcp, idle) = in_parallel(|| tcp.load(), || idle.load());
        Ok(Self { tcp: tcp?, idle: idle.ok(), features })
    }
}

/// An object whose iterators can be loaded by themselves, without the tracer's hooks.
pub(crate) struct IteratorObject {
    ebpf: Ebpf,
    btf: AyaBtf,
    pub(crate) features: BucketFeatures,
    /// This kernel marks sockets whose port connect() chose.
    pub(crate) marks_connect: bool,
}

impl IteratorObject {
    /// Loads the object, but no program. Its iterators list only holders of `port` if there is one.
    ///
    /// # Errors
    /// If a privilege is missing, the kernel's types lack a field, or the kernel refuses a map.
    pub(crate) fn load(port: Option<Port>) -> Result<Self, LoadError> {
        privileges::check()?;
        let types = btf::read().map_err(LoadError::Btf)?;
        // Each parser goes through several megabytes.
        let (resolved, btf) = in_parallel(
            || Btf::parse(&types).map(|btf| layout::resolve(&btf)),
            || AyaBtf::parse(&types, Endianness::default()),
        );
        let Resolved { layout, sock, groups, bind_buckets, kfuncs: _, features: kernel } =
            resolved.map_err(LoadError::Btf)?;
        let FieldGroups { time_wait, task, files, syscall: _, segment: _ } = groups;
        sock.and(time_wait).and(task).and(files).map_err(LoadError::Layout)?;
        let (holder_layout, features) = bind_buckets.map_err(LoadError::Layout)?;
        let btf = btf.map_err(|error| LoadError::Object(error.into()))?;
        let ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("LAYOUT", layout.as_bytes(), true)
            .override_global("COOKIE_HELPER", &u32::from(kernel.has_cookie_helper), true)
            .override_global("HOLDER_LAYOUT", holder_layout.as_bytes(), true)
            .override_global("PORT_WANTED", &port.map_or(0, |port| u32::from(port.0)), true)
            .override_global("AYA_LOG_LEVEL", &0_u8, false)
            .load(OBJECT)
            .map_err(|error| LoadError::Object(error.into()))?;
        Ok(Self { ebpf, btf, features, marks_connect: kernel.marks_connect })
    }

    /// Its iterator programs.
    pub(crate) fn programs(&mut self) -> IteratorPrograms<'_> {
        IteratorPrograms::take(&mut Programs::of(&mut self.ebpf), &self.btf)
    }
}
