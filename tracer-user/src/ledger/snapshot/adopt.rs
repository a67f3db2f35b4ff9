//! Adds the leases that a snapshot shows.

use std::collections::BTreeMap;

use tracer_ebpf::TcpState;

use crate::{
    ledger::{
        Ledger,
        tables::{Hold, LeaseIndex, NewLease},
    },
    model::{BucketClass, Held, HeldBy, Netns, Phase, Port, Side, Substate},
};

impl Ledger {
    /// Marks the beginning of a snapshot: holds that end are remembered until
    /// [`end_snapshot`](Self::end_snapshot).
    pub fn begin_snapshot(&mut self) {
        self.window.open();
    }

    /// Marks the end of a snapshot: every observation from its time was applied, and its holds were
    /// adopted or compared.
    pub fn end_snapshot(&mut self) {
        self.window.close();
    }

    /// True if so much ended during the latest snapshot that it says nothing about what is missing.
    #[must_use]
    pub fn is_snapshot_outdated(&self) -> bool {
        self.window.has_overflowed()
    }

    /// Adds the holds that a first snapshot found. Listeners come first, because they show which
    /// connections were accepted.
    pub fn adopt_all(&mut self, held: &[Held]) {
        let is_listener = |held: &&Held| held.by == HeldBy::Socket(TcpState::Listen);
        for held in held.iter().filter(is_listener) {
            self.adopt(held);
        }
        for held in held.iter().filter(|held| !is_listener(held)) {
            self.adopt(held);
        }
    }

    /// Adopts the classes of buckets that a first snapshot found. Observations take precedence: the
    /// class of a port on which a lease began since then is known better.
    pub fn adopt_classes(&mut self, classes: &BTreeMap<Netns, BTreeMap<Port, BucketClass>>) {
        for (netns, ports) in classes {
            for (port, class) in ports {
                if self.leases_on(*netns, *port).all(|lease| lease.acquired.is_none()) {
                    self.table.correct_bucket_class(*netns, *port, *class);
                }
            }
        }
    }

    /// Adds one hold that a snapshot found, and returns its index if it is new. Observations take
    /// precedence: a hold that they have shown gains only an owner, and one that they have ended is
    /// not added.
    pub(super) fn adopt(&mut self, held: &Held) -> Option<LeaseIndex> {
        let hold = Hold::of_held(held)?;
        if let Some(index) = self.of_hold(&hold) {
            let lease = &mut self.table[index].lease;
            if lease.owner.is_none() {
                lease.owner = held.owner.map(|owner| self.owners.share(&owner));
            }
            return None;
        }
        let is_starting = matches!(hold, Hold::Socket(cookie) if self.calls.contains(cookie));
        if is_starting || self.window.has_ended(&hold) {
            return None;
        }
        let phase = phase_of(held.by);
        let new = NewLease {
            cookie: held.cookie,
            netns: held.netns,
            family: held.family,
            v6_only: held.v6_only,
            local_addr: held.local_addr,
            local_port: held.local_port,
            peer: held.peer.into(),
            kind: self.likely_kind(held.netns, held.local_port, held.userlocks, phase),
            phase,
            owner: held.owner.map(|owner| self.owners.share(&owner)),
            acquired: None,
            has_timestamps: held.has_timestamps,
        };
        let index = match held.by {
            HeldBy::Socket(_) => self.insert_socket(new),
            HeldBy::TimeWait(_) => self.insert_time_wait(new),
        };
        self.table[index].lease.closed_by = match held.by {
            HeldBy::Socket(TcpState::CloseWait | TcpState::LastAck) => Some(Side::Peer),
            HeldBy::Socket(TcpState::FinWait1 | TcpState::FinWait2) => Some(Side::Local),
            HeldBy::Socket(_) | HeldBy::TimeWait(_) => None,
        };
        Some(index)
    }

    /// The lease of a hold.
    pub(super) fn of_hold(&self, hold: &Hold) -> Option<LeaseIndex> {
        match hold {
            Hold::Socket(cookie) => self.table.leases().of_socket(*cookie),
            Hold::TimeWait(cookie, key) => self.table.leases().of_time_wait(*cookie, key),
        }
    }
}

/// The phase of a lease with this holder.
pub(super) fn phase_of(by: HeldBy) -> Phase {
    match by {
        HeldBy::TimeWait(substate) => Phase::TimeWait(substate),
        HeldBy::Socket(state) => match state {
            TcpState::SynSent => Phase::Connecting,
            TcpState::Established | TcpState::SynRecv | TcpState::NewSynRecv => Phase::Established,
            TcpState::FinWait1
            | TcpState::FinWait2
            | TcpState::CloseWait
            | TcpState::LastAck
            | TcpState::Closing => Phase::Closing,
            TcpState::TimeWait => Phase::TimeWait(Substate::TimeWait),
            TcpState::Close | TcpState::BoundInactive => Phase::Bound,
            TcpState::Listen => Phase::Listen,
        },
    }
}
