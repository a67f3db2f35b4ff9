//! The class of each bind bucket, followed from observations by the kernel's own rules.
//!
//! A port's bucket (`struct inet_bind_bucket`, `tb`) becomes one that connect() leaves out when a
//! socket binds the port, and connect() shares it only with owners that connect() put there. Before
//! 6.18 it stays so until the last owner is gone. Since then each address of a port has a state of
//! its own (`struct inet_bind2_bucket`, `tb2`): when an owner leaves whose address is left to owners
//! that connect() put there, that address recovers; when all have, the port does
//! (`inet_bind2_bucket_destroy`, `inet_bind_bucket_destroy`, net/ipv4/inet_hashtables.c).

use super::{
    LeaseIndex,
    port_table::{BucketRule, PortTable},
};
use crate::model::{Addr, BucketClass, Kind, Lease, Netns, Phase, Port};

impl PortTable {
    /// The class of a port's bucket; `None` if no lease is on the port.
    pub fn bucket_class(&self, netns: Netns, port: Port) -> Option<BucketClass> {
        let slot = self.leases.slot(netns, port);
        slot.first.map(|_| slot.class)
    }

    /// Sets a bucket's class to what the kernel says it is.
    pub fn correct_bucket_class(&mut self, netns: Netns, port: Port, class: BucketClass) {
        if self.bucket_class(netns, port).is_none_or(|known| known == class) {
            return;
        }
        self.leases.for_each_on_port(netns, port, |_, entry| entry.address_class = class);
        self.set_class(netns, port, class);
    }

    /// A socket bound the port, or listens on it (`inet_csk_update_fastreuse`,
    /// net/ipv4/inet_connection_sock.c).
    pub fn bind_bucket(&mut self, index: LeaseIndex) {
        let lease = &self.leases[index].lease;
        let (netns, port, addr) = (lease.netns, lease.local_port, lease.local_addr);
        self.set_address_class(netns, port, addr, BucketClass::Bind);
        self.set_class(netns, port, BucketClass::Bind);
    }

    /// A socket's address changes (`__inet_bhash2_update_saddr`, net/ipv4/inet_hashtables.c).
    pub fn set_address(&mut self, index: LeaseIndex, to: Addr) {
        let entry = &mut self.leases[index];
        let from = std::mem::replace(&mut entry.lease.local_addr, to);
        let (netns, port) = (entry.lease.netns, entry.lease.local_port);
        if from == to || self.buckets == BucketRule::StaysBound {
            return;
        }
        if self.leases.slot(netns, port).class == BucketClass::Bind {
            self.recover_address(netns, port, from);
        }
        let class = self.class_of_address(index, netns, port, to);
        let entry = &mut self.leases[index];
        entry.address_class = class.unwrap_or(match entry.lease.kind {
            Kind::Connect => BucketClass::Connect,
            _ => BucketClass::Bind,
        });
    }

    /// A new owner is in the chain of its port.
    pub(super) fn join_bucket(&mut self, index: LeaseIndex) {
        let entry = &self.leases[index];
        let is_first = entry.next_of_port.is_none();
        let Lease { netns, local_port: port, local_addr: addr, kind, .. } = entry.lease;
        if is_first {
            // A bucket of its own.
            self.set_class(netns, port, BucketClass::Connect);
        }
        let of_address = self.class_of_address(index, netns, port, addr);
        let address_class = match kind {
            Kind::Bind | Kind::BindAuto | Kind::Listen => return self.bind_bucket(index),
            Kind::Connect => {
                if self.leases.slot(netns, port).class == BucketClass::Bind {
                    self.connect_to_bound(netns, port);
                }
                of_address.unwrap_or(BucketClass::Connect)
            }
            Kind::Accept => {
                if is_first {
                    self.set_class(netns, port, BucketClass::Bind);
                }
                of_address.unwrap_or(BucketClass::Bind)
            }
        };
        self.leases[index].address_class = address_class;
    }

    /// An owner of this address has left the chain of its port, which is not empty.
    pub(super) fn leave_bucket(&mut self, netns: Netns, port: Port, addr: Addr) {
        if self.leases.slot(netns, port).class == BucketClass::Connect
            || self.buckets == BucketRule::StaysBound
        {
            return;
        }
        self.recover_address(netns, port, addr);
        let recovers = self
            .leases
            .on_port(netns, port)
            .all(|(_, entry)| entry.address_class == BucketClass::Connect);
        if recovers {
            self.set_class(netns, port, BucketClass::Connect);
        }
    }

    /// connect() chooses no bucket that was bound. So either the class was wrong, or a socket bound
    /// the port after connect() had chosen it, and was observed first.
    fn connect_to_bound(&mut self, netns: Netns, port: Port) {
        let is_bound =
            self.leases.on_port(netns, port).any(|(_, entry)| entry.lease.kind != Kind::Connect);
        if !is_bound {
            self.leases.for_each_on_port(netns, port, |_, entry| {
                entry.address_class = BucketClass::Connect;
            });
            self.set_class(netns, port, BucketClass::Connect);
        }
    }

    /// An address that is left to owners that connect() put there recovers.
    fn recover_address(&mut self, netns: Netns, port: Port, addr: Addr) {
        let recovers = self
            .leases
            .on_port(netns, port)
            .filter(|(_, entry)| entry.lease.local_addr == addr)
            .all(|(_, entry)| entry.lease.kind == Kind::Connect);
        if recovers {
            self.set_address_class(netns, port, addr, BucketClass::Connect);
        }
    }

    /// The state of an address of a port, by another owner of it than this one.
    fn class_of_address(
        &self,
        not: LeaseIndex,
        netns: Netns,
        port: Port,
        addr: Addr,
    ) -> Option<BucketClass> {
        self.leases
            .on_port(netns, port)
            .find(|(index, entry)| *index != not && entry.lease.local_addr == addr)
            .map(|(_, entry)| entry.address_class)
    }

    fn set_address_class(&mut self, netns: Netns, port: Port, addr: Addr, class: BucketClass) {
        self.leases.for_each_on_port(netns, port, |_, entry| {
            if entry.lease.local_addr == addr {
                entry.address_class = class;
            }
        });
    }

    fn set_class(&mut self, netns: Netns, port: Port, class: BucketClass) {
        self.leases.set_class(netns, port, class);
        if !self.usage.set_locked(netns, port, class.is_bind()) {
            return;
        }
        let Self { leases, usage, buckets: _ } = self;
        let mut time_waits = Vec::new();
        for (index, entry) in leases.on_port(netns, port) {
            if let Some(counted) = entry.destination {
                usage.set_connection_locked(counted, class.is_bind());
            }
            if matches!(entry.lease.phase, Phase::TimeWait(_)) {
                time_waits.push(index);
            }
        }
        for index in time_waits {
            self.recount(index);
        }
    }
}
