//! Golden files: screens as they should be. With `PORTLIFE_BLESS=1` a test replaces its file
//! instead of comparing with it.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

const BLESS: &str = "PORTLIFE_BLESS";

/// Compares a screen with `tests/golden/screens/NAME.txt`.
///
/// # Panics
/// If `is_same(golden, actual)` is false, unless golden files are being replaced.
pub fn assert_golden(name: &str, actual: &str, is_same: fn(&str, &str) -> bool) {
    let path = directory().join(format!("screens/{name}.txt"));
    let golden = fs::read_to_string(&path).ok();
    // A file that says the same is left alone: it may only be aligned differently.
    if golden.as_deref().is_some_and(|golden| is_same(golden, actual)) {
        return;
    }
    if std::env::var_os(BLESS).is_some() {
        fs::write(&path, actual).expect("golden files can be written");
        return;
    }
    let golden = golden.unwrap_or_default();
    panic!(
        "the screen differs from tests/golden/screens/{name}.txt:\n{}\n\
         If it should, run the test again with {BLESS}=1 and review the change.",
        difference(&golden, actual)
    );
}

pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The lines that only one of two texts has, whatever their alignment.
fn difference(golden: &str, actual: &str) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let [in_golden, in_actual] =
        [golden, actual].map(|text| text.lines().map(words).collect::<BTreeSet<_>>());
    let mut lines = String::new();
    for (sign, text, other) in [("-", golden, &in_actual), ("+", actual, &in_golden)] {
        for line in text.lines().filter(|line| !other.contains(&words(line))) {
            let _ = writeln!(lines, "{sign} {line}");
        }
    }
    if lines.is_empty() { "the same lines in another order".to_owned() } else { lines }
}
