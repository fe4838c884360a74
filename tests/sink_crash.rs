//! Sinks whose process is killed, or has no room, at any moment: each event is stored once all the
//! same, and what others wrote stays.

#[path = "support/sinks.rs"]
mod sinks;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aqueduct::event::Delivery;
use sinks::*;

const EVENTS: usize = 60_000;
const KILLS: usize = 60;

/// Not a test: the process that the tests below start and kill. It stores events in batches, from
/// one on and then from the first again, and says how far it is.
#[tokio::test]
#[ignore = "started by the other tests"]
async fn writer() {
    let Ok(order) = std::env::var("AQUEDUCT_TEST_WRITER") else { return };
    let parts: Vec<&str> = order.split('|').collect();
    let (subject, directory) = (Subject::named(parts[0]), PathBuf::from(parts[1]));
    let mut at: usize = parts[2].parse().unwrap();
    let rounds: usize = parts[3].parse().unwrap();
    let events = events(EVENTS);
    let mut output = std::io::stdout();
    let mut sink = match subject.open(&directory).await {
        Ok(sink) => sink,
        Err(error) => return writeln!(output, "\nerror {error:#}").unwrap(),
    };
    for _ in 0..rounds {
        while at < events.len() {
            let end = (at + fastrand::usize(1..600)).min(events.len());
            match store(&mut sink, &events[at..end]).await {
                Ok(refusals) => assert_eq!(refusals, []),
                Err(error) => return writeln!(output, "\nerror {error:#}").unwrap(),
            }
            at = end;
            writeln!(output, "\nstored {at}").unwrap();
        }
        at = 0;
    }
}

/// Starts a writer; with a `limit`, no file of its may get longer than that many bytes.
fn start(subject: &str, directory: &Path, at: usize, rounds: usize, limit: Option<u64>) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = match limit {
        None => Command::new(program),
        Some(limit) => {
            let mut shell = Command::new("sh");
            let limited = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", limit / 512);
            shell.arg("-c").arg(limited).arg(program);
            shell
        }
    };
    command.args(["--ignored", "--exact", "writer", "--nocapture", "--test-threads=1"]);
    let order = format!("{subject}|{}|{at}|{rounds}", directory.display());
    command.env("AQUEDUCT_TEST_WRITER", order).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Kills a writer over and over. Answers how many events the writers said were stored.
fn kill_often(subject: &'static Subject, directory: &Path, random: &mut fastrand::Rng) -> usize {
    let mut stored = 0;
    for _ in 0..KILLS {
        let from = if stored == EVENTS { 0 } else { stored };
        let at = from.saturating_sub(random.usize(..500));
        let mut writer = start(subject.name, directory, at, usize::MAX, None);
        let output = BufReader::new(writer.stdout.take().unwrap());
        // Some die early, while they open and settle; the others between two lines they say.
        let mut lives = random.u32(1..40);
        if random.u8(..4) == 0 {
            std::thread::sleep(Duration::from_micros(random.u64(..100_000)));
            writer.kill().unwrap();
        }
        for line in output.lines() {
            let line = line.unwrap();
            assert!(!line.starts_with("error"), "{line}");
            let Some(count) = line.strip_prefix("stored ") else { continue };
            stored = stored.max(count.parse().unwrap());
            lives -= 1;
            if lives == 0 {
                std::thread::sleep(Duration::from_micros(random.u64(..3_000)));
                writer.kill().unwrap();
                lives = u32::MAX;
            }
        }
        writer.wait().unwrap();
    }
    stored
}

async fn redeliver(subject: &Subject, directory: &Path) -> Vec<Delivery> {
    let events = events(EVENTS);
    let mut sink = subject.open(directory).await.unwrap();
    for batch in events.chunks(5_000) {
        assert_eq!(store(&mut sink, batch).await.unwrap(), [], "{}", subject.name);
    }
    events
}

#[tokio::test]
async fn a_killed_file_writer_loses_doubles_and_tears_nothing() {
    killed("file").await;
}

#[tokio::test]
async fn a_killed_sqlite_writer_loses_and_doubles_nothing() {
    killed("sqlite, default columns").await;
}

#[tokio::test]
async fn a_killed_writer_into_a_table_without_ids_loses_and_doubles_nothing() {
    killed("sqlite, a table without an id column").await;
}

#[tokio::test]
async fn a_killed_postgres_writer_loses_and_doubles_nothing() {
    killed("postgres, default columns").await;
}

#[tokio::test]
async fn a_killed_writer_into_a_postgres_table_without_ids_loses_and_doubles_nothing() {
    killed("postgres, a table without an id column").await;
}

async fn killed(name: &str) {
    let mut random = seeded(name);
    let subject = Subject::named(name);
    let directory = tempfile::tempdir().unwrap();
    subject.prepare(directory.path()).await;
    let said = kill_often(subject, directory.path(), &mut random);
    // Opening mends the file, so that what is there can be counted.
    drop(subject.open(directory.path()).await.unwrap());
    let stored = subject.stored(directory.path()).await.len();
    assert!(said > 0 && stored >= said, "{name}: {said} were said to be stored, {stored} are");
    let events = redeliver(subject, directory.path()).await;
    assert_each_once(name, subject.stored(directory.path()).await, &events);
}

/// Another program appends lines to the same file while writers come and go.
#[tokio::test]
async fn lines_of_another_program_are_never_cut() {
    let mut random = seeded("lines_of_another_program_are_never_cut");
    let subject = Subject::named("file");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.log");
    let stop = AtomicBool::new(false);
    let foreign = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                file.write_all(format!("foreign {count};\n").as_bytes()).unwrap();
                count += 1;
                std::thread::sleep(Duration::from_micros(fastrand::u64(..300)));
            }
            count
        });
        kill_often(subject, directory.path(), &mut random);
        stop.store(true, Ordering::Relaxed);
        other.join().unwrap()
    });
    let events = redeliver(subject, directory.path()).await;
    let expected: std::collections::HashSet<_> = bodies(&events).into_iter().collect();
    let (ours, others): (Vec<_>, Vec<_>) =
        lines(&path).into_iter().partition(|line| expected.contains(line));
    assert_each_once("file", ours, &events);
    // A line of theirs may stand behind one of ours that a kill cut short, but it is whole.
    assert_eq!(others.len(), foreign);
    for (count, line) in others.iter().enumerate() {
        let line = String::from_utf8_lossy(line);
        assert!(line.ends_with(&format!("foreign {count};")), "{line}");
    }
}

#[tokio::test]
async fn two_processes_write_one_file_and_one_table() {
    for name in [
        "file",
        "sqlite, default columns",
        "sqlite, upsert",
        "postgres, default columns",
        "postgres, a table without an id column",
        "postgres, upsert",
    ] {
        let subject = Subject::named(name);
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let writers = [0, EVENTS / 3].map(|at| start(name, directory.path(), at, 1, None));
        for writer in writers {
            let output = writer.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && !said.contains("\nerror"), "{name}: {said}");
        }
        let events = events(EVENTS);
        assert_each_once(name, subject.stored(directory.path()).await, &events);
    }
}

/// The stand-in for a full disk is a limit on the length of files: a write then does a part and
/// errs, as it does where there is no room.
#[tokio::test]
async fn without_room_nothing_is_lost_and_it_goes_on_when_there_is_some() {
    let mut random = seeded("without_room_nothing_is_lost_and_it_goes_on_when_there_is_some");
    const BEFORE: usize = 8 * 1024 * 1024;
    for name in ["file", "sqlite, columns"] {
        let subject = Subject::named(name);
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        // The ledger beside the file must not be what meets the limit: the file is longer.
        let before = "a line that was there before\n".repeat(BEFORE / 29);
        if name == "file" {
            std::fs::write(directory.path().join("out.log"), &before).unwrap();
        }
        let mut limit = if name == "file" { before.len() as u64 } else { 32 * 1024 };
        let (mut stored, mut errors) = (0, 0);
        while stored < EVENTS && errors < 30 {
            limit += random.u64(512..60_000);
            let writer = start(name, directory.path(), stored, 1, Some(limit));
            let output = writer.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut counts = said.lines().filter_map(|line| line.strip_prefix("stored "));
            stored = counts.next_back().map_or(stored, |count| count.parse().unwrap());
            if let Some(error) = said.lines().find(|line| line.starts_with("error ")) {
                assert!(error.contains("out."), "{name}: {error}");
                errors += 1;
            }
        }
        assert!(errors > 3, "{name}: the limit was met {errors} times only");
        let events = redeliver(subject, directory.path()).await;
        let mut found = subject.stored(directory.path()).await;
        if name == "file" {
            let text = std::fs::read(directory.path().join("out.log")).unwrap();
            assert!(text.starts_with(before.as_bytes()));
            found.drain(..before.len() / 29);
        }
        assert_each_once(name, found, &events);
    }
}
