//! `aqueduct cursor`: where groups stand is shown, also while they run; moved back, their events
//! come again and are stored once all the same; moved forward, they are skipped.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::time::{Duration, Instant};

use process::{Done, Place, eventually};
use servers::{Postgres, Rabbit, Redis};

const TOPOLOGY: &str = r#"
[http]
listen = "127.0.0.1:{port}"

[source.input]
kind = "publisher"
n = "1..60"
body = { n = "{n}" }
key = "/n"
to = "numbers"

[stream.numbers]
STREAM
shards = SHARDS
retain = "forever"

[group.writer]
from = "numbers"
to = "table"
members = 2
batch = 10
lease = "2s"

[sink.table]
kind = "sqlite"
path = "out.db"
table = "rows"
columns = { event_id = "@id", n = { from = "n", type = "bigint" } }
"#;

const EMBEDDED: &str = r#"kind = "embedded""#;

fn at(stream: &str, shards: u32) -> Place {
    Place::new(&TOPOLOGY.replace("STREAM", stream).replace("SHARDS", &shards.to_string()))
}

fn postgres() -> String {
    format!("kind = \"postgres\"\nurl = \"{}\"", Postgres::shared().database())
}

fn redis(server: &Redis) -> String {
    format!("kind = \"redis\"\nurl = \"{}\"", server.url())
}

fn rows(place: &Place) -> i64 {
    place.count("out.db", "SELECT COUNT(*) FROM rows")
}

fn forget(place: &Place, condition: &str) {
    let gone = format!("DELETE FROM rows WHERE {condition} RETURNING 1");
    place.rows::<(i64,)>("out.db", &gone);
}

fn cursor(place: &Place, action: &str, args: &[&str]) -> Done {
    place.done(&[&["cursor", action, "topology.toml"], args].concat())
}

/// The cells of what `show` says of a group, a row a shard.
fn shown(place: &Place) -> Vec<Vec<String>> {
    let done = cursor(place, "show", &["writer"]);
    assert!(done.status.success(), "{}", done.stderr);
    let mut lines = done.stdout.lines();
    let head: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let wanted =
        ["stream", "group", "shard", "oldest", "cursor", "delivered", "end", "pending", "lag"];
    assert_eq!(head, wanted);
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// `set`, once the members are known to be gone, if they are to be.
fn set(place: &Place, args: &[&str]) -> String {
    let start = Instant::now();
    loop {
        let done = cursor(place, "set", args);
        if done.status.success() {
            return done.stdout;
        }
        let runs = done.stderr.contains("--force");
        assert!(runs && start.elapsed() < Duration::from_secs(20), "{}", done.stderr);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How often a number stands in what was said.
fn told(text: &str, what: &str) -> u64 {
    let counts = text.lines().filter_map(|line| {
        let (before, _) = line.split_once(what)?;
        before.rsplit([' ', ';']).find_map(|word| word.parse::<u64>().ok())
    });
    counts.sum()
}

fn goes_back_and_forward(stream: &str, shards: u32) {
    let place = at(stream, shards);
    place.run_until_idle();
    assert_eq!(rows(&place), 60);
    let ends: Vec<_> = shown(&place);
    assert_eq!(ends.len(), shards as usize);
    for row in &ends {
        assert_eq!((&*row[0], &*row[1]), ("numbers", "writer"));
        assert_eq!((&row[4], &row[5], &*row[7], &*row[8]), (&row[6], &row[6], "0", "0"));
    }

    // Back: what the table has lost comes again, and nothing stands there twice.
    forget(&place, "n % 3 = 0");
    assert_eq!(rows(&place), 40);
    let said = set(&place, &["writer", "earliest"]);
    assert_eq!(told(&said, " events are delivered again"), 60, "{said}");
    assert!(!said.contains("skipped"), "{said}");
    for row in shown(&place) {
        assert_eq!(row[4], row[3], "at the oldest");
    }
    place.run_until_idle();
    assert_eq!(rows(&place), 60);
    let numbers = "SELECT COUNT(DISTINCT n) FROM rows";
    assert_eq!(place.count("out.db", numbers), 60);
    assert_eq!(shown(&place), ends);

    // Forward: what was not delivered never is.
    set(&place, &["writer", "earliest"]);
    forget(&place, "TRUE");
    let said = set(&place, &["writer", "latest"]);
    assert_eq!(told(&said, " events are skipped"), 60, "{said}");
    assert_eq!(shown(&place), ends);
    place.run_until_idle();
    assert_eq!(rows(&place), 0);

    // One shard alone, to a place that `show` names.
    let said = set(&place, &["writer", &ends[0][3], "--shard", "0"]);
    let again = told(&said, " events are delivered again");
    assert!(said.contains(&format!("shard 0: from {} to {}", ends[0][6], ends[0][3])), "{said}");
    place.run_until_idle();
    assert_eq!(rows(&place), again as i64);
    assert!(again > 0 && (shards == 1 || again < 60));
}

#[test]
fn embedded_goes_back_and_forward() {
    goes_back_and_forward(EMBEDDED, 3);
}

#[test]
fn postgres_goes_back_and_forward() {
    goes_back_and_forward(&postgres(), 1);
}

#[test]
fn redis_goes_back_and_forward() {
    let server = Redis::start();
    goes_back_and_forward(&redis(&server), 3);
}

fn is_refused_while_it_runs(stream: &str) {
    let place = at(stream, 2);
    let running = place.start();
    eventually("all is stored", || running.metric("aqueduct_events_stored_total", "") == 60.0);
    let ends = shown(&place);
    let refused = cursor(&place, "set", &["writer", "earliest"]);
    assert_eq!(refused.status.code(), Some(1));
    for part in ["group writer runs", "/writer/", "stop it first", "--force", "lease of 2s"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert_eq!(shown(&place), ends);

    // Forced, its members go on from there, without a restart.
    forget(&place, "TRUE");
    let forced = cursor(&place, "set", &["writer", "earliest", "--force"]);
    assert!(forced.status.success(), "{}", forced.stderr);
    eventually("all of it came again", || rows(&place) == 60);
    eventually("the cursor is at the end again", || shown(&place) == ends);
    let done = place.done(&["publish", "topology.toml", "--stream", "numbers", r#"{"n":61}"#]);
    assert!(done.status.success(), "{}", done.stderr);
    eventually("it goes on", || rows(&place) == 61);
    eventually("it is acked", || shown(&place).iter().all(|row| row[4] == row[6]));

    // One that was killed counts as running for a lease at most.
    running.kill();
    let said = set(&place, &["writer", "earliest"]);
    assert_eq!(told(&said, " events are delivered again"), 61, "{said}");
    place.run_until_idle();
    assert_eq!(rows(&place), 61);
}

#[test]
fn embedded_is_refused_while_it_runs() {
    is_refused_while_it_runs(EMBEDDED);
}

#[test]
fn postgres_is_refused_while_it_runs() {
    is_refused_while_it_runs(&postgres());
}

#[test]
fn redis_is_refused_while_it_runs() {
    let server = Redis::start();
    is_refused_while_it_runs(&redis(&server));
}

#[test]
fn a_cursor_goes_to_a_time() {
    let place = at(EMBEDDED, 2);
    place.run_until_idle();
    std::thread::sleep(Duration::from_millis(50));
    let between = chrono::Utc::now().to_rfc3339();
    std::thread::sleep(Duration::from_millis(50));
    for n in 61..64 {
        let body = format!(r#"{{"n":{n}}}"#);
        let done = place.done(&["publish", "topology.toml", "--stream", "numbers", &body]);
        assert!(done.status.success(), "{}", done.stderr);
    }
    place.run_until_idle();
    forget(&place, "TRUE");
    let said = set(&place, &["writer", &between]);
    assert!(said.starts_with("group writer: to what came since 2"), "{said}");
    assert_eq!(told(&said, " events are delivered again") + told(&said, "1 event is"), 3);
    place.run_until_idle();
    assert_eq!(
        place.rows::<(i64,)>("out.db", "SELECT n FROM rows ORDER BY n"),
        [(61,), (62,), (63,)]
    );
    let said = set(&place, &["writer", "2h"]);
    assert_eq!(told(&said, " events are delivered again"), 63, "{said}");
}

#[test]
fn a_dropped_event_cannot_come_again() {
    let place = Place::new(
        &TOPOLOGY
            .replace("STREAM", EMBEDDED)
            .replace("SHARDS", "1")
            .replace("\"forever\"", "\"acked\""),
    );
    let running = place.start();
    eventually("what is acked is gone", || shown(&place)[0][3] == "60");
    assert!(running.stop().success());
    for (to, says) in [
        ("5", "offset 5 is not in shard 0, which holds nothing (its next event comes at 60)"),
        ("1h", "shard 0 does not hold all events since"),
    ] {
        let refused = cursor(&place, "set", &["writer", to]);
        assert_eq!(refused.status.code(), Some(1), "{}", refused.stdout);
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
        assert!(refused.stderr.contains("stays where it is"), "{}", refused.stderr);
    }
}

#[test]
fn what_makes_no_sense_is_said_with_what_would() {
    let place = at(EMBEDDED, 8);
    for (args, code, says) in [
        (&["set"][..], 2, "name the group, and where to"),
        (&["set", "writer"], 2, "earliest, latest, a time such as"),
        (&["set", "writer", "yesterday"], 2, "yesterday is no place"),
        (&["set", "writer", "earlyest"], 2, "did you mean `earliest`"),
        (&["set", "writer", "2026-11-21T10:00:00"], 2, "time zone"),
        (&["set", "writer", "2999-01-01T00:00:00Z"], 2, "yet to come"),
        (&["set", "writer", "5"], 2, "--shard"),
        (&["set", "writer", "latest", "--shard", "8"], 2, "no shard 8 (8 shards, from 0)"),
        (&["set", "writer", "5", "--shard", "0"], 1, "offset 5 is not in shard 0"),
        (&["set", "writer", "5-0", "--shard", "0"], 1, "offset 5-0 is not in shard 0"),
        (&["set", "writre", "latest"], 2, "did you mean `writer`"),
        (&["show", "writre"], 2, "no stream of this file has a group writre"),
        (&["show", "writer", "latest"], 2, "aqueduct cursor set"),
        (&["show", "writer", "--shard", "9"], 2, "no shard 9"),
    ] {
        let done = cursor(&place, args[0], &args[1..]);
        assert_eq!(done.status.code(), Some(code), "{args:?}: {}{}", done.stdout, done.stderr);
        assert!(done.stderr.contains(says), "{args:?}: {}", done.stderr);
        assert!(done.stdout.is_empty(), "{args:?}: {}", done.stdout);
    }
    let all = cursor(&place, "show", &[]);
    assert_eq!(all.stdout.lines().count(), 9, "{}", all.stdout);
    let one = cursor(&place, "show", &["writer", "--shard", "3"]);
    assert_eq!(one.stdout.lines().count(), 2, "{}", one.stdout);
}

#[test]
fn a_shard_of_all_groups_is_shown_where_there_is_one() {
    let more = "[stream.few]\nshards = 2\n[group.other]\nfrom = \"few\"\nto = \"two\"\n\
                [sink.two]\nkind = \"sqlite\"\npath = \"out.db\"\ntable = \"other\"\n";
    let topology = TOPOLOGY.replace("STREAM", EMBEDDED).replace("SHARDS", "8") + more;
    let place = Place::new(&topology);
    for (shard, lines) in [("1", 3), ("7", 2)] {
        let done = cursor(&place, "show", &["--shard", shard]);
        assert_eq!(done.stdout.lines().count(), lines, "{}{}", done.stdout, done.stderr);
        assert!(done.status.success(), "{}", done.stderr);
    }
    let none = cursor(&place, "show", &["--shard", "8"]);
    assert_eq!((none.status.code(), &*none.stdout), (Some(2), ""));
    let said = "no group has a shard 8 (8 shards at most, from 0)";
    assert!(none.stderr.contains(said), "{}", none.stderr);
}

#[test]
fn a_queue_has_no_cursor() {
    let stream = format!("kind = \"rabbitmq\"\nurl = \"{}\"", Rabbit::shared().vhost());
    let topology = TOPOLOGY.replace("STREAM", &stream).replace("shards = SHARDS", "");
    let place = Place::new(&topology.replace("retain = \"forever\"", ""));
    let all = cursor(&place, "show", &[]);
    let cells: Vec<&str> = all.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, ["numbers", "writer", "-", "-", "-", "-", "-", "-", "-"]);
    for args in [&["show", "writer"][..], &["set", "writer", "earliest"]] {
        let done = cursor(&place, args[0], &args[1..]);
        assert_eq!(done.status.code(), Some(1));
        assert!(done.stderr.contains("keeps no history"), "{}", done.stderr);
    }
}
