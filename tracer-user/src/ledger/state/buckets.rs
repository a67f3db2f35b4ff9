//! The class of each bind bucket, followed from facts by the kernel's own rules.
//!
//! A port's bucket (`struct inet_bind_bucket`, `tb`) becomes one that connect() leaves out when
//! somebody binds the port, and connect() shares it with none but owners that connect() put there.
//! Before 6.18 it stays so until the last owner is gone. Since then each address of a port has a
//! state of its own (`struct inet_bind2_bucket`, `tb2`): when an owner leaves whose address is left
//! to owners that connect() put there, that address recovers; when all have, the port does
//! (`inet_bind2_bucket_destroy`, `inet_bind_bucket_destroy`, net/ipv4/inet_hashtables.c).

use crate::{
    ledger::{ports::NONE, state::Ledger},
    model::{Addr, BucketClass, Kind, Lease, Netns, Phase, Port},
};

impl Ledger {
    /// The class of a port's bucket; `None` if nobody holds the port.
    #[must_use]
    pub fn bucket_class(&self, netns: Netns, port: Port) -> Option<BucketClass> {
        let slot = self.ports.get(netns, port);
        (slot.first != NONE).then_some(slot.class)
    }

    /// Sets a bucket's class to what the kernel says it is.
    pub fn correct_bucket_class(&mut self, netns: Netns, port: Port, class: BucketClass) {
        if self.bucket_class(netns, port).is_none_or(|known| known == class) {
            return;
        }
        self.each_on(netns, port, |_| true, |address| *address = class);
        self.set_class(netns, port, class);
    }

    /// A new owner is in the chain of its port.
    pub(super) fn join_bucket(&mut self, index: u32) {
        let entry = &self.leases[index as usize];
        let is_first = entry.next_of_port == NONE;
        let Lease { netns, local_port: port, local_addr: addr, kind, .. } = entry.lease;
        if is_first {
            // A bucket of its own.
            self.set_class(netns, port, BucketClass::Connect);
        }
        let of_address = self.class_of_address(index, netns, port, addr);
        let address_class = match kind {
            Kind::Bind | Kind::BindAuto | Kind::Listen => return self.bind_bucket(index),
            Kind::Connect => {
                if self.ports.get(netns, port).class == BucketClass::Bind {
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
        self.leases[index as usize].address_class = address_class;
    }

    /// connect() takes no bucket that somebody bound. So either what we thought of this one was
    /// wrong, or somebody bound the port after connect() had chosen it, and was faster to tell.
    fn connect_to_bound(&mut self, netns: Netns, port: Port) {
        let first = self.ports.get(netns, port).first;
        let is_bound = self
            .chain(first, |entry| entry.next_of_port)
            .any(|(_, entry)| entry.lease.kind != Kind::Connect);
        if !is_bound {
            self.each_on(netns, port, |_| true, |address| *address = BucketClass::Connect);
            self.set_class(netns, port, BucketClass::Connect);
        }
    }

    /// An owner bound the port, or listens on it (`inet_csk_update_fastreuse`,
    /// net/ipv4/inet_connection_sock.c).
    pub(super) fn bind_bucket(&mut self, index: u32) {
        let lease = &self.leases[index as usize].lease;
        let (netns, port, addr) = (lease.netns, lease.local_port, lease.local_addr);
        self.each_on(netns, port, |of| of == addr, |address| *address = BucketClass::Bind);
        self.set_class(netns, port, BucketClass::Bind);
    }

    /// An owner of this address has left the chain of its port.
    pub(super) fn leave_bucket(&mut self, netns: Netns, port: Port, addr: Addr) {
        let slot = self.ports.get(netns, port);
        if slot.first == NONE || slot.class == BucketClass::Connect || !self.sight.marks_connect {
            return;
        }
        self.recover_address(netns, port, addr);
        let recovers = self
            .chain(slot.first, |entry| entry.next_of_port)
            .all(|(_, entry)| entry.address_class == BucketClass::Connect);
        if recovers {
            self.set_class(netns, port, BucketClass::Connect);
        }
    }

    /// An owner's address changes (`__inet_bhash2_update_saddr`, net/ipv4/inet_hashtables.c).
    pub(super) fn move_in_bucket(&mut self, index: u32, to: Addr) {
        let entry = &mut self.leases[index as usize];
        let from = std::mem::replace(&mut entry.lease.local_addr, to);
        let (netns, port) = (entry.lease.netns, entry.lease.local_port);
        if from == to || !self.sight.marks_connect {
            return;
        }
        if self.ports.get(netns, port).class == BucketClass::Bind {
            self.recover_address(netns, port, from);
        }
        let class = self.class_of_address(index, netns, port, to);
        let entry = &mut self.leases[index as usize];
        entry.address_class = class.unwrap_or(match entry.lease.kind {
            Kind::Connect => BucketClass::Connect,
            _ => BucketClass::Bind,
        });
    }

    /// An address that is left to owners whom connect() put there recovers.
    fn recover_address(&mut self, netns: Netns, port: Port, addr: Addr) {
        let first = self.ports.get(netns, port).first;
        let recovers = self
            .chain(first, |entry| entry.next_of_port)
            .filter(|(_, entry)| entry.lease.local_addr == addr)
            .all(|(_, entry)| entry.lease.kind == Kind::Connect);
        if recovers {
            self.each_on(netns, port, |of| of == addr, |address| *address = BucketClass::Connect);
        }
    }

    /// The state of an address of a port, by another owner of it.
    fn class_of_address(
        &self,
        not: u32,
        netns: Netns,
        port: Port,
        addr: Addr,
    ) -> Option<BucketClass> {
        self.chain(self.ports.get(netns, port).first, |entry| entry.next_of_port)
            .find(|(index, entry)| *index != not && entry.lease.local_addr == addr)
            .map(|(_, entry)| entry.address_class)
    }

    fn set_class(&mut self, netns: Netns, port: Port, class: BucketClass) {
        self.ports.set_class(netns, port, class);
        let is_locked = class == BucketClass::Bind;
        if !self.usage.set_locked(netns, port, is_locked) {
            return;
        }
        let mut next = self.ports.get(netns, port).first;
        while let Some(entry) = self.leases.get(next as usize) {
            let (index, is_time_wait) = (next, matches!(entry.lease.phase, Phase::TimeWait(_)));
            next = entry.next_of_port;
            if let Some(counted) = entry.destination {
                self.usage.set_use_locked(counted, is_locked);
            }
            if is_time_wait {
                self.recount(index);
            }
        }
    }

    fn each_on(
        &mut self,
        netns: Netns,
        port: Port,
        is_it: impl Fn(Addr) -> bool,
        change: impl Fn(&mut BucketClass),
    ) {
        let mut next = self.ports.get(netns, port).first;
        while let Some(entry) = self.leases.get_mut(next as usize) {
            if is_it(entry.lease.local_addr) {
                change(&mut entry.address_class);
            }
            next = entry.next_of_port;
        }
    }
}
