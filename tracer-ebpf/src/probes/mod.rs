//! The programs, one file per subject of the kernel.

mod accept;
mod bind;
mod connect;
mod holders;
mod reset;
mod snapshot;
mod state;
mod syscall;
mod time_wait;
