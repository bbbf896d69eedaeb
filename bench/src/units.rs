//! Quantities as people write them on the command line (`4KiB`, `1GiB`) and as tables print them.
//!
//! Called by every subcommand's argument parser and by the reports.

/// Parses a size in bytes: a whole number with an optional `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// One line that names the accepted forms.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let scale = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{text}`: write a size as 4096, 4KiB, 4MiB or 1GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}`: no number before the unit"))?;
    number.checked_mul(scale).ok_or_else(|| format!("`{text}`: too large"))
}

/// Writes a size in the largest unit that divides it.
pub fn show_size(bytes: u64) -> String {
    for (unit, scale) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{} {unit}", bytes / scale);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::{parse_size, show_size};

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!(parse_size("4KiB"), Ok(4096));
        assert_eq!(parse_size("17"), Ok(17));
        assert_eq!(parse_size("3 GiB"), Ok(3 << 30));
        assert!(parse_size("4kb").is_err());
        assert!(parse_size("KiB").is_err());
        assert!(parse_size("99999999999GiB").is_err());
        assert_eq!(show_size(256 << 10), "256 KiB");
        assert_eq!(show_size(5000), "5000 B");
    }
}
