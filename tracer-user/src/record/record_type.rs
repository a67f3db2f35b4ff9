//! The types of records.

use std::{collections::BTreeMap, str::FromStr};

use super::named::Named;
use crate::model::Change;

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    /// The start of a run.
    Start,
    /// The settings of a network namespace.
    Namespace,
    /// A lease that a snapshot found.
    Held,
    /// bind() or listen() acquired a port.
    Bind,
    /// connect() chose a port.
    Connect,
    /// A handshake is complete.
    Established,
    /// A listener's child inherited its port.
    Accept,
    /// A socket entered LISTEN.
    Listen,
    /// A lease changed in another way.
    Update,
    /// The first FIN of a connection.
    Closing,
    /// A TIME_WAIT took over a port.
    TimeWait,
    /// A port was released.
    Release,
    /// A call got no port.
    Fail,
    /// A destination or a range crossed a level of use.
    Pressure,
    /// A source tries closed ports.
    Scan,
    /// Facts were lost.
    Loss,
    /// A comparison of the ledger with the kernel.
    Verify,
    /// The end of a run.
    Summary,
}

impl RecordType {
    /// The type of the record of a change.
    #[must_use]
    pub const fn of(change: &Change) -> Self {
        match change {
            Change::Held { .. } => Self::Held,
            Change::Bind { .. } => Self::Bind,
            Change::Connect { .. } => Self::Connect,
            Change::Established { .. } => Self::Established,
            Change::Accept { .. } => Self::Accept,
            Change::Listen => Self::Listen,
            Change::Update { .. } => Self::Update,
            Change::Closing { .. } => Self::Closing,
            Change::TimeWait(_) => Self::TimeWait,
            Change::Release { .. } => Self::Release,
        }
    }

    /// True if a filter can select records of this type. The others are about the run itself, and
    /// no filter hides them.
    #[must_use]
    pub const fn is_selectable(self) -> bool {
        match self {
            Self::Start | Self::Loss | Self::Verify | Self::Summary => false,
            Self::Namespace
            | Self::Held
            | Self::Bind
            | Self::Connect
            | Self::Established
            | Self::Accept
            | Self::Listen
            | Self::Update
            | Self::Closing
            | Self::TimeWait
            | Self::Release
            | Self::Fail
            | Self::Pressure
            | Self::Scan => true,
        }
    }
}

impl FromStr for RecordType {
    type Err = String;

    /// Reads the name of a type that a filter can select.
    fn from_str(name: &str) -> Result<Self, String> {
        Self::from_name(name).filter(|record| record.is_selectable()).ok_or_else(|| {
            let selectable = Self::ALL.iter().filter(|record| record.is_selectable());
            let names: Vec<_> = selectable.map(|record| record.name()).collect();
            format!("there is no type `{name}`; there are {}", names.join(", "))
        })
    }
}

/// Number of records of each type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals([u64; RecordType::ALL.len()]);

impl Totals {
    /// Adds `count` records of a type.
    pub fn add(&mut self, record: RecordType, count: u64) {
        self.0[record as usize] += count;
    }

    /// The totals that are not 0, by name of the type.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<&'static str, u64> {
        let all = RecordType::ALL.iter().map(|record| record.name()).zip(self.0);
        all.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_its_own_total() {
        for record in RecordType::ALL {
            let mut totals = Totals::default();
            totals.add(*record, 2);
            assert_eq!(totals.by_name(), BTreeMap::from([(record.name(), 2)]));
        }
    }

    #[test]
    fn types_about_the_run_itself_cannot_be_selected() {
        for record in RecordType::ALL {
            let parsed = record.name().parse().ok();
            assert_eq!(parsed, record.is_selectable().then_some(*record));
        }
    }
}
