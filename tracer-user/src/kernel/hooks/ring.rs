//! The ring buffer between the programs and the agent.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::retry_on_intr,
};
use tokio::io::unix::AsyncFd;
use tracer_ebpf::{Hook, HookCounters};

const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The number of records that are drained between two looks at the clock.
const DRAIN_STEP: usize = 4096;
const LONGEST_DRAIN: Duration = Duration::from_secs(2);

/// The agent's end of the ring.
///
/// Facts are submitted without waking the agent, which drains the ring by the clock. Only an
/// agent that has found nothing for a while asks to be woken, by [`sleep`](Self::sleep).
pub(crate) struct Ring {
    events: AsyncFd<RingBuf<MapData>>,
    asleep: Array<MapData, u32>,
    counters: PerCpuArray<MapData, [u64; 4]>,
    received: u64,
}

impl Ring {
    pub(crate) fn new(
        events: RingBuf<MapData>,
        asleep: Array<MapData, u32>,
        counters: PerCpuArray<MapData, [u64; 4]>,
    ) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor, which stays the same and open while it lives.
        let events =
            unsafe { AsyncFd::register_with_interest(events, tokio::io::Interest::READABLE) };
        let events = events.map_err(|error| error.into_parts().1)?;
        Ok(Self { events, asleep, counters, received: 0 })
    }

    /// Hands the records that are in the ring to `consume`, at most `limit` of them. Returns how
    /// many there were.
    pub(crate) fn drain(&mut self, limit: usize, mut consume: impl FnMut(&[u8])) -> usize {
        let ring = self.events.get_mut();
        let mut count = 0;
        while count < limit
            && let Some(record) = ring.next()
        {
            consume(&record);
            count += 1;
        }
        self.received += count as u64;
        count
    }

    /// Number of records that were drained so far.
    #[must_use]
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Hands everything to `consume` that the programs have begun to write by now: a record that
    /// is still being written on another CPU holds back those behind it.
    ///
    /// # Errors
    /// If the kernel refuses the poll, or to read the counters.
    pub(crate) fn drain_all(&mut self, mut consume: impl FnMut(&[u8])) -> io::Result<()> {
        // A busy host may never leave the ring empty.
        let HookCounters { seen, filtered, emitted: _, ring_full } = self.counters()?;
        let begun = seen.saturating_sub(filtered + ring_full);
        // Programs write for microseconds, unless their CPU is taken from them: by another task
        // where they can be preempted (7.0), or by a hypervisor.
        let deadline = Instant::now() + LONGEST_DRAIN;
        loop {
            self.drain(DRAIN_STEP, &mut consume);
            if self.received >= begun || !self.has_data()? || Instant::now() > deadline {
                return Ok(());
            }
            thread::yield_now();
        }
    }

    /// Waits, without using any CPU, until the ring holds a fact, until the given time, or until
    /// `other` is ready, whose result it then returns. May return early.
    ///
    /// # Errors
    /// If the kernel refuses the map update or the poll.
    pub(crate) async fn sleep<T>(
        &mut self,
        until: Option<tokio::time::Instant>,
        other: impl Future<Output = T>,
    ) -> io::Result<Option<T>> {
        let mut result = None;
        // Facts that come after the flag is set wake us; one that came just before does not, so
        // look once more. A record that is reserved but not yet committed counts as well.
        self.set_asleep(true)?;
        if !self.has_data()? {
            // The bound is for the store buffer of another CPU, in which a record can hide from
            // our look while that CPU has not seen the flag: its next fact would wake us.
            let longest = tokio::time::Instant::now() + LONGEST_SLEEP;
            let until = until.map_or(longest, |until| until.min(longest));
            tokio::select! {
                _ = tokio::time::timeout_at(until, self.filling()) => {}
                done = other => result = Some(done),
            }
        }
        self.set_asleep(false)?;
        Ok(result)
    }

    /// Waits for the forced wakeup that a filling ring sends, whatever the agent does.
    ///
    /// # Errors
    /// If the kernel refuses the poll.
    pub(crate) async fn filling(&mut self) -> io::Result<()> {
        self.events.readable_mut().await.map(|mut guard| guard.clear_ready())
    }

    /// The counters of all hooks, summed over the CPUs.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub(crate) fn counters(&self) -> io::Result<HookCounters> {
        let mut sum = HookCounters::default();
        for index in 0..Hook::COUNTER_SLOTS {
            let per_cpu = self.counters.get(&index, 0).map_err(io::Error::other)?;
            for [seen, filtered, emitted, ring_full] in per_cpu.iter() {
                sum.seen += seen;
                sum.filtered += filtered;
                sum.emitted += emitted;
                sum.ring_full += ring_full;
            }
        }
        Ok(sum)
    }

    fn has_data(&self) -> io::Result<bool> {
        let mut poll = [PollFd::new(self.events.get_ref(), PollFlags::IN)];
        // A signal interrupts it even though it does not wait (`do_poll`, fs/select.c).
        Ok(retry_on_intr(|| rustix::event::poll(&mut poll, Some(&Timespec::default())))? > 0)
    }

    fn set_asleep(&mut self, asleep: bool) -> io::Result<()> {
        self.asleep.set(0, u32::from(asleep), 0).map_err(io::Error::other)
    }
}
