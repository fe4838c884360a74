//! The log: one line for one cause, however long it lasts and however many feel it; never one
//! without end; and the trace of the event that a line is about.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use process::{Place, Request, Running, eventually, scale};
use servers::Redis;

/// Twenty members of a group, and five of another.
const OUTAGE: &str = r#"
[runtime]
data_dir = "data"
log_format = "json"

[http]
listen = "127.0.0.1:{port}"

[source.numbers]
kind = "publisher"
to = "numbers"
rate = "1000/s"

[stream.numbers]
kind = "redis"
url = "REDIS"

[group.many]
from = "numbers"
to = "out"
members = 20

[group.few]
from = "numbers"
to = "other"
members = 5

[sink.out]
kind = "file"
path = "out.txt"

[sink.other]
kind = "file"
path = "other.txt"
"#;

/// The lines of a log in JSON.
fn json_lines(log: &str) -> Vec<serde_json::Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn text<'a>(line: &'a serde_json::Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

#[test]
fn a_redis_that_is_away_is_a_line_for_each_that_needs_it_however_long() {
    let outage = Duration::from_secs(scale("AQUEDUCT_OUTAGE_S", 6));
    let mut redis = Redis::start();
    let place = Place::new(&OUTAGE.replace("REDIS", &redis.url()));
    let running = place.start();
    let stored = || running.metric("aqueduct_events_stored_total", "");
    let restarts = || running.metric("aqueduct_restarts_total", "");
    eventually("events flow", || stored() > 1000.0);
    let before = running.log().len();

    redis.kill();
    let began = Instant::now();
    eventually("a line says it", || running.log()[before..].contains("stream.numbers"));
    let noticed = began.elapsed();
    std::thread::sleep(outage.saturating_sub(began.elapsed()));
    assert!(restarts() > 25.0, "everybody tried again and again: {}", restarts());
    let (then, away) = (stored(), began.elapsed());
    redis.up();
    eventually("events flow again", || stored() > then + 1000.0);
    let again = |log: &str| log.matches("works again").count();
    eventually("it is said that they do", || again(&running.log()[before..]) >= 3);

    let log = running.log()[before..].to_owned();
    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in json_lines(&log) {
        let table = text(&line, "component").split('/').next().unwrap().to_owned();
        let message = text(&line, "message").to_owned();
        match text(&line, "level") {
            "WARN" => failures.entry(table).or_default().push(message),
            _ if message.contains("works again after") => {
                let lines = failures.remove(&table).expect("it failed before");
                // Lost, then refused; and perhaps once more what a server says while it starts.
                assert!(lines.len() <= 4, "{table}: {lines:#?}");
                let causes: std::collections::BTreeSet<_> = lines.iter().collect();
                assert_eq!(causes.len(), lines.len(), "{table} says one thing twice: {lines:#?}");
                let seconds = message.split("after ").nth(1).unwrap().split(' ').next().unwrap();
                let seconds: f64 = seconds.parse().unwrap();
                let least = (away - noticed).as_secs_f64() - 2.0;
                assert!(seconds > least && seconds < away.as_secs_f64() + 20.0, "{message}");
            }
            _ => {}
        }
    }
    assert!(failures.is_empty(), "does not work again: {failures:#?}\n{log}");
    println!("away for {away:?}, {} restarts:\n{log}", restarts());
    assert!(log.lines().count() <= 12, "{log}");
    assert!(running.stop().success());
}

/// What is posted is refused, unless it has a number.
const REFUSING: &str = r#"
[runtime]
data_dir = "data"
log = "info,aqueduct=debug"
log_format = "FORMAT"

[http]
listen = "127.0.0.1:{port}"

[tracing]
otlp = "http://127.0.0.1:1"
sample = "none"

[source.log]
kind = "http"
path = "/log"
to = "events"

[stream.events]
max_backlog = 1

[group.writer]
from = "events"
to = "db"
attempts = 2

[sink.db]
kind = "sqlite"
path = "out.db"
table = "rows"
columns = { event_id = "@id", n = { from = "n", type = "bigint" } }
"#;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Posts one that is refused, and waits for all that is said of it.
fn refused(format: &str) -> (Place, Running) {
    let place = Place::new(&REFUSING.replace("FORMAT", format));
    let running = place.start();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let post = Request::post("/log").header("traceparent", &parent);
    assert_eq!(post.clone().json("{\"n\":\"none\"}").send(place.port).unwrap().status, 202);
    eventually("a dead letter", || running.log().contains("a dead letter"));
    // Past `max_backlog`: as long as the second waits for its attempts, there is room for no more.
    eventually("a request fails", || {
        post.clone().json("{\"n\":\"none\"}").send(place.port).unwrap().status == 503
    });
    eventually("it is said", || running.log().contains("a request failed"));
    (place, running)
}

#[test]
fn a_line_about_an_event_has_its_trace_as_json() {
    let (_place, running) = refused("json");
    let lines = json_lines(&running.log());
    for said in ["a dead letter", "refused: ", "a request failed"] {
        let line = lines.iter().find(|line| text(line, "message").contains(said));
        let line = line.unwrap_or_else(|| panic!("no line says {said}"));
        assert_eq!(text(line, "trace_id"), TRACE, "{line}");
        let span = text(line, "span_id");
        assert!(span.len() == 16 && span.bytes().all(|it| it.is_ascii_hexdigit()), "{line}");
    }
}

#[test]
fn a_line_about_an_event_has_its_trace_as_text() {
    let (_place, running) = refused("text");
    let log = running.log();
    for said in ["a dead letter", "refused: ", "a request failed"] {
        let line = log.lines().find(|line| line.contains(said));
        let line = line.unwrap_or_else(|| panic!("no line says {said}"));
        assert!(line.contains(&format!("trace_id={TRACE} span_id=")), "{line}");
    }
}

#[test]
fn events_that_are_refused_without_end_are_a_few_lines_and_a_count() {
    let events = scale("AQUEDUCT_REFUSED", 3000);
    let place = Place::new(&format!(
        r#"
[runtime]
data_dir = "data"
log_format = "json"
[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..{events}"
body = {{ n = "no number" }}
[stream.numbers]
[group.writer]
from = "numbers"
to = "db"
attempts = 1
[sink.db]
kind = "sqlite"
path = "out.db"
table = "rows"
columns = {{ event_id = "@id", n = {{ from = "n", type = "bigint" }} }}
"#
    ));
    let done = place.run_until_idle();
    let lines = json_lines(&done.stderr);
    let letters = lines.iter().filter(|it| text(it, "message").starts_with("a dead letter"));
    let letters: Vec<_> = letters.collect();
    assert!((10..20).contains(&letters.len()), "{}", letters.len());
    let told = lines.iter().filter(|it| text(it, "message").starts_with("left out, like: a dead"));
    let told: Vec<_> = told.collect();
    assert!(!told.is_empty() && told.len() < 10, "{told:#?}");
    assert!(text(told[0], "message").contains("group=writer"), "{}", told[0]);
    let left_out: u64 = told.iter().filter_map(|it| it["lines"].as_u64()).sum();
    assert_eq!(left_out + letters.len() as u64, events);
    assert!(lines.len() < 40, "{}", done.stderr);
}
