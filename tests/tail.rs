//! What a user sees of a tail, but for rotation, which has a file of its own.

#[path = "support/tailing.rs"]
mod tailing;

use std::fs;

use aqueduct::spec::Value;
use tailing::{Setup, Stream, append};

#[tokio::test]
async fn a_line_keeps_its_bytes_and_loses_its_newline() {
    let (setup, stream) = (Setup::new("log"), Stream::default());
    let content = b"one\r\n\n  two  \n\xff\xfe\x00\nlast";
    append(&setup.at("log"), content);
    let running = setup.start(&stream);
    stream.until_lines(4).await;
    append(&setup.at("log"), " line\nmore");
    stream.until_lines(5).await;
    running.stop().await;
    let state = stream.state();
    let bodies: Vec<&[u8]> = state.sink.iter().map(|event| &event.body[..]).collect();
    let expected: [&[u8]; 5] = [b"one\r", b"", b"  two  ", b"\xff\xfe\x00", b"last line"];
    assert_eq!(bodies, expected);
    let offsets: Vec<u64> = state.sink.iter().map(|event| event.id.sequence()).collect();
    assert_eq!(offsets, [0, 5, 6, 14, 18]);
    assert!(state.sink.is_sorted_by_key(|event| event.id));
    assert!(state.sink.iter().all(|event| &*event.source == "lines"));
}

#[tokio::test]
async fn lines_written_a_byte_at_a_time_are_the_same_lines() {
    let (setup, stream) = (Setup::new("log"), Stream::default());
    let running = setup.start(&stream);
    let text: String = (0..40).map(|n| format!("line {n} {}\n", "x".repeat(n % 7))).collect();
    for byte in text.as_bytes() {
        append(&setup.at("log"), [*byte]);
        tokio::task::yield_now().await;
    }
    stream.until_lines(40).await;
    running.stop().await;
    assert_eq!(stream.lines(), text.lines().collect::<Vec<_>>());
}

#[tokio::test]
async fn until_idle_counts_an_unfinished_line_but_does_not_pass_it() {
    let (setup, stream) = (Setup::new("*.log").until_idle(), Stream::default());
    append(&setup.at("a.log"), "one\nhalf");
    append(&setup.at("b.log"), "no newline at all");
    append(&setup.at("c.log"), "");
    setup.finish(&stream).await;
    let sorted = |stream: &Stream| {
        let mut lines = stream.lines();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&stream), ["half", "no newline at all", "one"]);
    setup.finish(&stream).await;
    assert_eq!(sorted(&stream).len(), 3, "the same lines again are the same events");
    append(&setup.at("a.log"), "\n");
    append(&setup.at("b.log"), "\n");
    setup.finish(&stream).await;
    assert_eq!(sorted(&stream).len(), 3, "the newline makes no other line of it");
    append(&setup.at("a.log"), "two\n");
    setup.finish(&stream).await;
    assert_eq!(sorted(&stream), ["half", "no newline at all", "one", "two"]);
}

#[tokio::test]
async fn until_idle_ends_where_no_file_is() {
    let (setup, stream) = (Setup::new("none/*.log").until_idle(), Stream::default());
    setup.finish(&stream).await;
    assert!(stream.lines().is_empty());
}

#[tokio::test]
async fn a_line_past_the_limit_is_a_dead_letter_that_says_where() {
    let setup = Setup::new("log").with("max_line", Value::Int(1000)).until_idle();
    let stream = Stream::default();
    let long = "x".repeat(3_000_000);
    append(&setup.at("log"), format!("one\n{long}\n{}\ntwo\n", "y".repeat(1000)));
    setup.finish(&stream).await;
    assert_eq!(stream.lines(), ["one", &"y".repeat(1000), "two"]);
    let dead = stream.state().dead.clone();
    assert_eq!(dead.len(), 1);
    let path = setup.at("log");
    let reason =
        format!("line at offset 4 of {} is 3000000 bytes long (max_line is 1000)", path.display());
    assert_eq!(dead[0].reason, reason);
    let body: serde_json::Value = serde_json::from_slice(&dead[0].event.body).unwrap();
    assert_eq!(body["file"], path.to_str().unwrap());
    assert_eq!((&body["offset"], &body["length"]), (&4.into(), &3_000_000.into()));
    assert_eq!(body["head"], "x".repeat(256));
}

#[tokio::test]
async fn new_files_and_directories_of_a_glob_are_followed() {
    let (setup, stream) = (Setup::new("*/*.log"), Stream::default());
    let running = setup.start(&stream);
    fs::create_dir(setup.at("web")).unwrap();
    append(&setup.at("web/a.log"), "web a\n");
    stream.until_lines(1).await;
    append(&setup.at("web/b.log"), "web b\n");
    append(&setup.at("web/b.txt"), "no log\n");
    stream.until_lines(2).await;
    fs::create_dir(setup.at("db")).unwrap();
    append(&setup.at("db/a.log"), "db a\n");
    stream.until_lines(3).await;
    append(&setup.at("web/a.log"), "web a again\n");
    stream.until_lines(4).await;
    running.stop().await;
    assert_eq!(stream.lines(), ["web a", "web b", "db a", "web a again"]);
}

#[tokio::test]
async fn more_files_than_may_be_open_are_all_read() {
    let (setup, stream) = (Setup::new("*.log"), Stream::default());
    let name = |n: usize| format!("{n:03}.log");
    (0..600).for_each(|n| append(&setup.at(&name(n)), format!("{n} first\n")));
    let running = setup.start(&stream);
    stream.until_lines(600).await;
    (0..600).for_each(|n| append(&setup.at(&name(n)), format!("{n} second\n")));
    (0..600).for_each(|n| fs::rename(setup.at(&name(n)), setup.at(&format!("{n}.old"))).unwrap());
    stream.until_lines(1200).await;
    running.stop().await;
    let mut lines = stream.lines();
    lines.sort_by_key(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap());
    for (n, pair) in lines.chunks(2).enumerate() {
        assert_eq!(pair, [format!("{n} first"), format!("{n} second")]);
    }
}

#[tokio::test]
async fn start_at_the_end_is_decided_once() {
    let setup = Setup::new("*.log").with("start", Value::Str("end".into()));
    let stream = Stream::default();
    append(&setup.at("a.log"), "old\nold too\nunfin");
    let running = setup.start(&stream);
    setup.until_looked().await;
    append(&setup.at("b.log"), "b one\n");
    stream.until_lines(1).await;
    append(&setup.at("a.log"), "ished\n");
    stream.until_lines(2).await;
    running.stop().await;
    append(&setup.at("a.log"), "while down\n");
    append(&setup.at("c.log"), "c one\n");
    let running = setup.start(&stream);
    stream.until_lines(4).await;
    running.stop().await;
    stream.restore(Vec::new());
    let before = stream.state().appended.len();
    let running = setup.start(&stream);
    stream.until("all of it again", |state| state.appended.len() == before + 4).await;
    append(&setup.at("a.log"), "new\n");
    stream.until_lines(5).await;
    running.stop().await;
    let mut lines = stream.lines();
    lines.sort();
    assert_eq!(lines, ["b one", "c one", "new", "unfinished", "while down"]);
}

#[tokio::test]
async fn a_stream_that_comes_back_older_gets_the_same_events_again() {
    let (setup, stream) = (Setup::new("log*"), Stream::default());
    let text = |from: usize, to: usize| (from..to).map(|n| format!("n {n}\n")).collect::<String>();
    append(&setup.at("log"), text(0, 5000));
    let running = setup.start(&stream);
    stream.until_lines(5000).await;
    let older = stream.slots();
    append(&setup.at("log"), text(5000, 9000));
    stream.until_lines(9000).await;
    fs::rename(setup.at("log"), setup.at("log.1")).unwrap();
    append(&setup.at("log"), text(9000, 10_000));
    stream.until_lines(10_000).await;
    stream.restore(older);
    append(&setup.at("log"), text(10_000, 10_001));
    stream.until("all of it again", |state| state.appended.len() == 10_001 + 5000).await;
    running.stop().await;
    assert!(stream.state().rewinds > 0);
    // And to one that holds nothing, found when it starts.
    stream.restore(Vec::new());
    let running = setup.start(&stream);
    stream.until("all of it anew", |state| state.appended.len() == 25_002).await;
    running.stop().await;
    assert_eq!(stream.lines(), (0..10_001).map(|n| format!("n {n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lost_data_directory_is_made_up_for_by_the_stream() {
    let setup = Setup::new("log").with("start", Value::Str("end".into()));
    let stream = Stream::default();
    append(&setup.at("log"), "old\n");
    let running = setup.start(&stream);
    setup.until_looked().await;
    append(&setup.at("log"), "new\n");
    stream.until_lines(1).await;
    running.stop().await;
    fs::remove_dir_all(setup.at(".data")).unwrap();
    append(&setup.at("log"), "newer\n");
    let running = setup.start(&stream);
    stream.until_lines(2).await;
    running.stop().await;
    stream.restore(Vec::new());
    let running = setup.start(&stream);
    stream.until("both again", |state| state.appended.len() == 4).await;
    running.stop().await;
    assert_eq!(stream.lines(), ["new", "newer"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tails_of_one_file_store_each_line_once() {
    let (one, stream) = (Setup::new("log"), Stream::default());
    let two = one.elsewhere(".data2");
    let first = one.start(&stream);
    let second = two.start(&stream);
    let mut expected = Vec::new();
    for round in 0..20 {
        for n in 0..200 {
            expected.push(format!("{round} {n}"));
            append(&one.at("log"), format!("{round} {n}\n"));
        }
        if round % 4 == 3 {
            fs::rename(one.at("log"), one.at(&format!("log.{round}"))).unwrap();
        }
        stream.until_lines(expected.len()).await;
    }
    first.stop().await;
    second.stop().await;
    assert_eq!(stream.lines(), expected);
    let uniques = stream.state().sink.len();
    assert_eq!(stream.state().appended.len(), uniques, "nothing was even appended twice");
}

#[tokio::test]
async fn a_file_that_is_no_longer_asked_for_is_no_longer_followed() {
    let (setup, stream) = (Setup::new("a.log").until_idle(), Stream::default());
    append(&setup.at("a.log"), "a one\n");
    append(&setup.at("b.log"), "b one\n");
    setup.finish(&stream).await;
    append(&setup.at("a.log"), "a two\n");
    let path = setup.at("b.log").to_str().unwrap().to_owned();
    let setup = setup.with("path", Value::Str(path));
    setup.finish(&stream).await;
    assert_eq!(stream.lines(), ["a one", "b one"]);
}

#[tokio::test]
async fn a_file_that_was_not_seen_for_90_days_is_forgotten() {
    let (setup, stream) = (Setup::new("*.log"), Stream::default());
    append(&setup.at("a.log"), "a one\n");
    append(&setup.at("b.log"), "b one\n");
    let running = setup.start(&stream);
    stream.until_lines(2).await;
    running.stop().await;
    fs::remove_file(setup.at("a.log")).unwrap();
    setup.alter_registry("UPDATE tail_generations SET seen_ms = 0").await;
    let running = setup.start(&stream);
    stream.until("its end", |state| state.generations() == 1).await;
    running.stop().await;
    assert!(stream.slots().iter().any(|(_, position)| position.note.contains("b.log")));
    assert_eq!(stream.lines().len(), 2);
}
