//! Values as `COPY`'s text format takes them, for tables that have a column of a type whose
//! binary form is not known here: its input function reads the text.

use std::fmt::Write;

use super::array;
use super::wire::{Wire, as_text, clock_text, date_text, float4, no_text, text};
use crate::sink::columns::{Datum, Mapped, time_text};

/// Appends a field.
pub(super) fn put_field(
    wire: &Wire,
    column: &Mapped,
    value: &Datum<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    if *value == Datum::Null {
        out.extend(br"\N");
        return Ok(());
    }
    let mut plain = String::new();
    put(wire, column, value, &mut plain)?;
    for byte in plain.bytes() {
        match byte {
            b'\\' => out.extend(br"\\"),
            b'\n' => out.extend(br"\n"),
            b'\r' => out.extend(br"\r"),
            b'\t' => out.extend(br"\t"),
            _ => out.push(byte),
        }
    }
    Ok(())
}

/// Appends a value that is not NULL, as the type's input function reads it.
pub(super) fn put(
    wire: &Wire,
    column: &Mapped,
    value: &Datum<'_>,
    out: &mut String,
) -> Result<(), String> {
    match (wire, value) {
        (Wire::Array(element, _), Datum::Json(json)) => {
            return array::put_text(column, element, json, out);
        }
        (Wire::Date, _) => out.push_str(&as_text(column, value, date_text)?),
        (Wire::Time, _) => out.push_str(&as_text(column, value, clock_text)?),
        (Wire::Float4, Datum::Float(it)) => write_to(out, float4(column, *it)?),
        (_, Datum::Float(it)) => write_to(out, it),
        (_, Datum::Bool(it)) => write_to(out, it),
        (_, Datum::Int(it)) => write_to(out, it),
        (_, Datum::Numeric(it)) => out.push_str(it),
        (_, Datum::Time(it)) => out.push_str(&time_text(*it)),
        (_, Datum::Uuid(it)) => write_to(out, it.hyphenated()),
        (_, Datum::Json(it)) => out.push_str(it),
        (Wire::Bytes, Datum::Bytes(it)) => {
            out.push_str("\\x");
            it.iter().for_each(|byte| write_to(out, format_args!("{byte:02x}")));
        }
        (_, Datum::Text(it)) => {
            text(column, it)?;
            out.push_str(it);
        }
        (_, Datum::Name(it)) => out.push_str(it),
        (_, Datum::Bytes(_)) => return Err(no_text(column)),
        (_, Datum::Null) => {}
    }
    Ok(())
}

fn write_to(out: &mut String, value: impl std::fmt::Display) {
    // A `String` takes whatever is written to it.
    let _ = write!(out, "{value}");
}
