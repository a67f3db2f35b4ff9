//! JSON without serde's maps, for the records of which there are thousands a second: keys are
//! copied as they are, and what repeats from record to record is kept as text.
//!
//! What serde_json would escape is left to serde_json, and numbers are written as it would, so that
//! every record has the same form.

use jiff::Timestamp;
use serde::Serialize;
use tracer_ebpf::{Owner, mapped};

use crate::{
    model::{Addr, microseconds, seconds},
    record::{Cgroup, comm},
    views::stream::digits::{
        append_billionths, append_decimal, append_fraction, append_ipv4, append_short,
        append_start, append_thousandths,
    },
};

/// Appends `,"key":value` for each pair.
macro_rules! append {
    ($bytes:expr, $($key:literal: $value:expr),+ $(,)?) => {{
        let bytes: &mut Vec<u8> = $bytes;
        $(
            bytes.extend_from_slice(concat!(",\"", $key, "\":").as_bytes());
            $crate::views::stream::line::Value::append($value, bytes);
        )+
    }};
}
pub(crate) use append;

/// What can be the value of a key.
pub(crate) trait Value {
    fn append(self, bytes: &mut Vec<u8>);
}

/// A value as serde_json writes it.
pub(crate) struct AsSerde<T>(pub T);

impl<T: Serialize> Value for AsSerde<T> {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        // Writing to memory cannot fail, and the records are made of what JSON can say.
        let _ = serde_json::to_writer(bytes, &self.0);
    }
}

macro_rules! as_serde_json_does {
    ($($number:ty)+) => {
        $(impl Value for $number {
            #[inline]
            fn append(self, bytes: &mut Vec<u8>) {
                AsSerde(self).append(bytes);
            }
        })+
    };
}
as_serde_json_does!(i32 f64 bool);

macro_rules! as_decimal {
    ($($number:ty)+) => {
        $(impl Value for $number {
            #[inline]
            fn append(self, bytes: &mut Vec<u8>) {
                append_decimal(self.into(), bytes);
            }
        })+
    };
}
as_decimal!(u16 u32 u64);

/// Nanoseconds, written as [`seconds`].
pub(crate) struct Seconds(pub u64);

/// Nanoseconds, written as [`microseconds`].
pub(crate) struct Microseconds(pub u64);

/// Below this a number and its thousandths and billionths have fifteen digits at most, and no two
/// such are nearest to the same `f64`: the shortest text that is nearest to it is the number itself.
const EXACT_BELOW: u64 = 1_000_000_000_000_000;

impl Value for Seconds {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        // What is shorter is written with an exponent.
        const SHORTEST_NS: u64 = 10_000;
        if matches!(self.0, 0 | SHORTEST_NS..EXACT_BELOW) {
            append_billionths(self.0, bytes);
        } else {
            seconds(self.0).append(bytes);
        }
    }
}

impl Value for Microseconds {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        if self.0 < EXACT_BELOW {
            append_thousandths(self.0, bytes);
        } else {
            microseconds(self.0).append(bytes);
        }
    }
}

/// A string without anything to escape: one of [`names`](super::names).
pub(crate) struct Name(pub &'static str);

impl Value for Name {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        bytes.push(b'"');
        append_short(self.0.as_bytes(), bytes);
        bytes.push(b'"');
    }
}

impl Value for Addr {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        let [.., v4] = self.0;
        if self.0 != mapped(v4) {
            return AsSerde(self.ip()).append(bytes);
        }
        bytes.push(b'"');
        append_ipv4(v4, bytes);
        bytes.push(b'"');
    }
}

impl<V: Value> Value for Option<V> {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        match self {
            Some(value) => value.append(bytes),
            None => bytes.extend_from_slice(b"null"),
        }
    }
}

/// A second, as text while it lasts.
#[derive(Debug, Default)]
pub(crate) struct Second {
    /// When it began, nanoseconds since 1970.
    began_ns: Option<i128>,
    text: String,
}

const SECOND_NS: u32 = 1_000_000_000;

impl Second {
    /// The second so many nanoseconds after 1970 began, and the nanoseconds since it began.
    pub fn of(&mut self, ns: i128, text_of: impl FnOnce(Timestamp) -> String) -> (&str, u32) {
        let lasts = |began_ns: i128| u32::try_from(ns - began_ns).ok().filter(|ns| *ns < SECOND_NS);
        let fraction_ns = self.began_ns.and_then(lasts).unwrap_or_else(|| {
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

/// The time of day as RFC 3339 has it, with nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct TimeOfDay(Second);

impl TimeOfDay {
    /// Appends the time so many nanoseconds after 1970 began. A year beyond the calendar's 9999 is
    /// written as 1970.
    pub fn append(&mut self, ns: i128, bytes: &mut Vec<u8>) {
        const UP_TO_THE_SECOND: usize = "\"2038-01-19T03:14:07".len();
        let up_to_the_second =
            |began: Timestamp| format!("\"{began:.0}").trim_end_matches('Z').to_owned();
        let (text, fraction_ns) = self.0.of(ns, up_to_the_second);
        match text.as_bytes().first_chunk::<UP_TO_THE_SECOND>() {
            Some(text) => append_start(text, UP_TO_THE_SECOND, bytes),
            None => bytes.extend_from_slice(text.as_bytes()),
        }
        append_fraction(fraction_ns, bytes);
        bytes.extend_from_slice(b"Z\"");
    }
}

/// Who holds a port, as text: the processes of a host are few beside their connections.
#[derive(Debug)]
pub(crate) struct Owners {
    known: Vec<Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    owner: Option<Owner>,
    cgroup: Option<Cgroup>,
    text: Vec<u8>,
}

impl Owners {
    /// Each is at the place that its process id gives: those of a server's workers follow one
    /// another.
    const MOST: usize = 256;

    /// Appends the keys of a process, as far as it is known.
    pub fn append(&mut self, owner: Option<&Owner>, cgroup: Option<&Cgroup>, bytes: &mut Vec<u8>) {
        let place = owner.map_or(0, |owner| owner.pid as usize % Self::MOST);
        let known = &mut self.known[place];
        if known.text.is_empty() || known.owner.as_ref() != owner || known.cgroup.as_ref() != cgroup
        {
            known.look_at(owner, cgroup);
        }
        bytes.extend_from_slice(&known.text);
    }
}

impl Default for Owners {
    fn default() -> Self {
        Self { known: vec![Known::default(); Self::MOST] }
    }
}

impl Known {
    #[cold]
    fn look_at(&mut self, owner: Option<&Owner>, cgroup: Option<&Cgroup>) {
        self.owner = owner.copied();
        if self.cgroup.as_ref() != cgroup {
            self.cgroup = cgroup.cloned();
        }
        self.text.clear();
        append!(
            &mut self.text,
            "pid": owner.map(|owner| owner.pid),
            "comm": AsSerde(owner.map(|owner| comm(&owner.comm))),
            "uid": owner.map(|owner| owner.uid),
            "cgroup": AsSerde(cgroup.map(|cgroup| &cgroup.path)),
            "container": AsSerde(cgroup.and_then(|cgroup| cgroup.container.as_ref())),
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: impl Value) -> String {
        let mut bytes = Vec::new();
        value.append(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    fn is_written_as_serde_does(ns: u64) -> bool {
        text(Seconds(ns)) == text(seconds(ns)) && text(Microseconds(ns)) == text(microseconds(ns))
    }

    #[test]
    fn short_durations_are_written_as_serde_does() {
        assert!((0..200_000).all(is_written_as_serde_does));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn durations_are_written_as_serde_does(ns: u64, shift in 0..64_u32, zeros in 0..12_u32) {
            let unit = 10_u64.pow(zeros);
            let ns = (ns >> shift) / unit * unit;
            prop_assert!(is_written_as_serde_does(ns), "{ns}");
        }
    }
}
