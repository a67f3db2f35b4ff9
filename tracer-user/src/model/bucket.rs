//! Bind buckets.

/// The class of a bind bucket (`struct inet_bind_bucket`): who may join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BucketClass {
    /// Every owner got the port from connect(): a connect() to another destination may share it
    /// (`fastreuse` and `fastreuseport` are -1).
    Connect,
    /// Some owner bound the port: connect() never chooses it, for any source and destination (`__inet_hash_connect`, net/ipv4/inet_hashtables.c).
    Bind,
}

impl BucketClass {
    /// True if some owner bound the port.
    pub(crate) fn is_bind(self) -> bool {
        self == Self::Bind
    }
}
