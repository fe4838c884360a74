//! A sink that writes several batches at once, in the whole program: with a server that is killed
//! under it, and with a writer that does not survive an event.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::time::Duration;

use process::{Place, eventually, seed};
use servers::Postgres;

const EVENTS: u64 = 60_000;

fn place(url: &str, source: &str) -> Place {
    Place::new(&format!(
        r#"
[http]
listen = "127.0.0.1:{{port}}"

{source}

[stream.numbers]

[group.writer]
from = "numbers"
to = "db"
members = 4
batch = 500
attempts = 2

[sink.db]
kind = "postgres"
url = "{url}"
table = "numbers"
connections = 3
columns = {{ n = {{ from = "@body", type = "text" }} }}
"#
    ))
}

fn publisher() -> String {
    format!(
        r#"
[source.input]
kind = "publisher"
to = "numbers"
n = "1..{EVENTS}"
body = "{{n}}"
"#
    )
}

#[test]
fn a_server_that_is_killed_loses_and_doubles_nothing() {
    seed();
    let mut server = Postgres::start();
    let url = server.database();
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let place = place(&url, &publisher());
    let running = place.start();
    eventually("three connections", || {
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aqueduct/db'";
        server.psql(&name, ours) == "3"
    });
    let mut kills = 0;
    while kills < 6 && running.metric("aqueduct_events_stored", "") < EVENTS as f64 {
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..300)));
        server.kill();
        if kills == 0 {
            eventually("healthz tells", || {
                let (status, said) = running.get("/healthz");
                status == 503 && said.contains("sink.db") && said.contains("PostgreSQL at")
            });
        }
        server.up();
        kills += 1;
    }
    eventually("all are stored", || running.metric("aqueduct_events_stored", "") >= EVENTS as f64);
    assert_eq!(running.metric("aqueduct_dead_letters", ""), 0.0);
    assert_eq!(running.metric("aqueduct_events_refused", ""), 0.0);
    assert!(running.stop().success());
    let found = server.psql(&name, "SELECT count(*), count(DISTINCT n) FROM numbers");
    assert_eq!(found, format!("{EVENTS}|{EVENTS}"));
}

#[cfg(feature = "faults")]
#[test]
fn a_writer_that_panics_takes_no_event_of_another_with_it() {
    use std::fmt::Write as _;
    let url = Postgres::shared().database();
    let source = "[source.input]\nkind = \"tail\"\npath = \"in.log\"\nto = \"numbers\"";
    let place = place(&url, source);
    let mut text = String::new();
    for n in 1..=20_000 {
        match n {
            9_000 | 9_001 | 15_000 => writeln!(text, "poison {n}").unwrap(),
            n => writeln!(text, "{n}").unwrap(),
        }
    }
    std::fs::write(place.path("in.log"), text).unwrap();
    let mut running =
        place.start_with(&["--until-idle"], &[("AQUEDUCT_FAULTS", "sink.store=panic~poison")]);
    assert!(running.wait().success(), "{}", running.log());
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let stored = Postgres::shared().psql(&name, "SELECT count(*), count(DISTINCT n) FROM numbers");
    assert_eq!(stored, "19997|19997");
    let listed = place.done(&["dead", "list", "topology.toml", "numbers"]);
    assert_eq!(listed.stdout.matches("group writer").count(), 3, "{}", listed.stdout);
    assert_eq!(listed.stdout.matches("poison").count(), 3, "{}", listed.stdout);
}
