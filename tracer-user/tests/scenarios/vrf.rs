//! VRFs. Each has bind buckets of its own (`l3mdev` of `struct inet_bind_bucket`,
//! include/net/inet_hashtables.h), so a port can be held inside and outside at the same time.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice::name_to_index, recv,
    send, socket_with,
};
use socket2::Socket;

use crate::support::{Net, Pair, Tracer, addr, cookie, is, reset_on_close, sandbox};

const VRF: &str = "vrf0";
const ADDR_OF_VRF: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

#[test]
fn a_port_is_held_inside_and_outside_of_a_vrf() {
    let Some(sandbox) = sandbox() else { return };
    match add_vrf(VRF, 10, ADDR_OF_VRF) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            println!("skipped: this kernel has no VRF support: {error}");
            return;
        }
        added => added.expect("a VRF can be added"),
    }
    // A range of one port, which is available inside and outside.
    sandbox.set("ipv4/ip_local_port_range", "40000 40000").expect("the setting can be written");
    let mut tracer = Tracer::start_verifying(&sandbox);
    let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 20_000));
    let listener = |socket: Socket| {
        socket.bind(&anywhere.into()).expect("the port is free here");
        socket.listen(16).expect("listen() succeeds");
        socket
    };
    let outside = listener(Net::V4.socket());
    let inside = listener(in_vrf());
    let connect = |client: Socket, to: Ipv4Addr, listener: &Socket| {
        client.connect(&SocketAddr::from((to, 20_000)).into()).expect("the port is free here");
        assert_eq!(addr(&client).port(), 40_000);
        let (server, _) = listener.accept().expect("accept() succeeds");
        Pair { client, server }
    };
    let pairs = [
        connect(Net::V4.socket(), Ipv4Addr::LOCALHOST, &outside),
        connect(in_vrf(), ADDR_OF_VRF, &inside),
    ];
    tracer.verify();
    let listeners = [&outside, &inside].map(cookie);
    let clients = pairs.each_ref().map(|pair| cookie(&pair.client));
    for Pair { client, server } in pairs {
        reset_on_close(&client);
        drop((client, server));
    }
    drop((outside, inside));
    for client in clients {
        tracer.wait_for("release", is(client, "release:reset_out"));
    }
    for listener in listeners {
        tracer.wait_for("release", is(listener, "release:closed"));
    }
    tracer.verify();
    let recording = tracer.finish();
    for client in clients {
        assert_eq!(recording.of(client), ["connect", "established", "release:reset_out"]);
        assert_eq!(recording.only(client, "connect")["local_port"], 40_000);
    }
    for listener in listeners {
        assert_eq!(recording.of(listener), ["bind", "listen", "release:closed"]);
        assert_eq!(recording.only(listener, "bind")["local_port"], 20_000);
    }
}

fn in_vrf() -> Socket {
    let socket = Net::V4.socket();
    socket.bind_device(Some(VRF.as_bytes())).expect("the device exists");
    socket
}

/// Adds a VRF with a routing table and an address to the namespace of this thread.
fn add_vrf(name: &str, table: u32, addr: Ipv4Addr) -> io::Result<()> {
    // include/uapi/linux/{rtnetlink,if_link,if_addr}.h
    const RTM_NEWLINK: u16 = 16;
    const RTM_NEWADDR: u16 = 20;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_VRF_TABLE: u16 = 1;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFF_UP: u32 = 1;
    // struct ifinfomsg: family, type, index, flags, mask of flags to change.
    let mut link = [[0; 4], [0; 4], IFF_UP.to_ne_bytes(), IFF_UP.to_ne_bytes()].concat();
    let data = attribute(IFLA_VRF_TABLE, &table.to_ne_bytes());
    let info = [attribute(IFLA_INFO_KIND, b"vrf"), attribute(IFLA_INFO_DATA, &data)].concat();
    link.extend(attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat()));
    link.extend(attribute(IFLA_LINKINFO, &info));
    change(RTM_NEWLINK, &link)?;
    let index = name_to_index(Net::V4.socket(), name)?;
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut address = [[libc::AF_INET as u8, 24, 0, 0], index.to_ne_bytes()].concat();
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        address.extend(attribute(kind, &addr.octets()));
    }
    change(RTM_NEWADDR, &address)
}

/// A `struct rtattr` with its content, padded to a multiple of four bytes.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + content.len()).expect("it is short");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends a request to create something to rtnetlink, and waits for the acknowledgement.
fn change(kind: u16, body: &[u8]) -> io::Result<()> {
    const HEADER_BYTES: usize = 16;
    const FLAGS: u16 =
        (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("it is short");
    // struct nlmsghdr: length, type, flags, sequence, port.
    let mut request = length.to_ne_bytes().to_vec();
    request.extend([kind.to_ne_bytes(), FLAGS.to_ne_bytes()].concat());
    request.extend([0; 8]);
    request.extend(body);
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 4096];
    recv(&socket, &mut answer, RecvFlags::empty())?;
    // struct nlmsgerr: the negative errno, or 0.
    let errno = answer[HEADER_BYTES..].first_chunk().copied().map_or(0, i32::from_ne_bytes);
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-errno)) }
}
