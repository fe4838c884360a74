//! What the tests of the library share: a test's stream as a program opens it, and what programs do
//! with it.

#![allow(dead_code)] // Every test file uses another part of it.

use std::time::Duration;

use aqueduct::spec::Value;
use aqueduct::{Batch, Consumer, Message, Received, Stream, StreamBuilder};
use tokio::time::Instant;

use super::streams::{GLANCE, PATIENCE, Place};

/// A lease that no test waits for.
pub const LONG: Duration = Duration::from_secs(60);
/// A lease that a test can wait for.
pub const SHORT: Duration = Duration::from_millis(600);

/// The same place, as a program names it.
pub fn stream_at(at: &Place) -> StreamBuilder {
    let values = || at.spec.values.iter();
    let text = |value: &Value| match value {
        Value::Str(text) => vec![text.clone()],
        Value::List(list) => list.clone(),
        other => panic!("{other:?}"),
    };
    let urls: Vec<String> = values()
        .filter_map(|(key, value)| match key {
            "url" => Some(text(value)),
            "path" => Some(vec![format!("embedded:{}", text(value)[0])]),
            _ => None,
        })
        .flatten()
        .collect();
    let others = values().filter(|(key, _)| !["url", "path"].contains(key));
    let builder = Stream::at_cluster(urls).name("s").data_dir(at.folder.path());
    let builder = builder.shards(at.spec.shards);
    others.fold(builder, |builder, (key, value)| builder.set(key, &text(value)[0]))
}

/// A message for each number.
pub fn messages(numbers: std::ops::Range<u32>) -> Vec<Message> {
    numbers.map(|number| Message::json(&number).unwrap()).collect()
}

/// The number of a message.
pub fn number(message: &Received) -> u32 {
    message.json().unwrap()
}

/// The numbers of a batch.
pub fn numbers(batch: &Batch) -> Vec<u32> {
    batch.iter().map(number).collect()
}

/// Pulls until there is something.
pub async fn some(consumer: &mut Consumer) -> Batch {
    let start = Instant::now();
    loop {
        let batch = consumer.pull(100, Duration::from_millis(500)).await.unwrap();
        if !batch.is_empty() {
            return batch;
        }
        assert!(start.elapsed() < PATIENCE, "nothing came");
    }
}

/// Nothing comes.
pub async fn nothing(consumer: &mut Consumer) {
    let batch = consumer.pull(100, GLANCE).await.unwrap();
    assert_eq!(numbers(&batch), [0; 0], "nothing was to be delivered");
}
