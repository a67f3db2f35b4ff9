//! What the output of the test runner says about each test.

use std::collections::BTreeMap;

/// The result of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// The test does not apply; the reason.
    Skipped(String),
    /// The location and message of the panic.
    Failed(String),
}

/// The output of the test runner.
pub struct Results {
    pub outcomes: BTreeMap<String, Outcome>,
    /// Its duration in seconds; `None` if it did not finish.
    pub took_s: Option<f64>,
}

/// Parses the output of the test runner with `--show-output`.
pub fn parse(printed: &str) -> Results {
    let mut outcomes = BTreeMap::new();
    for line in printed.lines() {
        let Some((name, result)) =
            line.strip_prefix("test ").and_then(|line| line.rsplit_once(" ... "))
        else {
            continue;
        };
        let outcome = match result {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed(String::new()),
            _ => continue,
        };
        // Two test binaries may have tests of the same name; a failure is kept.
        match outcomes.get(name) {
            Some(Outcome::Failed(_)) => {}
            _ => {
                outcomes.insert(name.to_owned(), outcome);
            }
        }
    }
    for (name, output) in outputs(printed) {
        match outcomes.get_mut(name) {
            Some(Outcome::Failed(why)) => {
                if why.is_empty() {
                    *why = panic_message(&output);
                }
            }
            Some(outcome @ Outcome::Passed) => {
                let said = output.iter().find_map(|line| line.strip_prefix("skipped: "));
                if let Some(why) = said {
                    *outcome = Outcome::Skipped(why.to_owned());
                }
            }
            Some(Outcome::Skipped(_)) | None => {}
        }
    }
    // test result: ok. 51 passed; 0 failed; ... finished in 225.00s
    let end = printed.lines().find(|line| line.starts_with("test result: "));
    let took_s =
        end.and_then(|line| line.rsplit_once(" in ")?.1.trim_end_matches('s').parse().ok());
    Results { outcomes, took_s }
}

/// The name of each test, and the lines that it printed.
fn outputs(printed: &str) -> Vec<(&str, Vec<&str>)> {
    let mut outputs: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in printed.lines() {
        let begins = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----"));
        if let Some(name) = begins {
            outputs.push((name, Vec::new()));
        } else if line == "successes:" || line == "failures:" {
            // The names that follow are not the output of any test.
            outputs.push(("", Vec::new()));
        } else if let Some((_, lines)) = outputs.last_mut() {
            lines.push(line);
        }
    }
    outputs
}

/// Location and message of the first panic.
fn panic_message(output: &[&str]) -> String {
    let mut lines = output.iter().skip_while(|line| !line.contains(" panicked at "));
    let place = lines.next().and_then(|line| line.split_once(" panicked at "));
    let said: Vec<_> = lines.take_while(|line| !line.is_empty()).take(4).copied().collect();
    match place {
        Some((_, place)) => format!("{place} {}", said.join(" ")),
        None => output.join(" "),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An output with a test of each outcome.
    pub const PRINTED: &str = "
running 3 tests
test bind::one ... ok
test bind::two ... ok
test listen::three ... FAILED

successes:

---- bind::two stdout ----
skipped: the kernel does not destroy sockets


successes:
    bind::one
    bind::two

failures:

---- listen::three stdout ----

thread 'listen::three' (7) panicked at tests/listen.rs:3:1:
no release came

note: run with `RUST_BACKTRACE=1`


failures:
    listen::three

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2.50s
";

    #[test]
    fn outcomes_and_their_reasons_are_parsed() {
        let Results { outcomes, took_s } = parse(PRINTED);
        assert_eq!(took_s, Some(2.5));
        assert_eq!(outcomes["bind::one"], Outcome::Passed);
        let skipped = Outcome::Skipped("the kernel does not destroy sockets".to_owned());
        assert_eq!(outcomes["bind::two"], skipped);
        let failed = Outcome::Failed("tests/listen.rs:3:1: no release came".to_owned());
        assert_eq!(outcomes["listen::three"], failed);
    }
}
