//! Formats single values for tables and sentences.

use std::net::IpAddr;

/// An address and a port: `127.0.0.1:80`, `[::1]:80`, `*:80`.
#[must_use]
pub fn endpoint(addr: IpAddr, port: u16) -> String {
    match addr {
        addr if addr.is_unspecified() => format!("*:{port}"),
        IpAddr::V4(addr) => format!("{addr}:{port}"),
        IpAddr::V6(addr) => format!("[{addr}]:{port}"),
    }
}

/// A number with thousands separators.
#[must_use]
pub fn number(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and a noun, in the plural unless it is one.
#[must_use]
pub fn count(of: impl TryInto<u64>, thing: &str) -> String {
    match of.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {thing}"),
        many => format!("{} {thing}s", number(many)),
    }
}

/// A rate per second, with at least two significant digits.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as casts saturate, and a rate is not negative"
)]
pub fn rate(per_s: f64) -> String {
    match per_s {
        rate if rate < 0.005 => "0".to_owned(),
        rate if rate < 1.0 => format!("{rate:.2}"),
        rate if rate < 100.0 => format!("{rate:.1}"),
        rate if rate < 1e6 => number(rate.round() as u64),
        rate => format!("{:.1}M", rate / 1e6),
    }
}

/// A duration in a suitable unit, in at most eight characters.
#[must_use]
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0}us", s * 1e6),
        s if s < 1.0 => format!("{:.1}ms", s * 1e3),
        s if s < 100.0 => format!("{s:.1}s"),
        s if s < 6000.0 => format!("{s:.0}s"),
        s if s < 360_000.0 => format!("{:.0}min", s / 60.0),
        s => format!("{:.0}h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(0_u32), "0");
        assert_eq!(number(999_u32), "999");
        assert_eq!(number(1_000_u32), "1,000");
        assert_eq!(number(12_345_678_u64), "12,345,678");
    }

    #[test]
    fn rates_and_durations_are_short() {
        assert_eq!([0.0, 0.5, 4.25, 470.5, 2.5e6].map(rate), ["0", "0.50", "4.2", "471", "2.5M"]);
        assert_eq!(
            [0.000_004, 0.25, 59.99, 600.0, 7200.0].map(duration),
            ["4us", "250.0ms", "60.0s", "600s", "120min"]
        );
    }
}
