//! Poison under load, while the process is killed again and again: one event that PostgreSQL
//! refuses and one that takes the process down, among many. They alone are dead letters.
//!
//! `scripts/soak poison` runs the long form.
#![cfg(feature = "faults")]

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use process::{Place, Running, scale, seed};
use servers::{Postgres, Redis};

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.input]
kind = "tail"
path = "in.log"
to = "events"

[stream.events]
kind = "redis"
url = "REDIS"

[group.writer]
from = "events"
to = "db"
members = 2
batch = BATCH
lease = "500ms"

[sink.db]
kind = "postgres"
url = "POSTGRES"
table = "events"
columns = { event_id = "@id", number = { from = "number", type = "bigint" }, words = "words" }
"#;

/// PostgreSQL has no text that holds this character.
const REFUSED: &str = r#""words":"refused \u0000 because of it""#;
const KILLS: &str = r#""words":"takes the process down""#;

/// Numbered events, two of them poison.
struct Events {
    refused: u64,
    kills: u64,
}

impl Events {
    fn draw(total: u64) -> Self {
        let refused = fastrand::u64(0..total);
        let kills = (refused + fastrand::u64(1..total)) % total;
        Self { refused, kills }
    }

    fn line(&self, n: u64) -> String {
        match n {
            n if n == self.refused => format!("{{\"number\":{n},{REFUSED}}}\n"),
            n if n == self.kills => format!("{{\"number\":{n},{KILLS}}}\n"),
            n => format!("{{\"number\":{n},\"words\":\"some words\"}}\n"),
        }
    }
}

fn start(place: &Place, args: &[&str]) -> Running {
    let rule = format!("sink.store=kill~{KILLS}");
    place.start_with(args, &[("AQUEDUCT_FAULTS", &rule)])
}

#[test]
fn of_all_events_only_the_poison_is_given_up() {
    let seed = seed();
    let kills = scale("AQUEDUCT_KILLS", 8);
    let each = scale("AQUEDUCT_EVENTS", 20_000) / kills;
    let total = each * kills;
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let url = postgres.database();
    // After a death, all that was in hand is delivered one by one: the more, the longer it takes.
    let batch = scale("AQUEDUCT_BATCH", 50).to_string();
    let topology =
        TOPOLOGY.replace("REDIS", &redis.url()).replace("POSTGRES", &url).replace("BATCH", &batch);
    let place = Place::new(&topology);
    let mut file = std::fs::File::create(place.path("in.log")).unwrap();
    let events = Events::draw(total);
    let began = Instant::now();
    let mut deaths = 0;
    for kill in 0..kills {
        let mut running = start(&place, &[]);
        let pieces = fastrand::u64(1..=10);
        let pause = Duration::from_micros(fastrand::u64(0..=800_000) / pieces);
        for piece in 0..pieces {
            let until = |piece| kill * each + each * piece / pieces;
            let mut text = String::new();
            for n in until(piece)..until(piece + 1) {
                text.write_str(&events.line(n)).unwrap();
            }
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            std::thread::sleep(pause);
            if running.exited().is_some() {
                deaths += 1;
                running = start(&place, &[]);
            }
        }
        match running.exited() {
            Some(_) => deaths += 1,
            None => running.kill(),
        }
    }
    loop {
        let mut running = start(&place, &["--until-idle"]);
        if running.wait().success() {
            break;
        }
        deaths += 1;
        assert!(deaths < 40, "it never gave up:\n{}", running.log());
    }
    println!(
        "seed {seed}: {kills} kills and {deaths} deaths of poison over {total} events, in {:?}",
        began.elapsed()
    );
    let database = url.rsplit_once('/').unwrap().1;
    let rows = postgres.psql(database, "SELECT count(*), count(DISTINCT number) FROM events");
    assert_eq!(rows, format!("{0}|{0}", total - 2));
    let listed = place.done(&["dead", "list", "topology.toml", "events"]);
    assert_eq!(listed.stdout.matches("group writer").count(), 2, "{}", listed.stdout);
    for part in ["refused", "takes the process down", "took its sink or process down"] {
        assert!(listed.stdout.contains(part), "no {part} in {}", listed.stdout);
    }
}
