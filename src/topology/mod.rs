//! The topology file: read, checked, promised, drawn.
//!
//! - [`env`]: the environment it is read in.
//! - `read`, `interpolate`, `overrides`, `places`: TOML with places, variables, and layers.
//! - [`tables`]: the keys there are, each declared once.
//! - `check`: everything that can be wrong, at once, as [`Faults`]; else a [`Topology`].
//! - [`compare`]: what an edit of it changes.
//! - [`edition`]: the one that runs, and what became of the last edit.
//! - [`promise`]: what each route promises.
//! - [`graph`]: the same as a picture.
//! - [`schema`]: the keys as a JSON Schema, for editors.

mod check;
pub mod compare;
pub mod edition;
pub mod env;
mod fault;
pub mod graph;
mod interpolate;
mod overrides;
mod places;
pub mod promise;
mod read;
pub mod schema;
pub mod tables;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, io};

pub use env::Environment;
pub use fault::{Fault, Faults, Shown};
pub use read::FILE_MAX;
pub use tables::Kinds;

use self::places::Places;
use crate::sink::{self, SinkSpec};
use crate::source::{self, SourceSpec};
use crate::spec::text::{Secret, redact};
use crate::spec::{Room, Ty, Values, units};
use crate::stream::{GroupSpec, StreamSpec};

/// A topology file, checked. Components stand in the order of the file.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The file, as it was given.
    pub file: PathBuf,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[http]`; `None`: nothing listens.
    pub http: Option<Http>,
    /// `[tracing]`; `None`: no spans leave the process.
    pub tracing: Option<Tracing>,
    /// `[source.NAME]`
    pub sources: Vec<SourceSpec>,
    /// `[stream.NAME]`
    pub streams: Vec<StreamSpec>,
    /// `[group.NAME]`
    pub groups: Vec<GroupSpec>,
    /// `[sink.NAME]`
    pub sinks: Vec<SinkSpec>,
    /// `[query.NAME]`
    pub queries: Vec<QuerySpec>,
    /// What works and is likely not meant.
    pub warnings: Vec<Fault>,
    /// Where each key stands.
    places: Arc<Places>,
}

/// `[runtime]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Where embedded streams live, and what sources must remember.
    pub data_dir: PathBuf,
    /// How long a stop may take.
    pub drain: Duration,
    /// Threads that the actors are spread over, at least 1.
    pub threads: usize,
    /// Names this process's group members.
    pub instance: String,
    /// Apply an edit of the file while running.
    pub watch: bool,
    /// Directives of the log; what `RUST_LOG` or `LOG_LEVEL` say has won already.
    pub log: String,
    /// Lines of the log are JSON.
    pub log_json: bool,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// `host:port`
    pub listen: String,
    /// Bearer tokens, any of which will do; none: nothing is asked.
    pub tokens: Vec<Secret>,
    /// The largest body of a request, in bytes, after decompression.
    pub max_body: usize,
    /// Requests that may be under way at once.
    pub max_in_flight: usize,
    /// Serve HTTPS.
    pub tls: Option<Tls>,
    /// `host:port` where metrics, streams and the status page are served instead.
    pub admin: Option<String>,
}

/// `http.tls`: two PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `[tracing]`
#[derive(Clone, PartialEq)]
pub struct Tracing {
    /// An OTLP collector's gRPC address.
    pub otlp: String,
    /// The service's name in the spans.
    pub service: String,
    /// How many new traces are begun.
    pub sample: Sample,
}

/// How many new traces are begun.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// At most this many a second and source; 0 is no limit.
    PerSecond(u64),
    /// This part of them: 0 is none, 1 is all.
    Ratio(f64),
}

/// `[query.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuerySpec {
    /// `NAME` in `[query.NAME]`.
    pub name: Arc<str>,
    /// Where it is served.
    pub path: String,
    /// The database sink whose rows it answers with.
    pub sink: String,
    /// The column that tells which rows are the newest.
    pub order: Option<String>,
    /// Keep answers in Redis.
    pub cache: Option<Cache>,
    /// How long the database may take.
    pub timeout: Duration,
}

/// `query.NAME.cache`
#[derive(Clone, PartialEq, Eq)]
pub struct Cache {
    /// The Redis that keeps the answers.
    pub url: String,
    /// How long an answer is kept.
    pub ttl: Duration,
}

impl fmt::Display for QuerySpec {
    /// What is read where, in a few words without a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GET {}: rows of {}, newest first", self.path, self.sink)?;
        if let Some(order) = &self.order {
            write!(f, " by {order}")?;
        }
        match &self.cache {
            Some(cache) => write!(f, ", kept for {}", units::duration_text(cache.ttl)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}, {:?}", redact(&self.otlp), self.service, self.sample)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {:?}", redact(&self.url), self.ttl)
    }
}

impl Topology {
    /// Reads and checks a file, in the environment of this process.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        Self::load_with(path, &Environment::process()?, Kinds::all())
    }

    /// Reads and checks a file.
    pub fn load_with(path: &Path, env: &Environment, kinds: Kinds) -> Result<Self, Faults> {
        let file = path.display().to_string();
        let text = fs::read(path).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "there is no such file".to_owned(),
                io::ErrorKind::IsADirectory => "is a directory".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            Faults::whole(&file, format!("{why} (a topology file, TOML)"))
        })?;
        let text = String::from_utf8(text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            Faults::whole(&file, format!("line {line} is not UTF-8 (a topology file, TOML)"))
        })?;
        Self::parse(&file, &text, env, kinds)
    }

    /// Checks a file's text. `file` is its name in messages.
    pub fn parse(file: &str, text: &str, env: &Environment, kinds: Kinds) -> Result<Self, Faults> {
        check::check(file, text, env, kinds)
    }

    /// The stream of this name.
    pub fn stream(&self, name: &str) -> Option<&StreamSpec> {
        self.streams.iter().find(|stream| &*stream.name == name)
    }

    /// The sink of this name.
    pub fn sink(&self, name: &str) -> Option<&SinkSpec> {
        self.sinks.iter().find(|sink| &*sink.name == name)
    }

    /// What is wrong with a component's `key` (with the component, where it has none of that name)
    /// for a reason that the file alone does not tell.
    pub fn fault(&self, room: Room, name: &str, key: &str, message: String) -> Faults {
        self.fault_at(&[room.noun(), name, key], message)
    }

    /// The same of what stands at `path`.
    pub fn fault_at(&self, path: &[&str], message: String) -> Faults {
        let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
        let fault = self.places.fault(&path, false, message);
        Faults { file: self.file.display().to_string(), faults: vec![fault] }
    }

    /// What is printed of the warnings: a line each.
    pub fn warnings_text(&self) -> String {
        let file = self.file.display().to_string();
        self.warnings.iter().fold(String::new(), |mut text, warning| {
            let warning =
                Fault { message: format!("warning: {}", warning.message), ..warning.clone() };
            text.push_str(&format!("{}\n", Shown(&file, &warning)));
            text
        })
    }
}

/// The key by which a source is reached over HTTP, if it is: a route, or a trigger.
pub fn needs_http(kind: &'static source::Kind, values: &Values) -> Option<&'static str> {
    let reached = |key: &&crate::spec::Key| {
        matches!(key.ty, Ty::Route)
            || (key.name == "trigger" && values.opt_str("trigger") == Some("http"))
    };
    kind.keys.iter().find(reached).map(|key| key.name)
}

/// Whether a sink is a database, whose rows a query reads back.
pub fn is_database(kind: &sink::Kind) -> bool {
    kind.reader.is_some()
}

/// A path without what changes nothing (`./`, `//`).
fn plain_path(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// Whether a path (or a glob) means this file, as far as the names tell.
fn same_file(pattern: &str, file: &str) -> bool {
    let (pattern, file) = (plain_path(Path::new(pattern)), plain_path(Path::new(file)));
    let glob = || glob::Pattern::new(&pattern.to_string_lossy()).ok();
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    pattern == file || glob().is_some_and(|glob| glob.matches_path_with(&file, options))
}
