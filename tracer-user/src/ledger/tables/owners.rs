//! Owners, shared between leases: a host has few processes beside its connections.

use std::sync::Arc;

use tracer_ebpf::Owner;

/// Some of the owners that were seen last. One that is seen again after it has been forgotten here
/// is kept twice, which only costs memory.
#[derive(Debug)]
pub struct Owners {
    known: Vec<Option<Arc<Owner>>>,
}

impl Owners {
    /// The place of an owner follows from its process id: the ids of a server's workers are
    /// consecutive.
    const MOST: usize = 256;

    /// This owner, shared with the leases that have it already.
    pub fn share(&mut self, owner: &Owner) -> Arc<Owner> {
        let known = &mut self.known[owner.pid as usize % Self::MOST];
        match known {
            Some(known) if **known == *owner => Arc::clone(known),
            _ => Arc::clone(known.insert(Arc::new(*owner))),
        }
    }
}

impl Default for Owners {
    fn default() -> Self {
        Self { known: vec![None; Self::MOST] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_owners_are_shared() {
        let mut owners = Owners::default();
        let worker = |pid| Owner { pid, uid: 1000, ..Owner::default() };
        let first = owners.share(&worker(7));
        assert!(Arc::ptr_eq(&first, &owners.share(&worker(7))));
        // After an execve(), or another process of the same number.
        let renamed = Owner { comm: *b"renamed\0\0\0\0\0\0\0\0\0", ..worker(7) };
        assert_eq!(*owners.share(&renamed), renamed);
        let other = owners.share(&worker(7 + 256));
        assert_eq!((first.pid, other.pid), (7, 263));
        assert_eq!(Arc::strong_count(&first), 1, "nothing is kept for ever");
    }
}
