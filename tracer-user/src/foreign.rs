//! Text that somebody else chose, such as the name of a process, a cgroup or a service, or a string
//! in a recording. A terminal must not act upon it, and it must not look like text of ours.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that somebody else chose.
///
/// [`Display`](fmt::Display), the only way to a screen, [escapes](escape) it. Comparisons and JSON
/// take the text as it is; the JSON writer has escapes of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Foreign<'a>(Cow<'a, str>);

impl<'a> Foreign<'a> {
    /// The text as it is, for comparisons; not for a screen.
    #[must_use]
    pub fn raw(&self) -> &str {
        &self.0
    }

    /// The same text, owned.
    #[must_use]
    pub fn into_owned(self) -> Foreign<'static> {
        Foreign(Cow::Owned(self.0.into_owned()))
    }

    /// At most this many characters of the text, from its beginning.
    #[must_use]
    pub fn first(&self, characters: usize) -> Foreign<'_> {
        let end = self.0.char_indices().nth(characters).map_or(self.0.len(), |(end, _)| end);
        Foreign(Cow::Borrowed(&self.0[..end]))
    }

    /// The text as it is shown.
    #[must_use]
    pub fn shown(&self) -> Cow<'_, str> {
        escape(&self.0)
    }
}

impl<'a> From<&'a str> for Foreign<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'a> From<Cow<'a, str>> for Foreign<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Self(text)
    }
}

impl From<String> for Foreign<'_> {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.shown())
    }
}

impl Serialize for Foreign<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Foreign<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// The text with each [unprintable](is_printable) character as `\n`, `\u{1b}` and the like. A
/// backslash is shown as it is: systemd's names of cgroups have many.
#[must_use]
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_printable(character) {
            escaped.push(character);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "{}", character.escape_debug());
        }
    }
    Cow::Owned(escaped)
}

/// False for what a terminal could act upon, or what could move, hide or forge other text: control
/// characters (C0, DEL, C1), line and paragraph separators, spaces other than U+0020, marks of
/// direction, characters without width or that combine with others, unassigned and private ones.
/// The standard library's tables of Unicode decide.
#[must_use]
pub(crate) fn is_printable(character: char) -> bool {
    match character {
        ' '..='~' => true,
        '\0'..='\x7f' => false,
        other => other.escape_debug().nth(1).is_none(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_acts_upon_is_escaped() {
        for (text, shown) in [
            ("nginx: worker", "nginx: worker"),
            ("it's \"a\\x2db\"", "it's \"a\\x2db\""),
            ("größe 漢字", "größe 漢字"),
            ("\x1b[2Ja\x07", "\\u{1b}[2Ja\\u{7}"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\0\x7f", "\\0\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}rtl\u{202c}\u{2066}", "\\u{202e}rtl\\u{202c}\\u{2066}"),
            ("z\u{200b}w\u{feff}\u{ad}", "z\\u{200b}w\\u{feff}\\u{ad}"),
            ("\u{2028}\u{2029}\u{85}\u{a0}", "\\u{2028}\\u{2029}\\u{85}\\u{a0}"),
            ("\u{e0041}tag", "\\u{e0041}tag"),
            ("e\u{301}", "e\\u{301}"),
        ] {
            assert_eq!(Foreign::from(text).to_string(), shown);
        }
    }

    #[test]
    fn a_shown_text_is_padded_and_cut_like_any_other() {
        let name = Foreign::from("a\u{1b}b");
        assert_eq!(format!("{name:<10}|"), "a\\u{1b}b  |");
        assert_eq!(Foreign::from("ééé").first(2).to_string(), "éé");
        assert_eq!(Foreign::from("é").first(2).to_string(), "é");
    }

    proptest! {
        #[test]
        fn nothing_unprintable_is_shown(text: String) {
            let shown = Foreign::from(text.as_str()).to_string();
            prop_assert!(shown.chars().all(is_printable), "{shown:?}");
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}
