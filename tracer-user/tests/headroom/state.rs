//! Random states of a namespace: settings, and sockets in all phases and bucket classes.

use std::{
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tracer_ebpf::TcpState;
use tracer_user::{
    kernel::{
        lists::sock_diag,
        namespace::{
            sandbox::{Sandbox, bind_address_no_port},
            settings::SettingsFiles,
        },
    },
    model::{HeldBy, Netns},
};

use crate::random::Random;

/// A reuse delay longer than any test.
pub const NEVER_MS: u32 = 60_000;

/// A local address outside the loopback network.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const SOURCES: [Ipv4Addr; 4] =
    [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3), OTHER];
const LISTENERS: [SocketAddr; 4] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_001),
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_002),
    SocketAddr::new(IpAddr::V4(OTHER), 10_003),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 10_004),
];
const MAX_PORTS: u16 = 22;

/// The sockets and settings of a namespace.
pub struct State {
    pub low: u16,
    pub size: u16,
    /// True if some sockets are bound to an interface.
    devices: bool,
    /// Most connections are between these endpoints, and are closed by the client first.
    focus: Option<(Client, SocketAddr)>,
    listeners: Vec<(SocketAddr, Socket)>,
    /// Sockets that stay open: clients, servers, and sockets that never connect.
    open: Vec<Socket>,
}

impl State {
    pub fn make(random: &mut Random, sandbox: &Sandbox, devices: bool) -> Self {
        sandbox.add_loopback_address(OTHER).expect("the address can be added");
        let low = 20_000 + random.below(20_000);
        let size = 1 + random.below(MAX_PORTS);
        let set = |name: &str, value: String| {
            sandbox.set(name, &value).unwrap_or_else(|error| panic!("{name} {value}: {error}"));
        };
        set("ipv4/ip_local_port_range", format!("{low} {}", low + size - 1));
        set("ipv4/tcp_tw_reuse", random.below(3).to_string());
        set("ipv4/tcp_timestamps", u16::from(random.chance(3, 4)).to_string());
        set("ipv4/ip_autobind_reuse", u16::from(random.chance(1, 4)).to_string());
        let settings = SettingsFiles::open().and_then(|files| files.read()).expect("settings");
        let has_delay = settings.time_wait_reuse_delay_ms.is_some();
        if has_delay {
            set("ipv4/tcp_tw_reuse_delay", random.one(&[1, 1, NEVER_MS]).to_string());
        }
        let client = Client::random(random, devices);
        let focus = random.chance(1, 2).then(|| (client, client.destination(random)));
        let mut state = Self { low, size, devices, focus, listeners: Vec::new(), open: Vec::new() };
        for address in LISTENERS {
            state.listeners.push((address, listener(address)));
        }
        for _ in 0..random.below(2 * MAX_PORTS) {
            state.random_action(random);
            if random.chance(1, 6) && !state.open.is_empty() {
                let index = random.below(u16::try_from(state.open.len()).expect("there are few"));
                state.open.swap_remove(usize::from(index));
            }
        }
        // Reserved last, so that some of the reserved ports are in use.
        let reserved: Vec<_> = (low..low + size)
            .filter(|_| random.chance(1, 6))
            .map(|port| port.to_string())
            .collect();
        set("ipv4/ip_local_reserved_ports", reserved.join(","));
        state
    }

    /// Random endpoints of a connection.
    pub fn ends(&self, random: &mut Random) -> (Client, SocketAddr) {
        match self.focus {
            Some(ends) if random.chance(4, 5) => ends,
            _ => {
                let client = Client::random(random, self.devices);
                (client, client.destination(random))
            }
        }
    }

    /// Performs a random action. It may fail for lack of a port.
    fn random_action(&mut self, random: &mut Random) {
        match random.below(10) {
            0..=3 => self.connection(random),
            4 | 5 => self.bound_connection(random),
            6 => {
                let bind = Bind::random(random, self.devices);
                let socket = bind.socket();
                let port = if random.chance(1, 2) { 0 } else { self.port(random) };
                if socket.bind(&SocketAddr::new(bind.addr, port).into()).is_ok() {
                    self.open.push(socket);
                }
            }
            7 => self.listener_of_the_range(random),
            8 => {
                // Joins a bucket, if there is one, and leaves it again.
                let bind = Bind::random(random, self.devices);
                let _ = bind.socket().bind(&SocketAddr::new(bind.addr, self.port(random)).into());
            }
            _ => {
                let Some(socket) = self.open.last() else { return };
                let _ = rustix::net::connect_unspec(socket);
            }
        }
    }

    fn connection(&mut self, random: &mut Random) {
        let (client, destination) = self.ends(random);
        let socket = client.socket();
        client.bind_without_port(&socket);
        self.connect_and_end(random, &client, socket, destination);
    }

    /// A connection after bind(), to port 0 or to an explicit port.
    fn bound_connection(&mut self, random: &mut Random) {
        let (client, destination) = self.ends(random);
        let socket = client.socket();
        if random.chance(1, 3) {
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
        }
        let port = if random.chance(1, 2) { 0 } else { self.port(random) };
        if socket.bind(&client.form(SocketAddr::new(client.source, port)).into()).is_ok() {
            self.connect_and_end(random, &client, socket, destination);
        }
    }

    fn connect_and_end(
        &mut self,
        random: &mut Random,
        kind: &Client,
        client: Socket,
        destination: SocketAddr,
    ) {
        // A bound socket can reuse a FIN_WAIT2 whose peer still has the old connection.
        client.set_nonblocking(true).expect("O_NONBLOCK");
        let connected = client.connect(&kind.form(destination).into());
        let in_progress =
            connected.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS));
        if connected.is_err() && !in_progress {
            return;
        }
        client.set_nonblocking(false).expect("O_NONBLOCK");
        let listener = self.listeners.iter().find(|(address, _)| *address == destination);
        let listener = &listener.expect("every destination has its listener").1;
        let local = name(&client.local_addr().expect("it has a name"));
        // Over the loopback interface the handshake is complete by now, or never will be.
        let server = loop {
            match listener.accept() {
                Ok((server, peer)) if name(&peer) == local => break server,
                Ok((other, _)) => self.open.push(other),
                Err(_) => {
                    self.open.push(client);
                    return;
                }
            }
        };
        let end = if self.focus.is_some() { random.below(8) } else { random.below(6) };
        match end {
            0 | 1 => self.open.extend([client, server]),
            2 | 6 | 7 => {
                drop(client);
                read_to_end(&server);
            }
            3 => {
                // The server keeps it half open.
                drop(client);
                self.open.push(server);
            }
            4 => {
                drop(server);
                read_to_end(&client);
            }
            _ => {
                client.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
                drop(client);
                self.open.push(server);
            }
        }
    }

    /// A listener in the ephemeral range, perhaps with a connection that outlives it.
    fn listener_of_the_range(&mut self, random: &mut Random) {
        let port = self.port(random);
        let listener = socket(false);
        listener.set_reuse_address(random.chance(1, 2)).expect("SO_REUSEADDR");
        let address = SocketAddr::from((random.one(&SOURCES[..3]), port));
        if listener.bind(&address.into()).is_err() || listener.listen(16).is_err() {
            return;
        }
        if random.chance(1, 2) {
            let client = socket(false);
            client.set_nonblocking(true).expect("O_NONBLOCK");
            let _ = client.connect(&address.into());
            listener.set_nonblocking(true).expect("O_NONBLOCK");
            self.open.extend(listener.accept().ok().map(|(server, _)| server));
            self.open.push(client);
        }
        if random.chance(1, 2) {
            self.open.push(listener);
        }
    }

    fn port(&self, random: &mut Random) -> u16 {
        self.low + random.below(self.size)
    }
}

/// A client socket, which binds an address without a port before it connects.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub source: IpAddr,
    pub device: u32,
    is_v6: bool,
}

impl Client {
    fn random(random: &mut Random, devices: bool) -> Self {
        let device = u32::from(devices && random.chance(1, 8));
        if random.chance(1, 8) {
            return Self { source: Ipv6Addr::LOCALHOST.into(), device, is_v6: true };
        }
        Self { source: random.one(&SOURCES).into(), device, is_v6: random.chance(1, 5) }
    }

    /// A destination that the client can reach.
    fn destination(&self, random: &mut Random) -> SocketAddr {
        match self.source {
            IpAddr::V6(_) => LISTENERS[3],
            // A loopback address can reach loopback addresses only.
            IpAddr::V4(source) if source.is_loopback() => random.one(&LISTENERS[..2]),
            IpAddr::V4(_) => random.one(&LISTENERS[..3]),
        }
    }

    /// Converts an address to the family of this client's sockets.
    pub fn form(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(v4) if self.is_v6 => {
                SocketAddr::new(v4.to_ipv6_mapped().into(), address.port())
            }
            _ => address,
        }
    }

    pub fn socket(&self) -> Socket {
        let socket = socket(self.is_v6);
        if self.device != 0 {
            socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
        }
        socket
    }

    pub fn bind_without_port(&self, socket: &Socket) {
        bind_address_no_port(socket).expect("Linux 4.2 has the option");
        let address = self.form(SocketAddr::new(self.source, 0));
        socket.bind(&address.into()).expect("bind() succeeds");
    }
}

/// Parameters of a bind() call.
#[derive(Clone, Copy, Debug)]
pub struct Bind {
    pub addr: IpAddr,
    pub device: u32,
    pub v6_only: bool,
    pub reuse_addr: bool,
}

impl Bind {
    pub fn random(random: &mut Random, devices: bool) -> Self {
        let addr = random.one(&[
            IpAddr::V4(SOURCES[0]),
            IpAddr::V4(SOURCES[1]),
            IpAddr::V4(OTHER),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            IpAddr::V6(SOURCES[1].to_ipv6_mapped()),
        ]);
        let is_specific_v6 = matches!(addr, IpAddr::V6(v6) if !v6.is_unspecified());
        let is_mapped = matches!(addr, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        Self {
            addr,
            device: u32::from(devices && random.chance(1, 8)),
            // The kernel sets this for real IPv6 addresses.
            v6_only: addr.is_ipv6() && !is_mapped && (is_specific_v6 || random.chance(1, 2)),
            reuse_addr: random.chance(1, 3),
        }
    }

    pub fn is_v6(&self) -> bool {
        self.addr.is_ipv6()
    }

    pub fn socket(&self) -> Socket {
        let socket = socket(self.is_v6());
        if self.is_v6() {
            socket.set_only_v6(self.v6_only).expect("IPV6_V6ONLY");
        }
        if self.device != 0 {
            socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
        }
        socket.set_reuse_address(self.reuse_addr).expect("SO_REUSEADDR");
        socket
    }
}

pub fn socket(is_v6: bool) -> Socket {
    let domain = if is_v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).expect("a socket")
}

pub fn listener(address: SocketAddr) -> Socket {
    let listener = socket(address.is_ipv6());
    listener.bind(&address.into()).expect("the port is free");
    listener.listen(4096).expect("listen() succeeds");
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    listener
}

/// An address with IPv4-mapped IPv6 addresses converted to IPv4.
fn name(address: &SockAddr) -> Option<SocketAddr> {
    let address = address.as_socket()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Reads until the peer has sent its FIN or a reset.
pub fn read_to_end(socket: &Socket) {
    let mut buffer = [MaybeUninit::uninit(); 64];
    socket.set_nonblocking(false).expect("O_NONBLOCK");
    while socket.recv(&mut buffer).is_ok_and(|read| read > 0) {}
}

/// Waits until no connection is about to change its state.
///
/// Two kinds of connections take too long to wait for. An orphan in FIN_WAIT2 waits for a minute,
/// as a full socket if the peer's ACK came while close() was still running
/// (`tcp_rcv_state_process`, net/ipv4/tcp_input.c). And a connection can have the same endpoints as
/// one of a socket that is bound to an interface; its segments then go to that socket, and it
/// retransmits until it gives up. Connections that have not changed for a while therefore count as
/// settled.
pub fn wait_until_settled(netns: Netns) {
    const LONG: Duration = Duration::from_millis(500);
    let mut before = Vec::new();
    let mut since = Instant::now();
    loop {
        let mut held = Vec::new();
        sock_diag::list(netns, &mut held).expect("the kernel lists its sockets");
        let moving: Vec<_> = held
            .iter()
            .filter_map(|held| match held.by {
                HeldBy::Socket(
                    state @ (TcpState::FinWait1
                    | TcpState::Closing
                    | TcpState::LastAck
                    | TcpState::SynSent
                    | TcpState::SynRecv),
                ) => Some((held.cookie, state)),
                _ => None,
            })
            .collect();
        if moving != before {
            (before, since) = (moving, Instant::now());
        }
        if before.is_empty() || since.elapsed() >= LONG {
            return;
        }
        // The only events to wait for would come from the tracer under test.
        thread::sleep(Duration::from_millis(2));
    }
}
