//! Durations, sizes, rates and ranges as the topology file writes them, read strictly and printed
//! back.

use std::time::Duration;

/// The longest duration: a hundred years, so that adding one to any clock cannot overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(36_500 * 86_400);
/// The highest rate, in events a second.
pub const RATE_MAX: u64 = 1_000_000_000;

/// What a duration looks like, for messages.
pub const DURATIONS: &str = r#"a duration such as `"250ms"`, `"5s"`, `"2m"`, `"1h"` or `"7d"`"#;
/// What a size looks like, for messages.
pub const SIZES: &str = r#"a size such as `"512B"`, `"64KiB"`, `"1MiB"` or `"2GiB"`"#;
/// What a rate looks like, for messages.
pub const RATES: &str =
    r#"a whole number of events a second such as `"1000/s"`; `"0/s"` is no limit"#;
/// What a range looks like, for messages.
pub const RANGES: &str = r#"from the first to the last, both included, such as `"1..50"`"#;

/// Milliseconds in each unit, the largest first.
const DURATION_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes in each unit, the largest first.
const SIZE_UNITS: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `"250ms" "5s" "2m" "1h" "7d"`. The error says what is wrong, to follow the value.
pub fn duration(text: &str) -> Result<Duration, String> {
    let millis = count_of(text, DURATION_UNITS)?;
    match millis.map(Duration::from_millis) {
        Some(duration) if duration <= DURATION_MAX => Ok(duration),
        _ => Err(format!("is longer than `{}`", duration_text(DURATION_MAX))),
    }
}

/// Prints a duration in the largest unit that divides it; below a millisecond it is rounded up.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    text_in(u64::try_from(millis).unwrap_or(u64::MAX), DURATION_UNITS, "0s")
}

/// Reads `"512B" "64KiB" "1MiB" "2GiB" "1TiB"`, in bytes. The error follows the value.
pub fn size(text: &str) -> Result<u64, String> {
    match count_of(text, SIZE_UNITS)? {
        Some(0) => Err("is nothing".to_owned()),
        Some(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err("is too large".to_owned()),
    }
}

/// Prints a size in the largest unit that divides it.
pub fn size_text(bytes: u64) -> String {
    text_in(bytes, SIZE_UNITS, "0B")
}

/// Reads `"1000/s"`, in events a second. The error follows the value.
pub fn rate(text: &str) -> Result<u64, String> {
    let Some(digits) = text.strip_suffix("/s").filter(|digits| is_digits(digits)) else {
        return Err("is no rate".to_owned());
    };
    match digits.parse::<u64>() {
        Ok(rate) if rate <= RATE_MAX => Ok(rate),
        _ => Err(format!("is more than `{RATE_MAX}/s`")),
    }
}

/// Reads `"1..50"`, both included. The error follows the value.
pub fn range(text: &str) -> Result<(u64, u64), String> {
    let ends = text.split_once("..").filter(|(a, b)| is_digits(a) && is_digits(b));
    let Some((first, last)) = ends else {
        return Err("is no range".to_owned());
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        (Ok(_), Ok(_)) => Err("ends before it starts".to_owned()),
        _ => Err("is too large".to_owned()),
    }
}

/// Prints a range.
pub fn range_text(first: u64, last: u64) -> String {
    format!("{first}..{last}")
}

/// Reads a whole number as TOML and the environment write it: digits, with a `-` where negative.
pub fn int(text: &str) -> Option<i64> {
    is_digits(text.strip_prefix('-').unwrap_or(text)).then(|| text.parse().ok()).flatten()
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A whole number with a unit; `None` when it overflows.
fn count_of(text: &str, units: &[(&str, u64)]) -> Result<Option<u64>, String> {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err("does not start with a whole number".to_owned());
    }
    if unit.is_empty() {
        return Err("has no unit".to_owned());
    }
    if unit.starts_with('.') || unit.starts_with(',') {
        return Err("is no whole number of a unit".to_owned());
    }
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => Ok(digits.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor))),
        None => Err(format!("has the unknown unit `{}`", unit.escape_debug())),
    }
}

fn text_in(count: u64, units: &[(&str, u64)], nothing: &str) -> String {
    match units.iter().find(|(_, factor)| count != 0 && count.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", count / factor),
        None => nothing.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        for text in ["250ms", "5s", "2m", "1h", "7d", "1500ms", "0s", "36500d"] {
            assert_eq!(duration_text(duration(text).unwrap()), text);
        }
        for text in ["512B", "64KiB", "1MiB", "1025B", "3GiB", "2TiB"] {
            assert_eq!(size_text(size(text).unwrap()), text);
        }
        assert_eq!(duration_text(duration("60s").unwrap()), "1m");
        assert_eq!(rate("1000/s"), Ok(1000));
        assert_eq!(range("1..50"), Ok((1, 50)));
        assert_eq!(range(&range_text(0, u64::MAX)), Ok((0, u64::MAX)));
    }

    #[test]
    fn nothing_but_the_exact_form_is_read() {
        for text in ["", "5", "5 s", " 5s", "s", "-5s", "+5s", "1.5s", "5S", "5sec", "1h30m", "٥s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["99999999999999999999d", "18446744073709551615d", "36501d"] {
            assert_eq!(duration(text), Err("is longer than `36500d`".to_owned()));
        }
        for text in ["1MB", "1Mi", "1kib", "1 MiB", "0B", "9999999999TiB", "8388608TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["10", "10/m", "/s", "1e3/s", "-1/s", "99999999999/s", "1/s "] {
            assert!(rate(text).is_err(), "{text}");
        }
        for text in
            ["1..", "..5", "5", "5..1", "1...5", "1..=5", "-1..5", "1..99999999999999999999"]
        {
            assert!(range(text).is_err(), "{text}");
        }
        for text in ["", "-", "+4", "4.0", " 4", "4_000", "0x4", "9223372036854775808"] {
            assert_eq!(int(text), None, "{text}");
        }
        assert_eq!(int("-9223372036854775808"), Some(i64::MIN));
    }
}
