//! Values: as SQLite stores them, as JSON shows them, and as a question means them.

use std::borrow::Cow;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};
use sqlx::error::BoxDynError;
use sqlx::sqlite::{Sqlite, SqliteValueRef};
use sqlx::{Decode, TypeInfo, ValueRef};

use crate::sink::columns::{Datum, Type, from_text, is_json};

/// A value of one of SQLite's storage classes.
#[derive(Debug, PartialEq)]
pub(super) enum Bindable {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

/// A value as it is stored, whatever its column says.
pub(super) struct Stored(Bindable);

impl Stored {
    pub(super) fn read(value: SqliteValueRef<'_>) -> Result<Self> {
        fn decode<'r, T: Decode<'r, Sqlite>>(value: SqliteValueRef<'r>) -> Result<T> {
            T::decode(value).map_err(|error: BoxDynError| anyhow::Error::from_boxed(error))
        }
        let class = value.type_info().name().to_owned();
        Ok(Self(match class.as_str() {
            _ if value.is_null() => Bindable::Null,
            "INTEGER" => Bindable::Integer(decode(value)?),
            "REAL" => Bindable::Real(decode(value)?),
            "BLOB" => Bindable::Blob(decode(value)?),
            _ => {
                let bytes: &[u8] = decode(value)?;
                Bindable::Text(String::from_utf8_lossy(bytes).into_owned())
            }
        }))
    }

    /// Appends it as JSON: bytes in base64, truth values as such, JSON as it is.
    pub(super) fn render(&self, ty: Type, out: &mut String) {
        let json: Cow<'_, str> = match &self.0 {
            Bindable::Null => "null".into(),
            Bindable::Integer(truth @ (0 | 1)) if ty == Type::Bool => {
                (*truth == 1).to_string().into()
            }
            Bindable::Integer(it) => it.to_string().into(),
            Bindable::Real(it) if it.is_finite() => json!(it).to_string().into(),
            Bindable::Real(it) => (if *it > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }).into(),
            Bindable::Text(it) if ty == Type::Json && is_json(it) => it.as_str().into(),
            Bindable::Text(it) => Json::from(it.as_str()).to_string().into(),
            Bindable::Blob(it) => Json::from(STANDARD.encode(it)).to_string().into(),
        };
        out.push_str(&json);
    }

    /// As a mark holds it.
    pub(super) fn mark(self) -> Json {
        match self.0 {
            Bindable::Null => Json::Null,
            Bindable::Integer(it) => it.into(),
            // Its bits: no digit is lost.
            Bindable::Real(it) => json!({ "real": it.to_bits() }),
            Bindable::Text(it) => it.into(),
            Bindable::Blob(it) => json!({ "blob": STANDARD.encode(it) }),
        }
    }
}

/// A value of a mark; `None`: it is none.
pub(super) fn bindable(value: &Json) -> Option<Bindable> {
    match value {
        Json::Object(object) => match (object.get("real"), object.get("blob")) {
            (Some(bits), _) => Some(Bindable::Real(f64::from_bits(bits.as_u64()?))),
            (_, Some(blob)) => Some(Bindable::Blob(STANDARD.decode(blob.as_str()?).ok()?)),
            _ => None,
        },
        Json::Array(_) | Json::Bool(_) => None,
        plain_value => Some(plain(plain_value.clone())),
    }
}

/// Null, a number or a text.
pub(super) fn plain(value: Json) -> Bindable {
    match value {
        Json::String(text) => Bindable::Text(text),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Bindable::Integer(whole),
            None => number.as_f64().map_or(Bindable::Null, Bindable::Real),
        },
        _ => Bindable::Null,
    }
}

/// The values that a text means in a column of this type; `None`: it is no value of it.
pub(super) fn meanings(ty: Type, text: &str) -> Option<Vec<Bindable>> {
    let itself = || Bindable::Text(text.to_owned());
    let read = || from_text(text.into(), ty).ok();
    Some(match ty {
        Type::Text => vec![itself()],
        Type::Any => match text.parse::<serde_json::Number>() {
            Ok(number) => vec![itself(), plain(number.into())],
            Err(_) => vec![itself()],
        },
        Type::Bytes => vec![Bindable::Blob(STANDARD.decode(text).ok()?)],
        // As text it is stored, and as text compared.
        Type::Timestamp => read().map(|_| vec![itself()])?,
        Type::Json if is_json(text) => vec![itself()],
        Type::Json => return None,
        _ => match read()? {
            Datum::Bool(truth) => vec![Bindable::Integer(truth.into())],
            Datum::Int(number) => vec![Bindable::Integer(number)],
            Datum::Float(number) => vec![Bindable::Real(number)],
            Datum::Uuid(id) => {
                vec![itself(), Bindable::Text(id.to_string()), Bindable::Blob(id.as_bytes().into())]
            }
            // By the column's affinity it becomes a number there.
            _ => vec![itself()],
        },
    })
}

/// What would be a value of this type.
pub(super) fn wanted(ty: Type) -> &'static str {
    match ty {
        Type::Bool => "`true` or `false`",
        Type::Int(_) => "a whole number of 64 bits",
        Type::Float | Type::Numeric => "a number",
        Type::Timestamp => "a time, as RFC 3339",
        Type::Uuid => "a UUID",
        Type::Json => "JSON",
        Type::Bytes => "base64",
        Type::Text | Type::Any => "a text",
    }
}
