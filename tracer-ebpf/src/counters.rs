//! Counters of every hook, so that no loss goes unnoticed.

use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The kernel hooks, by their index in the counters array.
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
    /// `sockops` at the root of the cgroup v2 hierarchy.
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
    /// Number of slots in the counters array. A hook's primary program counts in the slot of the
    /// hook's number, the backup in the slot [`COUNT`](Self::COUNT) above it, so that no slot is
    /// written by two programs of which one can interrupt the other.
    pub const COUNTER_SLOTS: u32 = 2 * Self::COUNT;
}

/// What one program did on one CPU since it was attached.
///
/// `seen = filtered + emitted + ring_full` whenever the program is not running. Firings that concern
/// no port (another protocol, a transition that the ledger does not need, another timer) are not
/// counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
pub struct HookCounters {
    /// Firings that concerned a port.
    pub seen: u64,
    /// Those in a namespace that is not to be reported.
    pub filtered: u64,
    /// Facts submitted to the ring buffer.
    pub emitted: u64,
    /// Facts that were lost because the ring buffer was full.
    pub ring_full: u64,
}

const _: () = assert!(size_of::<HookCounters>() == 32);
