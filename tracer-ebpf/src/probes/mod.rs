//! The programs, one file for each kernel subject.

mod accept;
mod bind;
mod connect;
mod holders;
mod reset;
mod snapshot;
mod state;
mod syscall;
mod time_wait;
