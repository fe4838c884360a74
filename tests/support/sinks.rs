//! What the tests of sinks share: events, the sinks under test, and a way to read back what they
//! stored. Each test file uses a part of it.

#![allow(dead_code)]

#[path = "servers.rs"]
pub mod servers;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aqueduct::event::{Delivery, Event, EventId, Origin, Refusal, Sequence, Ticket};
use aqueduct::sink::{KINDS, Sink, SinkSpec};
use aqueduct::spec::{Column, Selector, Site, Value, Values};
use bytes::Bytes;
use servers::Postgres;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqliteConnection};

/// A sink under test. A new one plugs in with an entry in [`SUBJECTS`].
pub struct Subject {
    /// Names it in messages.
    pub name: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its keys, in a directory of its own.
    pub values: fn(&Path) -> Values,
    /// What is there before it is opened for the first time (SQL for a database).
    pub before: &'static str,
    /// Bodies in the order they were stored.
    pub stored: Stored,
    /// A body that it refuses, if there is one.
    pub poison: Option<&'static [u8]>,
    /// It takes any bytes that hold no newline.
    pub any_bytes: bool,
    /// It keeps bodies byte for byte.
    pub exact: bool,
    /// It keeps the order within a batch, whatever the ids are.
    pub in_order: bool,
}

/// How to read back what is stored.
#[derive(Clone, Copy)]
pub enum Stored {
    /// A column of table `t` in `out.db`, by rowid.
    Column(&'static str),
    /// The lines of `out.log`.
    Lines,
    /// What this query finds, as bytes, in the PostgreSQL database that goes with the directory.
    Query(&'static str),
}

const BODY: &str = "SELECT convert_to(body, 'UTF8') FROM t ORDER BY ctid";

/// The sinks that promise to keep each event once.
pub static SUBJECTS: &[Subject] = &[
    Subject {
        name: "file",
        kind: "file",
        values: |directory| values(&[("path", path(directory, "out.log"))]),
        before: "",
        stored: Stored::Lines,
        poison: Some(b"two\nlines"),
        any_bytes: true,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "sqlite, default columns",
        kind: "sqlite",
        values: |directory| sqlite(directory, &[]),
        before: "",
        stored: Stored::Column("data"),
        poison: None,
        any_bytes: true,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "sqlite, columns",
        kind: "sqlite",
        values: |directory| {
            let columns = [("n", "n", "bigint"), ("body", "@body", ""), ("at", "@time", "")];
            sqlite(directory, &[("columns", columns_of(&columns))])
        },
        before: "",
        stored: Stored::Column("body"),
        poison: Some(br#"{"n":"abc"}"#),
        any_bytes: false,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "sqlite, a table with constraints",
        kind: "sqlite",
        values: |directory| {
            let columns = [("id", "@id", ""), ("n", "n", ""), ("body", "@body", "")];
            sqlite(directory, &[("columns", columns_of(&columns))])
        },
        before: "CREATE TABLE t (id BLOB UNIQUE, n INTEGER NOT NULL CHECK (n >= 0), body TEXT)",
        stored: Stored::Column("body"),
        poison: Some(br#"{"n":-1}"#),
        any_bytes: false,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "sqlite, a table without an id column",
        kind: "sqlite",
        values: |directory| {
            let columns = [("n", "n", ""), ("body", "@body", "")];
            sqlite(directory, &[("columns", columns_of(&columns))])
        },
        before: "CREATE TABLE t (n INTEGER NOT NULL, body TEXT)",
        stored: Stored::Column("body"),
        poison: Some(br#"{"x":1}"#),
        any_bytes: false,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "sqlite, upsert",
        kind: "sqlite",
        values: |directory| {
            let columns = [("n", "n", "bigint"), ("body", "@body", "")];
            let more = [
                ("columns", columns_of(&columns)),
                ("mode", Value::Str("upsert".into())),
                ("key", Value::List(vec!["n".into()])),
            ];
            sqlite(directory, &more)
        },
        before: "",
        stored: Stored::Column("body"),
        poison: Some(br#"{"n":null}"#),
        any_bytes: false,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "postgres, default columns",
        kind: "postgres",
        values: |directory| postgres(directory, &[]),
        before: "",
        stored: Stored::Query(
            r#"SELECT convert_to(format('{"n":%s,"text":"%s"}', data->>'n', data->>'text'), 'UTF8')
               FROM t ORDER BY ctid"#,
        ),
        poison: Some(b"\xff"),
        any_bytes: false,
        exact: false,
        in_order: false,
    },
    Subject {
        name: "postgres, columns",
        kind: "postgres",
        values: |directory| {
            let columns = [("n", "n", "bigint"), ("body", "@body", ""), ("at", "@time", "")];
            postgres(directory, &[("columns", columns_of(&columns))])
        },
        before: "",
        stored: Stored::Query(BODY),
        poison: Some(br#"{"n":"abc"}"#),
        any_bytes: false,
        exact: true,
        in_order: false,
    },
    Subject {
        name: "postgres, a table with constraints",
        kind: "postgres",
        values: |directory| {
            let columns = [("id", "@id", ""), ("n", "n", ""), ("body", "@body", "")];
            postgres(directory, &[("columns", columns_of(&columns))])
        },
        before: "CREATE TABLE t (id bytea UNIQUE, n int NOT NULL CHECK (n >= 0), body bytea)",
        stored: Stored::Query("SELECT body FROM t ORDER BY ctid"),
        poison: Some(br#"{"n":-1}"#),
        any_bytes: false,
        exact: true,
        in_order: false,
    },
    Subject {
        name: "postgres, a table without an id column",
        kind: "postgres",
        values: |directory| {
            let columns = [("n", "n", ""), ("body", "@body", "")];
            postgres(directory, &[("columns", columns_of(&columns))])
        },
        before: "CREATE TABLE t (id serial, n int NOT NULL, body text, at timestamptz DEFAULT now())",
        stored: Stored::Query("SELECT convert_to(body, 'UTF8') FROM t ORDER BY id"),
        poison: Some(br#"{"x":1}"#),
        any_bytes: false,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "postgres, upsert",
        kind: "postgres",
        values: |directory| {
            let columns = [("n", "n", "bigint"), ("body", "@body", "")];
            let more = [
                ("columns", columns_of(&columns)),
                ("mode", Value::Str("upsert".into())),
                ("key", Value::List(vec!["n".into()])),
            ];
            postgres(directory, &more)
        },
        before: "",
        stored: Stored::Query(BODY),
        poison: Some(br#"{"n":null}"#),
        any_bytes: false,
        exact: true,
        in_order: true,
    },
    Subject {
        name: "postgres, a type of its own",
        kind: "postgres",
        values: |directory| {
            let columns = [("n", "n", ""), ("body", "@body", ""), ("address", "address", "")];
            postgres(directory, &[("columns", columns_of(&columns))])
        },
        before: "CREATE TABLE t (event_id text PRIMARY KEY, n int, body text, address inet)",
        stored: Stored::Query(BODY),
        poison: Some(br#"{"n":1,"address":"nowhere"}"#),
        any_bytes: false,
        exact: true,
        in_order: false,
    },
];

impl Subject {
    /// The one of this name.
    pub fn named(name: &str) -> &'static Subject {
        SUBJECTS.iter().find(|subject| subject.name == name).expect("a subject of that name")
    }

    /// What has to be there before it is opened for the first time.
    pub async fn prepare(&self, directory: &Path) {
        match self.kind {
            // Also where it is empty: this process is the one that has the server.
            "postgres" => pg_sql(directory, self.before).await,
            _ if self.before.is_empty() => {}
            _ => sql(&directory.join("out.db"), self.before).await,
        }
    }

    /// Opens it.
    pub async fn open(&self, directory: &Path) -> Result<Box<dyn Sink>> {
        open(self.kind, (self.values)(directory)).await
    }

    /// The bodies it has stored, in the order they were stored.
    pub async fn stored(&self, directory: &Path) -> Vec<Vec<u8>> {
        match self.stored {
            Stored::Lines => lines(&directory.join("out.log")),
            Stored::Query(query) => {
                let mut database = pg_connect(directory).await;
                sqlx::query_scalar(query).fetch_all(&mut database).await.unwrap()
            }
            Stored::Column(column) => {
                let query = format!("SELECT CAST({column} AS BLOB) FROM t ORDER BY rowid");
                let mut database = connect(&directory.join("out.db")).await;
                let query = sqlx::query_scalar(AssertSqlSafe(query));
                query.fetch_all(&mut database).await.unwrap()
            }
        }
    }
}

/// The lines of a file, without their newlines. A last line without one is a failure.
pub fn lines(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "the file ends within a line");
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| line[..line.len() - 1].to_vec()).collect()
}

/// Opens a sink of this kind.
pub async fn open(kind: &str, values: Values) -> Result<Box<dyn Sink>> {
    let kind = KINDS.iter().find(|it| it.name == kind).expect("a kind of that name");
    assert_eq!((kind.check)(&values), []);
    let spec = SinkSpec { name: "out".into(), kind, values };
    let site =
        Site { data_dir: "data".into(), instance: "test".into(), until_idle: false, runs: true };
    (kind.open)(spec, site).await
}

/// Stores a batch.
pub async fn store(sink: &mut Box<dyn Sink>, batch: &[Delivery]) -> Result<Vec<Refusal>> {
    sink.store(&batch.iter().collect::<Vec<_>>()).await
}

/// Values of these keys.
pub fn values(pairs: &[(&'static str, Value)]) -> Values {
    let mut values = Values::default();
    for (name, value) in pairs {
        values.set(name, value.clone());
    }
    values
}

/// The keys of a `sqlite` sink into table `t` of `out.db`, and more.
pub fn sqlite(directory: &Path, more: &[(&'static str, Value)]) -> Values {
    let mut all = values(&[
        ("path", path(directory, "out.db")),
        ("table", Value::Str("t".into())),
        ("create", Value::Bool(true)),
        ("mode", Value::Str("insert".into())),
        ("seen", Value::Duration(Duration::from_secs(3600))),
    ]);
    for (name, value) in more {
        all.set(name, value.clone());
    }
    all
}

/// The keys of a `postgres` sink into table `t` of the database that goes with the directory.
pub fn postgres(directory: &Path, more: &[(&'static str, Value)]) -> Values {
    let mut all = values(&[
        ("url", Value::Str(pg_url(directory))),
        ("table", Value::Str("t".into())),
        ("connections", Value::Int(2)),
        ("create", Value::Bool(true)),
        ("mode", Value::Str("insert".into())),
        ("seen", Value::Duration(Duration::from_secs(3600))),
    ]);
    for (name, value) in more {
        all.set(name, value.clone());
    }
    all
}

/// The database that goes with a directory, the same in each process of a test. The directory
/// says which, in `out.url`; without that it is a new one.
pub fn pg_url(directory: &Path) -> String {
    let path = directory.join("out.url");
    std::fs::read_to_string(&path).unwrap_or_else(|_| {
        let url = Postgres::shared().database();
        std::fs::write(path, &url).unwrap();
        url
    })
}

/// A connection to look at that database with.
pub async fn pg_connect(directory: &Path) -> PgConnection {
    PgConnection::connect(&pg_url(directory)).await.unwrap()
}

/// Runs SQL in that database.
pub async fn pg_sql(directory: &Path, sql: &str) {
    let mut database = pg_connect(directory).await;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut database).await.unwrap();
}

/// A path as a value.
pub fn path(directory: &Path, name: &str) -> Value {
    Value::Str(directory.join(name).to_str().unwrap().into())
}

/// Columns by (name, from, type); the empty type is none.
pub fn columns_of(columns: &[(&str, &str, &str)]) -> Value {
    let column = |(name, from, ty): &(&str, &str, &str)| Column {
        name: name.to_string(),
        from: match Selector::NAMED.iter().find(|(known, _)| known == from) {
            Some((_, selector)) => selector.clone(),
            None => Selector::Member(from.split('.').map(String::from).collect()),
        },
        ty: (!ty.is_empty()).then(|| ty.to_string()),
    };
    Value::Columns(columns.iter().map(column).collect())
}

/// A connection to look at a database with.
pub async fn connect(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    options.connect().await.unwrap()
}

/// Runs SQL in a database.
pub async fn sql(path: &Path, sql: &str) {
    let mut database = connect(path).await;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut database).await.unwrap();
}

/// An event in a member's hands.
pub fn delivery(id: EventId, body: impl Into<Bytes>) -> Delivery {
    let event = Event::new(id, body.into(), Arc::from("input"), 1_700_000_000_000_000);
    let ticket = Ticket { shard: 0, hold: 0, offset: 0 };
    Delivery { event, stream: Arc::from("lines"), ticket, deliveries: 1, attempts: 0, fence: None }
}

/// Event `n` of a run that counts.
pub fn counted(run: &str, n: u64, body: impl Into<Bytes>) -> Delivery {
    let origin = Origin::new(Sequence::Count, &[run.as_bytes()]);
    delivery(EventId::new(origin, n, 7), body)
}

/// `count` events with bodies of their own, `{"n":…}`: two thirds are lines of a file, the others
/// counted or known by their content.
pub fn events(count: usize) -> Vec<Delivery> {
    let mut offset = 0;
    let file = Origin::new(Sequence::Bytes, &[b"lines"]);
    (0..count)
        .map(|n| {
            let body = format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(n * 7 % 41));
            match n % 6 {
                4 => counted("run", n as u64 / 6, body),
                5 => delivery(EventId::hashed(&[body.as_bytes()]), body),
                _ => {
                    let guard = aqueduct::event::hash(body.as_bytes());
                    let id = EventId::new(file, offset, guard);
                    offset += body.len() as u64 + 1;
                    delivery(id, body)
                }
            }
        })
        .collect()
}

/// The bodies of events.
pub fn bodies(events: &[Delivery]) -> Vec<Vec<u8>> {
    events.iter().map(|delivery| delivery.event.body.to_vec()).collect()
}

/// Fails unless `stored` is each of `expected` once, in any order.
pub fn assert_each_once(name: &str, stored: Vec<Vec<u8>>, expected: &[Delivery]) {
    let mut surplus: HashMap<Vec<u8>, i64> = HashMap::new();
    for delivery in expected {
        *surplus.entry(delivery.event.body.to_vec()).or_default() -= 1;
    }
    let count = stored.len();
    for body in stored {
        *surplus.entry(body).or_default() += 1;
    }
    let some = |sign: i64| -> Vec<_> {
        let wrong = surplus.iter().filter(|(_, surplus)| **surplus * sign > 0).take(3);
        wrong.map(|(body, _)| String::from_utf8_lossy(body)).collect()
    };
    let (lost, more) = (some(-1), some(1));
    assert!(
        lost.is_empty() && more.is_empty(),
        "{name}: {count} stored of {}; lost {lost:?}, doubled or strange {more:?}",
        expected.len()
    );
}

/// The seed of a test that draws at random: `AQUEDUCT_SEED`, or a new one; printed.
pub fn seeded(test: &str) -> fastrand::Rng {
    let seed = std::env::var("AQUEDUCT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("{test}: AQUEDUCT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
