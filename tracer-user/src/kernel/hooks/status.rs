//! How a hook is attached, or why it is not.

/// A hook, as `start` and `check` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HookStatus {
    /// The kernel's name of the hook.
    pub(crate) name: &'static str,
    /// What is lost without this hook, or which others are used instead: the end of a sentence.
    pub(crate) without: &'static str,
    pub(crate) outcome: Outcome,
}

/// How a hook is attached, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is attached, by this kind of program.
    Attached(&'static str),
    /// It is not, and other hooks report the same.
    Replaced {
        /// Why: the kernel's reason where it gave one.
        reason: String,
    },
    /// It is not, and something is lost.
    Missing {
        /// Why: the kernel's reason where it gave one.
        reason: String,
    },
}

impl Outcome {
    /// The outcome of attaching a program of this kind.
    pub(crate) fn of(attached: Result<(), String>, label: &'static str) -> Self {
        attached.map_or_else(|reason| Self::Missing { reason }, |()| Self::Attached(label))
    }

    /// True if the hook is attached.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self, Self::Attached(_))
    }
}
