//! From raw values to checked ones: each [`Ty`] reads what the user wrote into the [`Value`] of
//! its shape, or says what is wrong and what is allowed.

use config::{Map, ValueKind};
use toml::Spanned;
use toml::de::DeValue;

use super::text::{did_you_mean, listed, near, shown};
use super::{Column, Default, Key, Selector, Ty, Value, Values, fields, units};

/// A table as it was read, in the order written.
pub type RawTable = Map<String, config::Value>;

/// What is wrong with one key of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The keys (and list indices) on the way down from the table that was parsed; empty: the
    /// table itself.
    pub path: Vec<String>,
    /// Whether the place to show is the key's instead of the value's.
    pub at_key: bool,
    /// A lower-case fragment: what is wrong, and in parentheses what is allowed.
    pub message: String,
}

impl Problem {
    fn at_value(message: String) -> Self {
        Self { path: Vec::new(), at_key: false, message }
    }

    /// The same, seen from the table that holds this one under `key`.
    fn under(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }
}

/// A table to read: how messages name it, and what it may hold.
pub struct Table<'a, K> {
    /// As `source.input`.
    pub owner: &'a str,
    /// Whose keys they are, where that is a kind: ``a `tail` ``.
    pub of: Option<&'a str>,
    /// The keys it may hold.
    pub keys: K,
    /// Keys that are passed over where they are not declared.
    pub ignores: &'a dyn Fn(&str) -> bool,
}

impl<'a, K> Table<'a, K> {
    /// A table that holds these keys and no others.
    pub fn new(owner: &'a str, keys: K) -> Self {
        Self { owner, of: None, keys, ignores: &|_| false }
    }
}

impl<'k, K: Iterator<Item = &'k Key> + Clone> Table<'_, K> {
    /// Reads the values and fills in defaults. What could not be read is absent from the values
    /// and has a problem.
    pub fn read(&self, raw: &RawTable) -> (Values, Vec<Problem>) {
        let mut values = Values::default();
        let mut problems = Vec::new();
        let meant = self.unknown(raw, &mut problems);
        for key in self.keys.clone() {
            match raw.get(key.name).map(|raw| read(key, self.owner, raw)) {
                Some(Ok(Some(value))) => values.set(key.name, value),
                Some(Ok(None)) => {}
                Some(Err(wrong)) => problems.extend(wrong.into_iter().map(|p| p.under(key.name))),
                None => match absent(key, self.owner) {
                    Ok(Some(value)) => values.set(key.name, value),
                    Ok(None) => {}
                    // It is there, misspelt: that is one fault and not two.
                    Err(_) if meant.contains(&key.name) => {}
                    Err(problem) => problems.push(problem),
                },
            }
        }
        (values, problems)
    }

    /// Finds the keys that are not declared; answers which of the declared were likely meant.
    fn unknown(&self, raw: &RawTable, problems: &mut Vec<Problem>) -> Vec<&'static str> {
        let known = || self.keys.clone().map(|key| key.name);
        let mut all_meant = Vec::new();
        for name in raw.keys().filter(|name| !known().any(|known| known == *name)) {
            if (self.ignores)(name) {
                continue;
            }
            let free = known().filter(|known| !raw.contains_key(*known));
            let meant = near(name, free).or_else(|| near(name, known()));
            all_meant.extend(meant);
            let message = format!(
                "unknown key `{}` in `{}` (known{}: {}){}",
                shown(name),
                self.owner,
                self.of.map(|of| format!(" to {of}")).unwrap_or_default(),
                listed(known(), "and"),
                meant.map(|meant| format!(", did you mean `{meant}`?")).unwrap_or_default()
            );
            problems.push(Problem { path: vec![name.clone()], at_key: true, message });
        }
        all_meant
    }
}

/// What holds where the key is not written.
fn absent(key: &Key, owner: &str) -> Result<Option<Value>, Problem> {
    match key.default {
        Default::Required => Err(Problem::at_value(format!(
            "`{owner}` has no `{}` ({})",
            key.name,
            key.ty.allowed()
        ))),
        Default::Absent | Default::Derived(_) => Ok(None),
        Default::Toml(text) => Ok(default_value(key.ty, text)),
    }
}

/// The value of a default as the tables write it, in TOML. `None`: the table is wrong (a test
/// reads them all).
pub fn default_value(ty: Ty, text: &str) -> Option<Value> {
    let parsed = DeValue::parse(text).ok()?;
    let key = Key { name: "", ty, default: Default::Absent, doc: "" };
    read(&key, "", &raw_default(parsed.get_ref())?).ok().flatten()
}

fn raw_default(value: &DeValue) -> Option<config::Value> {
    let raw = match value {
        DeValue::String(text) => ValueKind::String(text.to_string()),
        DeValue::Integer(number) => ValueKind::I64(units::int(number.as_str())?),
        DeValue::Boolean(on) => ValueKind::Boolean(*on),
        DeValue::Table(table) => {
            let member = |(name, value): (&Spanned<_>, &Spanned<DeValue>)| {
                let name: &std::borrow::Cow<'_, str> = name.get_ref();
                Some((name.to_string(), raw_default(value.get_ref())?))
            };
            ValueKind::Table(table.iter().map(member).collect::<Option<_>>()?)
        }
        _ => return None,
    };
    Some(config::Value::new(None, raw))
}

/// Reads one value. `Ok(None)`: it was found wrong already, when the file was read.
fn read(key: &Key, owner: &str, raw: &config::Value) -> Result<Option<Value>, Vec<Problem>> {
    let wrong = |why: String, hint: String| {
        let message = format!("{} {why} ({}){hint}", said(key, raw), key.ty.allowed());
        vec![Problem::at_value(message)]
    };
    let value = match (&raw.kind, key.ty) {
        (ValueKind::Nil, _) => return Ok(None),
        (ValueKind::Table(table), Ty::Table(keys)) => fields::inner(key.name, owner, keys, table)?,
        (ValueKind::Table(table), Ty::Columns) => fields::columns(table)?,
        (ValueKind::Table(table), Ty::Body) => fields::body(table)?,
        (ValueKind::Array(items), Ty::Strs | Ty::Secrets | Ty::Urls(_)) => {
            fields::list(key, items)?
        }
        (ValueKind::Table(_), _) => return Err(wrong("is a table".to_owned(), String::new())),
        (ValueKind::Array(_), _) => return Err(wrong("is a list".to_owned(), String::new())),
        (kind, ty) => match scalar(ty, kind) {
            Ok(value) => value,
            Err(Wrong { why, hint }) => return Err(wrong(why, hint)),
        },
    };
    Ok(Some(value))
}

/// How a message names a key and its value: `` `members = "four"` ``, or the key alone where the
/// value is long or may hold a secret.
fn said(key: &Key, raw: &config::Value) -> String {
    let value = match &raw.kind {
        _ if matches!(key.ty, Ty::Url(_) | Ty::UrlOrNone(_) | Ty::Urls(_) | Ty::Secrets) => None,
        ValueKind::String(text) => Some(format!("\"{}\"", shown(text))),
        ValueKind::Boolean(on) => Some(on.to_string()),
        ValueKind::I64(number) => Some(number.to_string()),
        ValueKind::I128(number) => Some(number.to_string()),
        ValueKind::Float(number) => Some(number.to_string()),
        _ => None,
    };
    match value {
        Some(value) => format!("`{} = {value}`", key.name),
        None => format!("`{}`", key.name),
    }
}

/// Why a value is not of its type, to follow the value, and a suggestion to follow everything.
pub(super) struct Wrong {
    pub(super) why: String,
    pub(super) hint: String,
}

impl<T: Into<String>> From<T> for Wrong {
    fn from(why: T) -> Self {
        Self { why: why.into(), hint: String::new() }
    }
}

/// A value that is neither a table nor a list.
fn scalar(ty: Ty, kind: &ValueKind) -> Result<Value, Wrong> {
    if let ValueKind::String(text) = kind {
        return string(ty, text);
    }
    match (ty, kind) {
        (Ty::Bool, ValueKind::Boolean(on)) => Ok(Value::Bool(*on)),
        (Ty::Int(min, max), ValueKind::I64(number)) => in_range(*number, min, max),
        (Ty::Int(..) | Ty::Size, ValueKind::I128(_)) => Err("is out of range".into()),
        (Ty::Size, ValueKind::I64(bytes)) => in_range(*bytes, 1, i64::MAX),
        (Ty::Duration | Ty::Retain, ValueKind::I64(_)) => Err("has no unit".into()),
        (Ty::Sample, ValueKind::I64(number)) => ratio(*number as f64),
        (Ty::Sample, ValueKind::Float(number)) => ratio(*number),
        (Ty::Table(_) | Ty::Columns, _) => Err("is no table".into()),
        (_, ValueKind::Boolean(_)) => Err("is a boolean".into()),
        _ => Err("is a number".into()),
    }
}

fn in_range(number: i64, min: i64, max: i64) -> Result<Value, Wrong> {
    if (min..=max).contains(&number) {
        Ok(Value::Int(number))
    } else {
        Err("is out of range".into())
    }
}

fn ratio(number: f64) -> Result<Value, Wrong> {
    if (0.0..=1.0).contains(&number) {
        Ok(Value::Float(number))
    } else {
        Err("is out of range".into())
    }
}

/// A string that reads as the wanted type.
fn string(ty: Ty, text: &str) -> Result<Value, Wrong> {
    match ty {
        Ty::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("is no boolean".into()),
        },
        Ty::Int(min, max) => match units::int(text) {
            Some(number) => in_range(number, min, max),
            None => Err("is no number".into()),
        },
        Ty::Duration => Ok(Value::Duration(units::duration(text)?)),
        Ty::Size => match units::int(text) {
            Some(bytes) => in_range(bytes, 1, i64::MAX),
            // `units::size` answers no more than `i64::MAX`.
            None => Ok(Value::Int(i64::try_from(units::size(text)?).unwrap_or(i64::MAX))),
        },
        Ty::Rate => Ok(Value::Float(units::rate(text)? as f64)),
        Ty::Range => units::range(text).map(|(a, b)| Value::Range(a, b)).map_err(Wrong::from),
        Ty::Choice(words) => match words.contains(&text) {
            true => Ok(Value::Str(text.to_owned())),
            false => Err(Wrong {
                why: "is unknown".to_owned(),
                hint: did_you_mean(text, words.iter().copied()),
            }),
        },
        Ty::Retain => match text {
            "acked" | "forever" => Ok(Value::Str(text.to_owned())),
            _ => match units::duration(text) {
                Ok(age) if age.is_zero() => Err("is no age".into()),
                Ok(age) => Ok(Value::Duration(age)),
                Err(_) if !text.starts_with(|c: char| c.is_ascii_digit()) => Err(Wrong {
                    why: "is unknown".to_owned(),
                    hint: did_you_mean(text, ["acked", "forever"]),
                }),
                Err(why) => Err(why.into()),
            },
        },
        Ty::Sample => sample(text),
        Ty::Table(_) | Ty::Columns => Err("is no table".into()),
        Ty::Strs | Ty::Secrets | Ty::Urls(_) => {
            fields::check_item(ty, text)?;
            Ok(Value::List(vec![text.to_owned()]))
        }
        Ty::Body => Ok(Value::Str(text.to_owned())),
        _ => {
            fields::check_text(ty, text)?;
            Ok(Value::Str(text.to_owned()))
        }
    }
}

fn sample(text: &str) -> Result<Value, Wrong> {
    if matches!(text, "all" | "none") || units::rate(text).is_ok() {
        return Ok(Value::Str(text.to_owned()));
    }
    match text.parse::<f64>() {
        Ok(number) if text.starts_with(|c: char| c.is_ascii_digit()) => ratio(number),
        _ => Err("is no sampling".into()),
    }
}

impl Ty {
    /// What is allowed, for messages, the schema and the reference.
    pub fn allowed(&self) -> String {
        match self {
            Ty::Str => "text, not empty".to_owned(),
            Ty::Bool => "`true` or `false`".to_owned(),
            Ty::Int(min, i64::MAX) => format!("a whole number, at least {min}"),
            Ty::Int(min, max) => format!("a whole number from {min} to {max}"),
            Ty::Duration => units::DURATIONS.to_owned(),
            Ty::Size => format!("{}, or a number of bytes", units::SIZES),
            Ty::Rate => units::RATES.to_owned(),
            Ty::Range => units::RANGES.to_owned(),
            Ty::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                listed(words.iter().map(String::as_str), "or")
            }
            Ty::Ref(room) => format!("the name of a {}", room.noun()),
            Ty::Name => NAMES.to_owned(),
            Ty::Pointer => r#"a JSON pointer such as `"/user/id"`, or `""` for all of it"#.to_owned(),
            Ty::Path => r#"a path such as `"data/app.log"`"#.to_owned(),
            Ty::Route => {
                r#"a path such as `"/log"`: `/` and segments of letters, digits, `-`, `_`, `.`, `~`"#
                    .to_owned()
            }
            Ty::Listen => r#"`"host:port"` such as `"127.0.0.1:8080"`"#.to_owned(),
            Ty::Metric => {
                "letters, digits, `_` and `:`, not starting with a digit".to_owned()
            }
            Ty::Url(schemes) => format!("a URL that starts with {}", starts(schemes)),
            Ty::UrlOrNone(schemes) => {
                format!("a URL that starts with {}, or `\"\"`", starts(schemes))
            }
            Ty::Urls(schemes) => {
                format!("a URL that starts with {}, or a list of such", starts(schemes))
            }
            Ty::Secrets => "a string or a list of strings, of visible ASCII".to_owned(),
            Ty::Strs => "a list of strings".to_owned(),
            Ty::Table(keys) => {
                format!("a table with the keys {}", listed(keys.iter().map(|key| key.name), "and"))
            }
            Ty::Columns => {
                "a table such as `{ number = \"number\", at = \"@time\" }`".to_owned()
            }
            Ty::Body => "a string, or a table sent as a JSON object".to_owned(),
            Ty::Retain => format!("`\"acked\"`, `\"forever\"`, or {}", units::DURATIONS),
            Ty::Sample => {
                r#"`"10/s"`, a ratio from 0 to 1, `"all"` or `"none"`"#.to_owned()
            }
        }
    }
}

/// How the URLs of these schemes start.
fn starts(schemes: &[&str]) -> String {
    let starts: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
    listed(starts.iter().map(String::as_str), "or")
}

/// What a name looks like, for messages.
pub const NAMES: &str = "a lower-case letter, then up to 62 lower-case letters, digits, `-` or `_`";

/// Whether `text` is a name by the rules of names.
pub fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
}

/// Reads a selector as a column writes it.
pub(super) fn selector(text: &str) -> Result<Selector, Wrong> {
    if text.starts_with('@') {
        let named = Selector::NAMED.iter().find(|(name, _)| *name == text);
        return named.map(|(_, selector)| selector.clone()).ok_or_else(|| Wrong {
            why: "is unknown".to_owned(),
            hint: did_you_mean(text, Selector::NAMED.iter().map(|(name, _)| *name)),
        });
    }
    if text.split('.').any(str::is_empty) {
        return Err("has an empty name in it".into());
    }
    Ok(Selector::Member(text.split('.').map(str::to_owned).collect()))
}

/// A column read from its parts.
pub(super) fn column(name: &str, from: Selector, ty: Option<&str>) -> Column {
    Column { name: name.to_owned(), from, ty: ty.map(str::to_lowercase) }
}
