//! portlife: which process holds each local TCP port, since when, until when, and why are none left?
//!
//! The programs in the kernel report facts; [`kernel`] decodes them into
//! [observations](model::Observation). The [`ledger`] turns observations into leases, and
//! [`capacity`] says how many ports are left and why. What happens becomes a [`record`], which
//! [`views`] show together with the ledger. The agent runs them all; the command line chooses.
//!
//! # Examples
//!
//! Feed a ledger, and ask how many ports it leaves for a destination:
//!
//! ```
//! use std::sync::Arc;
//!
//! use tracer_ebpf::Owner;
//! use tracer_user::{
//!     ledger::{Ledger, Sink},
//!     model::{
//!         Cookie, Destination, Failure, Family, Instant, LeaseEvent, LocalRange, Netns, Observation,
//!         Peer, Port, PortSet, Pressure, Settings, Visibility, TimeWaitReuse,
//!         observation::{ConnectStart, Endpoints, LocalEnd, PortChosen, SocketId, Userlocks},
//!     },
//! };
//!
//! /// Receives what the ledger finds out.
//! #[derive(Default)]
//! struct Events(Vec<String>);
//!
//! impl Sink for Events {
//!     fn lease(&mut self, event: LeaseEvent<'_>, _: &Ledger) {
//!         self.0.push(format!("port {}: {:?}", event.lease.local_port.0, event.change));
//!     }
//!     fn failure(&mut self, failure: &Failure<'_>, _: &Ledger) {
//!         self.0.push(format!("{:?} got no port", failure.operation));
//!     }
//!     fn pressure(&mut self, pressure: &Pressure, _: &Ledger) {
//!         self.0.push(format!("{} % used", pressure.level_percent));
//!     }
//! }
//!
//! let mut ledger = Ledger::new(Visibility {
//!     ports_chosen: true,
//!     accepts: true,
//!     marks_connect: true,
//!     bound_idle: true,
//!     since: Instant::BOOT,
//! });
//! let netns = Netns(4_026_531_840);
//! let settings = Settings {
//!     range: LocalRange::parse("40000 40001")?,
//!     reserved: PortSet::default(),
//!     step_width: None,
//!     autobind_reuse: false,
//!     unprivileged_start: 1024,
//!     time_wait_reuse: TimeWaitReuse::Loopback,
//!     time_wait_reuse_delay_ms: Some(1000),
//!     timestamps: true,
//!     max_time_waits: 131_072,
//!     fin_timeout_s: 60,
//!     max_listen_backlog: 4096,
//! };
//! ledger.set_settings(netns, Arc::new(settings));
//!
//! // connect() to 10.0.0.2:443 begins, and gets port 40000.
//! let source = "10.0.0.1".parse::<std::net::IpAddr>()?.into();
//! let peer = ("10.0.0.2".parse::<std::net::IpAddr>()?.into(), Port(443));
//! let socket = SocketId { cookie: Cookie(1), netns };
//! let local = LocalEnd { family: Family::Ipv4, v6_only: false, addr: source, port: None };
//! let started = Observation::ConnectStart(ConnectStart {
//!     at: Instant::from_ns(1_000_000),
//!     socket,
//!     endpoints: Endpoints { local, peer: Peer::from(peer) },
//!     own_range: None,
//!     userlocks: Userlocks::default(),
//!     owner: &Owner { pid: 7, uid: 0, cgroup_id: 1, comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0" },
//! });
//! let chosen = Observation::PortChosen(PortChosen {
//!     at: Instant::from_ns(1_005_000),
//!     socket,
//!     endpoints: Endpoints {
//!         local: LocalEnd { port: Some(Port(40_000)), ..local },
//!         peer: Peer::from(peer),
//!     },
//!     incarnation: None,
//!     userlocks: Userlocks::default(),
//! });
//! let mut events = Events::default();
//! ledger.apply(&started, &mut events);
//! ledger.apply(&chosen, &mut events);
//! assert_eq!(events.0, ["port 40000: Connect { search_ns: Some(5000), reuse: None }"]);
//!
//! // One of the two ports is left for this destination.
//! let destination = Destination { netns, source, peer };
//! let range = ledger.range_for(&destination).expect("the settings are known");
//! assert_eq!((range.used, range.headroom()), (1, 1));
//! assert_eq!(ledger.leases_on(netns, Port(40_000)).count(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(not(test), deny(clippy::print_stderr, clippy::print_stdout))]

#[cfg(feature = "programs")]
pub mod agent;
pub mod capacity;
#[cfg(feature = "programs")]
pub mod cli;
pub mod foreign;
pub mod kernel;
pub mod ledger;
pub mod model;
pub mod record;
pub mod sources;
mod stderr;
pub mod testing;
pub mod views;
