//! A model of the kernel: random lives of sockets, and what the hooks would report of them.

use std::collections::{BTreeMap, BTreeSet};

use tracer_ebpf::{Owner, TcpState, mapped};

use crate::model::{
    Addr, Cookie, Family, Held, HeldBy, Instant, Netns, Observation, Peer, Port, Side, Substate,
    observation::{
        Accepted, Arming, BindRequest, Bound, Cancel, Closed, Closing, ConnectStart, Destroyed,
        Endpoints, Established, ListenStart, Listening, LocalEnd, Open, PortChosen, SocketId,
        TimeWaitCancel, TimeWaitExpire, TimeWaitId, TimeWaitStart, Userlocks,
    },
    port,
};

const LOCAL: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
pub(super) const NETNS: u32 = 4_026_531_840;
pub(super) static OWNER: Owner = Owner { pid: 1, uid: 0, cgroup_id: 0, comm: [0; 16] };
/// Between two operations: enough for a killed TIME_WAIT to be settled.
pub(super) const STEP_NS: u64 = 50_000_000;

/// The holds of the kernel, and the observations so far.
#[derive(Default)]
pub(super) struct Kernel {
    pub(super) now: u64,
    pub(super) next_cookie: u64,
    pub(super) next_port: u16,
    pub(super) sockets: BTreeMap<u64, Socket>,
    pub(super) time_waits: BTreeSet<TimeWait>,
    pub(super) observations: Vec<Observation<'static>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    pub(super) port: u16,
    /// bind() asked for this port.
    pub(super) locked: bool,
    pub(super) state: TcpState,
    pub(super) peer: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimeWait {
    pub(super) cookie: u64,
    pub(super) port: u16,
    pub(super) peer: u16,
}

impl TimeWait {
    pub(super) fn id(self) -> TimeWaitId {
        let Self { cookie, port, peer } = self;
        let endpoints = endpoints(port, peer);
        TimeWaitId { cookie: Some(Cookie(cookie)), netns: Netns(NETNS), endpoints }
    }
}

/// How a socket went to CLOSE.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) from: TcpState,
    pub(super) error: Option<i32>,
    pub(super) is_shut_down: bool,
}

pub(super) fn socket_id(cookie: u64) -> SocketId {
    SocketId { cookie: Cookie(cookie), netns: Netns(NETNS) }
}

/// The ends of a socket; 0 for no port and no peer.
pub(super) fn endpoints(local_port: u16, peer_port: u16) -> Endpoints {
    let addr = Addr(mapped(LOCAL));
    let local = LocalEnd { family: Family::Ipv4, v6_only: false, addr, port: port(local_port) };
    Endpoints { local, peer: Peer::new(addr, peer_port) }
}

impl Kernel {
    pub(super) fn new() -> Self {
        Self { now: 1, next_cookie: 1, next_port: 10_000, ..Self::default() }
    }

    /// Adds what is observed at the next moment.
    pub(super) fn observe(&mut self, observation: impl FnOnce(Instant) -> Observation<'static>) {
        self.now += 1;
        self.observations.push(observation(Instant::from_ns(self.now)));
    }

    /// `SOCK_BINDPORT_LOCK` of a socket whose bind() asked for its port.
    pub(super) fn userlocks(&self, cookie: u64) -> Userlocks {
        let is_locked = self.sockets.get(&cookie).is_some_and(|socket| socket.locked);
        Userlocks::from_kernel(if is_locked { 8 } else { 0 })
    }

    pub(super) fn connect_start(&mut self, cookie: u64, port: u16, peer: u16) {
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::ConnectStart(ConnectStart {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                own_range: None,
                userlocks,
                owner: &OWNER,
            })
        });
    }

    pub(super) fn established(&mut self, cookie: u64, port: u16, peer: u16, open: Open) {
        self.observe(|at| {
            Observation::Established(Established {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                incarnation: None,
                open,
            })
        });
    }

    pub(super) fn closing(&mut self, cookie: u64, by: Side) {
        let Socket { port, peer, .. } = self.sockets[&cookie];
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::Closing(Closing {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                by,
                userlocks,
            })
        });
    }

    pub(super) fn closed(&mut self, cookie: u64, port: u16, peer: u16, end: End) {
        let End { from, error, is_shut_down } = end;
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::Closed(Closed {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                from: Some(from),
                error,
                is_shut_down,
                is_orphan: false,
                no_time_wait: None,
                userlocks,
            })
        });
    }

    pub(super) fn bound(&mut self, cookie: u64, port: u16, request: BindRequest) {
        self.observe(|at| {
            Observation::Bound(Bound {
                at,
                socket: socket_id(cookie),
                local: endpoints(port, 0).local,
                request,
                incarnation: None,
                owner: &OWNER,
            })
        });
    }

    pub(super) fn time_wait_start(&mut self, tw: TimeWait) {
        self.observe(|at| {
            Observation::TimeWaitStart(TimeWaitStart {
                at,
                time_wait: tw.id(),
                substate: Substate::TimeWait,
                arming: Arming::FirstOrAgain,
                has_timestamps: true,
            })
        });
    }

    pub(super) fn time_wait_cancel(&mut self, tw: TimeWait, cancel: Cancel) {
        self.observe(|at| {
            Observation::TimeWaitCancel(TimeWaitCancel { at, time_wait: tw.id(), cancel })
        });
    }

    pub(super) fn cookie(&mut self) -> u64 {
        self.next_cookie += 1;
        self.next_cookie
    }

    pub(super) fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    pub(super) fn pick(&self, choice: usize, state: TcpState) -> Option<u64> {
        let candidates: Vec<_> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.state == state)
            .map(|(cookie, _)| *cookie)
            .collect();
        candidates.get(choice % candidates.len().max(1)).copied()
    }

    pub(super) fn pick_time_wait(&self, choice: usize) -> Option<TimeWait> {
        self.time_waits.iter().nth(choice % self.time_waits.len().max(1)).copied()
    }

    pub(super) fn bind(&mut self, locked: bool) {
        let (cookie, port) = (self.cookie(), self.port());
        let request = if locked { BindRequest::ThisPort } else { BindRequest::AnyPort };
        self.bound(cookie, port, request);
        self.sockets.insert(cookie, Socket { port, locked, state: TcpState::Close, peer: 0 });
    }

    pub(super) fn connect(&mut self, cookie: u64, port: u16, peer: u16, reused: Option<TimeWait>) {
        let bound = self.sockets.get(&cookie).map_or(0, |socket| socket.port);
        self.connect_start(cookie, bound, peer);
        if let Some(old) = reused {
            self.time_wait_cancel(old, Cancel::BeforeDue);
            self.time_waits.remove(&old);
        }
        let userlocks = self.userlocks(cookie);
        self.observe(|at| {
            Observation::PortChosen(PortChosen {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                incarnation: None,
                userlocks,
            })
        });
        let locked = self.sockets.get(&cookie).is_some_and(|socket| socket.locked);
        self.sockets.insert(cookie, Socket { port, locked, state: TcpState::SynSent, peer });
    }

    pub(super) fn establish(&mut self, cookie: u64) {
        let socket = self.sockets[&cookie];
        self.established(cookie, socket.port, socket.peer, Open::Active);
        self.set_state(cookie, TcpState::Established);
    }

    pub(super) fn accept(&mut self, listener: u64) {
        let (cookie, port, peer) = (self.cookie(), self.sockets[&listener].port, self.port());
        self.established(cookie, port, peer, Open::Passive);
        self.sockets
            .insert(cookie, Socket { port, locked: false, state: TcpState::Established, peer });
        self.observe(|at| {
            Observation::Accepted(Accepted {
                at,
                socket: socket_id(cookie),
                endpoints: endpoints(port, peer),
                owner: &OWNER,
            })
        });
    }

    /// The socket goes to CLOSE, and releases a port that it is not locked to.
    pub(super) fn close_state(&mut self, cookie: u64, end: End) {
        let socket = self.sockets[&cookie];
        let left = if socket.locked { socket.port } else { 0 };
        self.closed(cookie, left, socket.peer, end);
        if socket.locked {
            self.set_state(cookie, TcpState::Close);
        } else {
            self.sockets.remove(&cookie);
        }
    }

    pub(super) fn destroy(&mut self, cookie: u64) {
        if self.sockets.remove(&cookie).is_some() {
            self.observe(|at| Observation::Destroyed(Destroyed { at, socket: socket_id(cookie) }));
        }
    }

    pub(super) fn close_first(&mut self, cookie: u64, keeps_socket: bool) {
        let Socket { port, peer, .. } = self.sockets[&cookie];
        self.closing(cookie, Side::Local);
        let time_wait = TimeWait { cookie, port, peer };
        self.time_wait_start(time_wait);
        self.time_waits.insert(time_wait);
        let end = End { from: TcpState::FinWait2, error: None, is_shut_down: true };
        self.close_state(cookie, end);
        if !keeps_socket {
            self.destroy(cookie);
        }
    }

    pub(super) fn set_state(&mut self, cookie: u64, state: TcpState) {
        if let Some(socket) = self.sockets.get_mut(&cookie) {
            socket.state = state;
        }
    }

    /// One random operation on one of the sockets.
    pub(super) fn step(&mut self, operation: u8, choice: usize) {
        self.now += STEP_NS;
        let peer = 80;
        match operation {
            0 => self.bind(false),
            1 => self.bind(true),
            2 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.connect(cookie, port, peer, None);
                self.establish(cookie);
            }
            3 => {
                // A bound socket connects, unless its own TIME_WAIT to there is in the way.
                let Some(cookie) = self.pick(choice, TcpState::Close) else { return };
                let port = self.sockets[&cookie].port;
                let peer = self.port();
                self.connect(cookie, port, peer, None);
                self.establish(cookie);
            }
            4 => {
                let cookie = self.cookie();
                self.connect_start(cookie, 0, peer);
                let end = End { from: TcpState::SynSent, error: None, is_shut_down: false };
                self.closed(cookie, 0, peer, end);
            }
            5 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.connect(cookie, port, peer, None);
                let error = Some(libc::ECONNREFUSED);
                let end = End { from: TcpState::SynSent, error, is_shut_down: false };
                self.close_state(cookie, end);
            }
            6 => {
                let (cookie, port) = (self.cookie(), self.port());
                self.observe(|at| {
                    Observation::ListenStart(ListenStart {
                        at,
                        socket: socket_id(cookie),
                        local: endpoints(0, 0).local,
                        userlocks: Userlocks::default(),
                        owner: &OWNER,
                    })
                });
                self.observe(|at| {
                    Observation::Listening(Listening {
                        at,
                        socket: socket_id(cookie),
                        local: endpoints(port, 0).local,
                        incarnation: None,
                    })
                });
                let state = TcpState::Listen;
                self.sockets.insert(cookie, Socket { port, locked: false, state, peer: 0 });
            }
            7 => {
                if let Some(listener) = self.pick(choice, TcpState::Listen) {
                    self.accept(listener);
                }
            }
            8 | 9 => {
                if let Some(cookie) = self.pick(choice, TcpState::Established) {
                    self.close_first(cookie, operation == 9);
                }
            }
            10 => {
                let Some(cookie) = self.pick(choice, TcpState::Established) else { return };
                let error = Some(libc::ECONNRESET);
                let end = End { from: TcpState::Established, error, is_shut_down: false };
                self.close_state(cookie, end);
                self.destroy(cookie);
            }
            11 => {
                let Some(cookie) = self.pick(choice, TcpState::Established) else { return };
                self.closing(cookie, Side::Peer);
                let end = End { from: TcpState::LastAck, error: None, is_shut_down: true };
                self.close_state(cookie, end);
                self.destroy(cookie);
            }
            12 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.time_wait_cancel(old, Cancel::WhenDue);
                self.observe(|at| {
                    Observation::TimeWaitExpire(TimeWaitExpire { at, time_wait: old.id() })
                });
                self.time_waits.remove(&old);
            }
            13 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.time_wait_cancel(old, Cancel::BeforeDue);
                self.time_waits.remove(&old);
            }
            14 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                self.time_wait_cancel(old, Cancel::BeforeDue);
                self.time_wait_start(old);
            }
            15 => {
                let Some(old) = self.pick_time_wait(choice) else { return };
                let cookie = self.cookie();
                self.connect(cookie, old.port, old.peer, Some(old));
                self.establish(cookie);
            }
            _ => {
                for state in [TcpState::Close, TcpState::Listen] {
                    if let Some(cookie) = self.pick(choice, state) {
                        self.destroy(cookie);
                    }
                }
            }
        }
    }

    /// Every hold: a socket and its TIME_WAIT on the same connection are one.
    pub(super) fn holds(&self) -> BTreeSet<(u64, u16)> {
        let sockets = self.sockets.iter().map(|(cookie, socket)| (*cookie, socket.port));
        sockets.chain(self.time_waits.iter().map(|tw| (tw.cookie, tw.port))).collect()
    }

    pub(super) fn snapshot(&self) -> Vec<Held> {
        let held = |cookie, port, peer, by| Held {
            cookie: Cookie(cookie),
            netns: Netns(NETNS),
            family: Family::Ipv4,
            v6_only: false,
            local_addr: Addr(mapped(LOCAL)),
            local_port: Port(port),
            peer: (peer != 0).then_some((Addr(mapped(LOCAL)), Port(peer))),
            by,
            has_timestamps: None,
            userlocks: Some(self.userlocks(cookie)),
            owner: None,
        };
        let sockets = self.sockets.iter().map(|(cookie, socket)| {
            held(*cookie, socket.port, socket.peer, HeldBy::Socket(socket.state))
        });
        let time_waits = self
            .time_waits
            .iter()
            .map(|tw| held(tw.cookie, tw.port, tw.peer, HeldBy::TimeWait(Substate::TimeWait)));
        sockets.chain(time_waits).collect()
    }
}
