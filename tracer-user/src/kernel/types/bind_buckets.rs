//! Resolves the fields of bind buckets, and what they show about the kernel's search for ports.

use tracer_ebpf::{ABSENT, HolderLayout};

use crate::kernel::types::{
    btf::{Btf, BtfError, Struct},
    fields::{bitfield, pointed, scalar},
};

/// Differences between kernels that their types show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketFeatures {
    /// A TIME_WAIT keeps the time when it began: `tw_entry_stamp`.
    pub(crate) has_entry_stamp: bool,
    /// There is a second bind hash, by port and address: `icsk_bind2_hash` (6.1).
    pub(crate) has_bhash2: bool,
    /// How a socket keeps its own port range.
    pub(crate) socket_range: SocketRangeField,
}

/// How a socket keeps the range that `IP_LOCAL_PORT_RANGE` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketRangeField {
    /// It has none (before 6.3).
    Absent,
    /// A structure of two ports.
    Structure,
    /// One word, which is read without a lock (6.8).
    Word,
}

/// Looks up every field of a bind bucket and of its owners.
///
/// # Errors
/// If the kernel lacks one that no list of holders can do without.
pub(crate) fn resolve(btf: &Btf) -> Result<(HolderLayout, BucketFeatures), BtfError> {
    let mut layout = HolderLayout::default();
    let sock = btf.tracepoint_argument("inet_sock_set_state", 0)?;
    layout.sk_reuse = bitfield(&sock, "__sk_common.skc_reuse")?;
    layout.sk_reuseport = bitfield(&sock, "__sk_common.skc_reuseport")?;
    layout.sk_bound_dev_if = scalar(&sock, "__sk_common.skc_bound_dev_if", 32)?;
    let tcp_sock = btf.function_parameter("tcp_mstamp_refresh", 0)?;
    let bind_hash = tcp_sock.field("inet_conn.icsk_bind_hash")?;
    layout.sk_bind_hash = bind_hash.offset();
    let tb = pointed(&tcp_sock, bind_hash, "inet_conn.icsk_bind_hash")?;
    layout.tb_fastreuse = scalar(&tb, "fastreuse", 8)?;
    layout.tb_fastreuseport = scalar(&tb, "fastreuseport", 8)?;
    layout.tb_l3mdev = scalar(&tb, "l3mdev", 32)?;
    let tw = btf.function_parameter("inet_twsk_put", 0)?;
    layout.tw_tb = tw.field("tw_tb")?.offset();
    layout.tw_connect_bind = bitfield(&tw, "tw_connect_bind").unwrap_or_default();
    layout.tw_entry_stamp = scalar(&tw, "tw_entry_stamp", 32).unwrap_or(ABSENT);
    let features = BucketFeatures {
        has_entry_stamp: layout.tw_entry_stamp != ABSENT,
        has_bhash2: tcp_sock.field("inet_conn.icsk_bind2_hash").is_ok(),
        socket_range: socket_range(&tcp_sock),
    };
    Ok((layout, features))
}

fn socket_range(tcp_sock: &Struct<'_>) -> SocketRangeField {
    match tcp_sock.field("inet_conn.icsk_inet.local_port_range") {
        Ok(field) if field.structure().is_none() => SocketRangeField::Word,
        Ok(_) => SocketRangeField::Structure,
        Err(_) => SocketRangeField::Absent,
    }
}
