//! The real program with RabbitMQ between: processes that share a group and are killed, an event
//! that kills them, and a broker that is away.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::fmt::Write as _;
use std::time::Duration;

use process::{Place, eventually, scale, seed};
use servers::Rabbit;

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
kind = "rabbitmq"
url = "URL"
queue_type = "TYPE"

[group.writer]
from = "events"
to = "db"
members = 2
batch = 200
lease = "2s"
attempts = 2

[sink.db]
kind = "sqlite"
path = "OUT"
table = "numbers"
columns = { event_id = "@id", number = { from = "number", type = "bigint" }, body = "@body" }
"#;

fn topology(url: &str, queue_type: &str) -> String {
    TOPOLOGY.replace("URL", url).replace("TYPE", queue_type).replace("OUT", "out.db")
}

fn input(place: &Place, numbers: std::ops::RangeInclusive<u64>, poison: Option<(u64, &str)>) {
    let mut text = String::new();
    for n in numbers {
        match poison {
            Some((at, line)) if at == n => writeln!(text, "{line}").unwrap(),
            _ => writeln!(text, "{{\"number\":{n}}}").unwrap(),
        }
    }
    std::fs::write(place.path("in.log"), text).unwrap();
}

fn figures(place: &Place) -> (i64, i64) {
    let query = "SELECT count(*), count(DISTINCT number) FROM numbers";
    place.rows::<(i64, i64)>("out.db", query)[0]
}

#[test]
fn processes_that_share_a_group_are_killed_and_each_event_is_stored_once() {
    let seed = seed();
    let kills = scale("AQUEDUCT_KILLS", 4);
    let total = scale("AQUEDUCT_EVENTS", 15_000);
    // So many that no kill at random makes a dead letter.
    let topology = topology(&Rabbit::shared().vhost(), "quorum").replace("attempts = 2", "");
    let place = Place::new(&topology);
    let out = place.path("out.db").display().to_string();
    let second = Place::new(&topology.replace("out.db", &out));
    input(&place, 1..=total, None);
    let mut first = Some(place.start());
    let mut other = Some(second.start_with(&["--only", "group.writer"], &[]));
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(fastrand::u64(300..1500)));
        if kill % 2 == 0 {
            first.take().unwrap().kill();
            first = Some(place.start());
        } else {
            other.take().unwrap().kill();
            other = Some(second.start_with(&["--only", "group.writer"], &[]));
        }
    }
    eventually("all of it", || place.path("out.db").exists() && figures(&place).1 == total as i64);
    assert!(other.take().unwrap().stop().success());
    assert!(first.take().unwrap().stop().success());
    let done = place.run_until_idle();
    assert!(!done.stderr.contains("dead letter"), "seed {seed}: {}", done.stderr);
    assert_eq!(figures(&place), (total as i64, total as i64), "seed {seed}");
}

#[test]
fn a_queue_of_two_groups_is_found_before_anything_starts() {
    let groups = r#"
[group.second]
from = "events"
to = "db"
queue = "events.writer.suspects"

[group.third]
from = "events"
to = "db"
queue = "events.dead"

[group.fourth]
from = "events"
to = "db"
"#;
    let url = "amqp://guest:hunter2@nowhere:5673";
    let place = Place::new(&format!("{}{groups}", topology(url, "quorum")));
    let checked = place.done(&["check", "topology.toml"]);
    assert_eq!(checked.status.code(), Some(2));
    let said: Vec<&str> = checked.stderr.lines().collect();
    let expected = [
        "topology.toml:35:9: `group.second` and `group.writer` both take the queue \
         `events.writer.suspects` at nowhere:5673 (one for each)",
        "topology.toml:40:9: `group.third` and `group.writer` both take the queue `events.dead` \
         at nowhere:5673 (one for each)",
    ];
    assert_eq!(said, expected);
}

#[test]
fn a_refused_event_is_a_dead_letter_and_can_be_replayed() {
    for queue_type in ["quorum", "classic"] {
        let place = Place::new(&topology(&Rabbit::shared().vhost(), queue_type));
        input(&place, 1..=1000, Some((500, r#"{"number":"poison"}"#)));
        place.run_until_idle();
        assert_eq!(figures(&place).0, 999, "{queue_type}");
        let listed = place.done(&["dead", "list", "topology.toml", "events"]).stdout;
        assert_eq!(listed.matches("group writer").count(), 1, "{listed}");
        assert!(listed.contains("after 2 attempts"), "{listed}");
        let text = std::fs::read_to_string(place.path("topology.toml")).unwrap();
        place.write_topology(&text.replace(r#""bigint""#, r#""text""#));
        let replayed = place.done(&["dead", "replay", "topology.toml", "events"]);
        assert_eq!(replayed.stdout.trim(), "1 replayed", "{}", replayed.stderr);
        place.run_until_idle();
        assert_eq!(figures(&place).0, 1000, "{queue_type}");
        assert_eq!(place.done(&["dead", "list", "topology.toml", "events"]).stdout, "");
    }
}

#[test]
fn a_broker_that_is_away_is_named_and_its_return_needs_no_restart() {
    let mut server = Rabbit::start();
    server.kill();
    let place = Place::new(&topology(&server.url("v0"), "quorum"));
    input(&place, 1..=1000, None);
    let running = place.start();
    eventually("a word about it", || {
        let (status, body) = running.get("/healthz");
        status == 503 && body.contains("start RabbitMQ") && body.contains("events")
    });
    assert!(!running.log().contains("guest:"), "{}", running.log());
    server.up();
    eventually("all of it", || place.path("out.db").exists() && figures(&place).1 == 1000);
    eventually("health", || running.get("/healthz").0 == 200);
    let (_, streams) = running.get("/streams");
    assert!(streams.contains(r#""lag":0"#) && streams.contains(r#""length":null"#), "{streams}");
    assert!(running.stop().success());
}

#[cfg(feature = "faults")]
#[test]
fn an_event_that_kills_the_process_takes_no_neighbour_with_it() {
    for queue_type in ["quorum", "classic"] {
        let place = Place::new(&topology(&Rabbit::shared().vhost(), queue_type));
        input(&place, 1..=300, Some((150, r#"{"number":150,"poison":"kills"}"#)));
        // All of it before, so that no death leaves a batch published and not noted as such: the
        // next life would publish a copy of the poison, which has attempts of its own.
        let mut source = place.start_with(&["--until-idle", "--only", "source.input"], &[]);
        assert!(source.wait().success(), "{}", source.log());
        let mut deaths = 0;
        loop {
            let faults = [("AQUEDUCT_FAULTS", "sink.store=kill~\"poison\":\"kills\"")];
            let mut running = place.start_with(&["--until-idle"], &faults);
            if running.wait().success() {
                break;
            }
            deaths += 1;
            assert!(deaths < 30, "it never gave up:\n{}", running.log());
        }
        assert_eq!(figures(&place).0, 299, "{queue_type}");
        let listed = place.done(&["dead", "list", "topology.toml", "events"]).stdout;
        assert_eq!(listed.matches("group writer").count(), 1, "{listed}");
        assert!(listed.contains("took its sink or process down"), "{listed}");
        // Once or twice among its neighbours, which proves nothing, then alone.
        assert!((3..=4).contains(&deaths), "{queue_type}: {deaths} deaths");
        println!("{queue_type}: {deaths} deaths");
    }
}
