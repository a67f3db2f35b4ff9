//! The lease state machine.

mod audit;

mod buckets;

mod counts;
mod replay;

pub use audit::Differences;
pub(crate) use counts::destination_of;
pub(crate) use replay::Replay;

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

use slab::Slab;

use tracer_ebpf::{Owner, TcpState};

use crate::{
    capacity::{DestinationIndex, Usage, cause_of},
    ledger::{
        Sink,
        cookies::ByCookie,
        marks::{Mark, Marks},
        owners::Owners,
        ports::{LastUse, NONE, Ports},
    },
    model::{
        Addr, BucketClass, Cause, Change, Cookie, Destination, Failure, Family, Held, HeldBy,
        Incarnation, Instant, Kind, Lease, LeaseEvent, LeaseId, Netns, Observation, Operation,
        Peer, Phase, Port, Reason, Reuse, Side, Sight, Substate,
        observation::{
            Accepted, Arming, BindFailed, BindRequest, Bound, Cancel, Closed, Closing,
            ConnectStart, Destroyed, Endpoints, Established, ListenStart, Listening, LocalEnd,
            NoTimeWait, Open, OwnRange, PortChosen, SocketId, TimeWaitCancel, TimeWaitExpire,
            TimeWaitId, TimeWaitStart, Userlocks,
        },
        seconds,
    },
};

/// The ledger. See the [module](super).
#[derive(Debug)]
pub struct Ledger {
    sight: Sight,
    next_id: u64,
    leases: Slab<Entry>,
    owners: Owners,
    /// First of the chain of leases of a socket, by cookie: the one that the socket itself holds,
    /// if it holds one, and those of the TIME_WAITs that it left behind.
    by_cookie: ByCookie,
    pub(super) ports: Ports,
    listeners: FxHashMap<(Netns, Port), Vec<u32>>,
    /// Calls under way that have no port yet.
    pending: FxHashMap<Cookie, Pending>,
    /// The number of them at which those without a result are forgotten.
    most_pending: usize,
    /// Cancelled TIME_WAITs whose fate the next facts tell, by connection.
    cancelled: FxHashMap<Tuple, u32>,
    /// When and why they were, by lease.
    cancels: FxHashMap<u32, Cancelled>,
    /// What is to be decided at a certain time at the latest, oldest first.
    expiry_due: VecDeque<Deadline>,
    kill_due: VecDeque<Deadline>,
    /// Killed TIME_WAITs that a connect() under way may have killed to take their place.
    contested: Vec<Deadline>,
    accept_due: VecDeque<Deadline>,
    /// Holds that ended while a snapshot was being taken: it may show them still.
    ended: Option<FxHashSet<Hold>>,
    /// Counts the snapshots, to tell what changed while the present one was taken.
    epoch: u16,
    pub(super) usage: Usage,
    culprits: FxHashMap<Netns, counts::Culprit>,
    /// Counts the comparisons with the kernel.
    comparison: u16,
    narrow: Option<counts::Narrow>,
}

/// A TIME_WAIT timer that was cancelled before it was due is armed again at once, under the same
/// lock; the reuse by a connect() is known microseconds later, by the port's choice, and that by a
/// client that comes back a round trip later, when its handshake is done. A client further away
/// than this is not waited for: a record is to be told within a tenth of a second.
const KILL_SETTLES_NS: u64 = 40_000_000;

/// A timer that was due expires at once, unless its CPU is taken away (a virtual machine's may).
const EXPIRY_SETTLES_NS: u64 = 1_000_000_000;

/// A connect() or listen() that has had no result for so long had it in a fact that was lost (the
/// search of a full range takes milliseconds).
const LONGEST_CALL_NS: u64 = 10_000_000_000;

/// Calls under way that are too few to look for such.
const FEW_CALLS: usize = 1024;

/// How long the record of a new connection waits to learn who accepts it.
const ACCEPT_SETTLES_NS: u64 = 60_000_000;

#[derive(Debug)]
struct Entry {
    lease: Lease,
    marks: Marks,
    /// Why the socket went to CLOSE while it kept its port, or let go while the TIME_WAIT held on.
    close_reason: Option<Reason>,
    /// When it let go.
    socket_end: Option<Instant>,
    /// The state of this lease's address in the bucket of its port.
    address_class: BucketClass,
    /// Where the connection is counted; `None` if it is not.
    destination: Option<DestinationIndex>,
    /// The epoch of the latest change of holder or phase. Epochs and comparisons begin anew after
    /// 65,536 of them, which at worst leaves the lease out of one comparison.
    changed: u16,
    /// The latest comparison in which the kernel had a hold of this lease.
    seen: u16,
    next_of_cookie: u32,
    next_of_port: u32,
    previous_of_port: u32,
}

const _: () = assert!(size_of::<Entry>() <= 144);

/// A TIME_WAIT's timer was cancelled.
#[derive(Clone, Copy, Debug)]
struct Cancelled {
    at: Instant,
    reason: Reason,
}

/// connect() or listen() of a socket without a port.
#[derive(Debug)]
struct Pending {
    began: Instant,
    netns: Netns,
    peer: Peer,
    operation: Operation,
    owner: Option<Arc<Owner>>,
    own_range: Option<OwnRange>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    index: u32,
    id: LeaseId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    netns: Netns,
    local: (Addr, Port),
    peer: (Addr, Port),
}

impl Tuple {
    /// `None` if the socket is not connected.
    fn of(netns: Netns, endpoints: Endpoints) -> Option<Self> {
        let Endpoints { local: LocalEnd { addr, port, .. }, peer } = endpoints;
        Some(Self { netns, local: (addr, port?), peer: peer.get()? })
    }
}

/// The addresses that a socket takes on its port.
#[derive(Clone, Copy, Debug)]
struct Claim {
    addr: Addr,
    v6_only: bool,
}

impl Claim {
    /// True if two sockets of one port cannot both have what they claim, options aside
    /// (`inet_rcv_saddr_equal`, net/ipv4/inet_connection_sock.c).
    fn overlaps(self, other: Self) -> bool {
        let takes_all_of_the_other = |claim: Self| claim.addr.is_unspecified() && !claim.v6_only;
        match (self.addr.is_ipv4(), other.addr.is_ipv4()) {
            (true, false) => takes_all_of_the_other(other),
            (false, true) => takes_all_of_the_other(self),
            _ => {
                self.addr == other.addr || self.addr.is_unspecified() || other.addr.is_unspecified()
            }
        }
    }
}

/// One of the two ways to hold a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Hold {
    Socket(Cookie),
    TimeWait(Cookie, Tuple),
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(sight: Sight) -> Self {
        let mut usage = Usage::default();
        // What a snapshot finds crosses its levels now, not at the kernel's boot.
        usage.set_time(sight.since);
        Self {
            sight,
            next_id: 1,
            leases: Slab::new(),
            owners: Owners::default(),
            by_cookie: ByCookie::default(),
            ports: Ports::default(),
            listeners: FxHashMap::default(),
            pending: FxHashMap::default(),
            most_pending: FEW_CALLS,
            cancelled: FxHashMap::default(),
            cancels: FxHashMap::default(),
            expiry_due: VecDeque::new(),
            kill_due: VecDeque::new(),
            contested: Vec::new(),
            accept_due: VecDeque::new(),
            ended: None,
            epoch: 0,
            usage,
            culprits: FxHashMap::default(),
            comparison: 0,
            narrow: None,
        }
    }

    /// Number of live leases.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// True if nobody holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// All live leases, in no particular order.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter().map(|(_, entry)| &entry.lease)
    }

    /// The leases on one port.
    pub fn leases_on(&self, netns: Netns, port: Port) -> impl Iterator<Item = &Lease> {
        self.chain(self.ports.get(netns, port).first, |entry| entry.next_of_port)
            .map(|(_, entry)| &entry.lease)
    }

    /// Takes one observation. One from before all hooks were attached is not taken: what should
    /// follow it, or should have come before it, may be missing.
    pub fn apply(&mut self, observation: &Observation<'_>, sink: &mut impl Sink) {
        let at = observation.at();
        if at < self.sight.since {
            return;
        }
        self.usage.set_time(at);
        match observation {
            Observation::ConnectStart(start) => self.connect_start(start, sink),
            Observation::PortChosen(chosen) => self.port_chosen(chosen, sink),
            Observation::Established(established) => self.established(established, sink),
            Observation::Closing(closing) => self.closing(closing, sink),
            Observation::Closed(closed) => self.closed(closed, sink),
            Observation::Destroyed(destroyed) => self.destroyed(destroyed, sink),
            Observation::ListenStart(start) => self.listen_start(start, sink),
            Observation::Listening(listening) => self.listening(listening, sink),
            Observation::Bound(bound) => self.bound(bound, sink),
            Observation::BindFailed(failed) => self.bind_failed(failed, sink),
            Observation::Accepted(accepted) => self.accepted(accepted, sink),
            Observation::TimeWaitStart(start) => self.time_wait_start(start, sink),
            Observation::TimeWaitCancel(cancel) => self.time_wait_cancel(cancel),
            Observation::TimeWaitExpire(expire) => self.time_wait_expire(expire, sink),
        }
        self.report_pressure(sink);
    }

    /// Decides what has waited long enough, given that every fact up to `now` was applied.
    pub fn settle(&mut self, now: Instant, sink: &mut impl Sink) {
        // The end of a run settles everything, whatever the time.
        if now != Instant::from_ns(u64::MAX) {
            self.usage.set_time(now);
        }
        for settles_ns in [KILL_SETTLES_NS, EXPIRY_SETTLES_NS] {
            let queue = |ledger: &mut Self| -> Option<Deadline> {
                let queue = if settles_ns == KILL_SETTLES_NS {
                    &mut ledger.kill_due
                } else {
                    &mut ledger.expiry_due
                };
                queue.pop_front_if(|deadline| now.since(deadline.at) >= settles_ns)
            };
            while let Some(deadline) = queue(self) {
                if self.is_contested(deadline) {
                    self.contested.push(deadline);
                } else {
                    self.end_cancelled(deadline, sink);
                }
            }
        }
        for deadline in std::mem::take(&mut self.contested) {
            if now.since(deadline.at) < LONGEST_CALL_NS && self.is_contested(deadline) {
                self.contested.push(deadline);
            } else {
                self.end_cancelled(deadline, sink);
            }
        }
        while let Some(deadline) =
            self.accept_due.pop_front_if(|deadline| now.since(deadline.at) >= ACCEPT_SETTLES_NS)
        {
            if self.live(deadline).is_some() {
                self.announce(deadline.index, sink);
            }
        }
        self.report_pressure(sink);
    }

    /// True if [`settle`](Self::settle) will have something to decide.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        let Self { kill_due, contested, expiry_due, accept_due, .. } = self;
        !(kill_due.is_empty()
            && contested.is_empty()
            && expiry_due.is_empty()
            && accept_due.is_empty())
    }

    /// From now on a snapshot is being taken: remember what ends.
    pub fn begin_snapshot(&mut self) {
        self.ended = Some(FxHashSet::default());
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Leaves untold what began before the tracer's first record, which shows it as held.
    pub fn begin_telling(&mut self) {
        self.accept_due.clear();
        for (_, entry) in &mut self.leases {
            entry.marks.set(Mark::Unannounced, false);
        }
    }

    /// Every fact of the snapshot's time is applied, and its holds are adopted.
    pub fn end_snapshot(&mut self) {
        self.ended = None;
    }

    /// Takes what a snapshot found: listeners first, because they tell which connections were
    /// accepted.
    pub fn adopt_all(&mut self, held: &[Held]) {
        let is_listener = |held: &&Held| held.by == HeldBy::Socket(TcpState::Listen);
        for held in held.iter().filter(is_listener) {
            self.adopt(held);
        }
        for held in held.iter().filter(|held| !is_listener(held)) {
            self.adopt(held);
        }
    }

    /// Takes one hold that a snapshot found, and returns its place if it is new. Facts win: a hold
    /// that they have already told of gains only an owner, and one that they have ended is not
    /// taken.
    fn adopt(&mut self, held: &Held) -> Option<u32> {
        let hold = Hold::of(held)?;
        let known = match hold {
            Hold::Socket(cookie) => self.socket_lease(cookie),
            Hold::TimeWait(cookie, tuple) => self.time_wait_lease(cookie, &tuple),
        };
        if let Some(index) = known {
            let lease = &mut self.leases[index as usize].lease;
            if lease.owner.is_none() {
                lease.owner = held.owner.map(|owner| self.owners.share(&owner));
            }
            return None;
        }
        let is_starting =
            matches!(hold, Hold::Socket(cookie) if self.pending.contains_key(&cookie));
        if is_starting || self.ended.as_ref().is_some_and(|ended| ended.contains(&hold)) {
            return None;
        }
        let (phase, by_socket) = match held.by {
            HeldBy::TimeWait(substate) => (Phase::TimeWait(substate), false),
            HeldBy::Socket(state) => (phase_of(state), true),
        };
        let new = NewLease {
            cookie: held.cookie,
            netns: held.netns,
            family: held.family,
            v6_only: held.v6_only,
            local_addr: held.local_addr,
            local_port: held.local_port,
            peer: held.peer.into(),
            kind: self.guess_kind(held.netns, held.local_port, held.userlocks, phase),
            phase,
            owner: held.owner.map(|owner| self.owners.share(&owner)),
            acquired: None,
            has_timestamps: held.has_timestamps,
        };
        let index = self.insert(new, by_socket, !by_socket);
        self.leases[index as usize].lease.closed_by = match held.by {
            HeldBy::Socket(TcpState::CloseWait | TcpState::LastAck) => Some(Side::Peer),
            HeldBy::Socket(TcpState::FinWait1 | TcpState::FinWait2) => Some(Side::Local),
            HeldBy::Socket(_) | HeldBy::TimeWait(_) => None,
        };
        Some(index)
    }
}

/// What a lease begins with.
struct NewLease {
    cookie: Cookie,
    netns: Netns,
    family: Family,
    v6_only: bool,
    local_addr: Addr,
    local_port: Port,
    peer: Peer,
    kind: Kind,
    phase: Phase,
    owner: Option<Arc<Owner>>,
    acquired: Option<Instant>,
    has_timestamps: Option<bool>,
}

impl NewLease {
    /// From an observation of a socket. `None` if the socket holds no port.
    fn observed(
        socket: SocketId,
        local: LocalEnd,
        peer: Peer,
        kind: Kind,
        phase: Phase,
    ) -> Option<Self> {
        let SocketId { cookie, netns } = socket;
        let LocalEnd { family, v6_only, addr, port } = local;
        Some(Self {
            cookie,
            netns,
            family,
            v6_only,
            local_addr: addr,
            local_port: port?,
            peer,
            kind,
            phase,
            owner: None,
            acquired: None,
            has_timestamps: None,
        })
    }
}

// Observations of sockets.
impl Ledger {
    fn bound(&mut self, bound: &Bound<'_>, sink: &mut impl Sink) {
        let Bound { at, socket, local, request, incarnation, owner } = *bound;
        let owner = self.owners.share(owner);
        let kind = match request {
            BindRequest::AnyPort => Kind::BindAuto,
            BindRequest::ThisPort => Kind::Bind,
        };
        if self.socket_lease(socket.cookie).is_some() {
            return;
        }
        self.meet_namespace(socket, local, incarnation);
        let Some(new) = NewLease::observed(socket, local, Peer::NONE, kind, Phase::Bound) else {
            return;
        };
        let new = NewLease { owner: Some(owner), acquired: Some(at), ..new };
        let requested_port = match request {
            BindRequest::AnyPort => 0,
            BindRequest::ThisPort => new.local_port.0,
        };
        let reuse = self.reuse(new.netns, new.local_port, at);
        let index = self.insert(new, true, false);
        self.tell(index, at, Change::Bind { requested_port, reuse }, sink);
    }

    fn bind_failed(&mut self, failed: &BindFailed<'_>, sink: &mut impl Sink) {
        let BindFailed { at, socket, requested, errno, holds_port, owner } = *failed;
        let SocketId { cookie, netns } = socket;
        let LocalEnd { family, v6_only, addr, port } = requested;
        let holder = port.filter(|_| errno == libc::EADDRINUSE).and_then(|port| {
            let claim = Claim { addr, v6_only };
            self.holder(netns, port, claim, cookie)
        });
        let cause = match errno {
            libc::EADDRINUSE => port.map(|_| Cause::PortHeld),
            libc::EADDRNOTAVAIL => Some(Cause::AddressNotLocal),
            libc::EACCES | libc::EPERM => Some(Cause::Permission),
            _ => Some(Cause::Other),
        };
        let is_search = errno == libc::EADDRINUSE && port.is_none();
        let range = is_search.then(|| self.usage.range(netns)).flatten();
        let culprit = range.and_then(|_| self.culprit(netns, at));
        self.report_failure(
            Failure {
                at,
                netns,
                cookie,
                family,
                owner: Some(*owner),
                operation: Operation::Bind,
                errno,
                local_addr: addr,
                local_port: port.map_or(0, |port| port.0),
                peer: None,
                cause,
                holder: holder
                    .or(culprit.map(|(index, _)| index))
                    .map(|index| &self.leases[index as usize].lease),
                holder_ports: culprit.map(|(_, ports)| ports),
                range,
                own_range: None,
                is_of_range: port.is_some_and(|port| self.usage.is_choosable(netns, port)),
                search_ns: None,
            },
            sink,
        );
        // Another program at the hook that tells of the bind may have refused it, and the kernel
        // has taken the port back (`__inet_bind`, net/ipv4/af_inet.c).
        if !holds_port && let Some(index) = self.socket_lease(cookie) {
            self.drop_socket_hold(index, at, Reason::Closed, sink);
        }
    }

    fn connect_start(&mut self, start: &ConnectStart<'_>, sink: &mut impl Sink) {
        let ConnectStart { at, socket, endpoints, own_range, userlocks, owner } = *start;
        let Endpoints { local, peer } = endpoints;
        let owner = self.owners.share(owner);
        if local.port.is_none() {
            // A socket that connects anew holds nothing any more, whatever we missed.
            if let Some(index) = self.socket_lease(socket.cookie) {
                self.drop_socket_hold(index, at, Reason::Closed, sink);
            }
            let call = Pending {
                began: at,
                netns: socket.netns,
                peer,
                operation: Operation::Connect,
                owner: Some(owner),
                own_range,
            };
            self.call_begins(socket.cookie, call);
            return;
        }
        let Some(mut index) = self.bound_lease(socket, endpoints, userlocks, owner) else { return };
        if self.leases[index as usize].marks.has(Mark::HeldByTimeWait) {
            // The socket left a TIME_WAIT on its port and connects elsewhere: from here on the
            // two holders go separate ways.
            index = self.part(index, at, sink);
        }
        self.move_in_bucket(index, local.addr);
        let entry = &mut self.leases[index as usize];
        entry.changed = self.epoch;
        entry.lease.phase = Phase::Connecting;
        entry.lease.peer = peer;
        entry.lease.established = None;
        entry.lease.closing = None;
        entry.lease.closed_by = None;
        entry.close_reason = None;
        entry.lease.timer_armed = Some(at);
        entry.marks.set(Mark::Unconfirmed, true);
        self.recount(index);
    }

    fn port_chosen(&mut self, chosen: &PortChosen, sink: &mut impl Sink) {
        let PortChosen { at, socket, endpoints, incarnation, userlocks } = *chosen;
        let Endpoints { local, peer } = endpoints;
        self.meet_namespace(socket, local, incarnation);
        let from_time_wait = self.take_over(socket, endpoints, sink);
        if let Some(index) = self.socket_lease(socket.cookie) {
            self.pending.remove(&socket.cookie);
            let entry = &mut self.leases[index as usize];
            entry.marks.set(Mark::Unconfirmed, false);
            entry.lease.timer_armed = Some(at);
            return;
        }
        let pending = self.pending.remove(&socket.cookie);
        let kind = if userlocks.has_bound_port() { Kind::Bind } else { Kind::Connect };
        let Some(new) = NewLease::observed(socket, local, peer, kind, Phase::Connecting) else {
            return;
        };
        let search_ns = pending.as_ref().map(|pending| at.since(pending.began));
        let owner = pending.and_then(|pending| pending.owner);
        let new = NewLease { owner, acquired: Some(at), ..new };
        let reuse = from_time_wait.or_else(|| self.reuse(new.netns, new.local_port, at));
        let index = self.insert(new, true, false);
        self.leases[index as usize].lease.timer_armed = Some(at);
        self.tell(index, at, Change::Connect { search_ns, reuse }, sink);
    }

    fn established(&mut self, established: &Established, sink: &mut impl Sink) {
        let Established { at, socket, endpoints, incarnation, open } = *established;
        let Endpoints { local, peer } = endpoints;
        if let Some(index) = self.socket_lease(socket.cookie) {
            let entry = &mut self.leases[index as usize];
            if entry.lease.phase == Phase::Established {
                return;
            }
            entry.lease.phase = Phase::Established;
            entry.lease.established = Some(at);
            entry.lease.peer = peer;
            entry.marks.set(Mark::Unconfirmed, false);
            let attempt = entry.lease.timer_armed.take();
            let handshake_ns = attempt.map(|attempt| at.since(attempt));
            self.move_in_bucket(index, local.addr);
            self.recount(index);
            self.tell(index, at, Change::Established { handshake_ns }, sink);
            return;
        }
        self.meet_namespace(socket, local, incarnation);
        let from_time_wait = self.take_over(socket, endpoints, sink);
        if open == Open::Passive {
            self.born_of_listener(at, socket, endpoints, sink);
            return;
        }
        // connect() without the hook that shows its choice: this is the first that shows the port.
        let pending = self.pending.remove(&socket.cookie);
        let Some(new) = NewLease::observed(socket, local, peer, Kind::Connect, Phase::Established)
        else {
            return;
        };
        let began = pending.as_ref().map(|pending| pending.began);
        let owner = pending.and_then(|pending| pending.owner);
        let new = NewLease { owner, acquired: began, ..new };
        let reuse = from_time_wait.or_else(|| self.reuse(new.netns, new.local_port, at));
        let index = self.insert(new, true, false);
        self.leases[index as usize].lease.established = Some(at);
        self.tell(index, at, Change::Connect { search_ns: None, reuse }, sink);
        let handshake_ns = began.map(|began| at.since(began));
        self.tell(index, at, Change::Established { handshake_ns }, sink);
    }

    fn born_of_listener(
        &mut self,
        at: Instant,
        socket: SocketId,
        Endpoints { local, peer }: Endpoints,
        sink: &mut impl Sink,
    ) {
        let Some(new) = NewLease::observed(socket, local, peer, Kind::Accept, Phase::Established)
        else {
            return;
        };
        let listener = self.listener(new.netns, new.local_port, new.family, new.local_addr);
        let owner = listener.and_then(|index| self.leases[index as usize].lease.owner.clone());
        let index = self.insert(NewLease { owner, acquired: Some(at), ..new }, true, false);
        let entry = &mut self.leases[index as usize];
        entry.lease.established = Some(at);
        entry.marks.set(Mark::Unannounced, true);
        if self.sight.accepts {
            let id = entry.lease.id;
            self.accept_due.push_back(Deadline { at, index, id });
        } else {
            self.announce(index, sink);
        }
    }

    fn accepted(&mut self, accepted: &Accepted<'_>, sink: &mut impl Sink) {
        let Accepted { at: _, socket, endpoints, owner } = *accepted;
        let owner = Some(self.owners.share(owner));
        if let Some(index) = self.socket_lease(socket.cookie) {
            self.leases[index as usize].lease.owner = owner;
            self.announce(index, sink);
            return;
        }
        // The peer was faster: the connection has ended before it was accepted, except for its
        // TIME_WAIT.
        if let Some(index) = Tuple::of(socket.netns, endpoints)
            .and_then(|tuple| self.time_wait_lease(socket.cookie, &tuple))
        {
            self.leases[index as usize].lease.owner = owner;
        }
    }

    fn listen_start(&mut self, start: &ListenStart<'_>, sink: &mut impl Sink) {
        let ListenStart { at, socket, local, userlocks, owner } = *start;
        let owner = self.owners.share(owner);
        if local.port.is_none() {
            let call = Pending {
                began: at,
                netns: socket.netns,
                peer: Peer::NONE,
                operation: Operation::Listen,
                owner: Some(owner),
                own_range: None,
            };
            self.call_begins(socket.cookie, call);
            return;
        }
        let endpoints = Endpoints { local, peer: Peer::NONE };
        let Some(index) = self.bound_lease(socket, endpoints, userlocks, owner) else { return };
        self.leases[index as usize].marks.set(Mark::Unconfirmed, true);
        if !self.sight.ports_chosen {
            self.listens(index, at, sink);
        }
    }

    fn listening(&mut self, listening: &Listening, sink: &mut impl Sink) {
        let Listening { at, socket, local, incarnation } = *listening;
        if let Some(index) = self.socket_lease(socket.cookie) {
            self.listens(index, at, sink);
            return;
        }
        self.meet_namespace(socket, local, incarnation);
        let owner = self.pending.remove(&socket.cookie).and_then(|pending| pending.owner);
        let Some(new) = NewLease::observed(socket, local, Peer::NONE, Kind::Listen, Phase::Listen)
        else {
            return;
        };
        let new = NewLease { owner, acquired: Some(at), ..new };
        let reuse = self.reuse(new.netns, new.local_port, at);
        let index = self.insert(new, true, false);
        self.tell(index, at, Change::Bind { requested_port: 0, reuse }, sink);
        self.tell(index, at, Change::Listen, sink);
    }

    fn listens(&mut self, index: u32, at: Instant, sink: &mut impl Sink) {
        let entry = &mut self.leases[index as usize];
        entry.marks.set(Mark::Unconfirmed, false);
        if entry.lease.phase == Phase::Listen {
            return;
        }
        entry.lease.phase = Phase::Listen;
        entry.lease.peer = Peer::NONE;
        let key = (entry.lease.netns, entry.lease.local_port);
        self.listeners.entry(key).or_default().push(index);
        self.bind_bucket(index);
        self.recount(index);
        self.tell(index, at, Change::Listen, sink);
    }

    fn closing(&mut self, closing: &Closing, sink: &mut impl Sink) {
        let Closing { at, socket, endpoints, by, userlocks } = *closing;
        let index = match self.socket_lease(socket.cookie) {
            Some(index) => index,
            // Established before the tracer was.
            None => match self.discover(socket, endpoints, userlocks, Phase::Established) {
                Some(index) => index,
                None => return,
            },
        };
        let entry = &mut self.leases[index as usize];
        entry.lease.phase = Phase::Closing;
        if entry.lease.closed_by.is_none() {
            entry.lease.closed_by = Some(by);
            entry.lease.closing = Some(at);
            self.tell(index, at, Change::Closing { by }, sink);
        }
    }

    fn closed(&mut self, closed: &Closed, sink: &mut impl Sink) {
        let Closed {
            at,
            socket,
            endpoints,
            from,
            error,
            is_shut_down,
            is_orphan: _,
            no_time_wait: _,
            userlocks,
        } = *closed;
        let SocketId { cookie, .. } = socket;
        if let Some(pending) = self.pending.remove(&cookie) {
            self.pending_failed(closed, &pending, sink);
            return;
        }
        let Some(index) = self.socket_lease(cookie) else {
            if let Some(ended) = &mut self.ended {
                ended.insert(Hold::Socket(cookie));
            }
            // If it holds a port, it is a socket from before our time.
            self.discover(socket, endpoints, userlocks, Phase::Bound);
            return;
        };
        let reason = close_reason(closed);
        let entry = &mut self.leases[index as usize];
        let is_failure = error.is_none() && !is_shut_down;
        if entry.marks.take(Mark::Unconfirmed) && self.sight.ports_chosen && is_failure {
            self.unconfirmed_failed(index, at, from, sink);
        }
        if from == Some(TcpState::Listen) {
            self.unlist(index);
        }
        if endpoints.local.port.is_none() {
            self.drop_socket_hold(index, at, reason, sink);
            return;
        }
        let entry = &mut self.leases[index as usize];
        entry.changed = self.epoch;
        if !entry.marks.has(Mark::HeldByTimeWait) {
            entry.close_reason = Some(reason);
            entry.lease.phase = Phase::Bound;
            entry.lease.closing = entry.lease.closing.or(entry.lease.established.map(|_| at));
            if !userlocks.has_bound_addr() {
                // The address was connect()'s (tcp_disconnect, net/ipv4/tcp.c).
                let unspecified = Addr::unspecified(entry.lease.family);
                self.move_in_bucket(index, unspecified);
            }
            self.recount(index);
        }
    }

    fn destroyed(&mut self, destroyed: &Destroyed, sink: &mut impl Sink) {
        let Destroyed { at, socket: SocketId { cookie, netns: _ } } = *destroyed;
        self.pending.remove(&cookie);
        let Some(index) = self.socket_lease(cookie) else {
            if let Some(ended) = &mut self.ended {
                ended.insert(Hold::Socket(cookie));
            }
            return;
        };
        let reason = self.leases[index as usize].close_reason.unwrap_or(Reason::Closed);
        self.drop_socket_hold(index, at, reason, sink);
    }

    /// connect() or listen() went back to CLOSE before it had a port.
    fn pending_failed(&mut self, closed: &Closed, pending: &Pending, sink: &mut impl Sink) {
        let Closed { at, socket, endpoints, from: _, error, is_shut_down, .. } = *closed;
        let SocketId { cookie, netns } = socket;
        let Endpoints { local, peer } = endpoints;
        let peer = peer.get();
        // With an error on the socket the call had its port, and the peer refused: the fact that
        // tells which port was lost. A close() ends a connect() that Fast Open had deferred.
        if error.is_some() || is_shut_down {
            return;
        }
        let (errno, search_ns) = match pending.operation {
            // inet_csk_get_port fails with EADDRINUSE (net/ipv4/inet_connection_sock.c),
            // __inet_hash_connect with EADDRNOTAVAIL (net/ipv4/inet_hashtables.c).
            Operation::Connect => (libc::EADDRNOTAVAIL, Some(at.since(pending.began))),
            Operation::Listen | Operation::Bind => (libc::EADDRINUSE, None),
        };
        let destination = peer
            .filter(|_| pending.operation == Operation::Connect)
            .map(|peer| Destination { netns, source: local.addr, peer });
        let own_range = pending
            .own_range
            .and_then(|OwnRange { low, high }| {
                let number = |end: Option<Port>| end.map_or(0, |port| port.0);
                self.usage.narrowed(netns, (number(low), number(high)))
            })
            .map(|own| (own.low(), own.high()));
        let (range, culprit) = match (destination, own_range) {
            (Some(destination), Some(range)) => self.use_within(&destination, range, at),
            (Some(destination), None) => {
                let range = self.usage.for_destination(&destination);
                let is_locked = range.is_some_and(|range| range.bind_locked > 0);
                (range, is_locked.then(|| self.culprit(netns, at)).flatten())
            }
            (None, _) => {
                let range = self.usage.range(netns);
                (range, range.and_then(|_| self.culprit(netns, at)))
            }
        };
        self.report_failure(
            Failure {
                at,
                netns,
                cookie,
                family: local.family,
                owner: pending.owner.as_deref().copied(),
                operation: pending.operation,
                errno,
                local_addr: local.addr,
                local_port: 0,
                peer,
                cause: None,
                holder: culprit.map(|(index, _)| &self.leases[index as usize].lease),
                holder_ports: culprit.map(|(_, ports)| ports),
                range,
                own_range,
                is_of_range: false,
                search_ns,
            },
            sink,
        );
    }

    /// Reports a call that got no port, with its cause.
    fn report_failure(&self, failure: Failure<'_>, sink: &mut impl Sink) {
        let cause = cause_of(&failure);
        sink.failure(&Failure { cause, ..failure }, self);
    }

    /// connect() or listen() of a bound socket went back to CLOSE without a SYN or a listener.
    fn unconfirmed_failed(
        &mut self,
        index: u32,
        at: Instant,
        from: Option<TcpState>,
        sink: &mut impl Sink,
    ) {
        let lease = self.leases[index as usize].lease.clone();
        let (operation, errno) = match from {
            Some(TcpState::SynSent) => (Operation::Connect, libc::EADDRNOTAVAIL),
            Some(TcpState::Listen) => (Operation::Listen, libc::EADDRINUSE),
            _ => return,
        };
        let holder = match (operation, lease.peer.get()) {
            (Operation::Connect, Some(peer)) => self
                .leases_on(lease.netns, lease.local_port)
                .find(|other| other.id != lease.id && other.peer.get() == Some(peer))
                .cloned(),
            _ => self
                .holder(
                    lease.netns,
                    lease.local_port,
                    Claim { addr: lease.local_addr, v6_only: lease.v6_only },
                    lease.cookie,
                )
                .map(|index| self.leases[index as usize].lease.clone()),
        };
        self.report_failure(
            Failure {
                at,
                netns: lease.netns,
                cookie: lease.cookie,
                family: lease.family,
                owner: lease.owner.as_deref().copied(),
                operation,
                errno,
                local_addr: lease.local_addr,
                local_port: lease.local_port.0,
                peer: if operation == Operation::Connect { lease.peer.get() } else { None },
                cause: Some(Cause::PortHeld),
                holder: holder.as_ref(),
                holder_ports: None,
                range: None,
                own_range: None,
                is_of_range: self.usage.is_choosable(lease.netns, lease.local_port),
                search_ns: lease
                    .timer_armed
                    .filter(|_| operation == Operation::Connect)
                    .map(|attempt| at.since(attempt)),
            },
            sink,
        );
    }

    /// The lease of a socket that is observed to hold a port already, found or made.
    fn bound_lease(
        &mut self,
        socket: SocketId,
        endpoints: Endpoints,
        userlocks: Userlocks,
        owner: Arc<Owner>,
    ) -> Option<u32> {
        let index = match self.socket_lease(socket.cookie) {
            Some(index) => index,
            None => self.discover(socket, endpoints, userlocks, Phase::Bound)?,
        };
        self.leases[index as usize].lease.owner.get_or_insert(owner);
        Some(index)
    }

    /// Enters a lease that began before our time, if the socket holds a port.
    fn discover(
        &mut self,
        socket: SocketId,
        Endpoints { local, peer }: Endpoints,
        userlocks: Userlocks,
        phase: Phase,
    ) -> Option<u32> {
        let kind = self.guess_kind(socket.netns, local.port?, Some(userlocks), phase);
        let new = NewLease::observed(socket, local, peer, kind, phase)?;
        Some(self.insert(new, true, false))
    }
}

// Observations of TIME_WAITs.
impl Ledger {
    fn time_wait_start(&mut self, start: &TimeWaitStart, sink: &mut impl Sink) {
        let TimeWaitStart { at, time_wait, substate, arming, has_timestamps } = *start;
        let Some((cookie, tuple)) = identity(&time_wait) else { return };
        let has_timestamps = Some(has_timestamps);
        if let Some(index) = self.time_wait_lease(cookie, &tuple) {
            // Armed anew: the cancellation was part of it. The function that re-arms cancels
            // nothing, and may run when another CPU has just killed the TIME_WAIT.
            if arming == Arming::FirstOrAgain {
                self.uncancel(index);
            }
            let entry = &mut self.leases[index as usize];
            entry.lease.timer_armed = Some(at);
            entry.lease.has_timestamps = has_timestamps;
            let is_news = entry.lease.phase != Phase::TimeWait(substate);
            entry.lease.phase = Phase::TimeWait(substate);
            self.recount(index);
            if is_news {
                self.tell(index, at, Change::TimeWait(substate), sink);
            }
            return;
        }
        if arming == Arming::Again {
            return;
        }
        let index = match self.socket_lease(cookie) {
            Some(index) => index,
            None => {
                let TimeWaitId { cookie: _, netns, endpoints: Endpoints { local, peer } } =
                    time_wait;
                let phase = Phase::TimeWait(substate);
                let kind = self.guess_kind(netns, tuple.local.1, None, phase);
                let socket = SocketId { cookie, netns };
                let Some(new) = NewLease::observed(socket, local, peer, kind, phase) else {
                    return;
                };
                self.insert(new, false, true)
            }
        };
        let lease = &mut self.leases[index as usize].lease;
        (lease.time_wait, lease.timer_armed) = (Some(at), Some(at));
        lease.has_timestamps = has_timestamps;
        self.enter_time_wait(index, &tuple, substate, at, sink);
    }

    /// A TIME_WAIT takes the place of a lease's socket.
    fn enter_time_wait(
        &mut self,
        index: u32,
        tuple: &Tuple,
        substate: Substate,
        at: Instant,
        sink: &mut impl Sink,
    ) {
        let entry = &mut self.leases[index as usize];
        entry.marks.set(Mark::HeldByTimeWait, true);
        entry.lease.phase = Phase::TimeWait(substate);
        entry.lease.peer = tuple.peer.into();
        self.move_in_bucket(index, tuple.local.0);
        self.recount(index);
        self.foresee_hold(index, substate, at);
        self.tell(index, at, Change::TimeWait(substate), sink);
    }

    fn time_wait_cancel(&mut self, cancel: &TimeWaitCancel) {
        let TimeWaitCancel { at, time_wait, cancel } = *cancel;
        let Some((cookie, tuple)) = identity(&time_wait) else { return };
        let Some(index) = self.time_wait_lease(cookie, &tuple) else {
            if let Some(ended) = &mut self.ended {
                ended.insert(Hold::TimeWait(cookie, tuple));
            }
            return;
        };
        let (reason, due) = match cancel {
            Cancel::NetnsTeardown => (Reason::NetnsGone, &mut self.kill_due),
            Cancel::BeforeDue => (Reason::TimeWaitKilled, &mut self.kill_due),
            Cancel::WhenDue => (Reason::TimeWaitKilled, &mut self.expiry_due),
        };
        let entry = &mut self.leases[index as usize];
        entry.marks.set(Mark::Cancelled, true);
        due.push_back(Deadline { at, index, id: entry.lease.id });
        if self.cancelled.len() > self.leases.len() {
            // A loss can leave an entry behind.
            let leases = &self.leases;
            self.cancelled.retain(|tuple, index| is_cancelled(leases, *index, tuple));
        }
        self.cancelled.insert(tuple, index);
        self.cancels.insert(index, Cancelled { at, reason });
    }

    fn time_wait_expire(&mut self, expire: &TimeWaitExpire, sink: &mut impl Sink) {
        let TimeWaitExpire { at, time_wait } = *expire;
        let Some((cookie, tuple)) = identity(&time_wait) else { return };
        match self.time_wait_lease(cookie, &tuple) {
            Some(index) => self.end_time_wait(index, at, Reason::TimeWaitExpired, sink),
            None => {
                if let Some(ended) = &mut self.ended {
                    ended.insert(Hold::TimeWait(cookie, tuple));
                }
            }
        }
    }

    /// A new holder of a connection's addresses and ports: if a TIME_WAIT of the same was just
    /// cancelled, this is why.
    fn take_over(
        &mut self,
        socket: SocketId,
        endpoints: Endpoints,
        sink: &mut impl Sink,
    ) -> Option<Reuse> {
        let tuple = Tuple::of(socket.netns, endpoints)?;
        let index = *self.cancelled.get(&tuple)?;
        if !is_cancelled(&self.leases, index, &tuple) {
            return None;
        }
        let previous = self.leases[index as usize].lease.id;
        let cancel = *self.cancels.get(&index)?;
        self.end_time_wait(index, cancel.at, Reason::TimeWaitReused, sink);
        Some(Reuse { previous, idle_ns: 0, from_time_wait: true })
    }

    fn end_cancelled(&mut self, deadline: Deadline, sink: &mut impl Sink) {
        let cancel = self.live(deadline).and_then(|_| self.cancels.get(&deadline.index).copied());
        if let Some(cancel) = cancel.filter(|cancel| cancel.at == deadline.at) {
            self.end_time_wait(deadline.index, cancel.at, cancel.reason, sink);
        }
    }

    /// True if a connect() that goes where the TIME_WAIT's connection went had begun when it was
    /// killed, and has not ended yet: the kernel ends a TIME_WAIT that it reuses in the middle of
    /// the call (`__inet_check_established`, net/ipv4/inet_hashtables.c).
    fn is_contested(&self, deadline: Deadline) -> bool {
        let Some(entry) = self.live(deadline) else { return false };
        let Some(cancel) = self.cancels.get(&deadline.index) else { return false };
        let lease = &entry.lease;
        if cancel.reason != Reason::TimeWaitKilled {
            return false;
        }
        let is_rival = |pending: &Pending| {
            pending.netns == lease.netns
                && pending.peer == lease.peer
                && pending.began <= cancel.at
                && pending.operation == Operation::Connect
        };
        let is_bound_rival = |entry: &Entry| {
            entry.marks.has(Mark::Unconfirmed)
                && entry.lease.peer == lease.peer
                && entry.lease.timer_armed <= Some(cancel.at)
        };
        let first = self.ports.get(lease.netns, lease.local_port).first;
        self.pending.values().any(is_rival)
            || self.chain(first, |entry| entry.next_of_port).any(|(_, entry)| is_bound_rival(entry))
    }

    fn uncancel(&mut self, index: u32) {
        let entry = &mut self.leases[index as usize];
        if !entry.marks.take(Mark::Cancelled) {
            return;
        }
        self.cancels.remove(&index);
        if let Some(tuple) = lease_tuple(&entry.lease) {
            self.cancelled.remove(&tuple);
        }
    }

    fn end_time_wait(&mut self, index: u32, at: Instant, reason: Reason, sink: &mut impl Sink) {
        self.uncancel(index);
        let entry = &mut self.leases[index as usize];
        entry.changed = self.epoch;
        entry.marks.set(Mark::HeldByTimeWait, false);
        if let (Some(ended), Some(tuple)) = (&mut self.ended, lease_tuple(&entry.lease)) {
            ended.insert(Hold::TimeWait(entry.lease.cookie, tuple));
        }
        if entry.marks.has(Mark::HeldBySocket) && entry.lease.kind == Kind::Bind {
            // The socket is still open, and bound to the port.
            entry.lease.phase = Phase::Bound;
            self.recount(index);
        } else {
            // Any other socket let go when its TIME_WAIT began, even if that fact was lost.
            entry.marks.set(Mark::HeldBySocket, false);
            // What was cancelled is known to have ended only later: the socket may have been last.
            let last = entry.socket_end.filter(|socket_end| *socket_end > at);
            let (at, reason) = last.zip(entry.close_reason).unwrap_or((at, reason));
            self.release(index, at, reason, sink);
        }
    }

    /// Leaves the lease to its TIME_WAIT and gives the socket, which holds the port as well, one
    /// of its own.
    fn part(&mut self, index: u32, at: Instant, sink: &mut impl Sink) -> u32 {
        let Lease {
            cookie, netns, family, v6_only, local_addr, local_port, kind, ref owner, ..
        } = self.leases[index as usize].lease;
        let owner = owner.clone();
        self.drop_socket_hold(index, at, Reason::Closed, sink);
        let new = NewLease {
            cookie,
            netns,
            family,
            v6_only,
            local_addr,
            local_port,
            peer: Peer::NONE,
            kind,
            phase: Phase::Bound,
            owner,
            acquired: Some(at),
            has_timestamps: None,
        };
        self.insert(new, true, false)
    }
}

// The tables.
impl Ledger {
    fn insert(&mut self, new: NewLease, by_socket: bool, by_time_wait: bool) -> u32 {
        let NewLease {
            cookie,
            netns,
            family,
            v6_only,
            local_addr,
            local_port,
            peer,
            kind,
            phase,
            owner,
            acquired,
            has_timestamps,
        } = new;
        let id = LeaseId(self.next_id);
        self.next_id += 1;
        let first_of_port = self.ports.get(netns, local_port).first;
        let mut marks = Marks::default();
        marks.set(Mark::HeldBySocket, by_socket);
        marks.set(Mark::HeldByTimeWait, by_time_wait);
        let entry = Entry {
            lease: Lease {
                id,
                cookie,
                netns,
                kind,
                family,
                v6_only,
                local_addr,
                local_port,
                peer,
                phase,
                owner,
                acquired,
                established: None,
                closing: None,
                closed_by: None,
                time_wait: None,
                timer_armed: None,
                has_timestamps,
            },
            marks,
            close_reason: None,
            socket_end: None,
            address_class: BucketClass::Connect,
            destination: None,
            changed: self.epoch,
            seen: 0,
            next_of_cookie: NONE,
            next_of_port: first_of_port,
            previous_of_port: NONE,
        };
        let index = u32::try_from(self.leases.insert(entry)).unwrap_or(NONE);
        let next_of_cookie = self.by_cookie.put_first(cookie, index, cookie_of(&self.leases));
        self.leases[index as usize].next_of_cookie = next_of_cookie.unwrap_or(NONE);
        if let Some(next) = self.leases.get_mut(first_of_port as usize) {
            next.previous_of_port = index;
        }
        self.ports.hold(netns, local_port, index);
        if phase == Phase::Listen {
            self.listeners.entry((netns, local_port)).or_default().push(index);
        }
        if first_of_port == NONE {
            self.usage.hold_port(netns, local_port);
        }
        self.join_bucket(index);
        self.recount(index);
        index
    }

    fn drop_socket_hold(&mut self, index: u32, at: Instant, reason: Reason, sink: &mut impl Sink) {
        let entry = &mut self.leases[index as usize];
        entry.changed = self.epoch;
        entry.marks.set(Mark::HeldBySocket, false);
        if let Some(ended) = &mut self.ended {
            ended.insert(Hold::Socket(entry.lease.cookie));
        }
        if entry.marks.has(Mark::HeldByTimeWait) {
            (entry.socket_end, entry.close_reason) = (Some(at), Some(reason));
        } else {
            self.release(index, at, reason, sink);
        }
    }

    fn release(&mut self, index: u32, at: Instant, reason: Reason, sink: &mut impl Sink) {
        self.tell(index, at, Change::Release { reason }, sink);
        self.unlist(index);
        self.uncount(index, at);
        self.uncancel(index);
        self.leave_cookie(index);
        let Entry { lease, next_of_port, previous_of_port, .. } =
            self.leases.remove(index as usize);
        if let Some(next) = self.leases.get_mut(next_of_port as usize) {
            next.previous_of_port = previous_of_port;
        }
        let last_use = LastUse { lease: lease.id, released: at };
        let is_first = previous_of_port == NONE;
        self.ports.release(
            lease.netns,
            lease.local_port,
            last_use,
            is_first.then_some(next_of_port),
        );
        if !is_first {
            self.leases[previous_of_port as usize].next_of_port = next_of_port;
        }
        let Lease { netns, local_port, local_addr, acquired, .. } = lease;
        if self.ports.get(netns, local_port).first == NONE {
            let held_s = acquired.map(|acquired| seconds(at.since(acquired)));
            self.usage.free_port(netns, local_port, at, held_s);
        } else {
            self.leave_bucket(netns, local_port, local_addr);
        }
    }

    /// Takes a lease out of the chain of its cookie, which is as good as always of length one.
    fn leave_cookie(&mut self, index: u32) {
        let Entry { lease: Lease { cookie, .. }, next_of_cookie, .. } = self.leases[index as usize];
        let first = self.by_cookie.first(cookie, cookie_of(&self.leases));
        if first == Some(index) {
            let next = (next_of_cookie != NONE).then_some(next_of_cookie);
            self.by_cookie.replace_first(cookie, index, next);
            return;
        }
        let mut before = first.unwrap_or(NONE);
        while let Some(entry) = self.leases.get_mut(before as usize) {
            if entry.next_of_cookie == index {
                entry.next_of_cookie = next_of_cookie;
                break;
            }
            before = entry.next_of_cookie;
        }
    }

    /// Notes in which namespace a socket holds its port, since the inode may have been another
    /// namespace's before.
    fn meet_namespace(
        &mut self,
        socket: SocketId,
        local: LocalEnd,
        incarnation: Option<Incarnation>,
    ) {
        if local.port.is_some() {
            self.ports.meet(socket.netns, incarnation);
        }
    }

    /// connect() or listen() begins to look for a port.
    fn call_begins(&mut self, cookie: Cookie, call: Pending) {
        if self.pending.len() >= self.most_pending {
            self.forget_lost_calls(call.began);
            self.most_pending = FEW_CALLS.max(2 * self.pending.len());
        }
        self.pending.insert(cookie, call);
    }

    fn forget_lost_calls(&mut self, now: Instant) {
        self.pending.retain(|_, call| now.since(call.began) < LONGEST_CALL_NS);
    }

    fn tell(&mut self, index: u32, at: Instant, change: Change, sink: &mut impl Sink) {
        self.announce(index, sink);
        let entry = &mut self.leases[index as usize];
        entry.changed = self.epoch;
        let lease = &self.leases[index as usize].lease;
        sink.lease(LeaseEvent { at, lease, change }, self);
    }

    /// Tells of an accepted connection, if that has waited for the accepting process.
    fn announce(&mut self, index: u32, sink: &mut impl Sink) {
        let entry = &mut self.leases[index as usize];
        if !entry.marks.take(Mark::Unannounced) {
            return;
        }
        let lease = &self.leases[index as usize].lease;
        let listener = self
            .listener(lease.netns, lease.local_port, lease.family, lease.local_addr)
            .map(|listener| self.leases[listener as usize].lease.cookie);
        let at = lease.acquired.unwrap_or(Instant::BOOT);
        sink.lease(LeaseEvent { at, lease, change: Change::Accept { listener } }, self);
    }

    fn unlist(&mut self, index: u32) {
        let lease = &self.leases[index as usize].lease;
        let key = (lease.netns, lease.local_port);
        if let Some(listeners) = self.listeners.get_mut(&key) {
            listeners.retain(|listener| *listener != index);
            if listeners.is_empty() {
                self.listeners.remove(&key);
            }
        }
    }

    /// The listener that a connection to this address belongs to; `None` if several share it.
    fn listener(&self, netns: Netns, port: Port, family: Family, local: Addr) -> Option<u32> {
        let listeners = self.listeners.get(&(netns, port))?;
        // A child is of its listener's family, also if its addresses are IPv4-mapped.
        let unique = |matches: &dyn Fn(Addr) -> bool| {
            let mut found = listeners.iter().filter(|listener| {
                let lease = &self.leases[**listener as usize].lease;
                lease.family == family && matches(lease.local_addr)
            });
            match (found.next(), found.next()) {
                (Some(only), None) => Some(Some(*only)),
                (Some(_), Some(_)) => Some(None),
                (None, _) => None,
            }
        };
        unique(&|address| address == local)
            .or_else(|| unique(&|address| address.is_unspecified()))
            .flatten()
    }

    /// The lease that keeps somebody from binding this address and port.
    fn holder(&self, netns: Netns, port: Port, wanted: Claim, not: Cookie) -> Option<u32> {
        let first = self.ports.get(netns, port).first;
        let overlaps = |lease: &Lease| {
            let claim = Claim { addr: lease.local_addr, v6_only: lease.v6_only };
            lease.cookie != not && claim.overlaps(wanted)
        };
        // A listener or bound socket is what the user looks for, rather than one of its children.
        let rank = |phase: Phase| match phase {
            Phase::Listen => 0,
            Phase::Bound => 1,
            Phase::Connecting | Phase::Established | Phase::Closing => 2,
            Phase::TimeWait(_) => 3,
        };
        self.chain(first, |entry| entry.next_of_port)
            .filter(|(_, entry)| overlaps(&entry.lease))
            .min_by_key(|(_, entry)| rank(entry.lease.phase))
            .map(|(index, _)| index)
    }

    fn reuse(&self, netns: Netns, port: Port, at: Instant) -> Option<Reuse> {
        let LastUse { lease, released } = self.ports.last_use(netns, port)?;
        Some(Reuse { previous: lease, idle_ns: at.since(released), from_time_wait: false })
    }

    /// How a lease from before our time began, as far as its looks tell.
    fn guess_kind(
        &self,
        netns: Netns,
        port: Port,
        userlocks: Option<Userlocks>,
        phase: Phase,
    ) -> Kind {
        let locks = userlocks.unwrap_or_default();
        let has_listener = self.listeners.contains_key(&(netns, port));
        match phase {
            _ if locks.has_bound_port() => Kind::Bind,
            Phase::Listen if locks.has_bound_addr() => Kind::BindAuto,
            Phase::Listen => Kind::Listen,
            Phase::Bound => Kind::BindAuto,
            _ if locks.is_connect_bind() => Kind::Connect,
            _ if has_listener => Kind::Accept,
            Phase::TimeWait(_) => Kind::Connect,
            _ if self.sight.marks_connect && userlocks.is_some() => Kind::BindAuto,
            _ => Kind::Connect,
        }
    }

    fn socket_lease(&self, cookie: Cookie) -> Option<u32> {
        self.of_cookie(cookie)
            .find(|(_, entry)| entry.marks.has(Mark::HeldBySocket))
            .map(|(index, _)| index)
    }

    fn time_wait_lease(&self, cookie: Cookie, tuple: &Tuple) -> Option<u32> {
        self.of_cookie(cookie)
            .find(|(_, entry)| {
                entry.marks.has(Mark::HeldByTimeWait)
                    && lease_tuple(&entry.lease).as_ref() == Some(tuple)
            })
            .map(|(index, _)| index)
    }

    fn of_cookie(&self, cookie: Cookie) -> impl Iterator<Item = (u32, &Entry)> {
        let first = self.by_cookie.first(cookie, cookie_of(&self.leases));
        self.chain(first.unwrap_or(NONE), |entry| entry.next_of_cookie)
    }

    fn live(&self, deadline: Deadline) -> Option<&Entry> {
        let entry = self.leases.get(deadline.index as usize)?;
        (entry.lease.id == deadline.id).then_some(entry)
    }

    fn chain(
        &self,
        first: u32,
        next: impl Fn(&Entry) -> u32,
    ) -> impl Iterator<Item = (u32, &Entry)> {
        let at = |index: u32| self.leases.get(index as usize).map(|entry| (index, entry));
        std::iter::successors(at(first), move |(_, entry)| at(next(entry)))
    }
}

fn cookie_of(leases: &Slab<Entry>) -> impl Fn(u32) -> Cookie {
    |index| leases[index as usize].lease.cookie
}

/// True if this is the lease of a TIME_WAIT of this connection, whose timer is cancelled.
fn is_cancelled(leases: &Slab<Entry>, index: u32, tuple: &Tuple) -> bool {
    leases.get(index as usize).is_some_and(|entry| {
        entry.marks.has(Mark::Cancelled) && lease_tuple(&entry.lease).as_ref() == Some(tuple)
    })
}

/// Why a socket went to CLOSE (kernel-side order of events: net/ipv4/tcp.c, tcp_input.c).
fn close_reason(closed: &Closed) -> Reason {
    let Closed { from, error, is_shut_down, is_orphan, no_time_wait, .. } = *closed;
    match error {
        Some(libc::ECONNREFUSED) => return Reason::Refused,
        Some(libc::ETIMEDOUT) => return Reason::TimedOut,
        Some(libc::ECONNRESET | libc::EPIPE) => return Reason::ResetIn,
        Some(libc::ECONNABORTED) => return Reason::Aborted,
        None => {}
        Some(_) => return Reason::Failed,
    }
    // tcp_disconnect and __tcp_close store the state before they send the reset and before they set
    // the error; only a close() has shut both halves by then. A connection that nobody has accepted
    // is reset with its listener (inet_csk_listen_stop).
    let abandoned = if is_shut_down || is_orphan { Reason::ResetOut } else { Reason::Disconnected };
    match from {
        Some(TcpState::Established | TcpState::CloseWait | TcpState::FinWait1) => abandoned,
        Some(TcpState::SynSent) if !is_shut_down => Reason::Disconnected,
        // With a TIME_WAIT the lease goes on, and this reason is not used.
        Some(TcpState::FinWait2 | TcpState::Closing) => match no_time_wait {
            Some(NoTimeWait::NegativeLinger2) => Reason::ResetOut,
            Some(NoTimeWait::TooMany) => Reason::TimeWaitOverflow,
            None => abandoned,
        },
        _ => Reason::Closed,
    }
}

fn phase_of(state: TcpState) -> Phase {
    match state {
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
    }
}

/// The cookie and the connection of a TIME_WAIT. One without a cookie comes from before our time,
/// when its socket had been assigned none: it is assigned one when a snapshot lists it, by which
/// later facts know it.
fn identity(time_wait: &TimeWaitId) -> Option<(Cookie, Tuple)> {
    let TimeWaitId { cookie, netns, endpoints } = *time_wait;
    Some((cookie?, Tuple::of(netns, endpoints)?))
}

fn held_tuple(held: &Held) -> Option<Tuple> {
    Some(Tuple { netns: held.netns, local: (held.local_addr, held.local_port), peer: held.peer? })
}

fn lease_tuple(lease: &Lease) -> Option<Tuple> {
    Some(Tuple {
        netns: lease.netns,
        local: (lease.local_addr, lease.local_port),
        peer: lease.peer.get()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_whose_result_was_lost_are_forgotten() {
        let sight = Sight {
            ports_chosen: true,
            accepts: true,
            marks_connect: true,
            bound_idle: true,
            since: Instant::BOOT,
        };
        let mut ledger = Ledger::new(sight);
        let mut most = 0;
        for call in 0..1_000_000_u64 {
            let began = Instant::from_ns(call * 10_000_000);
            let pending = Pending {
                began,
                netns: Netns(1),
                peer: Peer::NONE,
                operation: Operation::Connect,
                owner: None,
                own_range: None,
            };
            ledger.call_begins(Cookie(call), pending);
            most = most.max(ledger.pending.len());
        }
        // A thousand of them begin in the longest time that a call may take.
        assert!(most <= 2 * FEW_CALLS, "{most}");
        assert!(ledger.pending.contains_key(&Cookie(999_999)));
    }
}
