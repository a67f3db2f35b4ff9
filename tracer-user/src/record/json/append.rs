//! JSON without serde's maps, for the records of which there are thousands a second: a field's name
//! is copied as it is, and its value is appended by code for its type.
//!
//! Values look as serde_json writes them, so that every record has the same form; strings that may
//! need escapes are left to it.

use serde::Serialize;
use tracer_ebpf::mapped;

use super::text;
use crate::{
    model::{Addr, microseconds, seconds},
    record::{
        digits::{
            append_billionths, append_decimal, append_ipv4, append_short, append_thousandths,
        },
        names::Named,
    },
};

/// Appends `,"field":value` for each pair: `append!(buffer, Fields { field: value, .. })`.
///
/// `Fields` is the struct that the reader reads such records into. A field that it lacks does not
/// compile: no field can be written whose name the reader does not know.
macro_rules! append {
    ($bytes:expr, $fields:ty { $($field:ident: $value:expr),+ $(,)? }) => {{
        let bytes: &mut Vec<u8> = $bytes;
        $(
            const _: fn(&$fields) = |fields| {
                let _ = &fields.$field;
            };
            bytes.extend_from_slice(concat!(",\"", stringify!($field), "\":").as_bytes());
            $crate::record::json::append::Value::append($value, bytes);
        )+
    }};
}
pub(super) use append;

/// The value of a field.
pub(super) trait Value {
    /// Appends the value as JSON.
    fn append(self, bytes: &mut Vec<u8>);
}

/// A value as [`text::append`] writes it.
pub(super) struct AsSerde<T>(pub(super) T);

impl<T: Serialize> Value for AsSerde<T> {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        // Writing to memory cannot fail, and the records are made of what JSON can say.
        let _ = text::append(bytes, &self.0);
    }
}

macro_rules! as_serde {
    ($($type:ty)+) => {
        $(impl Value for $type {
            #[inline]
            fn append(self, bytes: &mut Vec<u8>) {
                AsSerde(self).append(bytes);
            }
        })+
    };
}
as_serde!(i32 f64 bool);

macro_rules! as_decimal {
    ($($type:ty)+) => {
        $(impl Value for $type {
            #[inline]
            fn append(self, bytes: &mut Vec<u8>) {
                append_decimal(self.into(), bytes);
            }
        })+
    };
}
as_decimal!(u16 u32 u64);

/// Nanoseconds, written as [`seconds`].
pub(super) struct Seconds(pub(super) u64);

/// Nanoseconds, written as [`microseconds`].
pub(super) struct Microseconds(pub(super) u64);

/// Below this a number and its thousandths and billionths have fifteen digits at most, and no two
/// such are nearest to the same `f64`: the shortest text that is nearest to it is the number itself.
const EXACT_BELOW: u64 = 1_000_000_000_000_000;

impl Value for Seconds {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        // serde_json writes less than this with an exponent.
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

/// A value that has a name, which needs no escape.
pub(super) struct Name<T>(pub(super) T);

impl<T: Named> Value for Name<T> {
    #[inline]
    fn append(self, bytes: &mut Vec<u8>) {
        bytes.push(b'"');
        append_short(self.0.name().as_bytes(), bytes);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: impl Value) -> String {
        let mut bytes = Vec::new();
        value.append(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    fn is_written_as_serde_writes_it(ns: u64) -> bool {
        text(Seconds(ns)) == text(seconds(ns)) && text(Microseconds(ns)) == text(microseconds(ns))
    }

    #[test]
    fn short_durations_are_written_as_serde_writes_them() {
        assert!((0..200_000).all(is_written_as_serde_writes_it));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn durations_are_written_as_serde_writes_them(ns: u64, shift in 0..64_u32, zeros in 0..12_u32) {
            let unit = 10_u64.pow(zeros);
            let ns = (ns >> shift) / unit * unit;
            prop_assert!(is_written_as_serde_writes_it(ns), "{ns}");
        }
    }
}
