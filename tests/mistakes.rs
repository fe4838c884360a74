//! What is wrong with a server or with what the topology says of it: named by component and
//! address, with the way out and without a secret, in the log and in `/healthz`.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::sync::OnceLock;

use process::{Place, Running, eventually, free_port};
use servers::{Postgres, Redis};

const SECRET: &str = "hunter2";

/// The shared PostgreSQL, which asks the user `locked` for the password `sesame`.
fn postgres() -> &'static Postgres {
    static READY: OnceLock<()> = OnceLock::new();
    let server = Postgres::shared();
    READY.get_or_init(|| {
        server.psql("postgres", "CREATE ROLE locked LOGIN PASSWORD 'sesame'");
        let hba = server.psql("postgres", "SHOW hba_file");
        let rules = std::fs::read_to_string(&hba).unwrap();
        let asked = format!("host all locked 127.0.0.1/32 scram-sha-256\n{rules}");
        std::fs::write(&hba, asked).unwrap();
        server.psql("postgres", "SELECT pg_reload_conf()");
    });
    server
}

/// Runs with a mistake, until `/healthz` says all of `wanted` of `component`; then the log has to
/// say it too. The same when an edit brings the mistake into `sound`, and takes it out again.
fn says(what: &str, topology: &str, sound: &str, component: &str, wanted: &[&str]) {
    let place = Place::new(topology);
    let running = place.start();
    shown(what, &running, component, wanted);
    assert!(running.stop().success(), "{what}");

    let what = format!("{what}, by an edit");
    let place = Place::new(sound);
    let running = place.start();
    let works = || running.get("/healthz").0 == 200;
    eventually(&what, || works() && running.metric("aqueduct_events_stored_total", "") == 10.0);
    place.write_topology(topology);
    shown(&what, &running, component, wanted);
    place.write_topology(sound);
    eventually(&format!("{what}: mended"), works);
    assert!(running.stop().success(), "{what}");
}

fn shown(what: &str, running: &Running, component: &str, wanted: &[&str]) {
    let named = |health: &str| {
        let parsed: serde_json::Value = serde_json::from_str(health).unwrap_or_default();
        health.contains(component) && parsed.is_object()
    };
    eventually(what, || {
        let (status, health) = running.get("/healthz");
        status == 503 && named(&health) && wanted.iter().all(|part| health.contains(part))
    });
    let health = running.get("/healthz").1;
    assert!(health.contains('('), "{what}: no way out in {health}");
    logged(what, running, component, wanted);
    assert!(!health.contains(SECRET), "{what}: a secret in {health}");
}

fn logged(what: &str, running: &Running, component: &str, wanted: &[&str]) {
    let says = |line: &str| line.contains(component) && wanted.iter().all(|it| line.contains(it));
    eventually(&format!("{what}: a line of the log that says it"), || {
        running.log().lines().any(says)
    });
    assert!(!running.log().contains(SECRET), "{what}: a secret in {}", running.log());
}

/// A sink that is meant to go wrong.
fn sink_says(what: &str, url: &str, more: &str, wanted: &[&str]) {
    let with = |sink: &str| {
        format!(
            r#"
[runtime]
data_dir = "data"
[http]
listen = "127.0.0.1:{{port}}"
[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..10"
body = {{ number = "{{n}}" }}
[stream.numbers]
[group.writer]
from = "numbers"
to = "db"
[sink.db]
{sink}
"#
        )
    };
    let wrong = format!("kind = \"postgres\"\nurl = \"{url}\"\ntable = \"numbers\"\n{more}");
    let sound = "kind = \"file\"\npath = \"out.log\"";
    says(what, &with(&wrong), &with(sound), "sink.db", wanted);
}

#[test]
fn of_a_postgres_sink() {
    let server = postgres();
    let url = server.database();
    let (host, database) = url.rsplit_once('/').unwrap();
    let address = format!("127.0.0.1:{}", server.port);
    let address = address.as_str();
    server.psql(database, "CREATE TABLE numbers(id serial PRIMARY KEY, number integer)");

    let wrong = format!("postgres://locked:{SECRET}@{address}/{database}");
    sink_says("a wrong password", &wrong, "", &[address, "password", "url"]);
    let nowhere = format!("postgres://postgres:{SECRET}@nowhere.invalid:5432/{database}");
    sink_says("a wrong host", &nowhere, "", &["nowhere.invalid:5432", "url"]);
    let closed = format!("127.0.0.1:{}", free_port());
    let url = format!("postgres://postgres:{SECRET}@{closed}/{database}");
    sink_says("nobody there", &url, "", &[&closed, "refused", "url"]);
    let other = format!("{host}/nosuch").replace("postgres@", &format!("postgres:{SECRET}@"));
    sink_says("no such database", &other, "", &[address, "nosuch", "create"]);
    let url = format!("postgres://postgres:{SECRET}@{address}/{database}?sslmode=require");
    sink_says("TLS refused", &url, "", &[address, "sslmode"]);
    let url = format!("postgres://postgres:{SECRET}@{address}/{database}");
    let missing = "columns = { number = \"number\", colour = \"colour\" }";
    sink_says("no such column", &url, missing, &[address, "numbers", "colour"]);
    server.psql(database, "DROP TABLE numbers");
    sink_says("no such table", &url, "create = false", &[address, "numbers", "create"]);
}

/// A stream that is meant to go wrong.
fn stream_says(what: &str, url: &str, wanted: &[&str]) {
    let with = |stream: &str| {
        format!(
            r#"
[runtime]
data_dir = "data"
[http]
listen = "127.0.0.1:{{port}}"
[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..10"
[stream.numbers]
{stream}
[group.writer]
from = "numbers"
to = "out"
[sink.out]
kind = "file"
path = "out.log"
"#
        )
    };
    let wrong = format!("kind = \"redis\"\nurl = \"{url}\"");
    says(what, &with(&wrong), &with(""), "stream.numbers", wanted);
}

#[test]
fn of_a_redis_stream() {
    let server = Redis::start_with(&["--requirepass", "sesame"]);
    let address = format!("127.0.0.1:{}", server.port);
    let address = address.as_str();
    let wrong = format!("redis://:{SECRET}@{address}");
    stream_says("a wrong password", &wrong, &[address, "password", "url"]);
    let none = format!("redis://{address}");
    stream_says("no password", &none, &[address, "password", "url"]);
    let nowhere = format!("redis://:{SECRET}@nowhere.invalid:6379");
    stream_says("a wrong host", &nowhere, &["nowhere.invalid:6379", "url"]);
    let closed = format!("127.0.0.1:{}", free_port());
    let url = format!("redis://:{SECRET}@{closed}");
    stream_says("nobody there", &url, &[&closed, "url"]);
    let tls = format!("rediss://:{SECRET}@{address}");
    stream_says("TLS refused", &tls, &[address, "TLS"]);
}
