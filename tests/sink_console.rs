//! The `console` sink, in a process of its own so that its standard output can be read and closed.

#[path = "support/sinks.rs"]
mod sinks;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use aqueduct::spec::Values;
use sinks::*;

/// Not a test: the process that the tests below start. It prints events until it cannot, or until
/// it printed `count` batches, and leaves a note how it went.
#[tokio::test]
#[ignore = "started by the other tests"]
async fn printer() {
    let Ok(order) = std::env::var("AQUEDUCT_TEST_PRINTER") else { return };
    let (count, note) = order.split_once('|').unwrap();
    let mut sink = open("console", Values::default()).await.unwrap();
    let batch = [
        counted("a", 0, "{\n \"b\": 1.0, \"a\": 2 }"),
        counted("a", 1, "two\nlines"),
        counted("a", 2, b"\xff bytes".as_slice()),
    ];
    for _ in 0..count.parse::<usize>().unwrap() {
        match store(&mut sink, &batch).await {
            Ok(refusals) => assert_eq!(refusals, []),
            Err(error) => return std::fs::write(note, format!("{error:#}")).unwrap(),
        }
    }
    std::fs::write(note, "printed").unwrap();
}

fn start(count: usize, note: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "printer", "--nocapture", "--test-threads=1"])
        .env("AQUEDUCT_TEST_PRINTER", format!("{count}|{}", note.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn an_event_is_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let output = start(1, &directory.path().join("note")).wait_with_output().unwrap();
    let expected = b"{\"b\":1.0,\"a\":2}\ntwo\nlines\n\xff bytes\n";
    let found = output.stdout.windows(expected.len()).any(|window| window == expected);
    assert!(found, "{:?}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_closed_pipe_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("note");
    let mut child = start(1_000_000, &note);
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(output.any(|line| line.is_ok_and(|line| line == "two")));
    drop(output);
    child.wait().unwrap();
    let told = std::fs::read_to_string(note).unwrap();
    assert!(told.starts_with("standard output takes no more"), "{told}");
}
