//! What each observation of TCP means for the leases.

mod accept;
mod bind;
mod close;
mod connect;
mod discover;
mod listen;
mod time_wait;
