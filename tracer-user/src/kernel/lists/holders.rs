//! The holders of a namespace's ports, with what the kernel's own bind buckets say of them.
//!
//! Connected sockets, listeners and TIME_WAITs come from `iter/tcp`, sockets that are bound but
//! idle from `iter/task_file`. Neither list is of one instant; on a namespace that changes, what
//! is computed from them is as exact as that.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    thread,
};

use aya::{Btf as AyaBtf, Ebpf, EbpfLoader, Endianness, programs::ProgramError};
use tracer_ebpf::{ABSENT, HolderLayout, HolderRecord};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::{
    capacity::{KernelRules, KernelTime, ReuseRule, SocketRangeRule},
    kernel::{
        hooks::{
            loader::{self, LoadError},
            object::OBJECT,
            programs::{
                IDLE_HOLDERS, IteratorProgram, Programs, TCP_HOLDERS, at_once, is_to_be_continued,
                open_iterator,
            },
        },
        host::{clock, memory},
        namespace::netns,
        types::{
            btf::{self, Btf, BtfError},
            layout,
        },
    },
    model::{Holder, Netns, Port},
};

/// The iterators, loaded. They list the holders of any namespace, as often as one likes and from
/// any thread; nothing is attached, and nothing runs in between.
#[derive(Debug)]
pub struct HolderLists {
    tcp: OwnedFd,
    /// Before 5.11 there is no way from a file to its socket (`bpf_sock_from_file`).
    files: Option<OwnedFd>,
    features: Features,
}

/// The holders of a namespace.
#[derive(Clone, Debug)]
pub struct HolderView {
    /// Each at least once.
    pub holders: Vec<Holder>,
    /// When the list was complete.
    pub at: KernelTime,
}

/// What the running kernel does and keeps, as its types tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    has_entry_stamp: bool,
    /// How it searches for ports.
    pub rules: KernelRules,
}

impl HolderLists {
    /// Loads the iterators by themselves, without the tracer's hooks.
    ///
    /// # Errors
    /// If this kernel has no such iterators, or does not let this process load them.
    pub fn load() -> Result<Self, LoadError> {
        let Iterators { mut ebpf, btf, features, marks_connect: _ } = Iterators::prepare(None)?;
        let mut programs = Programs::of(&mut ebpf);
        let [tcp, files] = [TCP_HOLDERS, IDLE_HOLDERS].map(|name| programs.take(name));
        let lists = Self::of_iterators(tcp, files, &btf, features);
        drop((ebpf, btf));
        memory::trim();
        Ok(lists?)
    }

    /// Loads the iterators of an object that was loaded with the layout of holders.
    pub(crate) fn of_iterators(
        tcp: IteratorProgram<'_>,
        files: IteratorProgram<'_>,
        btf: &AyaBtf,
        features: Features,
    ) -> Result<Self, ProgramError> {
        let (tcp, files) = at_once(|| tcp.load(btf), || files.load(btf));
        Ok(Self::of_programs(tcp?, files.ok(), features))
    }

    /// The same, with the sockets that are bound but idle.
    pub(crate) fn with_idle(self, files: OwnedFd) -> Self {
        Self { files: Some(files), ..self }
    }

    pub(crate) fn of_programs(tcp: OwnedFd, files: Option<OwnedFd>, features: Features) -> Self {
        Self { tcp, files, features }
    }

    /// How the running kernel searches for ports.
    #[must_use]
    pub fn rules(&self) -> KernelRules {
        self.features.rules
    }

    /// True if sockets that are bound but idle are listed, without which headroom is not exact.
    #[must_use]
    pub fn lists_idle(&self) -> bool {
        self.files.is_some()
    }

    /// Lists the holders of a namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or the kernel refuses to list.
    pub fn of(&self, namespace: &File) -> io::Result<HolderView> {
        // A thread that entered a namespace is not used for anything else.
        thread::scope(|scope| {
            let lister = scope.spawn(|| {
                netns::enter(namespace)?;
                self.of_this_thread()
            });
            lister.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Lists the holders of the calling thread's namespace.
    ///
    /// # Errors
    /// If the kernel refuses to list.
    pub fn of_this_thread(&self) -> io::Result<HolderView> {
        let netns = Netns(netns::inode_of(&File::open("/proc/thread-self/ns/net")?)?);
        let mut holders = Vec::new();
        for program in std::iter::once(&self.tcp).chain(&self.files) {
            self.read(program.as_fd(), |of, holder| {
                if of == netns {
                    holders.push(holder);
                }
            })?;
        }
        Ok(HolderView { holders, at: KernelTime::from_ns(clock::monotonic_ns()) })
    }

    /// Lists the connected sockets, listeners and TIME_WAITs of the calling thread's namespace.
    ///
    /// # Errors
    /// If the kernel refuses to list.
    pub(crate) fn hashed_of_this_thread(&self) -> io::Result<Vec<Holder>> {
        let mut holders = Vec::new();
        self.read(self.tcp.as_fd(), |_, holder| holders.push(holder))?;
        Ok(holders)
    }

    /// Lists the sockets of all namespaces that are bound but idle; none where the kernel cannot.
    ///
    /// # Errors
    /// If the kernel refuses to list.
    pub(crate) fn idle(&self) -> io::Result<Vec<(Netns, Holder)>> {
        let mut holders = Vec::new();
        if let Some(files) = &self.files {
            self.read(files.as_fd(), |netns, holder| holders.push((netns, holder)))?;
        }
        Ok(holders)
    }

    fn read(&self, program: BorrowedFd<'_>, mut take: impl FnMut(Netns, Holder)) -> io::Result<()> {
        const RECORD: usize = size_of::<HolderRecord>();
        let mut file = open_iterator(program)?;
        let mut buffer = vec![0; RECORD * 512];
        let mut filled = 0;
        loop {
            let read = match file.read(&mut buffer[filled..]) {
                Err(error) if is_to_be_continued(&error) => continue,
                other => other?,
            };
            if read == 0 {
                return Ok(());
            }
            filled += read;
            let whole = filled - filled % RECORD;
            for bytes in buffer[..whole].chunks_exact(RECORD) {
                let record = HolderRecord::read_from_bytes(bytes)
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                if let Some(holder) = Holder::from_record(&record, self.features.has_entry_stamp) {
                    take(Netns(record.netns), holder);
                }
            }
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
    }
}

/// The object with every offset that an iterator needs, before any of its programs is loaded.
pub(crate) struct Iterators {
    pub ebpf: Ebpf,
    pub btf: AyaBtf,
    pub features: Features,
    /// Sockets whose port connect() chose are marked by this kernel.
    pub marks_connect: bool,
}

impl Iterators {
    /// `port` is the only one that is to be listed.
    pub fn prepare(port: Option<Port>) -> Result<Self, LoadError> {
        loader::check_privileges()?;
        let types = btf::read().map_err(LoadError::Btf)?;
        // Either takes its time over these megabytes.
        let (resolved, btf) = at_once(
            || Btf::parse(&types).map(|btf| layout::resolve(&btf)),
            || AyaBtf::parse(&types, Endianness::default()),
        );
        let layout::Resolved {
            layout,
            sock,
            time_wait,
            task,
            files,
            holders,
            has_cookie_helper,
            marks_connect,
            ..
        } = resolved.map_err(LoadError::Btf)?;
        sock.and(time_wait).and(task).and(files).map_err(LoadError::Layout)?;
        let (holder_layout, features) = holders.map_err(LoadError::Layout)?;
        let btf = btf.map_err(|error| LoadError::Object(error.into()))?;
        let ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("LAYOUT", layout.as_bytes(), true)
            .override_global("COOKIE_HELPER", &u32::from(has_cookie_helper), true)
            .override_global("HOLDER_LAYOUT", holder_layout.as_bytes(), true)
            .override_global("PORT_WANTED", &port.map_or(0, |port| u32::from(port.0)), true)
            .override_global("AYA_LOG_LEVEL", &0_u8, false)
            .load(OBJECT)
            .map_err(|error| LoadError::Object(error.into()))?;
        Ok(Self { ebpf, btf, features, marks_connect })
    }
}

/// Resolves the fields that only holders need.
pub(crate) fn resolve(btf: &Btf) -> Result<(HolderLayout, Features), BtfError> {
    use layout::{bitfield, pointed, scalar};
    let mut found = HolderLayout::default();
    let sock = btf.tracepoint_argument("inet_sock_set_state", 0)?;
    found.sk_reuse = bitfield(&sock, "__sk_common.skc_reuse")?;
    found.sk_reuseport = bitfield(&sock, "__sk_common.skc_reuseport")?;
    found.sk_bound_dev_if = scalar(&sock, "__sk_common.skc_bound_dev_if", 32)?;
    let tcp_sock = btf.function_parameter("tcp_mstamp_refresh", 0)?;
    let bind_hash = tcp_sock.field("inet_conn.icsk_bind_hash")?;
    found.sk_bind_hash = bind_hash.offset();
    let tb = pointed(&tcp_sock, bind_hash, "inet_conn.icsk_bind_hash")?;
    found.tb_fastreuse = scalar(&tb, "fastreuse", 8)?;
    found.tb_fastreuseport = scalar(&tb, "fastreuseport", 8)?;
    found.tb_l3mdev = scalar(&tb, "l3mdev", 32)?;
    let tw = btf.function_parameter("inet_twsk_put", 0)?;
    found.tw_tb = tw.field("tw_tb")?.offset();
    found.tw_connect_bind = bitfield(&tw, "tw_connect_bind").unwrap_or_default();
    found.tw_entry_stamp = scalar(&tw, "tw_entry_stamp", 32).unwrap_or(ABSENT);
    let has_entry_stamp = found.tw_entry_stamp != ABSENT;
    let has_bhash2 = tcp_sock.field("inet_conn.icsk_bind2_hash").is_ok();
    let features = Features {
        has_entry_stamp,
        rules: KernelRules {
            reuse: match (has_entry_stamp, has_bhash2) {
                (true, _) => ReuseRule::Delay,
                // No type tells of the change that spares FIN_WAIT2; of the kernels that are still
                // maintained, those with the second bind hash (6.1) have it.
                (false, true) => ReuseRule::NextSecondNotFinWait2,
                (false, false) => ReuseRule::NextSecond,
            },
            socket_range: socket_range_rule(&tcp_sock),
        },
    };
    Ok((found, features))
}

/// Since 6.8 the option is one word that is read without a lock, and its search goes by turn.
fn socket_range_rule(tcp_sock: &crate::kernel::types::btf::Struct<'_>) -> SocketRangeRule {
    match tcp_sock.field("inet_conn.icsk_inet.local_port_range") {
        Ok(field) if field.structure().is_none() => SocketRangeRule::InTurn,
        Ok(_) => SocketRangeRule::ByParity,
        Err(_) => SocketRangeRule::Absent,
    }
}
