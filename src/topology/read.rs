//! Reading: the spanned TOML parse that knows the places, `${VAR}` inside strings, and the layers
//! of the `config` crate that the values come from.

use config::{Config, ConfigError, Map, ValueKind};
use toml::de::{DeTable, DeValue};

use super::Kinds;
use super::env::Environment;
use super::fault::Fault;
use super::interpolate::interpolate;
use super::overrides;
use super::places::Places;
use crate::spec::parse::RawTable;
use crate::spec::text::shown;

/// The largest file, in bytes.
pub const FILE_MAX: usize = 1024 * 1024;

/// The values of all layers, and where they come from.
pub(super) struct Layers {
    pub(super) values: RawTable,
    pub(super) places: Places,
    pub(super) faults: Vec<Fault>,
}

/// Reads a file's text and lays the environment over it. Errs, with every fault of its syntax,
/// when it is no TOML: what such a file means is not guessed.
pub(super) fn read(text: &str, env: &Environment, kinds: Kinds) -> Result<Layers, Vec<Fault>> {
    let mut places = Places::of(text);
    if text.len() > FILE_MAX {
        let size = crate::spec::units::size_text(FILE_MAX as u64);
        let message = format!("the file is too large (at most {size})");
        return Err(vec![Fault { place: None, variable: None, message }]);
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| syntax(&places, text, error)).collect());
    }
    let mut reader =
        Reader { text, env, places: &mut places, faults: Vec::new(), path: Vec::new() };
    let file = Layer(reader.table(document.get_ref()));
    let mut faults = reader.faults;
    let found = overrides::find(&file.0, env, kinds);
    for (path, variable, _) in &found.set {
        places.override_with(path, variable);
    }
    faults.extend(found.faults);
    let layers = Config::builder().add_source(file).add_source(overrides::Layer(found.set)).build();
    let values = match layers.and_then(|config| config.cache.into_table()) {
        Ok(values) => values,
        Err(error) => {
            let message = format!("the layers cannot be joined: {error}");
            return Err(vec![Fault { place: None, variable: None, message }]);
        }
    };
    Ok(Layers { values, places, faults })
}

/// The file as a layer. Its keys go in as they stand: `config` would read a key such as `a.b` as
/// a path.
#[derive(Clone, Debug)]
struct Layer(RawTable);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, ConfigError> {
        Ok(self.0.clone())
    }

    fn collect_to(&self, cache: &mut config::Value) -> Result<(), ConfigError> {
        *cache = config::Value::new(None, ValueKind::Table(self.0.clone()));
        Ok(())
    }
}

/// A TOML error as a fault. The parser's own words are kept where they say enough.
fn syntax(places: &Places, text: &str, error: &toml::de::Error) -> Fault {
    let span = error.span().unwrap_or_default();
    let word = text.get(span.clone()).unwrap_or_default();
    let (what, expected) = match error.message().split_once(", expected ") {
        Some((what, expected)) => (what, Some(expected)),
        None => (error.message(), None),
    };
    let message = match what {
        "string values must be quoted" if word.is_empty() => {
            "a value is missing (text in quotes, a number, `true`, `false`, a list or a table)"
                .to_owned()
        }
        "string values must be quoted" => {
            // Not the word itself: it may be a secret that lacks its quotes.
            "text without quotes (text stands in quotes: `\"…\"`)".to_owned()
        }
        "duplicate key" => {
            format!("`{}` is written a second time (once is allowed)", shown(word))
        }
        _ if what.starts_with("invalid") && what.ends_with("string") && expected.is_some() => {
            format!("a string without its end (expected {})", expected.unwrap_or_default())
        }
        "recursion limit" => "too deeply nested (80 levels)".to_owned(),
        _ => match expected {
            Some(expected) => format!("{what} (expected {expected})"),
            None => format!("{what} (TOML)"),
        },
    };
    places.fault_at(span.start, message)
}

/// Carries a document over into plain values, and notes the places.
struct Reader<'a> {
    text: &'a str,
    env: &'a Environment,
    places: &'a mut Places,
    faults: Vec<Fault>,
    path: Vec<String>,
}

impl Reader<'_> {
    /// Nested at most 80 deep: the parser refuses more.
    fn table(&mut self, table: &DeTable<'_>) -> RawTable {
        let mut out = RawTable::with_capacity(table.len());
        for (key, value) in table {
            self.path.push(key.get_ref().to_string());
            self.places.put(&self.path, key.span().start, value.span().start);
            let value = self.value(value.get_ref(), value.span());
            if let Some(name) = self.path.pop() {
                out.insert(name, value);
            }
        }
        out
    }

    fn value(&mut self, value: &DeValue<'_>, span: std::ops::Range<usize>) -> config::Value {
        let kind = match value {
            DeValue::String(text) => self.string(text, span),
            DeValue::Boolean(on) => ValueKind::Boolean(*on),
            DeValue::Integer(number) => self.integer(number, span.start),
            DeValue::Float(number) => ValueKind::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Datetime(time) => ValueKind::String(time.to_string()),
            DeValue::Table(table) => ValueKind::Table(self.table(table)),
            DeValue::Array(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    self.path.push(index.to_string());
                    self.places.put(&self.path, item.span().start, item.span().start);
                    list.push(self.value(item.get_ref(), item.span()));
                    self.path.pop();
                }
                ValueKind::Array(list)
            }
        };
        config::Value::new(None, kind)
    }

    fn integer(&mut self, number: &toml::de::DeInteger<'_>, offset: usize) -> ValueKind {
        let (digits, radix) = (number.as_str(), number.radix());
        if let Ok(number) = i64::from_str_radix(digits, radix) {
            return ValueKind::I64(number);
        }
        if let Ok(number) = i128::from_str_radix(digits, radix) {
            return ValueKind::I128(number);
        }
        let message = "a number of more than 128 bits (at most 64 mean anything)".to_owned();
        self.faults.push(self.places.fault_at(offset, message));
        ValueKind::Nil
    }

    /// A string with its variables filled in; nothing, and a fault for each, where one is missing.
    fn string(&mut self, text: &str, span: std::ops::Range<usize>) -> ValueKind {
        if text.contains("${") {
            self.places.put_variable(&self.path);
        }
        match interpolate(text, self.env) {
            Ok(text) => ValueKind::String(text),
            Err(wrong) => {
                let raw = self.text.get(span.clone()).unwrap_or_default();
                for wrong in wrong {
                    // The n-th `${` of the value is the n-th of the raw text, unless escapes wrote
                    // one: then the string's start has to do.
                    let at = raw.match_indices("${").nth(wrong.nth).map_or(0, |(at, _)| at);
                    self.faults.push(self.places.fault_at(span.start + at, wrong.message));
                }
                ValueKind::Nil
            }
        }
    }
}
