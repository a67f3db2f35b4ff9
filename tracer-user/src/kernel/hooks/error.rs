//! Why the tracer cannot run here.

use std::{error::Error as StdError, io};

use aya::programs::ProgramError;

use crate::kernel::{hooks::programs::reason, host::capability::Capability, types::btf::BtfError};

/// Why the tracer cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A privilege is missing without which no program can be loaded.
    #[error(
        "tracing needs {}, which this process does not have: run it as root (sudo portlife ...), \
         or in a container with these capabilities added",
        names(.0)
    )]
    Privilege(Vec<Capability>),
    /// The kernel publishes no type information, or none that can be read.
    #[error(
        "this kernel has no usable type information: portlife needs Linux 5.10 or newer, built \
         with CONFIG_DEBUG_INFO_BTF (as the kernels of all large distributions are)"
    )]
    Btf(#[source] BtfError),
    /// The kernel's types lack a field that the programs read.
    #[error("this kernel's TCP sockets are not understood")]
    Layout(#[source] BtfError),
    /// The kernel refuses the hook without which there is nothing to see.
    #[error(
        "the kernel refuses the tracepoint {hook}, without which there is nothing to trace: {reason}"
    )]
    Refused {
        /// The kernel's name of the hook.
        hook: &'static str,
        /// The kernel's reason.
        reason: String,
    },
    /// The user asked for function hooks, and the kernel refuses them.
    #[error(
        "the kernel refuses the function hooks that --hooks functions asks for ({0}): without the \
         option, portlife uses tracepoints instead"
    )]
    NoFunctions(String),
    /// The kernel refuses the object or one of its maps.
    #[error("the kernel refuses the eBPF object")]
    Object(#[source] Box<dyn StdError + Send + Sync>),
    /// The ring buffer cannot be polled.
    #[error("the ring buffer cannot be polled")]
    Ring(#[source] io::Error),
}

impl From<ProgramError> for LoadError {
    fn from(error: ProgramError) -> Self {
        Self::Object(reason(&error).into())
    }
}

fn names(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(|capability| capability.name()).collect();
    names.join(" and ")
}
