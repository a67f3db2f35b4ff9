//! What became of each hook.

/// One hook: how it is attached, or why it is not and what that costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookStatus {
    /// The kernel's name of the hook.
    pub name: &'static str,
    /// What cannot be told without this hook, or what tells it instead.
    pub without: &'static str,
    /// How it is attached, or why it is not.
    pub outcome: Outcome,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is attached, by this kind of program.
    Attached(&'static str),
    /// It is not, and others tell the same.
    Replaced {
        /// The reason, the kernel's where it gave one.
        reason: String,
    },
    /// It is not, and something goes untold.
    Missing {
        /// The reason, the kernel's where it gave one.
        reason: String,
    },
}

impl Outcome {
    /// `kind` is the kind of the program that was attached, or was not for this reason.
    pub(crate) fn of(attached: Result<(), String>, kind: &'static str) -> Self {
        attached.map_or_else(|reason| Self::Missing { reason }, |()| Self::Attached(kind))
    }
}

impl HookStatus {
    /// True if the hook is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        matches!(self.outcome, Outcome::Attached(_))
    }
}

/// Where a function hook and a tracepoint tell the same, the tracepoint is the dearer one: it fires
/// for every timer or every system call of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HookFamily {
    /// Function hooks where the kernel permits them, else tracepoints.
    #[default]
    Auto,
    /// Tracepoints, even where function hooks would do.
    Tracepoints,
    /// Function hooks, or nothing.
    Functions,
}
