//! Leases by the cookie of their socket.

use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use super::LeaseIndex;
use crate::model::Cookie;

/// The first lease of each cookie's chain. The cookie itself is only in the lease: a second copy
/// here would take twice the memory.
#[derive(Debug, Default)]
pub struct ByCookie(HashTable<LeaseIndex>);

impl ByCookie {
    /// The first lease of a cookie's chain.
    #[must_use]
    pub fn first(
        &self,
        cookie: Cookie,
        cookie_of: impl Fn(LeaseIndex) -> Cookie,
    ) -> Option<LeaseIndex> {
        self.0.find(hash(cookie), |lease| cookie_of(*lease) == cookie).copied()
    }

    /// Puts a lease before the others of its cookie, and returns the one that was first.
    pub fn put_first(
        &mut self,
        cookie: Cookie,
        lease: LeaseIndex,
        cookie_of: impl Fn(LeaseIndex) -> Cookie,
    ) -> Option<LeaseIndex> {
        if let Some(first) = self.0.find_mut(hash(cookie), |first| cookie_of(*first) == cookie) {
            return Some(std::mem::replace(first, lease));
        }
        self.0.insert_unique(hash(cookie), lease, |lease| hash(cookie_of(*lease)));
        None
    }

    /// Replaces the first lease of a cookie's chain, which ends, by the next.
    pub fn replace_first(&mut self, cookie: Cookie, first: LeaseIndex, next: Option<LeaseIndex>) {
        let Ok(mut found) = self.0.find_entry(hash(cookie), |lease| *lease == first) else {
            return;
        };
        match next {
            Some(next) => *found.get_mut() = next,
            None => {
                found.remove();
            }
        }
    }
}

fn hash(cookie: Cookie) -> u64 {
    FxBuildHasher.hash_one(cookie)
}
