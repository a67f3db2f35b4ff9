//! The types of the records that tell what happens to ports.

use std::{collections::BTreeMap, str::FromStr};

use crate::model::Change;

/// The type of a record that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the interface")]
pub enum RecordType {
    Namespace,
    Held,
    Bind,
    Connect,
    Established,
    Accept,
    Listen,
    Closing,
    TimeWait,
    Release,
    Fail,
    Pressure,
    Scan,
}

impl RecordType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Namespace,
        Self::Held,
        Self::Bind,
        Self::Connect,
        Self::Established,
        Self::Accept,
        Self::Listen,
        Self::Closing,
        Self::TimeWait,
        Self::Release,
        Self::Fail,
        Self::Pressure,
        Self::Scan,
    ];

    /// The type of a change's record.
    #[must_use]
    pub fn of(change: &Change) -> Self {
        match change {
            Change::Held => Self::Held,
            Change::Bind { .. } => Self::Bind,
            Change::Connect { .. } => Self::Connect,
            Change::Established { .. } => Self::Established,
            Change::Accept { .. } => Self::Accept,
            Change::Listen => Self::Listen,
            Change::Closing { .. } => Self::Closing,
            Change::TimeWait(_) => Self::TimeWait,
            Change::Release { .. } => Self::Release,
        }
    }

    /// `type` in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Held => "held",
            Self::Bind => "bind",
            Self::Connect => "connect",
            Self::Established => "established",
            Self::Accept => "accept",
            Self::Listen => "listen",
            Self::Closing => "closing",
            Self::TimeWait => "time_wait",
            Self::Release => "release",
            Self::Fail => "fail",
            Self::Pressure => "pressure",
            Self::Scan => "scan",
        }
    }
}

impl FromStr for RecordType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|record| record.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no type `{name}`; there are {names}")
        })
    }
}

/// How many records of each type there were.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals([u64; RecordType::ALL.len()]);

impl Totals {
    /// So many more.
    pub fn add(&mut self, record: RecordType, count: u64) {
        self.0[record as usize] += count;
    }

    /// Those of which there were any, by name.
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
    fn totals_are_those_of_their_type() {
        for record in RecordType::ALL {
            let mut totals = Totals::default();
            totals.add(record, 2);
            assert_eq!(totals.by_name(), BTreeMap::from([(record.name(), 2)]));
            assert_eq!(record.name().parse(), Ok(record));
        }
    }
}
