//! Human quantities of the configuration: sizes (`64MiB`, `90%`) and durations (`30s`).
//!
//! Parsed where the file is read and printed back in the same form, so that a printed configuration can be used as
//! one. Nothing is rounded: a figure that does not fit its unit is printed in a smaller one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A size: bytes, or a share of something that the key's description names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// 1 to 100 percent.
    Percent(u8),
}

/// A duration as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

/// A quantity that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {1}")]
pub struct BadQuantity(String, &'static str);

const SIZE_FORM: &str = "a size such as \"64MiB\", \"10GB\", 4096 or \"25%\"";
const TIME_FORM: &str = "a duration such as \"30s\", \"500ms\", \"5m\", \"1h\" or \"7d\"";

/// Largest first: the first that divides a figure prints it.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// In microseconds, largest first.
const TIME_UNITS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

impl Size {
    /// The size in bytes, a percentage taken of `whole` bytes.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Percent(percent) => {
                u64::try_from(u128::from(whole) * u128::from(percent) / 100).expect("at most the whole")
            }
        }
    }
}

impl FromStr for Size {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Size, BadQuantity> {
        let bad = || BadQuantity(text.to_owned(), SIZE_FORM);
        let (figure, unit) = split(text);
        let figure: u64 = figure.parse().map_err(|_| bad())?;
        match unit {
            "%" if (1..=100).contains(&figure) => Ok(Size::Percent(u8::try_from(figure).expect("at most 100"))),
            "" => Ok(Size::Bytes(figure)),
            _ => SIZE_UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .and_then(|(_, factor)| figure.checked_mul(*factor))
                .map(Size::Bytes)
                .ok_or_else(bad),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Percent(percent) => write!(f, "{percent}%"),
            Size::Bytes(0) => f.write_str("0B"),
            Size::Bytes(bytes) => {
                let (name, factor) =
                    SIZE_UNITS.iter().find(|(_, factor)| bytes.is_multiple_of(*factor)).expect("one byte divides all");
                write!(f, "{}{name}", bytes / factor)
            }
        }
    }
}

impl FromStr for Time {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Time, BadQuantity> {
        let bad = || BadQuantity(text.to_owned(), TIME_FORM);
        let (figure, unit) = split(text);
        let figure: u64 = figure.parse().map_err(|_| bad())?;
        TIME_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, factor)| figure.checked_mul(*factor))
            .map(|us| Time(Duration::from_micros(us)))
            .ok_or_else(bad)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        if us == 0 {
            return f.write_str("0s");
        }
        let (name, factor) =
            TIME_UNITS.iter().find(|(_, factor)| us.is_multiple_of(*factor)).expect("one microsecond divides all");
        write!(f, "{}{name}", us / factor)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE_FORM)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size::Bytes).map_err(|_| E::custom(format!("{bytes} is not {SIZE_FORM}")))
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size::Bytes(bytes))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        struct TimeVisitor;
        impl Visitor<'_> for TimeVisitor {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(TIME_FORM)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TimeVisitor)
    }
}

/// A leading figure and the unit after it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..at], text[at..].trim())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_printed_back() {
        for (text, bytes, printed) in [
            ("64MiB", 64 << 20, "64MiB"),
            ("1 GiB", 1 << 30, "1GiB"),
            ("4096", 4096, "4KiB"),
            ("10GB", 10_000_000_000, "10GB"),
            ("0", 0, "0B"),
            ("3b", 3, "3B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size, size.to_string().as_str()), (Size::Bytes(bytes), printed));
        }
        assert_eq!("90%".parse(), Ok(Size::Percent(90)));
        assert_eq!(Size::Percent(25).of(1000), 250);
        assert_eq!(Size::Percent(100).of(u64::MAX), u64::MAX);
        for bad in ["", "MiB", "-1", "0%", "101%", "1.5GiB", "1XiB", "99999999999TiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_and_printed_back() {
        for (text, ms) in [("30s", 30_000), ("500ms", 500), ("5m", 300_000), ("1h", 3_600_000), ("7d", 604_800_000)] {
            let time: Time = text.parse().unwrap();
            assert_eq!((time.0.as_millis(), time.to_string().as_str()), (ms, text));
        }
        for bad in ["", "30", "s", "-1s", "1w", "99999999999999d"] {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
    }
}
