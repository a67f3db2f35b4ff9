//! Segments for ports that no socket holds: `tcp_send_reset`.

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::LruHashMap,
    programs::BtfTracePointContext,
};
use tracer_ebpf::{Address, MAX_PROBERS, Prober, Tries, mapped};

use crate::{
    emit::is_netns_wanted,
    kernel::{Probed, field, layout, now_ns},
};

/// What each source has tried.
#[map]
static TRIES: LruHashMap<Prober, Tries> = LruHashMap::with_max_entries(MAX_PROBERS, 0);

/// The kernel sends a reset (`tcp_v4_send_reset`, net/ipv4/tcp_ipv4.c). Without a socket it answers a
/// segment for a closed port. Before 6.10 the tracepoint does not fire for those.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let skb: *const u8 = ctx.arg(1);
    if sk.is_null() && !skb.is_null() {
        count_try(skb);
    }
    0
}

#[inline(always)]
fn count_try(skb: *const u8) {
    const ACK: u8 = 0x10;
    let head = field::<Probed, *const u8>(skb, layout!(skb_head));
    let header = |offset| head.wrapping_add(usize::from(field::<Probed, u16>(skb, offset)));
    let ip = header(layout!(skb_network_header));
    let tcp = header(layout!(skb_transport_header));
    // struct tcphdr. A segment with ACK belongs to a connection that no longer exists.
    if field::<Probed, u8>(tcp, 13) & ACK != 0 {
        return;
    }
    let port = u16::from_be(field::<Probed, u16>(tcp, 2));
    // struct iphdr and struct ipv6hdr both begin with the version.
    let addr = match field::<Probed, u8>(ip, 0) >> 4 {
        4 => mapped(field::<Probed, u32>(ip, 12)),
        6 => field::<Probed, Address>(ip, 8),
        _ => return,
    };
    let dev = field::<Probed, *const u8>(skb, layout!(skb_dev));
    let net = field::<Probed, *const u8>(dev, layout!(dev_net));
    let netns = field::<Probed, u32>(net, layout!(net_inum));
    if !is_netns_wanted(|| netns) {
        return;
    }
    let prober = Prober { netns, addr };
    let time_ns = now_ns();
    if let Some(tries) = TRIES.get_ptr_mut(&prober) {
        // SAFETY: the element is not freed while this program runs. Another CPU may count at the same
        // time, which can lose a count (see `Tries`).
        unsafe { (*tries).add(port, time_ns) };
    } else {
        let mut tries = Tries::default();
        tries.add(port, time_ns);
        // If the map refuses it, the next segment tries again.
        let _ = TRIES.insert(&prober, &tries, 0);
    }
}
