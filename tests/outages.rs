//! PostgreSQL goes away under load: said in `/healthz`, no event's fault, and no memory's.
//!
//! `scripts/soak outage` leaves it away for a minute.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::time::{Duration, Instant};

use process::{Place, eventually, scale};
use servers::{Postgres, Redis};

/// What the peak may grow by while the database is away.
const GROWTH_KIB_MAX: u64 = 16 * 1024;

/// With a single attempt, any that was spent makes a dead letter.
const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..EVENTS"
rate = "20000/s"
body = { number = "{n}", text = "some words that make it as long as a line of a log" }

[stream.numbers]
STREAM

[group.writer]
from = "numbers"
to = "db"
members = 2
lease = "2s"
attempts = 1

[sink.db]
kind = "postgres"
url = "POSTGRES"
table = "numbers"
columns = { event_id = "@id", number = { from = "number", type = "bigint" } }
"#;

fn goes_away(stream: &str) {
    let outage = Duration::from_secs(scale("AQUEDUCT_OUTAGE_S", 4));
    let events = 20_000 * (outage.as_secs() + 4);
    let mut postgres = Postgres::start();
    let url = postgres.database();
    let topology = TOPOLOGY
        .replace("EVENTS", &events.to_string())
        .replace("STREAM", stream)
        .replace("POSTGRES", &url);
    let place = Place::new(&topology);
    let running = place.start();
    let stored = || running.metric("aqueduct_events_stored", "");
    eventually("load", || stored() > 30_000.0);
    let before = running.peak_kib();

    postgres.kill();
    let began = Instant::now();
    let mut said = String::new();
    eventually("a word on the sink", || {
        let (status, health) = running.get("/healthz");
        said = health;
        status == 503 && said.contains("sink.db")
    });
    let noticed = began.elapsed();
    assert!(noticed < Duration::from_secs(5), "noticed after {noticed:?}");
    assert!(said.contains(&format!("127.0.0.1:{}", postgres.port)), "where? {said}");
    assert!(said.contains("refused") || said.contains("lost"), "why? {said}");
    while began.elapsed() < outage {
        assert_eq!(running.get("/healthz").0, 503);
        assert_eq!(running.get("/livez").0, 200);
        std::thread::sleep(Duration::from_millis(200));
    }
    let peak = running.peak_kib();
    let published = running.metric("aqueduct_events_published", "");
    assert!(published > stored() + 10_000.0, "the source went on: {published}");

    postgres.up();
    let healed = Instant::now();
    let then = stored();
    eventually("the flow", || stored() > then);
    let recovery = healed.elapsed();
    eventually("health", || running.get("/healthz").0 == 200);
    let deadline = Instant::now() + Duration::from_secs(60) + outage;
    while stored() < events as f64 {
        assert!(Instant::now() < deadline, "stored {} of {events}", stored());
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "away for {outage:?}: noticed after {noticed:?}, flowed {recovery:?} after it was back; \
         peak {before} KiB before, {peak} KiB while it was away"
    );
    assert!(recovery < Duration::from_secs(10), "{recovery:?}");
    assert!(peak < before + GROWTH_KIB_MAX, "{before} KiB grew to {peak} KiB");
    for metric in ["aqueduct_dead_letters", "aqueduct_events_refused"] {
        assert_eq!(running.metric(metric, ""), 0.0, "{metric}");
    }
    assert!(running.stop().success());
    let database = url.rsplit_once('/').unwrap().1;
    let rows = postgres.psql(database, "SELECT count(*), count(DISTINCT number) FROM numbers");
    assert_eq!(rows, format!("{events}|{events}"));
    assert_eq!(place.done(&["dead", "list", "topology.toml", "numbers"]).stdout, "");
}

#[test]
fn behind_redis() {
    let redis = Redis::start();
    goes_away(&format!("kind = \"redis\"\nurl = \"{}\"", redis.url()));
}

#[test]
fn behind_the_embedded_stream() {
    goes_away("");
}
