//! An event that cannot be stored leaves by the dead letters, alone.

#[path = "support/process.rs"]
mod process;

use std::fmt::Write as _;

use process::{Place, eventually};

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

[group.writer]
from = "events"
to = "db"
batch = 1000
lease = "10s"
attempts = ATTEMPTS

[sink.db]
kind = "sqlite"
path = "out.db"
table = "numbers"
columns = { event_id = "@id", number = { from = "number", type = "bigint" }, body = "@body" }
"#;

fn place(attempts: u32, poison: &str) -> Place {
    let place = Place::new(&TOPOLOGY.replace("ATTEMPTS", &attempts.to_string()));
    let mut text = String::new();
    for n in 1..=1000 {
        match n {
            500 => writeln!(text, "{poison}").unwrap(),
            n => writeln!(text, "{{\"number\":{n}}}").unwrap(),
        }
    }
    std::fs::write(place.path("in.log"), text).unwrap();
    place
}

#[test]
fn a_refused_event_is_a_dead_letter_after_its_attempts_and_its_neighbours_are_stored_at_once() {
    let place = place(3, r#"{"number":"poison"}"#);
    let running = place.start();
    eventually("the neighbours", || {
        place.path("out.db").exists() && running.metric("aqueduct_events_stored", "") >= 999.0
    });
    assert_eq!(place.count("out.db", "SELECT count(*) FROM numbers"), 999);
    eventually("the dead letter", || running.metric("aqueduct_dead_letters", "") >= 1.0);
    // Once among the others, which is not an attempt, and three times alone.
    assert_eq!(running.metric("aqueduct_events_refused", ""), 4.0);
    assert_eq!(running.metric("aqueduct_group_pending", ""), 0.0);
    assert!(running.stop().success());

    let listed = place.done(&["dead", "list", "topology.toml", "events"]);
    assert_eq!(listed.stdout.matches("group writer").count(), 1, "{}", listed.stdout);
    for part in ["number", "bigint", "poison", "after 3 attempts"] {
        assert!(listed.stdout.contains(part), "no {part} in {}", listed.stdout);
    }
}

#[test]
fn a_dead_letter_that_is_replayed_after_the_cause_is_mended_is_stored_once() {
    let place = place(2, r#"{"number":"poison"}"#);
    place.run_until_idle();
    assert_eq!(place.count("out.db", "SELECT count(*) FROM numbers"), 999);
    let mended = TOPOLOGY.replace("ATTEMPTS", "2").replace(r#""bigint""#, r#""text""#);
    place.write_topology(&mended);
    let replayed = place.done(&["dead", "replay", "topology.toml", "events"]);
    assert_eq!(replayed.stdout.trim(), "1 replayed", "{}", replayed.stderr);
    place.run_until_idle();
    place.run_until_idle();
    assert_eq!(place.count("out.db", "SELECT count(*) FROM numbers"), 1000);
    let listed = place.done(&["dead", "list", "topology.toml", "events"]);
    assert_eq!(listed.stdout, "");
}

#[cfg(feature = "faults")]
mod with_faults {
    use super::*;

    /// The process dies in each delivery of the poison event, until the event is given up.
    fn dies_until_given_up(attempts: u32) {
        let place = place(attempts, r#"{"number":500,"poison":"kills"}"#);
        let mut deaths = 0;
        loop {
            let mut running = place.start_with(
                &["--until-idle"],
                &[("AQUEDUCT_FAULTS", "sink.store=kill~\"poison\":\"kills\"")],
            );
            if running.wait().success() {
                break;
            }
            deaths += 1;
            assert!(deaths < 30, "it never gave up:\n{}", running.log());
        }
        // Twice among its neighbours, which proves nothing, then alone.
        assert_eq!(deaths, 2 + attempts);
        assert_eq!(place.count("out.db", "SELECT count(*) FROM numbers"), 999);
        let listed = place.done(&["dead", "list", "topology.toml", "events"]);
        assert_eq!(listed.stdout.matches("group writer").count(), 1, "{}", listed.stdout);
        assert!(listed.stdout.contains("took its sink or process down"), "{}", listed.stdout);
        assert!(listed.stdout.contains("kills"), "{}", listed.stdout);
    }

    #[test]
    fn an_event_that_kills_the_process_takes_no_neighbour_with_it() {
        dies_until_given_up(3);
    }

    #[test]
    fn not_even_with_a_single_attempt() {
        dies_until_given_up(1);
    }

    #[test]
    fn an_event_that_panics_its_sink_takes_no_neighbour_with_it() {
        let place = place(2, r#"{"number":500,"poison":"panics"}"#);
        let mut running = place.start_with(
            &["--until-idle"],
            &[("AQUEDUCT_FAULTS", "sink.store=panic~\"poison\":\"panics\"")],
        );
        assert!(running.wait().success(), "{}", running.log());
        assert_eq!(place.count("out.db", "SELECT count(*) FROM numbers"), 999);
        let listed = place.done(&["dead", "list", "topology.toml", "events"]);
        assert_eq!(listed.stdout.matches("group writer").count(), 1, "{}", listed.stdout);
    }
}
