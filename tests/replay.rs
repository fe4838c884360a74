//! A dead letter that is put back is stored once and gone, wherever the process dies on the way:
//! over HTTP and by the command, on every kind of stream.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use process::{Place, Request, Running, eventually};
use servers::{Postgres, Rabbit, Redis};

const TOPOLOGY: &str = r#"
[http]
listen = "127.0.0.1:{port}"

[source.intake]
kind = "http"
path = "/log"
to = "events"

[stream.events]
STREAM

[group.writer]
from = "events"
to = "db"
attempts = 1
lease = "1s"

[sink.db]
kind = "sqlite"
path = "out.db"
table = "rows"
columns = { event_id = "@id", n = { from = "n", type = "bigint" } }
"#;

fn ready(place: &Place, variables: &[(&str, &str)]) -> Running {
    let running = place.start_with(&[], variables);
    eventually("it is ready", || running.get("/readyz").0 == 200);
    running
}

fn rows(place: &Place, n: &str) -> i64 {
    place.count("out.db", &format!("SELECT count(*) FROM rows WHERE n = '{n}'"))
}

fn letters(place: &Place) -> u64 {
    let answer = Request::get("/api/streams/events/dead").send(place.port).unwrap();
    answer.json()["total"].as_u64().unwrap_or_else(|| panic!("{answer:?}"))
}

/// A letter that the sink would take by now, and a neighbour of it.
fn given_up(stream: &str) -> Place {
    let text = TOPOLOGY.replace("STREAM", stream);
    let place = Place::new(&text);
    let running = ready(&place, &[]);
    for n in ["poison", "other"] {
        let post = Request::post("/log").json(&format!("{{\"n\":\"{n}\"}}"));
        assert_eq!(post.send(place.port).unwrap().status, 202);
    }
    eventually("dead letters", || running.metric("aqueduct_dead_letters", "") >= 2.0);
    assert!(running.stop().success());
    place.write_topology(&text.replace("bigint", "text"));
    place
}

/// Dies at `point` while all letters are put back, and is asked again until none is left.
fn dies(stream: &str, point: &str, by_command: bool) {
    let place = given_up(stream);
    let faults = format!("{point}=kill~poison");
    let faults = [("AQUEDUCT_FAULTS", faults.as_str())];
    if by_command {
        let dead = ["dead", "replay", "topology.toml", "events"];
        let died = place.command(&dead).envs(faults).output().unwrap();
        assert!(!died.status.success(), "it was to die at {point}");
        let again = place.done(&dead);
        assert!(again.status.success(), "{}", again.stderr);
    } else {
        let mut running = ready(&place, &faults);
        let all = Request::post("/api/streams/events/dead/replay").json(r#"{"all":true}"#);
        assert!(all.send(place.port).map_or(true, |it| it.status == 0), "it was to die at {point}");
        assert!(!running.wait().success());
        let running = ready(&place, &[]);
        let answer = all.send(place.port).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(running.stop().success());
    }
    let running = ready(&place, &[]);
    eventually("both are stored", || rows(&place, "poison") + rows(&place, "other") >= 2);
    eventually("nothing waits", || {
        running.metric("aqueduct_group_lag", "") + running.metric("aqueduct_group_pending", "")
            == 0.0
    });
    assert_eq!((rows(&place, "poison"), rows(&place, "other")), (1, 1), "{point}");
    assert_eq!(letters(&place), 0, "{point}");
    assert!(running.stop().success());
}

#[test]
fn over_an_embedded_stream() {
    for point in ["replay.before", "replay.within", "replay.after"] {
        dies("", point, false);
        dies("", point, true);
    }
}

#[test]
fn over_redis() {
    for point in ["replay.before", "replay.after"] {
        for by_command in [false, true] {
            let redis = Redis::start();
            dies(&format!("kind = \"redis\"\nurl = {:?}", redis.url()), point, by_command);
        }
    }
}

#[test]
fn over_postgres() {
    for point in ["replay.before", "replay.within", "replay.after"] {
        for by_command in [false, true] {
            let url = Postgres::shared().database();
            dies(&format!("kind = \"postgres\"\nurl = {url:?}"), point, by_command);
        }
    }
}

#[test]
fn over_rabbitmq() {
    for point in ["replay.before", "replay.within"] {
        for by_command in [false, true] {
            let url = Rabbit::shared().vhost();
            dies(&format!("kind = \"rabbitmq\"\nurl = {url:?}"), point, by_command);
        }
    }
}
