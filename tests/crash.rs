//! kill -9 at random moments, and the embedded database put back to an older copy: nothing is
//! lost and nothing doubled, in a table and in a file.
//!
//! `scripts/soak kill` runs the long form.

#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/process.rs"]
mod process;

use std::path::Path;
use std::time::{Duration, Instant};

use oracle::{Writer, check_lines};
use process::{Place, eventually, lines, scale, seed};

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.input]
kind = "tail"
path = "in.log"
to = "lines"

[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..NUMBERS"
rate = "RATE/s"
body = { number = "{n}" }

[stream.lines]
retain = "RETAIN"

[stream.numbers]

[group.lines_db]
from = "lines"
to = "db"
members = 2
batch = 500
lease = "2s"

[group.lines_file]
from = "lines"
to = "out"
batch = 700
lease = "2s"

[group.numbers_db]
from = "numbers"
to = "numbers_db"
lease = "2s"

[sink.db]
kind = "sqlite"
path = "out.db"
table = "lines"
columns = { event_id = "@id", line = "@body" }

[sink.numbers_db]
kind = "sqlite"
path = "out.db"
table = "numbers"
columns = { event_id = "@id", number = { from = "number", type = "bigint" } }

[sink.out]
kind = "file"
path = "out.log"
"#;

/// A consistent copy of the embedded database, as a backup tool makes it.
fn back_up(place: &Place) {
    let _ = std::fs::remove_file(place.path("older.db"));
    place.rows::<(i64,)>(
        "data/streams.db",
        "VACUUM INTO 'OLDER'".replace("OLDER", place.path("older.db").to_str().unwrap()).as_str(),
    );
}

/// Puts the older copy back, by rename or over the file that is there.
fn put_back(place: &Place, by_rename: bool) {
    let database = place.path("data/streams.db");
    if by_rename {
        std::fs::copy(place.path("older.db"), place.path("data/restored.db")).unwrap();
        std::fs::rename(place.path("data/restored.db"), &database).unwrap();
    } else {
        std::fs::copy(place.path("older.db"), &database).unwrap();
    }
    for side in ["data/streams.db-wal", "data/streams.db-shm"] {
        let _ = std::fs::remove_file(place.path(side));
    }
}

#[test]
fn nothing_is_lost_or_doubled_when_the_process_is_killed() {
    let seed = seed();
    let kills = scale("AQUEDUCT_KILLS", 8);
    let per_kill = scale("AQUEDUCT_EVENTS", 40_000) / kills / 2;
    let total = per_kill * kills;
    let retain = if fastrand::bool() { "acked" } else { "forever" };
    // The publisher lasts as long as the kills do.
    let topology = TOPOLOGY
        .replace("NUMBERS", &total.to_string())
        .replace("RATE", &(per_kill * 5 / 2).to_string())
        .replace("RETAIN", retain);
    let place = Place::new(&topology);
    let mut writer = Writer::create(&place.path("in.log"));
    let mut put_backs = [0; 3];
    let began = Instant::now();
    for kill in 0..kills {
        let running = place.start();
        let chunks = fastrand::u64(1..=20);
        let pause = Duration::from_millis(fastrand::u64(0..=800) / chunks);
        for chunk in 0..chunks {
            let until = per_kill * kill + per_kill * (chunk + 1) / chunks;
            writer.write(until - writer.next);
            std::thread::sleep(pause);
        }
        if kill >= 2 && kill % 4 == 2 {
            eventually("the stream's database", || place.path("data/streams.db").exists());
            back_up(&place);
        }
        if kill % 8 == 5 && place.path("older.db").exists() {
            let by_rename = fastrand::bool();
            put_back(&place, by_rename);
            put_backs[usize::from(by_rename)] += 1;
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..=1500)));
        }
        running.kill();
        if kill % 8 == 7 && place.path("older.db").exists() {
            put_back(&place, false);
            put_backs[2] += 1;
        }
    }
    let done = place.run_until_idle();
    println!(
        "seed {seed}, retain {retain}: {kills} kills and {put_backs:?} put back (over the file \
         while running, by rename while running, while down), {} events in {:?}",
        2 * total,
        began.elapsed()
    );
    assert!(!done.stderr.contains("dead letter"), "{}", done.stderr);
    check_lines(
        "the table",
        total,
        place
            .rows::<(Vec<u8>,)>("out.db", "SELECT CAST(line AS BLOB) FROM lines")
            .into_iter()
            .map(|row| row.0),
    );
    check_lines("the file", total, lines(&place.path("out.log")).into_iter());
    check_numbers(&place, total);
    check_sound(&place.path("data/streams.db"), &place);
}

fn check_numbers(place: &Place, total: u64) {
    let rows = place.rows::<(i64, i64, i64, i64)>(
        "out.db",
        "SELECT count(*), count(DISTINCT number), min(number), max(number) FROM numbers",
    );
    let total = total as i64;
    assert_eq!(rows, [(total, total, 1, total)], "rows, different numbers, least, greatest");
}

fn check_sound(database: &Path, place: &Place) {
    let name = database.strip_prefix(place.dir.path()).unwrap().to_str().unwrap().to_owned();
    let sound = place.rows::<(String,)>(&name, "PRAGMA integrity_check");
    assert_eq!(sound, [("ok".to_owned(),)]);
}
