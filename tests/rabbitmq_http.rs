//! Requests whose stream is in RabbitMQ, while RabbitMQ or PostgreSQL is away.

#[path = "support/client.rs"]
mod client;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use client::{Answered, Connection, Load, check_rows};
use process::{Place, Running, eventually};
use servers::{Postgres, Rabbit};

/// With a single attempt, any that was spent makes a dead letter.
const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.log]
kind = "http"
path = "/log"
to = "logs"

[stream.logs]
kind = "rabbitmq"
url = "RABBIT"

[group.writer]
from = "logs"
to = "table"
attempts = 1
batch = 100

[sink.table]
kind = "postgres"
url = "POSTGRES"
table = "logs"
columns = { event_id = "@id", id = "id" }
"#;

fn started(rabbit: &Rabbit, postgres: &str) -> (Place, Running) {
    let url = rabbit.url("v0");
    let place = Place::new(&TOPOLOGY.replace("RABBIT", &url).replace("POSTGRES", postgres));
    let running = place.start();
    (place, running)
}

fn post(connection: &mut Connection, place: &Place, id: &str) -> (Answered, Duration) {
    let start = Instant::now();
    let body = format!("{{\"id\":\"{id}\"}}");
    let answered = connection.post(place.port, Some(id), "application/json", &body).unwrap();
    (answered, start.elapsed())
}

#[test]
fn while_the_broker_is_away_a_request_is_told_so_within_a_second() {
    let mut rabbit = Rabbit::start();
    let postgres = Postgres::start();
    let url = postgres.database();
    let (place, running) = started(&rabbit, &url);
    eventually("it is ready", || running.get("/readyz").0 == 200);
    let mut connection = Connection::default();
    let mut accepted = Vec::new();
    assert_eq!(post(&mut connection, &place, "before").0.status, 202);
    accepted.push("before".to_owned());
    for outage in 0..2 {
        // The first strikes while nothing is going on, the second under load.
        let load = (outage == 1).then(|| Load::start(8, &[place.port]));
        if let Some(load) = &load {
            eventually("load", || load.accepted.load(Ordering::Relaxed) > 200);
        }
        rabbit.kill();
        let away = Instant::now();
        let (mut refused, mut slowest) = (0, Duration::ZERO);
        while refused < 50 || away.elapsed() < Duration::from_secs(6) {
            let id = format!("away {outage}");
            let (answered, took) = post(&mut connection, &place, &id);
            assert_eq!(answered.status, 503, "{answered:?}");
            assert!(answered.head.contains("retry-after: "), "{answered:?}");
            assert!(answered.body.contains("logs"), "{answered:?}");
            slowest = slowest.max(took);
            refused += 1;
            std::thread::sleep(Duration::from_millis(30));
        }
        for path in ["/healthz", "/readyz"] {
            let (status, body) = running.get(path);
            assert_eq!(status, 503);
            assert!(body.contains("stream.logs") && body.contains("start RabbitMQ"), "{body}");
        }
        assert_eq!(running.get("/livez").0, 200);
        // Within a second, that is; beside other tests a machine may be slow.
        println!("refused {refused} requests, the slowest in {slowest:?}");
        assert!(slowest < Duration::from_secs(4), "it took {slowest:?}");
        rabbit.up();
        let back = Instant::now();
        // The server has closed what was idle for so long.
        connection = Connection::default();
        let id = format!("away {outage}");
        eventually("a request succeeds", || post(&mut connection, &place, &id).0.status == 202);
        println!("a request succeeded after {:?}", back.elapsed());
        accepted.push(id);
        if let Some(load) = load {
            accepted.extend(load.stop().accepted);
        }
        eventually("health", || running.get("/healthz").0 == 200);
    }
    let database = url.rsplit_once('/').unwrap().1;
    let rows = || postgres.psql(database, "SELECT count(*) FROM logs").parse::<usize>().unwrap();
    eventually("all is stored", || rows() >= accepted.len());
    let stored = postgres.psql(database, "SELECT id FROM logs");
    let stored: std::collections::HashSet<&str> = stored.lines().collect();
    assert!(accepted.iter().all(|id| stored.contains(&**id)));
    assert!(running.stop().success());
}

#[test]
fn while_postgresql_is_away_requests_are_accepted_and_the_queue_holds_them() {
    let rabbit = Rabbit::start();
    let mut postgres = Postgres::start();
    let url = postgres.database();
    let (place, running) = started(&rabbit, &url);
    let load = Load::start(8, &[place.port]);
    let stored = || running.metric("aqueduct_events_stored", "");
    eventually("the flow", || stored() > 500.0);
    postgres.kill();
    eventually("a word on the sink", || {
        let (status, health) = running.get("/healthz");
        status == 503 && health.contains("sink.table")
    });
    assert_eq!(running.get("/readyz").0, 200, "requests need no sink");
    let (then, before) = (stored(), load.accepted.load(Ordering::Relaxed));
    let away = Instant::now();
    let mut connection = Connection::default();
    let mut posts = 0;
    while away.elapsed() < Duration::from_secs(4) {
        let (answered, _) = post(&mut connection, &place, &format!("away {posts}"));
        assert_eq!(answered.status, 202, "{answered:?}");
        posts += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(load.accepted.load(Ordering::Relaxed) > before + 200);
    assert_eq!(stored(), then, "stored where?");
    let promised = load.stop();
    // What the table does not have is in the queue, and with the member.
    let waiting = || {
        let streams: serde_json::Value = serde_json::from_str(&running.get("/streams").1).unwrap();
        let group = &streams[0]["groups"][0];
        group["lag"].as_u64().unwrap() + group["pending"].as_u64().unwrap()
    };
    let missing = (promised.accepted.len() + posts) as f64 - then;
    eventually("the queue tells", || waiting() as f64 >= missing);
    postgres.up();
    let back = Instant::now();
    eventually("the flow", || stored() > then);
    assert!(back.elapsed() < Duration::from_secs(10), "it took {:?}", back.elapsed());
    eventually("all is stored", || waiting() == 0);
    let database = url.rsplit_once('/').unwrap().1;
    let rows = postgres.psql(database, "SELECT id FROM logs WHERE id NOT LIKE 'away%'");
    check_rows(&promised, rows.lines().map(str::to_owned));
    let sql = "SELECT count(*), count(DISTINCT id) FROM logs WHERE id LIKE 'away%'";
    assert_eq!(postgres.psql(database, sql), format!("{posts}|{posts}"));
    for metric in ["aqueduct_dead_letters", "aqueduct_events_refused"] {
        assert_eq!(running.metric(metric, ""), 0.0, "{metric}");
    }
    assert!(running.stop().success());
}
