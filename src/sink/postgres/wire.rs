//! Values as `COPY … (FORMAT binary)` takes them: what each type's receive function reads.

use chrono::{NaiveDate, NaiveTime, Timelike};

use super::{array, number};
use crate::sink::columns::{Datum, Mapped, Type, time_text, timestamp};

/// How a column's values travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    /// `text`, `varchar`, `char`, `citext`, `name`, enumerations.
    Text,
    Timestamp,
    Date,
    Time,
    Uuid,
    Json,
    Jsonb,
    Bytes,
    /// An array of elements of this type, which has this object id.
    Array(Box<Wire>, u32),
    /// Anything else: as text, which the type's input function reads.
    Other,
}

/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
const EPOCH_US: i64 = 946_684_800_000_000;
const DAY_US: i64 = 86_400_000_000;

impl Wire {
    /// By the name of the type's receive function; arrays are the caller's.
    pub(super) fn of_receiver(name: &str) -> Self {
        match name {
            "boolrecv" => Self::Bool,
            "int2recv" => Self::Int2,
            "int4recv" => Self::Int4,
            "int8recv" => Self::Int8,
            "float4recv" => Self::Float4,
            "float8recv" => Self::Float8,
            "numeric_recv" => Self::Numeric,
            "textrecv" | "varcharrecv" | "bpcharrecv" | "namerecv" | "citextrecv" | "enum_recv" => {
                Self::Text
            }
            "timestamptz_recv" | "timestamp_recv" => Self::Timestamp,
            "date_recv" => Self::Date,
            "time_recv" => Self::Time,
            "uuid_recv" => Self::Uuid,
            "json_recv" => Self::Json,
            "jsonb_recv" => Self::Jsonb,
            "bytearecv" => Self::Bytes,
            _ => Self::Other,
        }
    }

    /// What values for it are read as.
    pub(super) fn reads(&self) -> Type {
        match self {
            Self::Bool => Type::Bool,
            Self::Int2 => Type::Int(16),
            Self::Int4 => Type::Int(32),
            Self::Int8 => Type::Int(64),
            Self::Float4 | Self::Float8 => Type::Float,
            Self::Numeric => Type::Numeric,
            Self::Timestamp => Type::Timestamp,
            Self::Uuid => Type::Uuid,
            Self::Json | Self::Jsonb | Self::Array(..) => Type::Json,
            Self::Bytes => Type::Bytes,
            Self::Text | Self::Date | Self::Time | Self::Other => Type::Text,
        }
    }

    /// Whether a table with such a column takes its rows as text.
    pub(super) fn is_text_only(&self) -> bool {
        match self {
            Self::Array(element, _) => element.is_text_only(),
            wire => *wire == Self::Other,
        }
    }

    /// Appends a field: its length and its bytes. Errs when the value does not fit the column.
    pub(super) fn put(
        &self,
        column: &Mapped,
        value: &Datum<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if *value == Datum::Null {
            out.extend((-1_i32).to_be_bytes());
            return Ok(());
        }
        let start = out.len();
        out.extend([0; 4]);
        self.put_bytes(column, value, out)?;
        let length = i32::try_from(out.len() - start - 4)
            .map_err(|_| format!("column `{}`: the value is larger than 2 GiB", column.name))?;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn put_bytes(
        &self,
        column: &Mapped,
        value: &Datum<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        match (self, value) {
            (Self::Bool, Datum::Bool(it)) => out.push(u8::from(*it)),
            // `Type::Int` keeps to the column's bits.
            (Self::Int2, Datum::Int(it)) => out.extend((*it as i16).to_be_bytes()),
            (Self::Int4, Datum::Int(it)) => out.extend((*it as i32).to_be_bytes()),
            (Self::Int8, Datum::Int(it)) => out.extend(it.to_be_bytes()),
            (Self::Float4, Datum::Float(it)) => out.extend(float4(column, *it)?.to_be_bytes()),
            (Self::Float8, Datum::Float(it)) => out.extend(it.to_be_bytes()),
            (Self::Numeric, Datum::Numeric(it)) => {
                number::put(it, out).ok_or_else(|| column.complain(it))?
            }
            (Self::Timestamp, Datum::Time(it)) => out.extend((it - EPOCH_US).to_be_bytes()),
            (Self::Uuid, Datum::Uuid(it)) => out.extend(it.as_bytes()),
            (Self::Json, Datum::Json(it)) => out.extend(it.as_bytes()),
            (Self::Jsonb, Datum::Json(it)) => {
                out.push(1); // the version of the format
                out.extend(it.as_bytes());
            }
            (Self::Bytes, Datum::Bytes(it)) => out.extend(&**it),
            (Self::Array(element, oid), Datum::Json(it)) => {
                array::put(column, element, *oid, it, out)?
            }
            (Self::Date, _) => {
                let days = as_text(column, value, date_of)?;
                out.extend((days - (EPOCH_US / DAY_US) as i32).to_be_bytes());
            }
            (Self::Time, _) => out.extend(as_text(column, value, time_of)?.to_be_bytes()),
            (_, Datum::Uuid(it)) => {
                let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
                out.extend(it.hyphenated().encode_lower(&mut text).as_bytes());
            }
            (_, Datum::Time(it)) => out.extend(time_text(*it).as_bytes()),
            (_, Datum::Text(it)) => out.extend(text(column, it)?),
            (_, Datum::Name(it)) => out.extend(text(column, it)?),
            (_, Datum::Bytes(_)) => return Err(no_text(column)),
            // `Mapping` gives what `reads` asks for.
            _ => return Err(column.complain("the value")),
        }
        Ok(())
    }
}

/// The nearest number of 32 bits.
pub(super) fn float4(column: &Mapped, value: f64) -> Result<f32, String> {
    match value as f32 {
        near if near.is_finite() => Ok(near),
        _ => Err(column.complain(&value.to_string())),
    }
}

/// Text without what PostgreSQL's text cannot hold.
pub(super) fn text<'a>(column: &Mapped, text: &'a str) -> Result<&'a [u8], String> {
    match memchr::memchr(0, text.as_bytes()) {
        None => Ok(text.as_bytes()),
        Some(_) => Err(format!(
            "column `{}` is {}, which cannot hold the NUL character that is in the value",
            column.name, column.ty_name
        )),
    }
}

/// The refusal of a body that is bytes.
pub(super) fn no_text(column: &Mapped) -> String {
    format!(
        "column `{}` is {}, and the body is not UTF-8 (a column of type bytea takes any bytes)",
        column.name, column.ty_name
    )
}

/// What a value says as text, read.
pub(super) fn as_text<T>(
    column: &Mapped,
    value: &Datum<'_>,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, String> {
    let owned;
    let text: &str = match value {
        Datum::Text(text) => text,
        Datum::Name(name) => name,
        Datum::Time(time_us) => {
            owned = time_text(*time_us);
            &owned
        }
        Datum::Bytes(_) => return Err(no_text(column)),
        _ => "",
    };
    read(text.trim()).ok_or_else(|| column.complain(text))
}

/// A date, or the UTC date of a point in time: days since 1970.
fn date_of(text: &str) -> Option<i32> {
    let days = match NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        Ok(date) => date.to_epoch_days().into(),
        Err(_) => timestamp(text).ok()?.div_euclid(DAY_US),
    };
    i32::try_from(days).ok()
}

/// A time of day, or the UTC time of day of a point in time: microseconds since midnight.
fn time_of(text: &str) -> Option<i64> {
    for format in ["%H:%M:%S%.f", "%H:%M"] {
        if let Ok(time) = NaiveTime::parse_from_str(text, format) {
            let nanoseconds = i64::from(time.nanosecond());
            return Some(
                i64::from(time.num_seconds_from_midnight()) * 1_000_000 + nanoseconds / 1_000,
            );
        }
    }
    Some(timestamp(text).ok()?.rem_euclid(DAY_US))
}

/// A date as SQL writes it.
pub(super) fn date_text(text: &str) -> Option<String> {
    let date = NaiveDate::from_epoch_days(date_of(text)?)?;
    Some(date.format("%Y-%m-%d").to_string())
}

/// A time of day as SQL writes it.
pub(super) fn clock_text(text: &str) -> Option<String> {
    let time_us = time_of(text)?;
    let (seconds, rest_us) = (time_us / 1_000_000, time_us % 1_000_000);
    Some(format!("{:02}:{:02}:{:02}.{rest_us:06}", seconds / 3600, seconds / 60 % 60, seconds % 60))
}
