//! What the `file` sink does with a file that others use too.

#[path = "support/sinks.rs"]
mod sinks;

use std::fs;

use aqueduct::event::{EventId, Origin, Sequence, hash};
use sinks::*;
use sqlx::AssertSqlSafe;

fn read(directory: &tempfile::TempDir, name: &str) -> String {
    fs::read_to_string(directory.path().join(name)).unwrap()
}

#[tokio::test]
async fn a_rotated_or_removed_file_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let subject = Subject::named("file");
    let mut sink = subject.open(directory.path()).await.unwrap();
    let out = directory.path().join("out.log");
    let events: Vec<_> = (0..4).map(|n| counted("a", n, format!("{n}"))).collect();
    store(&mut sink, &events[..1]).await.unwrap();
    fs::rename(&out, directory.path().join("out.log.1")).unwrap();
    store(&mut sink, &events[..2]).await.unwrap();
    fs::remove_file(&out).unwrap();
    store(&mut sink, &events[..3]).await.unwrap();
    fs::write(&out, "").unwrap();
    let mut sink = subject.open(directory.path()).await.unwrap();
    store(&mut sink, &events).await.unwrap();
    assert_eq!(read(&directory, "out.log.1"), "0\n");
    assert_eq!(read(&directory, "out.log"), "3\n");
}

#[tokio::test]
async fn a_line_of_ours_never_lengthens_somebody_elses() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.log");
    fs::write(&out, "unfinished").unwrap();
    let mut sink = Subject::named("file").open(directory.path()).await.unwrap();
    assert_eq!(read(&directory, "out.log"), "unfinished");
    store(&mut sink, &[counted("a", 0, ""), counted("a", 1, "one")]).await.unwrap();
    assert_eq!(read(&directory, "out.log"), "unfinished\n\none\n");
}

#[tokio::test]
async fn json_is_put_on_one_line_and_text_with_a_newline_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = Subject::named("file").open(directory.path()).await.unwrap();
    let batch = [
        counted("a", 0, "{\n  \"b\": 1.50,\n  \"a\": \"x y\"\n}\n"),
        counted("a", 1, "text\n"),
        counted("a", 2, "{ \"as\": \"it is\" }\r"),
    ];
    let refusals = store(&mut sink, &batch).await.unwrap();
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0].index, 1);
    assert!(refusals[0].reason.contains("holds a newline"));
    assert_eq!(
        read(&directory, "out.log"),
        "{\"b\":1.50,\"a\":\"x y\"}\n{ \"as\": \"it is\" }\r\n"
    );
}

/// An unfinished last line was delivered, and then the whole line at the same place.
#[tokio::test]
async fn a_line_that_was_completed_is_another_event() {
    let directory = tempfile::tempdir().unwrap();
    let subject = Subject::named("file");
    let mut sink = subject.open(directory.path()).await.unwrap();
    let origin = Origin::new(Sequence::Bytes, &[b"lines"]);
    let line =
        |at, body: &'static str| delivery(EventId::new(origin, at, hash(body.as_bytes())), body);
    let events = [line(0, "first"), line(6, "unfin"), line(6, "unfinished"), line(17, "last")];
    for _ in 0..2 {
        for at in 0..events.len() {
            store(&mut sink, &events[at..]).await.unwrap();
            store(&mut sink, &events[..=at]).await.unwrap();
        }
        sink = subject.open(directory.path()).await.unwrap();
    }
    assert_each_once("file", lines(&directory.path().join("out.log")), &events);
}

/// What the ledger keeps does not grow with what was written.
#[tokio::test]
async fn the_ledger_stays_small() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = Subject::named("file").open(directory.path()).await.unwrap();
    let mut events: Vec<_> = (0..20_000).map(|n| counted("a", n, "x")).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut events);
    for batch in events.chunks(1_000) {
        store(&mut sink, batch).await.unwrap();
    }
    let mut ledger = connect(&directory.path().join(".out.log.aqueduct.db")).await;
    let query = "SELECT (SELECT count(*) FROM spans) * 1000 + (SELECT count(*) FROM singles)";
    let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(query));
    assert_eq!(query.fetch_one(&mut ledger).await.unwrap(), 1000);
}
