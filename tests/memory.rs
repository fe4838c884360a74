//! Memory does not grow with the number of events, nor with a sink that stands still.
//!
//! `scripts/soak memory` runs the long form: 1 M events against 10 M.

#[path = "support/process.rs"]
mod process;

use std::time::Duration;

use process::{Place, eventually, reaches, scale};

/// What ten times the events may cost beyond a tenth of them: less than an id for each. How many
/// batches meet at the peak is up to the machine.
const GROWTH_KIB_MAX: u64 = 16 * 1024;

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..EVENTS"
body = "event number {n} with some words behind it, as log lines have"

[stream.numbers]

[group.writer]
from = "numbers"
to = "db"
members = 2

[group.lines]
from = "numbers"
to = "out"

[sink.db]
kind = "sqlite"
path = "out.db"
table = "numbers"
columns = { event_id = "@id", line = "@body" }

[sink.out]
kind = "file"
path = "out.log"
"#;

fn place(events: u64) -> Place {
    Place::new(&TOPOLOGY.replace("EVENTS", &events.to_string()))
}

/// The peak after `events` events went all the way.
fn peak_kib(events: u64) -> u64 {
    let place = place(events);
    let running = place.start();
    reaches("events stored", 2.0 * events as f64, || running.metric("aqueduct_events_stored", ""));
    let peak = running.peak_kib();
    assert!(running.stop().success());
    assert_eq!(place.count("out.db", "SELECT count(*) FROM numbers"), events as i64);
    peak
}

/// The peak while the database is locked by somebody else and events pile up in the stream.
fn peak_stalled_kib(events: u64) -> u64 {
    let place = place(events);
    std::fs::create_dir_all(place.path("data")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let running = place.start();
    eventually("the table", || {
        place.path("out.db").exists() && running.metric("aqueduct_events_stored", "writer") > 0.0
    });
    runtime.block_on(async {
        use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
        let options = SqliteConnectOptions::new()
            .filename(place.path("out.db"))
            .busy_timeout(Duration::from_secs(20));
        let mut lock = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
        reaches("everything published, and stored in the file", events as f64, || {
            running.metric("aqueduct_events_stored", "lines")
        });
        lock.close().await.unwrap();
    });
    reaches("events stored", 2.0 * events as f64, || running.metric("aqueduct_events_stored", ""));
    let peak = running.peak_kib();
    assert_eq!(place.count("out.db", "SELECT count(*) FROM numbers"), events as i64);
    peak
}

#[test]
fn the_peak_does_not_follow_the_number_of_events() {
    let few = scale("AQUEDUCT_EVENTS", 200_000);
    let (small, large) = (peak_kib(few), peak_kib(10 * few));
    println!("{few} events: {small} KiB at the peak; {}: {large} KiB", 10 * few);
    assert!(large <= small + GROWTH_KIB_MAX, "{small} KiB grew to {large} KiB");
}

#[test]
fn nor_does_it_while_a_sink_stands_still() {
    let few = scale("AQUEDUCT_EVENTS", 200_000);
    let (small, stalled) = (peak_kib(few), peak_stalled_kib(10 * few));
    println!("{few} events: {small} KiB at the peak; {} stalled: {stalled} KiB", 10 * few);
    assert!(stalled <= small + GROWTH_KIB_MAX, "{small} KiB grew to {stalled} KiB");
}
