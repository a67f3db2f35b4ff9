//! The wire format between portlife's eBPF programs and its agent.
//!
//! Everything that both sides share is defined here once: the [`Fact`] records on the ring buffer,
//! the per-CPU [`HookCounters`], and the [`Layout`] of kernel structures that the agent resolves
//! from the running kernel's BTF and passes to the programs as a frozen global. Two different
//! compilers build the two sides, so every type is `repr(C)`, without padding, and its size is
//! asserted.
//!
//! Invariant: nothing in this library depends on aya; the crate's `Cargo.toml` says why.

#![no_std]

mod config;
mod counters;
mod fact;
mod holder;
mod kfunc;
mod scan;
mod tcp_state;

pub use config::{ABSENT, BitField, COMMON_BYTES, Layout, MAX_NETNS_WANTED};
pub use counters::{Hook, HookCounters};
pub use fact::{
    Address, Fact, FactKind, IPPROTO_TCP, OwnedFact, Owner, STATE_MASK, bind_failed, bound, closed,
    mapped, socket, time_wait_cancel, time_wait_start,
};
pub use holder::{HolderLayout, HolderRecord, holder_flags};
pub use kfunc::{KfuncPlaceholder, NOP, NonPreemptible, kfunc_call};
pub use scan::{MAX_PROBERS, Prober, Tries};
pub use tcp_state::TcpState;
