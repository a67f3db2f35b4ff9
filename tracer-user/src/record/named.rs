//! Names of values, both ways.

/// An enum whose values have names in records.
pub trait Named: Copy + 'static {
    /// The field whose value the name is.
    const FIELD: &'static str;

    /// Every value that has a name of its own, in the order of the table. Of values that share a
    /// name, the one that a reader makes of it.
    const ALL: &'static [Self];

    /// The name of this value: letters that JSON need not escape.
    fn name(self) -> &'static str;

    /// The value with this name; `None` if there is none.
    #[must_use]
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.name() == name)
    }
}
