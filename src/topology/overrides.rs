//! Environment variables that override keys: `AQUEDUCT__STREAM__NUMBERS__URL` is
//! `stream.numbers.url`.

use std::collections::BTreeMap;

use config::{ConfigError, Map, ValueKind};

use super::env::Environment;
use super::fault::Fault;
use super::tables::{self, Kinds, PLAIN, STREAM_KIND};
use crate::spec::parse::RawTable;
use crate::spec::text::{near, shown};
use crate::spec::{Key, Room, Ty};

/// What an override starts with.
const PREFIX: &str = "AQUEDUCT__";

/// The path of a key in the file, the variable that overrides it, and the value it gives.
type Override = (Vec<String>, String, config::Value);

/// The overrides of an environment.
#[derive(Default)]
pub(super) struct Found {
    pub(super) set: Vec<Override>,
    pub(super) faults: Vec<Fault>,
}

/// Finds what the environment overrides in `file`. Only what the file's tables can hold can be
/// overridden, so that a misspelt variable is a fault and not without effect.
pub(super) fn find(file: &RawTable, env: &Environment, kinds: Kinds) -> Found {
    let mut found = Found::default();
    if !env.names().any(|name| name.to_ascii_uppercase().starts_with(PREFIX)) {
        return found;
    }
    let known = Known::of(file, env, kinds);
    for (variable, value) in env.iter() {
        let name = variable.to_ascii_uppercase();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let message = match known.0.get(&name).map(Vec::as_slice) {
            Some([(path, ty)]) => {
                let given = found.set.iter().find(|(known, _, _)| known == path);
                match given {
                    None => {
                        found.set.push((path.clone(), variable.to_owned(), raw(*ty, value)));
                        continue;
                    }
                    Some((_, other, _)) => format!("`{other}` gives the same key (one is allowed)"),
                }
            }
            Some(paths) => {
                let paths: Vec<String> =
                    paths.iter().map(|(path, _)| format!("`{}`", path.join("."))).collect();
                format!("could be {} (rename one)", paths.join(" or "))
            }
            None => format!(
                "names no key of this file (as `{PREFIX}STREAM__NAME__KEY` names \
                 `stream.NAME.key`){}",
                did_you_mean(&name, &known)
            ),
        };
        found.faults.push(Fault { place: None, variable: Some(shown(variable)), message });
    }
    found
}

/// Compares without the prefix, which all have in common.
fn did_you_mean(name: &str, known: &Known) -> String {
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    let candidates = known.0.keys().filter_map(|name| name.strip_prefix(PREFIX));
    let near = near(bare, candidates);
    near.map(|near| format!(", did you mean `{PREFIX}{near}`?")).unwrap_or_default()
}

/// The value of a variable: a string; a TOML list or table where the key wants one and the text
/// looks like one.
fn raw(ty: Ty, text: &str) -> config::Value {
    let list = matches!(ty, Ty::Strs | Ty::Secrets | Ty::Urls(_));
    let structured = list || matches!(ty, Ty::Table(_) | Ty::Columns | Ty::Body);
    if structured
        && text.starts_with(['[', '{'])
        && let Ok(mut parsed) = toml::from_str::<RawTable>(&format!("value = {text}"))
        && let Some(value) = parsed.swap_remove("value")
    {
        return value;
    }
    config::Value::new(None, ValueKind::String(text.to_owned()))
}

/// The keys that may be overridden, by the names of their variables.
struct Known(BTreeMap<String, Vec<(Vec<String>, Ty)>>);

impl Known {
    fn of(file: &RawTable, env: &Environment, kinds: Kinds) -> Self {
        let mut known = Self(BTreeMap::new());
        for (name, keys) in PLAIN {
            known.keys(&[(*name).to_owned()], keys.iter(), table(file.get(*name)));
        }
        for room in Room::TABLES {
            let Some(components) = table(file.get(room.noun())) else { continue };
            for (name, component) in components {
                let path = [room.noun().to_owned(), name.clone()];
                let keys = component_keys(room, &path, file, env, kinds);
                known.keys(&path, keys.into_iter(), table(Some(component)));
            }
        }
        known
    }

    fn add(&mut self, path: &[String], ty: Ty) {
        let paths = self.0.entry(variable(path)).or_default();
        if !paths.iter().any(|(known, _)| known == path) {
            paths.push((path.to_vec(), ty));
        }
    }

    /// Adds the declared keys of the table at `path`, and what their tables hold.
    fn keys<'k>(
        &mut self,
        path: &[String],
        keys: impl Iterator<Item = &'k Key>,
        raw: Option<&RawTable>,
    ) {
        for key in keys {
            let path = [path, &[key.name.to_owned()]].concat();
            self.add(&path, key.ty);
            let written = table(raw.and_then(|raw| raw.get(key.name)));
            match key.ty {
                Ty::Table(inner) => self.keys(&path, inner.iter(), written),
                Ty::Columns | Ty::Body => self.written(&path, written),
                _ => {}
            }
        }
    }

    /// Adds what the file itself has in a table of the user's own.
    fn written(&mut self, path: &[String], raw: Option<&RawTable>) {
        for (name, value) in raw.into_iter().flatten() {
            let path = [path, std::slice::from_ref(name)].concat();
            self.add(&path, Ty::Str);
            self.written(&path, table(Some(value)));
        }
    }
}

/// The keys a component may have, seeing that its kind may be overridden too.
fn component_keys(
    room: Room,
    path: &[String],
    file: &RawTable,
    env: &Environment,
    kinds: Kinds,
) -> Vec<&'static Key> {
    let mut keys: Vec<&'static Key> = tables::common(room).iter().collect();
    let given = |path: &[String]| given(path, file, env);
    let kind_of = |path: &[String]| given(&[path, &["kind".to_owned()]].concat());
    match room {
        Room::Group => {
            let stream = given(&[path, &["from".to_owned()]].concat());
            let kind = stream
                .map(|stream| kind_of(&[Room::Stream.noun().to_owned(), stream]))
                .map(|kind| kind.unwrap_or_else(|| STREAM_KIND.to_owned()));
            keys.extend(kinds.group_keys(kind.as_deref()));
        }
        _ => {
            let kind = kind_of(path);
            let kind = kind.as_deref().or((room == Room::Stream).then_some(STREAM_KIND));
            let all = kinds.of(room);
            let known = all.iter().any(|known| Some(known.name) == kind);
            let own = all.iter().filter(|all| !known || Some(all.name) == kind);
            keys.extend(own.flat_map(|kind| kind.keys));
        }
    }
    keys
}

/// The text at `path`: what the environment gives, or else the file.
fn given(path: &[String], file: &RawTable, env: &Environment) -> Option<String> {
    let name = variable(path);
    if let Some((_, value)) = env.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
        return Some(value.to_owned());
    }
    let (last, tables) = path.split_last()?;
    let mut raw = file;
    for name in tables {
        raw = table(raw.get(name))?;
    }
    match &raw.get(last)?.kind {
        ValueKind::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn variable(path: &[String]) -> String {
    let names: Vec<String> =
        path.iter().map(|name| name.to_ascii_uppercase().replace('-', "_")).collect();
    format!("{PREFIX}{}", names.join("__"))
}

fn table(raw: Option<&config::Value>) -> Option<&RawTable> {
    match &raw?.kind {
        ValueKind::Table(table) => Some(table),
        _ => None,
    }
}

/// The overrides as a layer over the file. The paths were found in the file, so they go in as
/// they are; `config` would read a name such as `a.b` as two.
#[derive(Clone, Debug)]
pub(super) struct Layer(pub(super) Vec<Override>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, ConfigError> {
        let mut values = config::Value::new(None, RawTable::new());
        self.collect_to(&mut values)?;
        values.into_table()
    }

    fn collect_to(&self, cache: &mut config::Value) -> Result<(), ConfigError> {
        for (path, _, value) in &self.0 {
            set(cache, path, value.clone());
        }
        Ok(())
    }
}

/// Sets what stands at `path`, making the tables on the way.
fn set(root: &mut config::Value, path: &[String], value: config::Value) {
    let mut at = root;
    for name in path {
        if !matches!(at.kind, ValueKind::Table(_)) {
            at.kind = ValueKind::Table(RawTable::new());
        }
        let ValueKind::Table(table) = &mut at.kind else { return };
        at = table.entry(name.clone()).or_insert_with(|| config::Value::new(None, ValueKind::Nil));
    }
    *at = value;
}
