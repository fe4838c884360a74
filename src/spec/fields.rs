//! The longer types: text with a form of its own, lists, tables, columns and bodies.

use config::ValueKind;

use super::parse::{Problem, RawTable, Table, Wrong, column, is_name, selector};
use super::text::{did_you_mean, listed, shown};
use super::{Key, Selector, Ty, Value};

/// The longest text of one value, in bytes.
const TEXT_MAX: usize = 4096;
/// The longest name of a column: what PostgreSQL keeps of one.
const COLUMN_MAX: usize = 63;

fn problem(path: &[&str], message: String) -> Problem {
    Problem { path: path.iter().map(|s| (*s).to_owned()).collect(), at_key: false, message }
}

/// Whether a text has the form of its type.
pub(super) fn check_text(ty: Ty, text: &str) -> Result<(), Wrong> {
    if text.is_empty() && !matches!(ty, Ty::Pointer | Ty::UrlOrNone(_)) {
        return Err("is empty".into());
    }
    if text.len() > TEXT_MAX {
        return Err(format!("is longer than {TEXT_MAX} bytes").into());
    }
    if text.contains('\0') {
        return Err("holds a NUL".into());
    }
    match ty {
        Ty::Name if !is_name(text) => Err("is no name".into()),
        Ty::Pointer => pointer(text),
        Ty::Route => route(text),
        Ty::Listen => listen(text),
        Ty::Metric if !is_metric(text) => Err("is no metric's name".into()),
        Ty::UrlOrNone(_) if text.is_empty() => Ok(()),
        Ty::Url(schemes) | Ty::UrlOrNone(schemes) => url(schemes, text),
        _ => Ok(()),
    }
}

/// RFC 6901.
fn pointer(text: &str) -> Result<(), Wrong> {
    if !text.is_empty() && !text.starts_with('/') {
        return Err("does not start with `/`".into());
    }
    match text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1'])) {
        true => Ok(()),
        false => Err("holds a `~` that is neither `~0` (a `~`) nor `~1` (a `/`)".into()),
    }
}

fn route(text: &str) -> Result<(), Wrong> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err("does not start with `/`".into());
    };
    if rest.is_empty() {
        return Ok(());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    for segment in rest.split('/') {
        if segment.is_empty() {
            return Err("has an empty segment".into());
        }
        if segment == "." || segment == ".." {
            return Err(format!("has the segment `{segment}`").into());
        }
        if let Some(c) = segment.chars().find(|c| !c.is_ascii() || !plain(*c as u8)) {
            return Err(format!("holds `{}`", shown(&c.to_string())).into());
        }
    }
    Ok(())
}

fn listen(text: &str) -> Result<(), Wrong> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("has no port".into());
    };
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err()
    {
        return Err("has no port from 0 to 65535".into());
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(v6) = bracketed {
        return match v6.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err("has no IPv6 address between the brackets".into()),
        };
    }
    if host.is_empty() {
        return Err(Wrong {
            why: "has no host".to_owned(),
            hint: format!(", did you mean `0.0.0.0:{port}`?"),
        });
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if host.contains(':') {
        return Err("has an IPv6 address without brackets".into());
    }
    match host.bytes().all(plain) {
        true => Ok(()),
        false => Err("has no host's name or address before the port".into()),
    }
}

fn is_metric(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_:".contains(&b);
    text.bytes().all(inner) && !text.starts_with(|c: char| c.is_ascii_digit())
}

fn url(schemes: &[&str], text: &str) -> Result<(), Wrong> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("has no scheme".into());
    };
    if !schemes.contains(&scheme) {
        // Not the scheme itself: what stands before `://` in a wrong URL may be anything.
        return Err(Wrong {
            why: "has another scheme".to_owned(),
            hint: did_you_mean(scheme, schemes.iter().copied()),
        });
    }
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("holds white space".into());
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    match host.is_empty() || host.starts_with(':') {
        true => Err("has no host".into()),
        false => Ok(()),
    }
}

/// One string of a list.
pub(super) fn check_item(list: Ty, text: &str) -> Result<(), Wrong> {
    if let Ty::Urls(schemes) = list {
        return check_text(Ty::Url(schemes), text);
    }
    check_text(Ty::Str, text)?;
    match matches!(list, Ty::Secrets) && !text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Err("holds something that a header cannot carry".into()),
        false => Ok(()),
    }
}

/// A list of strings.
pub(super) fn list(key: &Key, items: &[config::Value]) -> Result<Value, Vec<Problem>> {
    let mut list = Vec::with_capacity(items.len());
    let mut problems = Vec::new();
    if items.is_empty() {
        problems.push(problem(&[], format!("`{}` is empty ({})", key.name, key.ty.allowed())));
    }
    for (index, item) in items.iter().enumerate() {
        let Wrong { why, hint } = match &item.kind {
            ValueKind::Nil => continue,
            ValueKind::String(text) => match check_item(key.ty, text) {
                Ok(()) if list.contains(text) => "is in the list twice".into(),
                Ok(()) => {
                    list.push(text.clone());
                    continue;
                }
                Err(wrong) => wrong,
            },
            _ => "is no string".into(),
        };
        let (number, allowed) = (index + 1, key.ty.allowed());
        let message = format!("item {number} of `{}` {why} ({allowed}){hint}", key.name);
        problems.push(problem(&[&index.to_string()], message));
    }
    if problems.is_empty() { Ok(Value::List(list)) } else { Err(problems) }
}

/// A table with declared keys.
pub(super) fn inner(
    name: &str,
    owner: &str,
    keys: &'static [Key],
    raw: &RawTable,
) -> Result<Value, Vec<Problem>> {
    let (values, problems) = Table::new(&format!("{owner}.{name}"), keys.iter()).read(raw);
    if problems.is_empty() { Ok(Value::Table(values)) } else { Err(problems) }
}

/// A database sink's columns.
pub(super) fn columns(raw: &RawTable) -> Result<Value, Vec<Problem>> {
    let mut columns = Vec::with_capacity(raw.len());
    let mut problems = Vec::new();
    if raw.is_empty() {
        let allowed = Ty::Columns.allowed();
        problems.push(problem(&[], format!("`columns` is empty ({allowed})")));
    }
    for (name, value) in raw {
        if name.is_empty() || name.len() > COLUMN_MAX || name.chars().any(char::is_control) {
            let message = format!(
                "`\"{}\"` is no column's name (1 to {COLUMN_MAX} bytes, no control characters)",
                shown(name)
            );
            problems.push(Problem { path: vec![name.clone()], at_key: true, message });
            continue;
        }
        match &value.kind {
            ValueKind::Nil => {}
            ValueKind::String(text) => match selected(name, &[name], text) {
                Ok(from) => columns.push(column(name, from, None)),
                Err(problem) => problems.push(problem),
            },
            ValueKind::Table(parts) => match typed_column(name, parts) {
                Ok(Some(column)) => columns.push(column),
                Ok(None) => {}
                Err(wrong) => problems.extend(wrong),
            },
            _ => problems.push(problem(
                &[name],
                format!(
                    "column `{}` is neither a string nor a table (a member of the JSON body such \
                     as `\"user.name\"`, a selector, or `{{ from = \"…\", type = \"bigint\" }}`)",
                    shown(name)
                ),
            )),
        }
    }
    if problems.is_empty() { Ok(Value::Columns(columns)) } else { Err(problems) }
}

fn selected(name: &str, path: &[&str], text: &str) -> Result<Selector, Problem> {
    let named = Selector::NAMED.iter().map(|(name, _)| *name);
    selector(text).map_err(|Wrong { why, hint }| {
        let message = format!(
            "`{} = \"{}\"` {why} (a member of the JSON body, dotted for nested ones, or {}){hint}",
            shown(name),
            shown(text),
            listed(named, "or")
        );
        problem(path, message)
    })
}

/// `{ from = "number", type = "bigint" }`
fn typed_column(name: &str, parts: &RawTable) -> Result<Option<super::Column>, Vec<Problem>> {
    const KEYS: &[Key] = &[
        Key {
            name: "from",
            ty: Ty::Str,
            default: super::Default::Required,
            doc: "A member of the JSON body, dotted for nested ones, or a selector.",
        },
        Key {
            name: "type",
            ty: Ty::Str,
            default: super::Default::Absent,
            doc: "The SQL type of the column.",
        },
    ];
    let owner = format!("columns.{}", shown(name));
    let (values, wrong) = Table::new(&owner, KEYS.iter()).read(parts);
    let mut wrong: Vec<Problem> = wrong
        .into_iter()
        .map(|mut problem| {
            problem.path.insert(0, name.to_owned());
            problem
        })
        .collect();
    let from = match values.opt_str("from") {
        Some(text) => match selected("from", &[name, "from"], text) {
            Ok(from) => Some(from),
            Err(problem) => {
                wrong.push(problem);
                None
            }
        },
        None => None,
    };
    if wrong.is_empty() {
        Ok(from.map(|from| column(name, from, values.opt_str("type"))))
    } else {
        Err(wrong)
    }
}

/// A table sent as a JSON object.
pub(super) fn body(raw: &RawTable) -> Result<Value, Vec<Problem>> {
    let mut problems = Vec::new();
    let json = object(raw, &mut Vec::new(), &mut problems);
    if problems.is_empty() { Ok(Value::Json(json)) } else { Err(problems) }
}

fn object(raw: &RawTable, path: &mut Vec<String>, out: &mut Vec<Problem>) -> serde_json::Value {
    let mut members = serde_json::Map::with_capacity(raw.len());
    for (name, value) in raw {
        path.push(name.clone());
        members.insert(name.clone(), json(value, path, out));
        path.pop();
    }
    serde_json::Value::Object(members)
}

fn json(raw: &config::Value, path: &mut Vec<String>, out: &mut Vec<Problem>) -> serde_json::Value {
    use serde_json::Value as Json;
    let beyond = |what: String, path: &[String], out: &mut Vec<Problem>| {
        let key = path.last().map(|key| shown(key)).unwrap_or_default();
        let message = format!(
            "`{key} = {what}` cannot be sent as JSON (finite numbers, whole ones of 64 bits)"
        );
        out.push(Problem { path: path.to_vec(), at_key: false, message });
        Json::Null
    };
    match &raw.kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(on) => Json::Bool(*on),
        ValueKind::I64(number) => Json::from(*number),
        ValueKind::U64(number) => Json::from(*number),
        ValueKind::I128(number) => match u64::try_from(*number) {
            Ok(number) => Json::from(number),
            Err(_) => beyond(number.to_string(), path, out),
        },
        ValueKind::U128(number) => beyond(number.to_string(), path, out),
        ValueKind::Float(number) => match serde_json::Number::from_f64(*number) {
            Some(number) => Json::Number(number),
            None => beyond(number.to_string(), path, out),
        },
        ValueKind::String(text) => Json::String(text.clone()),
        ValueKind::Table(table) => object(table, path, out),
        ValueKind::Array(items) => {
            let mut list = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                list.push(json(item, path, out));
                path.pop();
            }
            Json::Array(list)
        }
    }
}
