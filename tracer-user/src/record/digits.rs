//! Fast formatting of numbers and addresses.
//!
//! Short texts are appended by copies whose size is known at compile time, which take an instruction
//! or two; a copy of unknown size is a call.

/// Appends the first `length` of these bytes, or all if there are fewer.
#[inline(always)]
pub(crate) fn append_start<const N: usize>(text: &[u8; N], length: usize, bytes: &mut Vec<u8>) {
    let end = bytes.len() + length;
    bytes.extend_from_slice(text);
    bytes.truncate(end);
}

/// Appends a text that is usually four to sixteen bytes long.
#[inline(always)]
pub(crate) fn append_short(text: &[u8], bytes: &mut Vec<u8>) {
    match text.len() {
        4..8 => append_overlapping::<4>(text, bytes),
        8..=16 => append_overlapping::<8>(text, bytes),
        _ => bytes.extend_from_slice(text),
    }
}

/// Appends a text of `N` to `2 * N` bytes: the first `N`, then the last `N`, which overlap them.
#[inline(always)]
fn append_overlapping<const N: usize>(text: &[u8], bytes: &mut Vec<u8>) {
    if let (Some(first), Some(last)) = (text.first_chunk::<N>(), text.last_chunk::<N>()) {
        append_start(first, text.len() - N, bytes);
        bytes.extend_from_slice(last);
    }
}

/// Appends a number in decimal.
#[inline]
pub(crate) fn append_decimal(number: u64, bytes: &mut Vec<u8>) {
    let (high, low) = (number / EIGHT_DIGITS, number % EIGHT_DIGITS);
    if high == 0 {
        append_significant(low, bytes);
        return;
    }
    let (highest, high) = (high / EIGHT_DIGITS, high % EIGHT_DIGITS);
    if highest == 0 {
        append_significant(high, bytes);
    } else {
        append_significant(highest, bytes);
        bytes.extend_from_slice(&text_of(digits_of(high)));
    }
    bytes.extend_from_slice(&text_of(digits_of(low)));
}

/// Appends a decimal point and nine digits, those of a number below 10^9.
#[inline]
pub(crate) fn append_fraction(billionths: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&fraction_of(billionths).0);
}

/// Appends `number / 10^9` with one to nine digits after the point: no trailing zeros.
#[inline]
pub(crate) fn append_billionths(number: u64, bytes: &mut Vec<u8>) {
    const BILLION: u64 = 1_000_000_000;
    append_decimal(number / BILLION, bytes);
    // Less than a billion.
    let (text, digits) = fraction_of((number % BILLION) as u32);
    // After the point and the first digit.
    append_start(&text, 2 + significant(digits), bytes);
}

/// Appends `number / 1000` with one to three digits after the point: no trailing zeros.
#[inline]
pub(crate) fn append_thousandths(number: u64, bytes: &mut Vec<u8>) {
    append_decimal(number / 1000, bytes);
    let digits = digits_of(number % 1000 * (EIGHT_DIGITS / 1000));
    bytes.push(b'.');
    append_start(&text_of(digits), significant(digits).max(1), bytes);
}

/// Appends an IPv4 address; `word` has its bytes in network order.
#[inline]
pub(crate) fn append_ipv4(word: u32, bytes: &mut Vec<u8>) {
    for octet in word.to_ne_bytes() {
        let (text, length) = OCTETS[usize::from(octet)];
        append_start(&text, usize::from(length), bytes);
    }
    // The last dot.
    bytes.pop();
}

/// Eight digits can express the numbers below this.
const EIGHT_DIGITS: u64 = 100_000_000;

/// Eight digits, each in a byte, the first in the lowest.
type Digits = u64;

/// The digits of a number below [`EIGHT_DIGITS`], with leading zeros.
///
/// Splits the number into halves of four digits, these into quarters of two, and these into single
/// digits. All of a size are split at once: the products with the reciprocals of 100 and 10 do not
/// overflow their lane of the word.
#[inline(always)]
const fn digits_of(number: u64) -> Digits {
    let fours = (number / 10_000) | ((number % 10_000) << 32);
    let hundreds = (fours * 10_486) >> 20 & 0x0000_007f_0000_007f;
    let twos = hundreds | (fours - hundreds * 100) << 16;
    let tens = (twos * 103) >> 10 & 0x000f_000f_000f_000f;
    tens | (twos - tens * 10) << 8
}

#[inline(always)]
const fn text_of(digits: Digits) -> [u8; 8] {
    (digits | 0x3030_3030_3030_3030).to_le_bytes()
}

/// The number of digits without trailing zeros.
#[inline(always)]
const fn significant(digits: Digits) -> usize {
    8 - digits.leading_zeros() as usize / 8
}

/// Appends a number below [`EIGHT_DIGITS`] without leading zeros.
#[inline(always)]
fn append_significant(number: u64, bytes: &mut Vec<u8>) {
    let digits = digits_of(number);
    // Zero has one digit.
    let zeros = (digits.trailing_zeros() / 8).min(7);
    append_start(&text_of(digits >> (8 * zeros)), 8 - zeros as usize, bytes);
}

/// A decimal point and nine digits, and the last eight of these as [`Digits`].
#[inline(always)]
fn fraction_of(billionths: u32) -> ([u8; 10], Digits) {
    let billionths = u64::from(billionths);
    // One digit: less than ten.
    let first = b'0' + (billionths / EIGHT_DIGITS) as u8;
    let digits = digits_of(billionths % EIGHT_DIGITS);
    let [a, b, c, d, e, f, g, h] = text_of(digits);
    ([b'.', first, a, b, c, d, e, f, g, h], digits)
}

/// The text of each byte with a dot after it, and its length.
const OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        // Each is a digit.
        let [hundreds, tens, ones] =
            [b'0' + (octet / 100) as u8, b'0' + (octet / 10 % 10) as u8, b'0' + (octet % 10) as u8];
        octets[octet] = match octet {
            0..10 => ([ones, b'.', 0, 0], 2),
            10..100 => ([tens, ones, b'.', 0], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        octet += 1;
    }
    octets
};

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn text(append: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut bytes = b"before ".to_vec();
        append(&mut bytes);
        String::from_utf8(bytes.split_off(7)).unwrap()
    }

    #[test]
    fn eight_digits_are_those_of_the_number() {
        // All of the four that are halved at once, in both places.
        for number in 0..10_000 {
            for number in [number, number * 10_000 + 9_999 - number] {
                assert_eq!(text_of(digits_of(number)), *format!("{number:08}").as_bytes());
            }
        }
    }

    #[test]
    fn octets_are_those_of_the_address() {
        for octet in 0..=255 {
            for octets in [[octet, 0, 255, 1], [1, 10, octet, octet]] {
                let text = text(|bytes| append_ipv4(u32::from_ne_bytes(octets), bytes));
                assert_eq!(text, Ipv4Addr::from(octets).to_string());
            }
        }
    }

    /// Numbers of any length alike.
    fn numbers() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0..64_u32).prop_map(|(number, shift)| number >> shift)
    }

    proptest! {
        #[test]
        fn numbers_are_written_as_they_are(number in numbers()) {
            prop_assert_eq!(text(|bytes| append_decimal(number, bytes)), number.to_string());
        }

        #[test]
        fn fractions_are_exact(number in numbers()) {
            let trimmed = |text: String| {
                let trimmed = text.trim_end_matches('0');
                if trimmed.ends_with('.') { format!("{trimmed}0") } else { trimmed.to_owned() }
            };
            let (whole, rest) = (number / 1_000_000_000, number % 1_000_000_000);
            prop_assert_eq!(
                text(|bytes| append_billionths(number, bytes)),
                trimmed(format!("{whole}.{rest:09}"))
            );
            prop_assert_eq!(
                text(|bytes| append_thousandths(number, bytes)),
                trimmed(format!("{}.{:03}", number / 1000, number % 1000))
            );
            prop_assert_eq!(
                text(|bytes| append_fraction(rest as u32, bytes)),
                format!(".{rest:09}")
            );
        }

        #[test]
        fn short_texts_are_whole(content in "[a-z]{0,40}") {
            prop_assert_eq!(text(|bytes| append_short(content.as_bytes(), bytes)), content);
        }
    }
}
