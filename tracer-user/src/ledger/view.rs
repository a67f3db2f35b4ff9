//! The questions that views may ask the ledger. Every answer about headroom comes from
//! [`capacity`](crate::capacity).

use super::Ledger;
use crate::model::{Destination, Instant, Netns, Port, RangeUse, Rates, Settings};

impl Ledger {
    /// Sets the time for which the following questions are answered.
    pub fn advance(&mut self, now: Instant) {
        self.table.set_time(now);
    }

    /// True if a port of the namespace is held.
    #[must_use]
    pub fn is_held_in(&self, netns: Netns) -> bool {
        self.table.leases().has_any_in(netns)
    }

    /// The settings of a namespace; `None` if they are not known, or if its ports are not
    /// counted because too many namespaces are in use.
    #[must_use]
    pub fn settings(&self, netns: Netns) -> Option<&Settings> {
        self.table.usage().settings(netns).map(|settings| &**settings)
    }

    /// The ports of the range as a connect() to this destination sees them; `None` if the
    /// namespace's settings are not known.
    #[must_use]
    pub fn range_for(&self, destination: &Destination) -> Option<RangeUse> {
        self.table.usage().range_for(destination)
    }

    /// The ports of the range as a bind() to port 0 and the wildcard address sees them.
    #[must_use]
    pub fn range(&self, netns: Netns) -> Option<RangeUse> {
        self.table.usage().range(netns)
    }

    /// The ports of the range that connect() does not choose because they are bound.
    pub fn locked_ports(&self, netns: Netns) -> impl Iterator<Item = Port> {
        self.table.usage().locked_ports(netns)
    }

    /// How fast ports for this destination are acquired and released. `None` if none was used
    /// lately.
    #[must_use]
    pub fn rates_for(&self, destination: &Destination) -> Option<Rates> {
        self.table.usage().destination_rates(destination)
    }
}
