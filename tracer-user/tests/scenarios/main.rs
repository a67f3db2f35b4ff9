//! Scenarios against the running kernel: what the kernel does with ports, and what the tracer
//! says of it. Each runs in a network namespace of its own. They need root, and say so if they
//! do not have it.

mod bind;
mod connect;
mod families;
mod listen;
mod report;
mod settings;
mod snapshot;
mod support;
mod surroundings;
mod time_wait;
