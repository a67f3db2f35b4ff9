//! What the attached hooks and the lists can show.

use super::Instant;

/// Which observations are certain to arrive, given the hooks that are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visibility {
    /// [`PortChosen`](super::Observation::PortChosen) and [`Listening`](super::Observation::Listening)
    /// arrive before any other observation of a socket that connects or listens, so that their
    /// absence means failure.
    pub ports_chosen: bool,
    /// [`Accepted`](super::Observation::Accepted) is observed: the process that accepted a connection
    /// is known.
    pub accepts: bool,
    /// Sockets whose port connect() chose are marked in `sk_userlocks` (`SOCK_CONNECT_BIND`).
    pub marks_connect: bool,
    /// Snapshots show sockets that are bound but idle.
    pub bound_idle: bool,
    /// When the last hook was attached. Earlier facts cover only a part of what happened; the snapshot
    /// shows what is held after them.
    pub since: Instant,
}
