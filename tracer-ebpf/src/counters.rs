//! The accounting of every hook: nothing is lost silently.

use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The kernel hooks, as indices into the per-CPU counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// `tp_btf/inet_sock_set_state`.
    SetState = 0,
    /// `tp_btf/tcp_destroy_sock`.
    DestroySock = 1,
    /// `tp_btf/timer_start`.
    TimerStart = 2,
    /// `tp_btf/timer_cancel`.
    TimerCancel = 3,
    /// `tp_btf/timer_expire_entry`.
    TimerExpire = 4,
    /// `sockops` at the cgroup v2 root.
    SockOps = 5,
    /// `cgroup/post_bind4`.
    PostBind4 = 6,
    /// `cgroup/post_bind6`.
    PostBind6 = 7,
    /// `tp_btf/sys_exit`.
    SysExit = 8,
    /// `fexit/inet_bind`.
    Bind4Exit = 9,
    /// `fexit/inet6_bind`.
    Bind6Exit = 10,
    /// `fexit/inet_csk_accept`.
    AcceptExit = 11,
    /// `fentry/inet_twsk_hashdance_schedule`, `fentry/inet_twsk_hashdance` before 6.12.
    TimeWaitHash = 12,
    /// `fentry/__inet_twsk_schedule`.
    TimeWaitSchedule = 13,
    /// `fentry/inet_twsk_kill`.
    TimeWaitKill = 14,
}

impl Hook {
    /// All hooks, in index order.
    pub const ALL: [Self; 15] = [
        Self::SetState,
        Self::DestroySock,
        Self::TimerStart,
        Self::TimerCancel,
        Self::TimerExpire,
        Self::SockOps,
        Self::PostBind4,
        Self::PostBind6,
        Self::SysExit,
        Self::Bind4Exit,
        Self::Bind6Exit,
        Self::AcceptExit,
        Self::TimeWaitHash,
        Self::TimeWaitSchedule,
        Self::TimeWaitKill,
    ];
    /// Number of hooks.
    pub const COUNT: u32 = Self::ALL.len() as u32;
    /// Length of the counters array: a hook's first program counts in the slot of the hook's
    /// number, its second copy in one of its own, [`COUNT`](Self::COUNT) further. So no counter is
    /// written by two programs of which one may interrupt the other.
    pub const COUNTER_SLOTS: u32 = 2 * Self::COUNT;
}

/// What one hook did on one CPU since it was attached.
///
/// `seen = filtered + emitted + ring_full` holds at any quiet moment. Firings that concern no port (another
/// protocol, a transition that the ledger does not need, a foreign timer) are not seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
pub struct HookCounters {
    /// Firings that concerned a port.
    pub seen: u64,
    /// Those that the user does not want to hear of.
    pub filtered: u64,
    /// Facts submitted to the ring buffer.
    pub emitted: u64,
    /// Facts lost because the ring buffer had no room.
    pub ring_full: u64,
}

const _: () = assert!(size_of::<HookCounters>() == 32);
