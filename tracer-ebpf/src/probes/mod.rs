//! The programs, one file for each kernel subject.

mod accept;
mod bind;
mod connect;
mod holders;
mod snapshot;
mod state;
mod syscall;
mod time_wait;
