//! Scenarios on the running kernel: what the kernel does with ports, and what the tracer reports
//! about it. Each runs in a network namespace of its own. They need root, and are skipped without
//! it.

mod agreement;
mod bind;
mod check;
mod child;
mod connect;
mod connecting;
mod destroyed;
mod exhaustion;
mod families;
mod handover;
mod hostile;
mod io_uring;
mod listen;
mod midlife;
mod options;
mod range;
mod report;
mod scan;
mod settings;
mod slow_reader;
mod snapshot;
mod support;
mod surroundings;
mod time_wait;
mod tuples;
mod vrf;
mod why;
mod why_destination;
