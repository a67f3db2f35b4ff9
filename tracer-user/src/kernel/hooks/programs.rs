//! The programs of a loaded object, each taken by its name, so that several can be loaded at once.

use std::{
    collections::BTreeMap,
    error::Error as _,
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    thread,
};

use aya::{
    Btf as AyaBtf, Ebpf,
    programs::{Iter, Program, ProgramError},
};

/// Programs that nobody has taken yet.
pub struct Programs<'a>(BTreeMap<&'a str, &'a mut Program>);

impl<'a> Programs<'a> {
    /// All programs of the object.
    pub fn of(ebpf: &'a mut Ebpf) -> Self {
        Self(ebpf.programs_mut().collect())
    }

    /// The program of this name and type.
    ///
    /// # Errors
    /// If there is none, or it is of another type.
    pub fn get<'b, P>(&'b mut self, name: &str) -> Result<&'b mut P, ProgramError>
    where
        &'b mut P: TryFrom<&'b mut Program, Error = ProgramError>,
    {
        let program = self.0.get_mut(name).ok_or(ProgramError::NotLoaded)?;
        (&mut **program).try_into()
    }

    /// Takes an iterator program out.
    pub fn take(&mut self, name: IteratorName) -> IteratorProgram<'a> {
        let IteratorName { name, target } = name;
        IteratorProgram { program: self.0.remove(name), target }
    }
}

/// An iterator program and what it goes through.
#[derive(Clone, Copy)]
pub struct IteratorName {
    name: &'static str,
    target: &'static str,
}

pub const TASK_FILE: IteratorName = IteratorName { name: "task_file", target: "task_file" };
pub const TCP_HOLDERS: IteratorName = IteratorName { name: "tcp_holders", target: "tcp" };
pub const IDLE_HOLDERS: IteratorName = IteratorName { name: "idle_holders", target: "task_file" };

/// An iterator program of the object.
pub struct IteratorProgram<'a> {
    program: Option<&'a mut Program>,
    target: &'static str,
}

impl IteratorProgram<'_> {
    /// Loads it, to be opened with [`open_iterator`].
    ///
    /// # Errors
    /// If this kernel has no such iterator, or does not let this process load it.
    pub fn load(self, btf: &AyaBtf) -> Result<OwnedFd, ProgramError> {
        let program: &mut Iter = self.program.ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(self.target, btf)?;
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    }
}

/// Opens a list: one file of an iterator program, for the calling thread's namespace.
///
/// # Errors
/// If the kernel refuses.
pub fn open_iterator(program: BorrowedFd<'_>) -> io::Result<File> {
    // Commands and attach type of bpf(2): include/uapi/linux/bpf.h.
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_ITER_CREATE: libc::c_long = 33;
    const BPF_TRACE_ITER: u32 = 28;
    /// The attributes of both commands begin so; the kernel takes what is missing for zero.
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
        // SAFETY: the attributes live through the call and are at least as long as said.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size) };
        let fd = i32::try_from(result).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so nobody else owns this descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let link = call(BPF_LINK_CREATE, program, BPF_TRACE_ITER)?;
    call(BPF_ITER_CREATE, link.as_fd(), 0).map(File::from)
}

/// True if reading a list goes on after this error: after each million things that the program
/// passed over there is one (`bpf_seq_read`, kernel/bpf/bpf_iter.c).
pub fn is_to_be_continued(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// The kernel's reason for refusing a program: the errno, and the verifier's last word if it had
/// one.
pub fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        // The last lines are statistics; the one before them is the verdict.
        let verdict = log.lines().rev().find(|line| {
            let line = line.trim();
            !line.is_empty()
                && !["verification time", "stack depth", "processed"]
                    .iter()
                    .any(|statistic| line.starts_with(statistic))
        });
        return match verdict {
            Some(verdict) => format!("{io_error}: {}", verdict.trim()),
            None => io_error.to_string(),
        };
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Runs the one in this thread and the other in a thread beside it.
pub fn at_once<A, B: Send>(here: impl FnOnce() -> A, beside: impl FnOnce() -> B + Send) -> (A, B) {
    thread::scope(|scope| {
        let beside = scope.spawn(beside);
        let here = here();
        (here, beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
