//! A panic in any actor restarts that actor and nothing else, and no event notices.
#![cfg(feature = "faults")]

#[path = "support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use process::{Place, eventually};

const EVENTS: i64 = 60_000;

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..60000"
rate = "20000/s"
body = { number = "{n}" }

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
columns = { event_id = "@id", number = { from = "number", type = "bigint" } }

[sink.out]
kind = "file"
path = "out.log"
"#;

fn survives(point: &str, component: &str) {
    let place = Place::new(TOPOLOGY);
    let rule = format!("{point}=panic@15000");
    let running = place.start_with(&[], &[("AQUEDUCT_FAULTS", &rule)]);
    let stored = || running.metric("aqueduct_events_stored", "");
    eventually("a restart", || running.metric("aqueduct_restarts", component) >= 1.0);
    let (mut last, mut since, mut gap) = (stored(), Instant::now(), Duration::ZERO);
    eventually("the end", || {
        let now = stored();
        if now > last {
            gap = gap.max(since.elapsed());
            (last, since) = (now, Instant::now());
        }
        now >= 2.0 * EVENTS as f64 && running.metric("aqueduct_group_pending", "") == 0.0
    });
    println!("{point}: the longest gap between two looks that saw something stored: {gap:?}");
    let restarts = running.metric("aqueduct_restarts", component);
    let others = running.metric("aqueduct_restarts", "") - restarts;
    assert!(restarts >= 1.0, "restarts of {component}");
    assert_eq!(others, 0.0, "restarts of others:\n{}", running.log());
    assert_eq!(running.get("/healthz").0, 200);
    assert!(running.stop().success());

    let rows =
        place.rows::<(i64, i64)>("out.db", "SELECT count(*), count(DISTINCT number) FROM numbers");
    assert_eq!(rows, [(EVENTS, EVENTS)]);
    let mut lines = process::lines(&place.path("out.log"));
    assert_eq!(lines.len() as i64, EVENTS);
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len() as i64, EVENTS);
}

#[test]
fn of_a_source() {
    survives("source.next", "source.");
}

#[test]
fn of_a_stream() {
    survives("stream.append", "stream.");
}

#[test]
fn of_a_member() {
    survives("member.deliver", "group.");
}

#[test]
fn of_a_sink() {
    survives("sink.store", "sink.");
}
