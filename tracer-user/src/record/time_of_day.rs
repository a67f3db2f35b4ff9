//! The time of day as text, formatted once a second.

use jiff::Timestamp;

use super::digits::{append_fraction, append_start};

/// Nanoseconds of a second.
const SECOND_NS: u32 = 1_000_000_000;

/// The text of a second, kept until a time in another second is asked for.
#[derive(Debug, Default)]
pub(crate) struct Second {
    /// Its beginning, nanoseconds since 1970; `None` before the first use.
    began_ns: Option<i128>,
    text: String,
}

impl Second {
    /// Returns the text of the second that a time is in, and the nanoseconds since it began.
    ///
    /// `ns` is the time, nanoseconds since 1970; `text_of` formats the beginning of a second.
    pub(crate) fn of(
        &mut self,
        ns: i128,
        text_of: impl FnOnce(Timestamp) -> String,
    ) -> (&str, u32) {
        let within =
            |began_ns: i128| u32::try_from(ns - began_ns).ok().filter(|ns| *ns < SECOND_NS);
        let fraction_ns = self.began_ns.and_then(within).unwrap_or_else(|| {
            let fraction_ns = ns.rem_euclid(SECOND_NS.into());
            let began_ns = ns - fraction_ns;
            self.began_ns = Some(began_ns);
            self.text = text_of(Timestamp::from_nanosecond(began_ns).unwrap_or_default());
            // Less than a second.
            fraction_ns as u32
        });
        (&self.text, fraction_ns)
    }
}

/// Formats times as RFC 3339 does, in UTC with nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct TimeOfDay(Second);

impl TimeOfDay {
    /// Appends a time, nanoseconds since 1970. A year beyond 9999, the calendar's last, is written
    /// as 1970.
    #[inline]
    pub(crate) fn append(&mut self, ns: i128, bytes: &mut Vec<u8>) {
        const LENGTH: usize = "2038-01-19T03:14:07".len();
        let format = |began: Timestamp| format!("{began:.0}").trim_end_matches('Z').to_owned();
        let (text, fraction_ns) = self.0.of(ns, format);
        match text.as_bytes().first_chunk::<LENGTH>() {
            Some(text) => append_start(text, LENGTH, bytes),
            None => bytes.extend_from_slice(text.as_bytes()),
        }
        append_fraction(fraction_ns, bytes);
        bytes.push(b'Z');
    }
}
