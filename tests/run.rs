//! From a file and a publisher to a table and a file, through the real program.

#[path = "support/process.rs"]
mod process;

use std::fmt::Write as _;

use process::{Place, eventually, lines};

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.input]
kind = "tail"
path = "in/*.log"
to = "lines"
counter = "lines_read_total"

[stream.lines]

[group.db]
from = "lines"
to = "db"
counter = "lines_written_total"

[group.out]
from = "lines"
to = "out"

[sink.db]
kind = "sqlite"
path = "out.db"
table = "lines"
columns = { event_id = "@id", line = "@body", source = "@source", at = "@time", type = "@type" }

[sink.out]
kind = "file"
path = "out.log"
"#;

/// Lines as logs have them: CRLF here and there, empty ones, bytes that are no UTF-8, and no
/// newline behind the last.
fn awkward_log(lines: usize) -> Vec<u8> {
    let mut log = Vec::new();
    for n in 0..lines {
        let mut line = String::new();
        write!(line, "[{n:06}] a line with \"quotes\", {{braces}} and ümlauts").unwrap();
        match n % 7 {
            0 => log.extend_from_slice(format!("{line}\r\n").as_bytes()),
            1 => log.extend_from_slice(b"\n"),
            2 => {
                log.extend_from_slice(line.as_bytes());
                log.extend_from_slice(&[0xff, 0xfe, 0x80, b'\n']);
            }
            _ => log.extend_from_slice(format!("{line}\n").as_bytes()),
        }
    }
    log.extend_from_slice(b"the last line has no newline");
    log
}

#[test]
fn every_line_reaches_the_table_and_the_file_byte_for_byte_and_in_order() {
    let place = Place::new(TOPOLOGY);
    std::fs::create_dir(place.path("in")).unwrap();
    std::fs::write(place.path("in/a.log"), awkward_log(5000)).unwrap();
    place.run_until_idle();
    let wanted = lines(&place.path("in/a.log"));
    let stored = place
        .rows::<(Vec<u8>,)>("out.db", "SELECT CAST(line AS BLOB) FROM lines ORDER BY event_id");
    assert_eq!(stored.len(), wanted.len());
    assert!(stored.into_iter().map(|row| row.0).eq(wanted.iter().cloned()));
    assert_eq!(lines(&place.path("out.log")), wanted);

    // Again, with more behind it: the unfinished line was not checkpointed past, and is the same.
    let mut more = std::fs::read(place.path("in/a.log")).unwrap();
    more.extend_from_slice(b"\nand one more\n");
    std::fs::write(place.path("in/a.log"), &more).unwrap();
    place.run_until_idle();
    let wanted = lines(&place.path("in/a.log"));
    assert_eq!(place.count("out.db", "SELECT count(*) FROM lines"), wanted.len() as i64);
    assert_eq!(lines(&place.path("out.log")), wanted);
}

#[test]
fn what_is_written_while_it_runs_arrives_soon_and_a_stop_leaves_nothing_waiting() {
    let place = Place::new(TOPOLOGY);
    std::fs::create_dir(place.path("in")).unwrap();
    std::fs::write(place.path("in/a.log"), "one\n").unwrap();
    let running = place.start();
    eventually("the first line", || running.metric("lines_written_total", "") >= 1.0);
    assert_eq!(running.get("/livez").0, 200);
    assert_eq!(running.get("/healthz").0, 200);
    assert_eq!(running.get("/readyz").0, 200);
    assert_eq!(running.get("/nothing").0, 404);
    std::fs::write(place.path("in/b.log"), "two\nthree\n").unwrap();
    eventually("the second file", || running.metric("lines_written_total", "") >= 3.0);
    assert_eq!(running.metric("lines_read_total", ""), 3.0);

    let (status, streams) = running.get("/streams");
    assert_eq!(status, 200);
    let streams: serde_json::Value = serde_json::from_str(&streams).unwrap();
    assert_eq!(streams[0]["stream"], "lines");
    assert_eq!(streams[0]["groups"][0]["name"], "db");
    assert_eq!(streams[0]["groups"][0]["lag"], 0);
    assert_eq!(streams[0]["groups"][0]["pending"], 0);
    assert!(streams[0]["groups"][0]["consumers"][0]["idle_ms"].is_u64());
    assert!(running.stop().success());

    let status = place.done(&["status", "topology.toml", "--once", "--json"]);
    let streams: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    for group in streams[0]["groups"].as_array().unwrap() {
        assert_eq!((&group["lag"], &group["pending"]), (&0.into(), &0.into()));
    }
}

#[test]
fn a_part_of_the_topology_runs_in_a_process_of_its_own_and_no_group_misses_what_came_before() {
    let place = Place::new(TOPOLOGY);
    std::fs::create_dir(place.path("in")).unwrap();
    std::fs::write(place.path("in/a.log"), "one\ntwo\n").unwrap();
    let reader = place.done(&["run", "topology.toml", "--until-idle", "--only", "source.input"]);
    assert!(reader.status.success(), "{}", reader.stderr);
    assert!(!place.path("out.db").exists() && !place.path("out.log").exists());
    let writer = place.done(&["run", "topology.toml", "--until-idle", "--only", "group.out"]);
    assert!(writer.status.success(), "{}", writer.stderr);
    assert_eq!(lines(&place.path("out.log")), [b"one".to_vec(), b"two".to_vec()]);
    let wrong = place.done(&["run", "topology.toml", "--only", "group.nobody"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stderr.contains("group.out"), "{}", wrong.stderr);
}

#[test]
fn events_by_hand_are_published_once_and_can_be_looked_at() {
    let place = Place::new(TOPOLOGY);
    std::fs::create_dir(place.path("in")).unwrap();
    let one = place.done(&["publish", "topology.toml", "--stream", "lines", "by hand"]);
    assert!(one.status.success(), "{}", one.stderr);
    let three = place.done(&[
        "publish",
        "topology.toml",
        "--stream",
        "lines",
        "--type",
        "t",
        "--interval",
        "1ms",
        "--count",
        "3",
    ]);
    assert!(three.stdout.contains("published 3"), "{} {}", three.stdout, three.stderr);
    let typed = ["publish", "topology.toml", "--stream", "lines", "--type", "paid", "order 17"];
    assert!(place.done(&typed).status.success());
    let peek = place.done(&["peek", "topology.toml", "lines"]);
    assert_eq!(peek.stdout.lines().count(), 5, "{}", peek.stdout);
    assert!(peek.stdout.contains(" publish <paid> order 17"), "{}", peek.stdout);
    assert!(peek.stdout.contains("by hand") && peek.stdout.contains("Message #3"));
    let listed = place.done(&["group", "list", "topology.toml"]);
    assert!(listed.stdout.contains("db") && listed.stdout.contains('5'), "{}", listed.stdout);
    place.run_until_idle();
    assert_eq!(place.count("out.db", "SELECT count(*) FROM lines"), 5);
    let of_type = |kind| format!("SELECT count(*) FROM lines WHERE type IS {kind}");
    assert_eq!(place.count("out.db", &of_type("'t'")), 3);
    assert_eq!(place.count("out.db", &of_type("'paid'")), 1);
    assert_eq!(place.count("out.db", &of_type("NULL")), 1);
}

#[test]
fn a_sink_that_is_away_is_named_costs_no_attempt_and_gets_everything_when_it_is_back() {
    let place = Place::new(&TOPOLOGY.replace("\"out.db\"", "\"away/out.db\""));
    std::fs::create_dir(place.path("in")).unwrap();
    std::fs::write(place.path("away"), "a file where a directory is needed").unwrap();
    std::fs::write(place.path("in/a.log"), "one\ntwo\n").unwrap();
    let running = place.start();
    eventually("the trouble", || running.metric("aqueduct_restarts", "sink.db") >= 2.0);
    let (status, health) = running.get("/healthz");
    assert_eq!(status, 503);
    assert!(health.contains("sink.db") && health.contains("away"), "{health}");
    std::fs::remove_file(place.path("away")).unwrap();
    std::fs::create_dir(place.path("away")).unwrap();
    eventually("everything", || running.metric("lines_written_total", "") >= 2.0);
    eventually("health", || running.get("/healthz").0 == 200);
    assert_eq!(running.metric("aqueduct_dead_letters", ""), 0.0);
    assert!(running.stop().success());
    assert_eq!(place.count("away/out.db", "SELECT count(*) FROM lines"), 2);
}
