//! JSON for readers that may be terminals.

use std::{fmt::Write as _, io};

use serde::Serialize;
use serde_json::{Serializer, ser::Formatter};

use crate::foreign::is_printable;

/// Appends a value as JSON, without white space. Strings are serde_json's, and what a terminal
/// could act upon is escaped too (DEL, C1, marks of direction ..): the value is the same, and
/// `cat` of a recording is harmless.
///
/// # Errors
/// If the value has a map whose keys are not strings, or an implementation that fails.
pub(crate) fn append(bytes: &mut Vec<u8>, value: &impl Serialize) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(bytes, ForTerminals))
}

/// serde_json's compact form with more escapes.
struct ForTerminals;

impl Formatter for ForTerminals {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        if fragment.chars().all(is_printable) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut escaped = String::with_capacity(fragment.len() + 16);
        for character in fragment.chars() {
            if is_printable(character) {
                escaped.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
        }
        writer.write_all(escaped.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> String {
        let mut bytes = Vec::new();
        append(&mut bytes, &text).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_a_terminal_acts_upon_is_escaped() {
        assert_eq!(json("a\"\\\n\x7f"), r#""a\"\\\n\u007f""#);
        assert_eq!(json("\u{9b}\u{202e}é"), r#""\u009b\u202eé""#);
        assert_eq!(json("\u{e0041}"), r#""\udb40\udc41""#);
    }

    proptest! {
        #[test]
        fn the_text_is_the_same_after_reading(text: String) {
            let json = json(&text);
            prop_assert!(json.chars().all(is_printable), "{json:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
