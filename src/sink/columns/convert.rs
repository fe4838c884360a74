//! From what an event holds to what a column takes.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime};

use super::Type;

/// A value on its way into a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum<'a> {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number, within the column's bits.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// A decimal number as its digits.
    Numeric(Cow<'a, str>),
    /// Text.
    Text(Cow<'a, str>),
    /// Text that many events share.
    Name(&'a Arc<str>),
    /// Microseconds since 1970 UTC.
    Time(i64),
    /// A UUID.
    Uuid(uuid::Uuid),
    /// A JSON value as its text.
    Json(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
}

/// A value does not read as the column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// A point in time as SQLite, JSON and people read it; its order as text is the order in time.
pub fn time_text(time_us: i64) -> String {
    // Out of chrono's range only for years beyond 262,000: `epoch` and the clock keep below it.
    let time = DateTime::from_timestamp_micros(time_us).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// Reads a JSON value as `ty`.
pub fn from_json(raw: &str, ty: Type) -> Result<Datum<'_>, Unreadable> {
    let first = raw.as_bytes().first().copied().unwrap_or_default();
    match (first, ty) {
        (b'n', _) => Ok(Datum::Null),
        (_, Type::Json) => Ok(Datum::Json(raw.into())),
        (b'"', _) => from_text(unquote(raw)?, ty),
        (b't' | b'f', Type::Any | Type::Bool) => Ok(Datum::Bool(first == b't')),
        (b't' | b'f' | b'{' | b'[', Type::Text) => Ok(Datum::Text(raw.into())),
        (b't' | b'f' | b'{' | b'[', Type::Bytes) => Ok(Datum::Bytes(raw.as_bytes().into())),
        (b'{' | b'[', Type::Any) => Ok(Datum::Json(raw.into())),
        (b't' | b'f' | b'{' | b'[', _) => Err(Unreadable),
        (_, Type::Any) => Ok(number(raw)),
        _ => from_text(raw.into(), ty),
    }
}

/// Reads text as `ty`.
pub fn from_text(text: Cow<'_, str>, ty: Type) -> Result<Datum<'_>, Unreadable> {
    let word = text.trim();
    Ok(match ty {
        Type::Any | Type::Text => Datum::Text(text),
        Type::Bool => Datum::Bool(boolean(word)?),
        Type::Int(bits) => Datum::Int(integer(word, bits)?),
        Type::Float => match word.parse::<f64>() {
            Ok(float) if float.is_finite() => Datum::Float(float),
            _ => return Err(Unreadable),
        },
        Type::Numeric if is_decimal(word) => Datum::Numeric(match text {
            Cow::Borrowed(text) => text.trim().into(),
            Cow::Owned(_) => word.to_owned().into(),
        }),
        Type::Numeric => return Err(Unreadable),
        Type::Timestamp => Datum::Time(timestamp(word)?),
        Type::Uuid => Datum::Uuid(uuid::Uuid::parse_str(word).map_err(|_| Unreadable)?),
        Type::Json => match is_json(&text) {
            true => Datum::Json(text),
            false => Datum::Json(serde_json::Value::from(text.as_ref()).to_string().into()),
        },
        Type::Bytes => match text {
            Cow::Borrowed(text) => Datum::Bytes(text.as_bytes().into()),
            Cow::Owned(text) => Datum::Bytes(text.into_bytes().into()),
        },
    })
}

/// Whether `text` is one JSON value.
pub fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// The text of a JSON string; borrowed where it holds no escape.
fn unquote(raw: &str) -> Result<Cow<'_, str>, Unreadable> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).ok_or(Unreadable)?;
    match inner.contains('\\') {
        false => Ok(inner.into()),
        true => serde_json::from_str::<String>(raw).map(Cow::Owned).map_err(|_| Unreadable),
    }
}

/// A JSON number as it is by itself. A whole number past 64 bits keeps its digits.
fn number(raw: &str) -> Datum<'_> {
    if let Ok(int) = raw.parse() {
        return Datum::Int(int);
    }
    match raw.parse::<f64>() {
        Ok(float) if float.is_finite() && raw.contains(['.', 'e', 'E']) => Datum::Float(float),
        _ => Datum::Text(raw.into()),
    }
}

fn boolean(word: &str) -> Result<bool, Unreadable> {
    let is = |known: &[&str]| known.iter().any(|known| word.eq_ignore_ascii_case(known));
    match (is(&["true", "t", "yes", "on", "1"]), is(&["false", "f", "no", "off", "0"])) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(Unreadable),
    }
}

/// A whole number, also when written as `42.0` or `1e3`.
fn integer(word: &str, bits: u8) -> Result<i64, Unreadable> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: up to here every whole f64 is itself
    let int = match word.parse::<i64>() {
        Ok(int) => int,
        Err(_) if word.contains(['.', 'e', 'E']) => match word.parse::<f64>() {
            Ok(float) if float.fract() == 0.0 && float.abs() <= EXACT => float as i64,
            _ => return Err(Unreadable),
        },
        Err(_) => return Err(Unreadable),
    };
    let unused = 64 - u32::from(bits);
    if (int << unused) >> unused == int { Ok(int) } else { Err(Unreadable) }
}

/// Digits, with a sign, a point and an exponent where there is one.
fn is_decimal(word: &str) -> bool {
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole)
        && digits(fraction)
        && digits(exponent)
        && !exponent.is_empty()
        && !(whole.is_empty() && fraction.is_empty())
}

/// RFC 3339; the same without an offset (UTC) or with a space; or an epoch, in the unit that its
/// size tells.
pub fn timestamp(word: &str) -> Result<i64, Unreadable> {
    if let Ok(time) = DateTime::parse_from_rfc3339(word) {
        return Ok(time.timestamp_micros());
    }
    if let Ok(time) = DateTime::parse_from_str(word, "%Y-%m-%d %H:%M:%S%.f%#z") {
        return Ok(time.timestamp_micros());
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(word, format) {
            return Ok(time.and_utc().timestamp_micros());
        }
    }
    epoch(word)
}

/// Seconds up to 10^11 (the year 5138), then milliseconds, microseconds and nanoseconds.
fn epoch(word: &str) -> Result<i64, Unreadable> {
    if let Ok(int) = word.parse::<i64>() {
        return Ok(match int.unsigned_abs() {
            0..100_000_000_000 => int * 1_000_000,
            100_000_000_000..100_000_000_000_000 => int * 1_000,
            100_000_000_000_000..100_000_000_000_000_000 => int,
            _ => int / 1_000,
        });
    }
    let float = word.parse::<f64>().map_err(|_| Unreadable)?;
    let time_us = match float.abs() {
        size if size < 1e11 => float * 1e6,
        size if size < 1e14 => float * 1e3,
        size if size < 1e17 => float,
        _ => return Err(Unreadable),
    };
    Ok(time_us.round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_reads_as_the_columns_type() {
        let cases: &[(&str, Type, Result<Datum<'_>, Unreadable>)] = &[
            ("42", Type::Int(64), Ok(Datum::Int(42))),
            ("\"42\"", Type::Int(64), Ok(Datum::Int(42))),
            ("\" -42 \"", Type::Int(16), Ok(Datum::Int(-42))),
            ("42.0", Type::Int(64), Ok(Datum::Int(42))),
            ("42.5", Type::Int(64), Err(Unreadable)),
            ("\"abc\"", Type::Int(64), Err(Unreadable)),
            ("true", Type::Int(64), Err(Unreadable)),
            ("40000", Type::Int(16), Err(Unreadable)),
            ("-32768", Type::Int(16), Ok(Datum::Int(-32768))),
            ("9223372036854775807", Type::Int(64), Ok(Datum::Int(i64::MAX))),
            ("9223372036854775808", Type::Int(64), Err(Unreadable)),
            ("null", Type::Int(64), Ok(Datum::Null)),
            ("1e999", Type::Float, Err(Unreadable)),
            ("\"1.5\"", Type::Float, Ok(Datum::Float(1.5))),
            ("\"nan\"", Type::Float, Err(Unreadable)),
            (
                "12345678901234567890.5",
                Type::Numeric,
                Ok(Datum::Numeric("12345678901234567890.5".into())),
            ),
            ("\"1,5\"", Type::Numeric, Err(Unreadable)),
            ("\".\"", Type::Numeric, Err(Unreadable)),
            ("\"Yes\"", Type::Bool, Ok(Datum::Bool(true))),
            ("0", Type::Bool, Ok(Datum::Bool(false))),
            ("2", Type::Bool, Err(Unreadable)),
            ("\"a\\u00e9\"", Type::Text, Ok(Datum::Text("aé".into()))),
            ("1.50", Type::Text, Ok(Datum::Text("1.50".into()))),
            ("[1, 2]", Type::Text, Ok(Datum::Text("[1, 2]".into()))),
            ("\"{}\"", Type::Json, Ok(Datum::Json("\"{}\"".into()))),
            ("1.50", Type::Any, Ok(Datum::Float(1.5))),
            ("18446744073709551615", Type::Any, Ok(Datum::Text("18446744073709551615".into()))),
            ("\"x\"", Type::Bytes, Ok(Datum::Bytes(b"x".as_slice().into()))),
            ("{}", Type::Uuid, Err(Unreadable)),
        ];
        for (raw, ty, expected) in cases {
            assert_eq!(from_json(raw, *ty), *expected, "{raw} as {ty:?}");
        }
    }

    #[test]
    fn times_are_read_in_every_usual_form() {
        let expected = 1_700_000_000_123_000;
        for text in [
            "2023-11-14T22:13:20.123Z",
            "2023-11-14T23:13:20.123+01:00",
            "2023-11-14 22:13:20.123",
            "2023-11-14T22:13:20.123",
            "2023-11-14 22:13:20.123+00",
            "1700000000.123",
            "1700000000123",
            "1700000000123000",
            "1700000000123000000",
        ] {
            assert_eq!(
                from_text(text.into(), Type::Timestamp),
                Ok(Datum::Time(expected)),
                "{text}"
            );
        }
        assert_eq!(time_text(expected), "2023-11-14T22:13:20.123000Z");
        for text in ["yesterday", "", "2023-13-01T00:00:00Z", "1e300"] {
            assert_eq!(from_text(text.into(), Type::Timestamp), Err(Unreadable), "{text}");
        }
    }

    #[test]
    fn text_that_is_no_json_becomes_a_json_string() {
        let json = |text: &'static str| from_text(text.into(), Type::Json).unwrap();
        assert_eq!(json("{\"a\": 1}"), Datum::Json("{\"a\": 1}".into()));
        assert_eq!(json("say \"hi\""), Datum::Json("\"say \\\"hi\\\"\"".into()));
    }
}
