//! The hooks: which program goes where, and what is lost without it.

use std::io;

use aya::{
    Btf as AyaBtf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, FEntry, FExit, ProgramError,
        SockOps,
    },
};

use crate::kernel::{
    hooks::{
        error::LoadError,
        programs::{Programs, reason},
        status::{HookFamily, HookStatus, Outcome},
    },
    host::cgroup::CgroupRoot,
};

/// Programs at tracepoints of which a second copy is attached behind the first.
pub const AGAIN: [(&str, &str); 3] = [
    ("sys_exit", "sys_exit_backup"),
    ("tcp_destroy_sock", "tcp_destroy_sock_backup"),
    ("inet_sock_set_state", "inet_sock_set_state_backup"),
];
/// What tells who scans ports.
pub const RESET: &str = "tcp_send_reset";
/// Links admit other programs beside ours by themselves (`cgroup_bpf_link_attach`), and no flags.
const ATTACH_MODE: CgroupAttachMode = CgroupAttachMode::Single;
const TIME_WAIT_LOSS: &str = "the end of a TIME_WAIT is not seen";
const SOCK_OPS_LOSS: &str =
    "a port that connect() or listen() chose is learned only from the next event of its socket";
const POST_BIND_LOSS: &str = "a bound socket is seen only when it connects or listens";

/// A program at the entry or exit of a kernel function.
#[derive(Clone, Copy)]
pub struct Function {
    /// What the user sees: the function's present name.
    pub name: &'static str,
    /// The program.
    program: &'static str,
    /// Its second copy, where another task can take the CPU from the first.
    again: Option<&'static str>,
    place: FunctionPlace,
    /// Its name in kernels of earlier times.
    formerly: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum FunctionPlace {
    Entry,
    Exit,
}

impl Function {
    const fn entry(name: &'static str, program: &'static str) -> Self {
        Self { name, program, again: None, place: FunctionPlace::Entry, formerly: None }
    }

    const fn exit(name: &'static str, program: &'static str, again: &'static str) -> Self {
        Self { name, program, again: Some(again), place: FunctionPlace::Exit, formerly: None }
    }

    /// The program and its copy, if there are two.
    pub fn both_programs(&self) -> Option<(&'static str, &'static str)> {
        Some((self.program, self.again?))
    }

    /// The program, and its copy.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.program).chain(self.again)
    }
}

/// The life of a TIME_WAIT. What ends it goes first, and what tells why before that.
const TIME_WAIT_FUNCTIONS: [Function; 4] = [
    Function::entry("tw_timer_handler", "time_wait_due"),
    Function::entry("inet_twsk_kill", "time_wait_kill"),
    Function {
        formerly: Some("inet_twsk_hashdance"),
        ..Function::entry("inet_twsk_hashdance_schedule", "time_wait_hash")
    },
    Function::entry("__inet_twsk_schedule", "time_wait_schedule"),
];
const BIND4: Function = Function::exit("inet_bind", "bind4_exit", "bind4_exit_backup");
const BIND6: Function = Function::exit("inet6_bind", "bind6_exit", "bind6_exit_backup");
/// The end of accept().
pub const ACCEPT: Function = Function::exit("inet_csk_accept", "accept_exit", "accept_exit_backup");
const ACCEPT_OF_FOUR: Function =
    Function::exit("inet_csk_accept", "accept_exit_of_four", "accept_exit_of_four_backup");

/// Functions at which two programs are attached.
pub const FUNCTIONS_TWICE: [Function; 4] = [BIND4, BIND6, ACCEPT, ACCEPT_OF_FOUR];

/// What hooks need of this kernel, or the sentence that says why it is not there.
pub struct Needs {
    /// The current task.
    pub task: Result<(), String>,
    /// TIME_WAITs.
    pub time_wait: Result<(), String>,
    /// Their timers.
    pub timers: Result<(), String>,
    /// File descriptors and their sockets, and the current task.
    pub files: Result<(), String>,
    /// Registers of a system call, and all of `files`.
    pub syscall: Result<(), String>,
    /// Segments that are answered by a reset.
    pub segment: Result<(), String>,
    /// Number of parameters of `inet_csk_accept`, if the kernel has it.
    pub accept_parameters: Option<u32>,
    /// Tracing programs can give a socket its cookie; else another program must.
    pub has_cookie_helper: bool,
    /// A tracepoint's program can lose its CPU to another task.
    pub has_preemptible_tracepoints: bool,
}

/// Attaches programs, and keeps what became of each.
pub struct Attacher<'a> {
    programs: Programs<'a>,
    btf: &'a AyaBtf,
    family: HookFamily,
    hooks: Vec<HookStatus>,
}

impl<'a> Attacher<'a> {
    /// Nothing is attached yet.
    pub fn new(programs: Programs<'a>, btf: &'a AyaBtf, family: HookFamily) -> Self {
        Self { programs, btf, family, hooks: Vec::new() }
    }

    /// Every hook, in the order in which they were tried.
    pub fn into_hooks(self) -> Vec<HookStatus> {
        self.hooks
    }

    /// Attaches everything that this kernel permits.
    ///
    /// # Errors
    /// If function hooks were asked for and are refused.
    pub fn attach(
        &mut self,
        needs: &Needs,
        cgroups: &io::Result<CgroupRoot>,
    ) -> Result<(), LoadError> {
        // What ends a lease goes first, so that no birth is seen whose end would be missed.
        let has_time_wait_functions = self.functions(
            &TIME_WAIT_FUNCTIONS,
            &needs.time_wait,
            "timer_start, timer_cancel and timer_expire_entry tell it, which fire for every timer",
        )?;
        if !has_time_wait_functions {
            self.tracepoint("timer_expire_entry", needs.timers.clone(), TIME_WAIT_LOSS);
            self.tracepoint("timer_cancel", needs.timers.clone(), TIME_WAIT_LOSS);
            self.tracepoint("timer_start", needs.timers.clone(), TIME_WAIT_LOSS);
        }
        self.tracepoint_twice(
            "tcp_destroy_sock",
            &Ok(()),
            "the release of bound sockets that never connected is not seen",
        );
        self.tracepoint_twice("inet_sock_set_state", &needs.task, "everything");
        match cgroups {
            Ok(root) => {
                if !needs.has_cookie_helper {
                    self.sock_create(root);
                }
                self.sock_ops(root);
                self.post_bind(root, &needs.task);
            }
            Err(error) => {
                let reason = format!("the cgroup v2 root cannot be opened: {error}");
                self.refuse("sockops", reason.clone(), SOCK_OPS_LOSS);
                self.refuse("post_bind4", reason.clone(), POST_BIND_LOSS);
                self.refuse("post_bind6", reason, POST_BIND_LOSS);
            }
        }
        let accept = if needs.accept_parameters == Some(4) { ACCEPT_OF_FOUR } else { ACCEPT };
        let call_functions = [BIND4, BIND6, accept];
        let has_accept = needs.accept_parameters.map(|_| ()).ok_or_else(no_accept);
        let precondition = needs.files.clone().and(has_accept);
        const INSTEAD: &str = "sys_exit tells it, which fires for every system call";
        if !self.functions(&call_functions, &precondition, INSTEAD)? {
            const LOSS: &str = "failed bind()s are not seen, and accepted connections are shown with \
                                their listener's owner";
            // A task's system calls do not interrupt each other; a copy is due where another's can.
            if needs.has_preemptible_tracepoints {
                self.tracepoint_twice("sys_exit", &needs.syscall, LOSS);
            } else {
                self.tracepoint("sys_exit", needs.syscall.clone(), LOSS);
            }
        }
        self.tracepoint(RESET, needs.segment.clone(), "port scans are not seen");
        Ok(())
    }

    fn tracepoint(
        &mut self,
        name: &'static str,
        precondition: Result<(), String>,
        loss: &'static str,
    ) {
        let btf = self.btf;
        self.attempt(name, "tp_btf", loss, precondition, |programs| {
            let program: &mut BtfTracePoint = programs.get(name)?;
            program.load(name, btf)?;
            program.attach().map(|_| ())
        });
    }

    /// Attaches a program and its copy, which sees what the kernel skips of the first.
    fn tracepoint_twice(
        &mut self,
        name: &'static str,
        precondition: &Result<(), String>,
        loss: &'static str,
    ) {
        self.tracepoint(name, precondition.clone(), loss);
        let again = AGAIN.iter().find(|(first, _)| *first == name);
        if let Some((_, again)) = again {
            let btf = self.btf;
            let loss = "an event that interrupts the report of another of its kind is lost, though \
                        counted";
            self.attempt(again, "tp_btf", loss, precondition.clone(), |programs| {
                let program: &mut BtfTracePoint = programs.get(again)?;
                program.load(name, btf)?;
                program.attach().map(|_| ())
            });
        }
    }

    /// Attaches all of these or none, and says which.
    fn functions(
        &mut self,
        functions: &[Function],
        precondition: &Result<(), String>,
        without: &'static str,
    ) -> Result<bool, LoadError> {
        if self.family == HookFamily::Tracepoints {
            return Ok(false);
        }
        let mut refused = precondition.clone().err().map(|reason| (functions.len(), reason));
        for (index, function) in functions.iter().enumerate() {
            for program in function.programs() {
                if refused.is_none()
                    && let Err(error) = self.function(function, program)
                {
                    refused = Some((index + 1, reason(&error)));
                }
            }
        }
        let Some((failed, reason)) = refused else {
            self.hooks.extend(functions.iter().map(|function| {
                let outcome = Outcome::Attached(match function.place {
                    FunctionPlace::Entry => "fentry",
                    FunctionPlace::Exit => "fexit",
                });
                HookStatus { name: function.name, without, outcome }
            }));
            return Ok(true);
        };
        if self.family == HookFamily::Functions {
            return Err(LoadError::NoFunctions(reason));
        }
        for function in functions.iter().take(failed) {
            self.unload(function);
        }
        self.hooks.extend(functions.iter().map(|function| {
            let outcome = Outcome::Replaced { reason: reason.clone() };
            HookStatus { name: function.name, without, outcome }
        }));
        Ok(false)
    }

    fn function(
        &mut self,
        function: &Function,
        program_name: &'static str,
    ) -> Result<(), ProgramError> {
        let Self { programs, btf, .. } = self;
        let names = std::iter::once(function.name).chain(function.formerly);
        let mut outcome = Err(ProgramError::NotLoaded);
        for name in names {
            outcome = match function.place {
                FunctionPlace::Entry => {
                    let program: &mut FEntry = programs.get(program_name)?;
                    program.load(name, btf).and_then(|()| program.attach().map(|_| ()))
                }
                FunctionPlace::Exit => {
                    let program: &mut FExit = programs.get(program_name)?;
                    program.load(name, btf).and_then(|()| program.attach().map(|_| ()))
                }
            };
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Detaches a function's program. What the kernel did not detach, the end of the agent will.
    fn unload(&mut self, function: &Function) {
        for name in function.programs() {
            let unloaded = match function.place {
                FunctionPlace::Entry => self.programs.get::<FEntry>(name).and_then(FEntry::unload),
                FunctionPlace::Exit => self.programs.get::<FExit>(name).and_then(FExit::unload),
            };
            // Its facts would come twice, which the ledger bears.
            drop(unloaded);
        }
    }

    fn sock_ops(&mut self, root: &CgroupRoot) {
        self.attempt("sockops", "cgroup", SOCK_OPS_LOSS, Ok(()), |programs| {
            let program: &mut SockOps = programs.get("sock_ops")?;
            program.load()?;
            program.attach(root, ATTACH_MODE).map(|_| ())
        });
    }

    /// For kernels whose tracing programs cannot give a socket its cookie.
    fn sock_create(&mut self, root: &CgroupRoot) {
        let loss = "sockets are told apart only once the kernel has given them a cookie";
        self.attempt("sock_create", "cgroup", loss, Ok(()), |programs| {
            let program: &mut CgroupSock = programs.get("sock_create")?;
            program.load()?;
            program.attach(root, ATTACH_MODE).map(|_| ())
        });
    }

    fn post_bind(&mut self, root: &CgroupRoot, task: &Result<(), String>) {
        const REQUEST_LOSS: &str =
            "a bind() to port 0 is told from one to that port only at its socket's next event";
        for (name, loss) in [("bind4", REQUEST_LOSS), ("bind6", REQUEST_LOSS)] {
            self.attempt(name, "cgroup", loss, Ok(()), |programs| {
                let program: &mut CgroupSockAddr = programs.get(name)?;
                program.load()?;
                program.attach(root, ATTACH_MODE).map(|_| ())
            });
        }
        for name in ["post_bind4", "post_bind6"] {
            self.attempt(name, "cgroup", POST_BIND_LOSS, task.clone(), |programs| {
                let program: &mut CgroupSock = programs.get(name)?;
                program.load()?;
                program.attach(root, ATTACH_MODE).map(|_| ())
            });
        }
    }

    fn attempt(
        &mut self,
        name: &'static str,
        how: &'static str,
        loss: &'static str,
        precondition: Result<(), String>,
        attach: impl FnOnce(&mut Programs<'a>) -> Result<(), ProgramError>,
    ) {
        let attached =
            precondition.and_then(|()| attach(&mut self.programs).map_err(|error| reason(&error)));
        self.hooks.push(HookStatus { name, without: loss, outcome: Outcome::of(attached, how) });
    }

    fn refuse(&mut self, name: &'static str, reason: String, loss: &'static str) {
        self.hooks.push(HookStatus { name, without: loss, outcome: Outcome::Missing { reason } });
    }
}

/// The programs that may be attached to a hook; those that are not are not loaded.
pub fn programs_of(hook: &'static str) -> impl Iterator<Item = &'static str> {
    const SOCK_OPS: [(&str, &str); 1] = [("sockops", "sock_ops")];
    TIME_WAIT_FUNCTIONS
        .into_iter()
        .chain([BIND4, BIND6, ACCEPT, ACCEPT_OF_FOUR])
        .flat_map(|function| {
            let Function { name, program, again, .. } = function;
            std::iter::once(program).chain(again).map(move |program| (name, program))
        })
        .chain(SOCK_OPS)
        .filter(move |(name, _)| *name == hook)
        .map(|(_, program)| program)
        .chain([hook])
}

fn no_accept() -> String {
    "this kernel has no inet_csk_accept".to_owned()
}
