//! What the attached hooks show.

use super::Instant;

/// Which observations can be relied upon to come, by the hooks that are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// [`PortChosen`](super::Observation::PortChosen) and [`Listening`](super::Observation::Listening)
    /// come before anything else happens to a socket that connects or listens, so that their absence
    /// means failure.
    pub ports_chosen: bool,
    /// [`Accepted`](super::Observation::Accepted) is observed: the process that accepted a connection
    /// is known.
    pub accepts: bool,
    /// Sockets whose port connect() chose are marked in `sk_userlocks` (`SOCK_CONNECT_BIND`).
    pub marks_connect: bool,
    /// Snapshots show sockets that are bound but idle.
    pub bound_idle: bool,
    /// When the last hook was attached. Facts of an earlier time cover only a part of what happened;
    /// what they left held is in the snapshot.
    pub since: Instant,
}
