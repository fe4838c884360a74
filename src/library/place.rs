//! Where a stream is: a topology of one stream, written by a program instead of a person. It goes
//! through the same checks, so a key means here what it means in the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use toml::{Table, Value};

use super::group::Group;
use super::{Error, Producer, handler};
use crate::spec::text::{did_you_mean, listed};
use crate::spec::{Site, Ty};
use crate::stream::{self, Backend, GroupSpec, StreamSpec, Writer};
use crate::topology::{Environment, Kinds, Topology};

/// Stands in messages where a file's name would.
const FILE: &str = "program";
/// The key that holds a backend's address.
const URL: &str = "url";
/// The key that holds an embedded stream's file.
const PATH: &str = "path";

/// Says where a stream is and how it is kept. Made by [`Stream::at`]; nothing is checked before
/// [`open`](Self::open).
#[derive(Clone)]
#[must_use = "nothing is opened before `open`"]
pub struct StreamBuilder {
    urls: Vec<String>,
    name: Option<String>,
    data_dir: Option<String>,
    keys: Table,
}

impl StreamBuilder {
    /// The stream's name, which has to be given: a lower-case letter, then up to 62 lower-case
    /// letters, digits, `-` or `_`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many shards it has; 1 where this is not set. Everybody who opens the stream has to say
    /// the same: opening it errs where it has another number, which cannot change while events
    /// that went by it are there (with Redis and RabbitMQ: ever).
    pub fn shards(self, shards: u32) -> Self {
        self.set("shards", shards)
    }

    /// Sets any key that `[stream.NAME]` may have in a topology file, as it would stand there
    /// between quotes: `.set("retain", "7d")`, `.set("max_backlog", 100_000)`,
    /// `.set("schema", "orders")`. `aqueduct schema` prints them all.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.keys.insert(key.to_owned(), quoted(&value.to_string()));
        self
    }

    /// What `runtime.data_dir` is in the file: where a RabbitMQ stream keeps what the broker
    /// cannot. `data` where this is not set.
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.data_dir = Some(path.as_ref().to_string_lossy().into_owned());
        self
    }

    /// Checks everything and connects to the backend. What the stream needs there is created.
    ///
    /// Errs with [`Error::Invalid`] where a key is wrong, and with [`Error::Away`] where the
    /// backend cannot be reached.
    pub async fn open(self) -> Result<Stream, Error> {
        let name = self.name.clone().ok_or_else(|| {
            let text = "the stream has no name (`Stream::at(URL).name(\"orders\")`)";
            Error::Invalid(text.to_owned())
        })?;
        let place = Place::new(name, self);
        let Declared { stream, site, .. } = place.declare(Role::Look)?;
        let shards = stream.shards;
        let backend = (stream.kind.open)(stream, site).await;
        let backend = backend.map_err(|error| place.cannot_open(error))?;
        Ok(Stream { place: Arc::new(place), backend, shards })
    }
}

impl std::fmt::Debug for StreamBuilder {
    /// Without the URLs, whose passwords are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamBuilder({})", self.name.as_deref().unwrap_or("without a name"))
    }
}

/// A durable stream, opened: producers write it, and the consumers of its groups read it. A clone
/// is the same stream.
///
/// It works in any Tokio runtime with time and I/O enabled, of one thread or many. What a process
/// opens at one backend shares connections, which live in the runtime that made them: use one
/// runtime for all of it.
#[derive(Clone)]
pub struct Stream {
    place: Arc<Place>,
    backend: Arc<dyn Backend>,
    shards: u32,
}

impl Stream {
    /// A stream at this URL, which tells the backend:
    ///
    /// - `embedded:PATH`: a SQLite file on this machine, no server;
    /// - `redis://…`, `rediss://…`: Redis Streams ([`at_cluster`](Self::at_cluster) for several
    ///   nodes);
    /// - `postgres://…`: a schema of a PostgreSQL database;
    /// - `amqp://…`, `amqps://…`: RabbitMQ.
    pub fn at(url: impl Into<String>) -> StreamBuilder {
        Self::at_cluster([url])
    }

    /// A stream in the Redis Cluster that these URLs are some nodes of.
    pub fn at_cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> StreamBuilder {
        StreamBuilder {
            urls: urls.into_iter().map(Into::into).collect(),
            name: None,
            data_dir: None,
            keys: Table::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// How many shards it has, as it was opened.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// A producer, which files its events' ids under `origin`: the name of what it is part of
    /// (`"shop"`). Events carry it as their source.
    ///
    /// RabbitMQ keeps nothing that no group wants: there, [create](Group::create) a group first. A
    /// RabbitMQ stream's `max_backlog` counts the groups that this program asked for before.
    pub async fn producer(&self, origin: &str) -> Result<Producer, Error> {
        Producer::open(self.clone(), origin).await
    }

    /// The consumer group of this name: it has each event once, whichever of its consumers works
    /// on it. Nothing happens before [`Group::consumer`] or [`Group::create`].
    pub fn group(&self, name: impl Into<String>) -> Group {
        Group::new(self.clone(), name.into())
    }

    /// Where the backend's own settings promise less than that what is published stays: what may
    /// be lost, and which setting would be right.
    pub async fn weakness(&self) -> Option<String> {
        self.backend.weakness().await
    }

    /// What a group of it is declared with.
    pub(super) fn declare(&self, group: &str, keys: &Table) -> Result<Declared, Error> {
        let declared = self.place.declare(Role::Read(group, keys))?;
        self.place.groups().insert(group.to_owned(), keys.clone());
        Ok(declared)
    }

    /// A hand to write with, for the first time.
    pub(super) async fn writer(&self, origin: &str) -> Result<Box<dyn Writer>, Error> {
        self.place.declare(Role::Write(origin))?;
        let writer = self.writer_again(origin).await;
        writer.map_err(|error| self.place.cannot_open(error))
    }

    /// Another hand to write with.
    pub(super) async fn writer_again(&self, origin: &str) -> anyhow::Result<Box<dyn Writer>> {
        self.place.wrote.store(true, Ordering::Relaxed);
        let Declared { stream, site, .. } = self.place.declare(Role::Write(origin))?;
        (stream.kind.open)(stream, site).await?.writer().await
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({})", self.place.name)
    }
}

struct Place {
    name: String,
    settings: StreamBuilder,
    /// This program writes the stream: then it is the one that drops what every group has acked,
    /// as the default of `retain` has it.
    wrote: AtomicBool,
    /// The groups that this program has asked for, and their keys: its producers know them, as
    /// those of a file know the file's.
    groups: Mutex<BTreeMap<String, Table>>,
}

/// What a stream is opened for.
enum Role<'a> {
    Look,
    /// By a producer of this origin.
    Write(&'a str),
    /// By a consumer of this group, with these keys.
    Read(&'a str, &'a Table),
}

/// A stream, checked.
pub(super) struct Declared {
    pub stream: StreamSpec,
    pub site: Site,
    /// The group that it was declared with.
    pub group: Option<GroupSpec>,
}

impl Place {
    fn new(name: String, settings: StreamBuilder) -> Self {
        Self { name, settings, wrote: AtomicBool::new(false), groups: Mutex::default() }
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<String, Table>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cannot_open(&self, error: anyhow::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::away(format!("open stream {}", self.name), error),
        }
    }

    /// Writes the topology that the role would be in a file, and checks it.
    fn declare(&self, role: Role<'_>) -> Result<Declared, Error> {
        let name = &self.name;
        let mut stream = self.settings.keys.clone();
        address(&self.settings.urls, &mut stream)?;
        let mut file = Table::new();
        let mut put = |table: &str, name: &str, component: Table| {
            let table = file.entry(table).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(table) = table {
                table.insert(name.to_owned(), Value::Table(component));
            }
        };
        put("stream", name, stream);
        let origin = match role {
            Role::Write(origin) => Some(origin),
            _ if self.wrote.load(Ordering::Relaxed) => Some("program"),
            _ => None,
        };
        if let Some(origin) = origin {
            let keys = [("kind", "publisher"), ("to", name), ("origin", origin)];
            put("source", "producer", table(&keys));
        }
        let groups = match role {
            Role::Look => BTreeMap::new(),
            Role::Write(_) => self.groups().clone(),
            Role::Read(group, keys) => BTreeMap::from([(group.to_owned(), keys.clone())]),
        };
        // A sink and a stream cannot share a name.
        let sink = if name == "handler" { "consumer" } else { "handler" };
        for (group, mut keys) in groups {
            keys.extend(table(&[("from", name), ("to", sink)]));
            put("group", &group, keys);
            put("sink", sink, table(&[("kind", handler::KIND.name)]));
        }
        if let Some(data_dir) = &self.settings.data_dir {
            file.insert("runtime".into(), Value::Table(table(&[("data_dir", data_dir)])));
        }
        let env = Environment::default();
        let kinds = Kinds { sinks: handler::KINDS, ..Kinds::all() };
        let topology = Topology::parse(FILE, &file.to_string(), &env, kinds);
        let mut topology = topology.map_err(|faults| {
            let messages = faults.faults.into_iter().map(|fault| fault.message);
            Error::Invalid(messages.collect::<Vec<_>>().join("; "))
        })?;
        let site = Site {
            data_dir: topology.runtime.data_dir,
            instance: topology.runtime.instance,
            until_idle: false,
            runs: true,
        };
        let stream = topology.streams.pop().context("no stream was declared");
        let stream = stream.map_err(|error| self.cannot_open(error))?;
        Ok(Declared { stream, site, group: topology.groups.pop() })
    }
}

/// The stream of this name at a URL, as a topology file of it alone would have it, and this
/// process.
pub(crate) fn spec_at(url: &str, name: &str) -> Result<(StreamSpec, Site), Error> {
    let place = Place::new(name.to_owned(), Stream::at(url).name(name));
    place.declare(Role::Look).map(|Declared { stream, site, .. }| (stream, site))
}

/// Text as a file's value: with nothing in it that a file's variables could take the place of.
pub(super) fn quoted(text: &str) -> Value {
    Value::String(text.replace("${", "$${"))
}

fn table(keys: &[(&str, &str)]) -> Table {
    keys.iter().map(|(key, value)| ((*key).to_owned(), quoted(value))).collect()
}

/// Sets the keys that URLs stand for: the kind, and its address.
fn address(urls: &[String], keys: &mut Table) -> Result<(), Error> {
    let first = urls.first().map(String::as_str).unwrap_or_default();
    let (scheme, rest) = first.split_once(':').unwrap_or((first, ""));
    let by_scheme = |kind: &&&stream::Kind| schemes(kind).contains(&scheme);
    if let Some(kind) = stream::KINDS.iter().find(by_scheme) {
        keys.insert("kind".into(), quoted(kind.name));
        let url = match urls {
            [url] => quoted(url),
            urls => Value::Array(urls.iter().map(|url| quoted(url)).collect()),
        };
        keys.insert(URL.into(), url);
        return Ok(());
    }
    let by_path = |kind: &&&stream::Kind| kind.name == scheme && is_path(kind);
    if let (Some(kind), [_]) = (stream::KINDS.iter().find(by_path), urls) {
        keys.insert("kind".into(), quoted(kind.name));
        keys.insert(PATH.into(), quoted(rest));
        return Ok(());
    }
    let known = || stream::KINDS.iter().flat_map(|kind| schemes(kind).iter().copied());
    let files = stream::KINDS.iter().filter(|kind| is_path(kind)).map(|kind| kind.name);
    let starts: Vec<String> = files
        .clone()
        .map(|name| format!("{name}:PATH"))
        .chain(known().map(|scheme| format!("{scheme}://")))
        .collect();
    // Not the URL itself: what stands in a wrong one may be a secret.
    Err(Error::Invalid(format!(
        "no stream can be at such a URL ({}){}",
        listed(starts.iter().map(String::as_str), "or"),
        did_you_mean(scheme, known().chain(files))
    )))
}

fn schemes(kind: &stream::Kind) -> &'static [&'static str] {
    let url = kind.keys.iter().find(|key| key.name == URL).map(|key| key.ty);
    match url {
        Some(Ty::Url(schemes) | Ty::Urls(schemes)) => schemes,
        _ => &[],
    }
}

fn is_path(kind: &stream::Kind) -> bool {
    kind.keys.iter().any(|key| key.name == PATH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value as Checked;
    use crate::stream::Retain;

    fn place(builder: StreamBuilder) -> Place {
        let name = builder.name.clone().unwrap();
        Place::new(name, builder)
    }

    fn declare(builder: StreamBuilder, role: Role<'_>) -> Result<Declared, String> {
        place(builder).declare(role).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_is_a_kind_and_its_address() {
        for (url, kind, key, value) in [
            ("embedded:a/b.db", "embedded", "path", "a/b.db"),
            ("embedded:${HOME}/$${x", "embedded", "path", "${HOME}/$${x"),
            ("amqps://u:p@h/v", "rabbitmq", "url", "amqps://u:p@h/v"),
            ("postgresql://h/db", "postgres", "url", "postgresql://h/db"),
        ] {
            let Declared { stream, group, .. } =
                declare(Stream::at(url).name("orders"), Role::Look).unwrap();
            assert_eq!((stream.kind.name, stream.values.str(key)), (kind, value));
            assert_eq!((&*stream.name, stream.shards, group), ("orders", 1, None));
        }
        let cluster = Stream::at_cluster(["redis://a:1", "redis://b:2"]).name("orders").shards(8);
        let stream = declare(cluster, Role::Look).unwrap().stream;
        assert_eq!(stream.values.list("url"), ["redis://a:1", "redis://b:2"]);
        assert_eq!(stream.shards, 8);
    }

    #[test]
    fn keys_are_those_of_the_file() {
        let orders = || Stream::at("embedded:s.db").name("orders").set("max_backlog", 7);
        assert_eq!(declare(orders(), Role::Look).unwrap().stream.retain, Retain::Forever);
        let written = declare(orders(), Role::Write("shop")).unwrap().stream;
        assert_eq!((written.retain, written.max_backlog), (Retain::Acked, 7));
        let keys = table(&[("lease", "5s"), ("attempts", "2")]);
        let read = declare(orders(), Role::Read("billing", &keys)).unwrap();
        let group = read.group.unwrap();
        assert_eq!((group.lease.as_secs(), group.attempts, group.batch), (5, 2, 1000));
        assert_eq!((read.stream.retain, &read.stream.groups[..]), (Retain::Forever, &[group][..]));
        let amqp = || Stream::at("amqp://h").name("orders");
        let group = |keys: &[(&str, &str)]| declare(amqp(), Role::Read("billing", &table(keys)));
        let spec = group(&[("queue", "bills")]).unwrap().group.unwrap();
        assert_eq!(spec.values.get("queue"), Some(&Checked::Str("bills".into())));
        assert!(spec.latest);
        assert!(group(&[("start", "earliest")]).err().unwrap().contains("keeps no history"));
    }

    #[test]
    fn what_is_wrong_is_told_and_no_secret_is() {
        let wrong = |builder, role| declare(builder, role).err().unwrap();
        for (url, told) in [
            ("redsi://u:hunter2@h", "did you mean `redis`?"),
            ("hunter2", "`embedded:PATH`, `redis://`"),
            ("redis://:hunter2@", "has no host"),
            ("embedded:", "is empty"),
        ] {
            let text = wrong(Stream::at(url).name("orders"), Role::Look);
            assert!(text.contains(told) && !text.contains("hunter2"), "{text}");
        }
        let orders = || Stream::at("embedded:s.db").name("orders");
        let both = wrong(orders().shards(0).set("retian", "7d"), Role::Look);
        assert!(both.contains("`shards = \"0\"` is out of range"), "{both}");
        assert!(both.contains("did you mean `retain`?"), "{both}");
        assert!(wrong(orders().name("Orders"), Role::Look).contains("did you mean `orders`?"));
        let keys = table(&[("lease", "1ms")]);
        assert!(wrong(orders(), Role::Read("billing", &keys)).contains("is too short"));
        assert!(wrong(orders(), Role::Write("")).contains("is empty"));
    }
}
