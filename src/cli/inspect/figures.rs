//! Figures and names as people read them, on one terminal line: bytes, rates, moments, keys.
//!
//! Used by what `forebay inspect`, `verify` and `format` print. A key is any text, so whatever could move the cursor or be
//! mistaken for something else is percent-encoded.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use forebay_shard::key::BlockKey;

/// `1536` → `1.5 KiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    if unit == "B" || scaled.fract() < 0.05 || scaled >= 100.0 {
        format!("{scaled:.0} {unit}")
    } else {
        format!("{scaled:.1} {unit}")
    }
}

/// `1234567` → `1,234,567`.
#[must_use]
pub fn count(figure: u64) -> String {
    let digits = figure.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number and its noun: `1 block`, `2 blocks`.
#[must_use]
pub fn counted(figure: u64, noun: &str) -> String {
    let plural = if figure == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(figure))
}

/// A moment in milliseconds since 1970, as HTTP writes it.
#[must_use]
pub fn moment(unix_ms: u64) -> String {
    // Year 9999, the last that the form can write.
    const LAST_MS: u64 = 253_402_300_799_000;
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS)))
}

/// `volume/key` on one line of printable text.
#[must_use]
pub fn key(key: &BlockKey) -> String {
    let mut shown = String::new();
    for character in key.volume.chars().chain(['/']).chain(key.key.chars()) {
        // Formatting characters would let one key look like another.
        let is_plain = !character.is_control()
            && character != '%'
            && !matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if is_plain {
            shown.push(character);
            continue;
        }
        for byte in character.encode_utf8(&mut [0; 4]).bytes() {
            write!(shown, "%{byte:02X}").expect("a string takes everything");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_at_a_glance() {
        assert_eq!(
            [0, 1023, 1536, 64 << 20, 5_000_000_000].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "64 MiB", "4.7 GiB"]
        );
        assert_eq!([7, 1234, 1_234_567].map(count), ["7", "1,234", "1,234,567"]);
        assert_eq!((counted(1, "block"), counted(2, "block")), ("1 block".into(), "2 blocks".into()));
        assert_eq!(moment(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(moment(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn no_key_moves_the_cursor_or_passes_for_another() {
        let shown = |text: &str| key(&BlockKey::new("v".into(), text));
        assert_eq!(shown("a/b ü"), "v/a/b ü");
        assert_eq!(shown("a\x1b[2J\n"), "v/a%1B[2J%0A");
        assert_eq!(shown("100%"), "v/100%25");
        assert_eq!(shown("a\u{202e}b"), "v/a%E2%80%AEb");
    }
}
