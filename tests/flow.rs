//! Longer ways: streams behind streams, shards, full streams, and lines that can be no events.

#[path = "support/process.rs"]
mod process;

use process::{Place, eventually, lines};

#[test]
fn a_group_may_write_another_stream_and_idle_means_the_whole_way() {
    let place = Place::new(
        r#"
[source.numbers]
kind = "publisher"
to = "first"
n = "1..5000"
instances = 3
body = "{n}"

[stream.first]
[stream.second]

[group.relay]
from = "first"
to = "second"
members = 2

[group.writer]
from = "second"
to = "out"

[sink.out]
kind = "file"
path = "out.log"
"#,
    );
    place.run_until_idle();
    let mut numbers: Vec<u64> = lines(&place.path("out.log"))
        .iter()
        .map(|line| std::str::from_utf8(line).unwrap().parse().unwrap())
        .collect();
    numbers.sort();
    assert!(numbers.into_iter().eq(1..=5000));
    // A finite range is sent once.
    place.run_until_idle();
    assert_eq!(lines(&place.path("out.log")).len(), 5000);
}

#[test]
fn a_key_is_taken_from_the_body_and_picks_the_shard() {
    let place = Place::new(
        r#"
[source.orders]
kind = "publisher"
to = "orders"
n = "1..2000"
key = "/customer"
body = { n = "{n}", customer = "{random:1..20}" }

[stream.orders]
shards = 4

[group.writer]
from = "orders"
to = "db"
members = 3

[sink.db]
kind = "sqlite"
path = "out.db"
table = "orders"
columns = { event_id = "@id", n = "n", customer = "customer", key = "@key" }
"#,
    );
    place.run_until_idle();
    assert_eq!(place.count("out.db", "SELECT count(DISTINCT n) FROM orders"), 2000);
    let odd = "SELECT count(*) FROM orders WHERE key IS NULL OR key <> CAST(customer AS TEXT)";
    assert_eq!(place.count("out.db", odd), 0);
    // Every key went to one shard, and together they used several.
    let shards = "SELECT count(DISTINCT shard) FROM offsets WHERE next > 0";
    assert!(place.count("data/streams.db", shards) > 1);
}

#[test]
fn a_full_stream_holds_its_source_back_and_loses_nothing() {
    let place = Place::new(
        r#"
[http]
listen = "127.0.0.1:{port}"

[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..20000"
body = "{n}"

[stream.numbers]
max_backlog = 3000

[group.writer]
from = "numbers"
to = "out"

[sink.out]
kind = "file"
path = "away/out.log"
"#,
    );
    std::fs::write(place.path("away"), "a file where a directory is needed").unwrap();
    let running = place.start();
    let published = || running.metric("aqueduct_events_published", "");
    eventually("a full stream", || published() >= 3000.0);
    eventually("a few more tries", || running.metric("aqueduct_restarts", "sink.out") >= 3.0);
    assert_eq!(published(), 3000.0);
    assert_eq!(running.metric("aqueduct_restarts", "source."), 0.0);
    std::fs::remove_file(place.path("away")).unwrap();
    eventually("everything", || running.metric("aqueduct_events_stored", "") >= 20_000.0);
    assert!(running.stop().success());
    let mut stored = lines(&place.path("away/out.log"));
    assert_eq!(stored.len(), 20_000);
    stored.sort();
    stored.dedup();
    assert_eq!(stored.len(), 20_000);
}

#[test]
fn a_stop_does_not_wait_for_a_full_stream_nor_for_a_sink_that_is_away() {
    let place = Place::new(
        r#"
[http]
listen = "127.0.0.1:{port}"

[source.numbers]
kind = "publisher"
to = "numbers"
body = "{n}"

[stream.numbers]
max_backlog = 3000

[group.writer]
from = "numbers"
to = "out"
members = 2

[sink.out]
kind = "file"
path = "away/out.log"
"#,
    );
    std::fs::write(place.path("away"), "a file where a directory is needed").unwrap();
    let running = place.start();
    eventually("a full stream", || running.metric("aqueduct_events_published", "") >= 3000.0);
    let asked = std::time::Instant::now();
    let log = {
        let status = running.stop();
        assert!(status.success());
        asked.elapsed()
    };
    // Far below the 25 s that a drain may take.
    assert!(log < std::time::Duration::from_secs(15), "{log:?}");
    let listed = place.done(&["status", "topology.toml", "--once", "--json"]);
    let streams: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(streams[0]["groups"][0]["pending"], 0, "handed back: {streams}");
    assert_eq!(streams[0]["groups"][0]["lag"], 3000, "{streams}");
}

#[test]
fn a_line_that_is_too_long_is_a_dead_letter_of_every_group() {
    let place = Place::new(
        r#"
[source.input]
kind = "tail"
path = "in.log"
to = "lines"
max_line = "100"

[stream.lines]

[group.one]
from = "lines"
to = "out"

[group.two]
from = "lines"
to = "db"

[sink.out]
kind = "file"
path = "out.log"

[sink.db]
kind = "sqlite"
path = "out.db"
table = "lines"
"#,
    );
    let text = format!("short\n{}\nshort again\n", "long ".repeat(1000));
    std::fs::write(place.path("in.log"), text).unwrap();
    let done = place.run_until_idle();
    assert!(done.stderr.contains("2 dead letters of stream lines"), "{}", done.stderr);
    assert_eq!(lines(&place.path("out.log")), [b"short".to_vec(), b"short again".to_vec()]);
    assert_eq!(place.count("out.db", "SELECT count(*) FROM lines"), 2);
    let listed = place.done(&["dead", "list", "topology.toml", "lines"]).stdout;
    for said in ["group one", "group two", "in.log", "offset", "5000"] {
        assert!(listed.contains(said), "no {said} in {listed}");
    }
    assert_eq!(place.done(&["dead", "drop", "topology.toml", "lines"]).stdout, "2 dropped\n");
    assert_eq!(place.done(&["dead", "list", "topology.toml", "lines"]).stdout, "");
}

#[test]
fn a_dead_letter_replayed_to_a_group_that_writes_a_stream_goes_all_the_way() {
    let place = Place::new(
        r#"
[source.input]
kind = "tail"
path = "in.log"
to = "lines"
max_line = "10"

[stream.lines]

[group.pass]
from = "lines"
to = "more"

[stream.more]

[group.writer]
from = "more"
to = "out"

[sink.out]
kind = "file"
path = "out.log"
"#,
    );
    std::fs::write(place.path("in.log"), "short\na line that is too long\n").unwrap();
    place.run_until_idle();
    assert_eq!(lines(&place.path("out.log")), [b"short".to_vec()]);
    let replayed = place.done(&["dead", "replay", "topology.toml", "lines"]);
    assert_eq!(replayed.stdout, "1 replayed\n", "{}", replayed.stderr);
    place.run_until_idle();
    let stored = lines(&place.path("out.log"));
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert!(String::from_utf8_lossy(&stored[1]).contains("in.log"), "{stored:?}");
}
