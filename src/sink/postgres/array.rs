//! Arrays from JSON arrays: nested ones become dimensions.

use serde_json::value::RawValue;

use super::text;
use super::wire::Wire;
use crate::sink::columns::{Datum, Mapped, Type, from_json};

/// PostgreSQL's limit.
const DIMENSIONS_MAX: usize = 6;

/// What an array's elements are handed to.
type Leaf<'l> = dyn FnMut(&RawValue) -> Result<(), String> + 'l;

/// Appends the array that `json` is: its dimensions, and each element as a field.
pub(super) fn put(
    column: &Mapped,
    element: &Wire,
    oid: u32,
    json: &str,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let mut dimensions = Vec::new();
    let mut fields = Vec::new();
    let mut nulls = false;
    let mut leaf = |raw: &RawValue| {
        let value = read(column, element, raw)?;
        nulls |= value == Datum::Null;
        element.put(column, &value, &mut fields)
    };
    walk(column, element, &unquoted(json), 0, &mut dimensions, &mut leaf)?;
    if fields.is_empty() {
        dimensions.clear();
    }
    out.extend((dimensions.len() as i32).to_be_bytes());
    out.extend(i32::from(nulls).to_be_bytes());
    out.extend(oid.to_be_bytes());
    for length in &dimensions {
        out.extend((*length as i32).to_be_bytes());
        out.extend(1_i32.to_be_bytes()); // the first index
    }
    out.extend(fields);
    Ok(())
}

/// Appends it as text: `{{"1","2"},{NULL,"4"}}`.
pub(super) fn put_text(
    column: &Mapped,
    element: &Wire,
    json: &str,
    out: &mut String,
) -> Result<(), String> {
    let mut dimensions = Vec::new();
    let mut leaf = |_: &RawValue| Ok(());
    let json = unquoted(json);
    walk(column, element, &json, 0, &mut dimensions, &mut leaf)?;
    put_level(column, element, &json, dimensions.len(), out)
}

fn put_level(
    column: &Mapped,
    element: &Wire,
    json: &str,
    depth: usize,
    out: &mut String,
) -> Result<(), String> {
    out.push('{');
    for (at, raw) in members(column, json)?.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        if depth > 1 {
            put_level(column, element, raw.get(), depth - 1, out)?;
            continue;
        }
        let value = read(column, element, raw)?;
        if value == Datum::Null {
            out.push_str("NULL");
            continue;
        }
        let mut plain = String::new();
        text::put(element, column, &value, &mut plain)?;
        out.push('"');
        for c in plain.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    }
    out.push('}');
    Ok(())
}

fn read<'a>(column: &Mapped, element: &Wire, raw: &'a RawValue) -> Result<Datum<'a>, String> {
    from_json(raw.get(), element.reads()).map_err(|_| column.complain(raw.get()))
}

fn members<'a>(column: &Mapped, json: &'a str) -> Result<Vec<&'a RawValue>, String> {
    serde_json::from_str(json).map_err(|_| column.complain(json))
}

/// A string that holds an array is taken for it.
fn unquoted(json: &str) -> String {
    match json.trim_start().starts_with('"') {
        true => serde_json::from_str(json).unwrap_or_default(),
        false => json.to_owned(),
    }
}

/// Hands each element to `leaf`, in order, and finds the dimensions: all arrays of one depth are
/// of one length.
fn walk(
    column: &Mapped,
    element: &Wire,
    json: &str,
    depth: usize,
    dimensions: &mut Vec<usize>,
    leaf: &mut Leaf<'_>,
) -> Result<(), String> {
    let members = members(column, json)?;
    match dimensions.get(depth) {
        None if depth == DIMENSIONS_MAX => {
            return Err(format!(
                "column `{}`: an array is nested too deep (6 at most)",
                column.name
            ));
        }
        None => dimensions.push(members.len()),
        Some(length) if *length == members.len() => {}
        Some(_) => {
            return Err(format!(
                "column `{}` is {}, whose inner arrays are of one length",
                column.name, column.ty_name
            ));
        }
    }
    // An array in a JSON element is that element.
    let nests = element.reads() != Type::Json;
    let inner = members.iter().filter(|raw| nests && raw.get().starts_with('[')).count();
    if inner > 0 && inner < members.len() || inner == 0 && dimensions.len() > depth + 1 {
        return Err(column.complain(json));
    }
    for raw in members {
        match inner {
            0 => leaf(raw)?,
            _ => walk(column, element, raw.get(), depth + 1, dimensions, leaf)?,
        }
    }
    Ok(())
}
