//! How each observation of TCP changes the leases.

mod accept;
mod bind;
mod close;
mod connect;
mod discover;
mod listen;
mod time_wait;
