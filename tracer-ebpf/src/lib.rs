//! The wire between portlife's eBPF programs and its agent.
//!
//! Everything that crosses the border is defined here, once, for both sides: the [`Fact`]
//! records on the ring buffer, the per-CPU [`HookCounters`], and the [`Layout`] of kernel
//! structures that the agent resolves from the running kernel's BTF and hands to the programs as
//! a frozen global. The two sides are compiled by different compilers, so every type is
//! `repr(C)`, without padding, and its size is asserted.
//!
//! Invariant: nothing in here depends on aya; see the `Cargo.toml` of this crate for the reason.

#![no_std]

mod config;
mod counters;
mod fact;
mod holder;
mod preemption;
mod scan;

pub use config::{ABSENT, BitField, COMMON_BYTES, Layout, NETNS_WANTED_MOST};
pub use counters::{Hook, HookCounters};
pub use fact::{
    Address, DecodeError, Fact, FactKind, OwnedFact, Owner, TcpState, decode, flags, mapped,
};
pub use holder::{HolderLayout, HolderRecord, holder_flags};
pub use preemption::{NO_CALL, Placeholder, Stretch, kernel_call};
pub use scan::{PROBERS_MOST, Prober, Tries};
