//! What others may ask of the ledger. Every answer about ports that are left comes from
//! [`capacity`](crate::capacity).

use super::Ledger;
use crate::{
    capacity::Forecast,
    model::{Destination, Instant, Netns, Port, RangeUse, Rates, Settings},
};

/// A destination, and what it leaves of its namespace's ports.
#[derive(Clone, Copy, Debug)]
pub struct DestinationView<'a> {
    /// The destination.
    pub destination: &'a Destination,
    /// The ports of the range as a connect() to it sees them.
    pub range: RangeUse,
    /// How fast it takes and releases ports.
    pub rates: Rates,
    /// What becomes of it.
    pub forecast: Forecast,
}

impl Ledger {
    /// Sets the time at which the questions that follow are asked.
    pub fn advance(&mut self, now: Instant) {
        self.usage.set_time(now);
    }

    /// True if somebody holds a port in the namespace.
    #[must_use]
    pub fn is_held_in(&self, netns: Netns) -> bool {
        self.ports.chains_of(netns).next().is_some()
    }

    /// The settings of a namespace; `None` if they are not known, or if its ports are not
    /// counted because too many namespaces are in use.
    #[must_use]
    pub fn settings(&self, netns: Netns) -> Option<&Settings> {
        self.usage.settings(netns).map(|settings| &**settings)
    }

    /// The ports of the range as a connect() to this destination sees them; `None` if the
    /// namespace's settings are not known.
    #[must_use]
    pub fn range_for(&self, destination: &Destination) -> Option<RangeUse> {
        self.usage.for_destination(destination)
    }

    /// The ports of the range as a bind() to port 0 and the wildcard address sees them.
    #[must_use]
    pub fn range(&self, netns: Netns) -> Option<RangeUse> {
        self.usage.range(netns)
    }

    /// The ports of the range that connect() leaves out because somebody bound them.
    pub fn locked_ports(&self, netns: Netns) -> impl Iterator<Item = Port> {
        self.usage.locked_ports(netns)
    }

    /// How fast ports for this destination are taken and released; `None` if none was used lately.
    #[must_use]
    pub fn rates_for(&self, destination: &Destination) -> Option<Rates> {
        self.usage.destination_rates(destination)
    }

    /// One destination; `None` if no port was used for it lately.
    #[must_use]
    pub fn destination<'a>(&self, destination: &'a Destination) -> Option<DestinationView<'a>> {
        let range = self.usage.for_destination(destination)?;
        let rates = self.usage.destination_rates(destination)?;
        Some(DestinationView::new(destination, range, rates))
    }
}

impl<'a> DestinationView<'a> {
    /// A destination that leaves these ports and takes them at these rates.
    pub(crate) fn new(destination: &'a Destination, range: RangeUse, rates: Rates) -> Self {
        Self { destination, range, rates, forecast: Forecast::of(&range, &rates) }
    }
}
