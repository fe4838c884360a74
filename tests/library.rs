//! The library: publish, pull, settle, on every backend.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/streams.rs"]
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aqueduct::stream::Backend;
use aqueduct::{
    Batch, Consumer, Error, EventId, Group, Message, Producer, Received, Settled, Stream, shard_of,
};
use programs::*;
use streams::servers::Redis;
use streams::{GLANCE, Place, until};
use tokio::time::{Instant, timeout};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn open(at: &Place) -> (Stream, Producer) {
    let stream = stream_at(at).open().await.unwrap();
    stream.group("g").create().await.unwrap();
    let producer = stream.producer("shop").await.unwrap();
    (stream, producer)
}

/// Pulls and acknowledges `count` messages.
async fn finish(consumer: &mut Consumer, count: usize) -> Vec<u32> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = some(consumer).await;
        all.extend(numbers(&batch));
        assert_eq!(batch.ack().await.unwrap(), Settled::default());
    }
    all.sort_unstable();
    all
}

/// The backend itself, to look at what the library leaves in it.
async fn backend(at: &Place) -> std::sync::Arc<dyn Backend> {
    at.open().await
}

async fn what_is_published_comes_with_all_it_carries(at: Place) {
    let (stream, mut producer) = open(&at).await;
    let sent = [
        Message::json(&serde_json::json!({"number": 1})).unwrap().key("a ✓").traceparent(TRACE),
        Message::new(vec![0xff, 0, 0xfe]).traceparent(TRACE).tracestate("a=1"),
        Message::new("").idempotency("the third"),
    ];
    let ids = producer.publish(&sent).await.unwrap();
    assert_eq!(ids, sent.iter().map(|message| message.id().unwrap()).collect::<Vec<_>>());
    let mut consumer = stream.group("g").consumer("worker").await.unwrap();
    let mut came = BTreeMap::new();
    while came.len() < 3 {
        let batch = some(&mut consumer).await;
        came.extend(batch.iter().map(|message| (message.id(), message.clone())));
        batch.ack().await.unwrap();
    }
    for (id, message) in ids.iter().zip(&sent) {
        let received = &came[id];
        assert_eq!(received.body(), message.body());
        assert_eq!((received.source(), received.stream()), ("shop", "s"));
        assert_eq!((received.deliveries(), received.attempt()), (1, 1));
        let age = chrono::Utc::now() - received.time();
        assert!((0..60_000).contains(&age.num_milliseconds()), "{age}");
    }
    let of = |at: usize| &came[&ids[at]];
    assert_eq!(
        (of(0).key(), of(0).traceparent(), of(0).tracestate()),
        (Some("a ✓"), Some(TRACE), None)
    );
    assert_eq!((of(1).key(), of(1).tracestate()), (None, Some("a=1")));
    assert_eq!(of(2).traceparent(), None);

    // Again, by a producer that knows nothing of the first: the same event.
    let mut again = stream.producer("shop").await.unwrap();
    let third = Message::new("another body").idempotency("the third");
    assert_eq!(again.publish([&third, &sent[0]]).await.unwrap(), [ids[2], ids[0]]);
    finish_ids(&mut consumer, &[ids[2], ids[0]]).await;
    nothing(&mut consumer).await;
    consumer.close().await.unwrap();
}

async fn finish_ids(consumer: &mut Consumer, ids: &[EventId]) {
    let mut came = BTreeSet::new();
    while came.len() < ids.len() {
        let batch = some(consumer).await;
        came.extend(batch.iter().map(Received::id));
        batch.ack().await.unwrap();
    }
    assert_eq!(came, ids.iter().copied().collect());
}

async fn consumers_of_a_group_share_and_groups_do_not(at: Place) {
    let (stream, mut producer) = open(&at).await;
    stream.group("other").create().await.unwrap();
    let group = stream.group("g");
    let (mut one, mut two) =
        (group.consumer("worker").await.unwrap(), group.consumer("worker").await.unwrap());
    let mut seen = (Vec::new(), Vec::new());
    let mut sent = 0;
    let start = Instant::now();
    while seen.0.is_empty() || seen.1.is_empty() || seen.0.len() + seen.1.len() < sent as usize {
        assert!(start.elapsed() < streams::PATIENCE, "{seen:?}");
        if seen.0.is_empty() || seen.1.is_empty() {
            producer.publish(&messages(sent..sent + 10)).await.unwrap();
            sent += 10;
        }
        let wait = Duration::from_millis(300);
        let (first, second) = tokio::join!(one.pull(3, wait), two.pull(3, wait));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first.len() <= 3 && second.len() <= 3);
        seen.0.extend(numbers(&first));
        seen.1.extend(numbers(&second));
        first.ack().await.unwrap();
        second.ack().await.unwrap();
    }
    let mut all = [seen.0, seen.1].concat();
    all.sort_unstable();
    assert_eq!(all, (0..sent).collect::<Vec<_>>());
    let mut other = stream.group("other").consumer("worker").await.unwrap();
    assert_eq!(finish(&mut other, sent as usize).await, all);
}

async fn a_key_is_a_shard_and_an_order(at: Place) {
    let at = at.with(|spec| spec.shards = 4);
    let (stream, mut producer) = open(&at).await;
    let keys = ["ada", "bob", "cid", "dot", "eve", "fay", "gus", "hal"];
    let keyed = |number: u32| Message::json(&number).unwrap().key(keys[number as usize % 8]);
    producer.publish(&(0..160).map(keyed).collect::<Vec<_>>()).await.unwrap();
    let mut consumer = stream.group("g").consumer("worker").await.unwrap();
    let mut of_key: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut shards = BTreeSet::new();
    while of_key.values().map(Vec::len).sum::<usize>() < 160 {
        let batch = some(&mut consumer).await;
        for message in &batch {
            let key = message.key().unwrap();
            assert_eq!(message.shard(), shard_of(key, 4));
            shards.insert(message.shard());
            of_key.entry(key.to_owned()).or_default().push(number(message));
        }
        batch.ack().await.unwrap();
    }
    assert!(shards.len() > 1);
    for (index, key) in keys.iter().enumerate() {
        let order: Vec<u32> = (0..20).map(|turn| turn * 8 + index as u32).collect();
        assert_eq!(of_key[*key], order, "{key}");
    }
}

async fn a_named_shard_wins_over_the_key_and_a_type_travels(at: Place) {
    let at = at.with(|spec| spec.shards = 4);
    let (stream, mut producer) = open(&at).await;
    let (key, named) = ("ada", (shard_of("ada", 4) + 1) % 4);
    let message = Message::new("1").key(key).kind("order-paid");
    let wrong = Message::new("2").shard(4);
    let refused = producer.publish([&message, &wrong]).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)) && !refused.is_temporary());
    assert_eq!(refused.to_string(), "a message names shard 4 of stream s, which has 4: 0 to 3");
    producer.publish([&message.clone().shard(named), &message]).await.unwrap();
    let mut consumer = stream.group("g").consumer("worker").await.unwrap();
    let mut shards = BTreeSet::new();
    while shards.len() < 2 {
        let batch = some(&mut consumer).await;
        for message in &batch {
            assert_eq!((message.key(), message.kind()), (Some(key), Some("order-paid")));
            shards.insert(message.shard());
        }
        batch.ack().await.unwrap();
    }
    assert_eq!(shards, BTreeSet::from([named, shard_of(key, 4)]));
    nothing(&mut consumer).await;
}

async fn what_is_held_is_renewed(at: Place) {
    let (stream, mut producer) = open(&at).await;
    producer.publish(&messages(0..5)).await.unwrap();
    let group = stream.group("g").lease(SHORT);
    let (mut one, mut two) =
        (group.consumer("one").await.unwrap(), group.consumer("two").await.unwrap());
    let mut batches = Vec::new();
    while batches.iter().map(Batch::len).sum::<usize>() < 5 {
        batches.push(some(&mut one).await);
    }
    // Also while the consumer itself is gone and only its batches are there.
    drop(one);
    let end = Instant::now() + SHORT * 4;
    while Instant::now() < end {
        nothing(&mut two).await;
    }
    for batch in &batches {
        assert_eq!(batch.ack().await.unwrap(), Settled::default());
    }
    nothing(&mut two).await;
}

async fn what_is_handed_back_comes_at_once_and_does_not_count(at: Place) {
    let (stream, mut producer) = open(&at).await;
    producer.publish(&messages(0..6)).await.unwrap();
    let group = stream.group("g").lease(LONG);
    let mut one = group.consumer("one").await.unwrap();
    let mut kept = Vec::new();
    while kept.iter().map(Batch::len).sum::<usize>() < 6 {
        let batch = one.pull(2, Duration::from_secs(5)).await.unwrap();
        batch.release().await.unwrap();
        let again = one.pull(2, Duration::from_secs(5)).await.unwrap();
        assert!(again.iter().all(|it| (it.deliveries(), it.attempt()) == (1, 1)), "{again:?}");
        kept.push(again);
    }
    one.close().await.unwrap();
    let mut two = group.consumer("two").await.unwrap();
    let start = Instant::now();
    let mut came = Vec::new();
    while came.len() < 6 {
        let batch = some(&mut two).await;
        assert!(batch.iter().all(|it| it.deliveries() == 1));
        came.extend(numbers(&batch));
        batch.ack().await.unwrap();
    }
    assert!(start.elapsed() < LONG / 2);
    came.sort_unstable();
    assert_eq!(came, [0, 1, 2, 3, 4, 5]);
    // What the first still has in its hands is no longer its own, and it is told.
    for batch in &kept {
        let ids: Vec<EventId> = batch.iter().map(Received::id).collect();
        assert_eq!(batch.ack().await.unwrap().lost, ids);
        assert!(batch.ack().await.unwrap().lost.is_empty());
    }
}

async fn a_pull_that_is_given_up_loses_nothing(at: Place) {
    let (stream, mut producer) = open(&at).await;
    let mut consumer = stream.group("g").lease(LONG).consumer("worker").await.unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let publishing = tokio::spawn(async move {
        for number in 0..100 {
            producer.publish(&messages(number..number + 1)).await.unwrap();
        }
    });
    let (mut came, start) = (Vec::new(), Instant::now());
    while came.len() < 100 {
        assert!(start.elapsed() < LONG / 2, "{} came", came.len());
        let short = Duration::from_micros(random.u64(0..8000));
        if let Ok(batch) = timeout(short, consumer.pull(7, LONG)).await {
            let batch = batch.unwrap();
            came.extend(numbers(&batch));
            batch.ack().await.unwrap();
        }
    }
    publishing.await.unwrap();
    came.sort_unstable();
    assert_eq!(came, (0..100).collect::<Vec<_>>());
    nothing(&mut consumer).await;
}

async fn what_fails_again_and_again_is_a_dead_letter(at: Place) {
    let (stream, mut producer) = open(&at).await;
    producer.publish(&messages(0..10)).await.unwrap();
    let mut consumer = stream.group("g").lease(LONG).attempts(3).consumer("worker").await.unwrap();
    let (mut tries, mut stored, mut dead) = (Vec::new(), BTreeSet::new(), Vec::new());
    while dead.is_empty() || stored.len() < 8 {
        let batch = some(&mut consumer).await;
        for message in &batch {
            match number(message) {
                4 => {
                    assert!(message.attempt() == 1 || batch.len() == 1);
                    tries.push(message.attempt());
                    dead.extend(batch.retry(message, "four is wrong").await.unwrap().dead);
                    assert!(matches!(batch.retry(message, "").await, Err(Error::Invalid(_))));
                }
                7 => {
                    let settled = batch.give_up(message, "seven is hopeless").await.unwrap();
                    assert_eq!((settled.dead, settled.lost.len()), (vec![message.id()], 0));
                }
                other => assert!(stored.insert(other), "{other} came twice"),
            }
        }
        assert_eq!(batch.ack().await.unwrap(), Settled::default());
    }
    assert_eq!(tries, [1, 2, 3]);
    nothing(&mut consumer).await;
    let backend = backend(&at).await;
    let letters = backend.dead().await.unwrap();
    let told: BTreeMap<Vec<u8>, String> =
        letters.into_iter().map(|it| (it.event.body.to_vec(), it.reason)).collect();
    assert_eq!(told[&b"4"[..]], "four is wrong");
    assert_eq!(told[&b"7"[..]], "seven is hopeless");
    assert_eq!(told.len(), 2);
}

/// As with a program that panics or returns early in the middle of a batch.
async fn what_ends_its_handler_is_found_out_and_no_neighbour_is(at: Place) {
    let (stream, mut producer) = open(&at).await;
    producer.publish(&messages(0..10)).await.unwrap();
    let mut consumer = stream.group("g").lease(LONG).attempts(1).consumer("worker").await.unwrap();
    let mut stored = BTreeSet::new();
    let mut ended = 0;
    let backend = backend(&at).await;
    let start = Instant::now();
    while backend.dead().await.unwrap().is_empty() || stored.len() < 9 {
        assert!(start.elapsed() < streams::PATIENCE, "{stored:?}, {ended} ended");
        let batch = consumer.pull(100, GLANCE).await.unwrap();
        if batch.iter().any(|message| number(message) == 4) {
            ended += 1;
            drop(batch);
            continue;
        }
        stored.extend(numbers(&batch));
        batch.ack().await.unwrap();
    }
    // Twice among others, and once alone, which was the one attempt that it had.
    assert_eq!(ended, 3);
    let letters = backend.dead().await.unwrap();
    assert_eq!((letters.len(), &letters[0].event.body[..]), (1, &b"4"[..]));
    assert!(letters[0].reason.contains("without an outcome, 1 times"), "{}", letters[0].reason);
    nothing(&mut consumer).await;
}

async fn a_full_stream_says_so_and_takes_more_later(at: Place) {
    let stream = stream_at(&at).set("max_backlog", 10).open().await.unwrap();
    let mut consumer = stream.group("g").consumer("worker").await.unwrap();
    // The producer's own stream has to know the group where the backend counts its queues.
    let producer = stream.producer("shop").await.unwrap();
    let mut producer = producer.patience(Duration::ZERO);
    producer.publish(&messages(0..10)).await.unwrap();
    let more = messages(10..15);
    match producer.publish(&more).await {
        Err(error @ Error::Full { behind: 10, .. }) => assert!(error.is_temporary()),
        other => panic!("{other:?}"),
    }
    let mut producer = producer.patience(LONG);
    let (published, came) = tokio::join!(producer.publish(&more), finish(&mut consumer, 15));
    assert_eq!(published.unwrap().len(), 5);
    assert_eq!(came, (0..15).collect::<Vec<_>>());
}

macro_rules! library {
    ($backend:ident, $place:expr, [$($test:ident),* $(,)?]) => {
        mod $backend {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($place).await;
            })*
        }
    };
    ($backend:ident, $place:expr) => {
        library!($backend, $place, [
            what_is_published_comes_with_all_it_carries,
            consumers_of_a_group_share_and_groups_do_not,
            a_key_is_a_shard_and_an_order,
            a_named_shard_wins_over_the_key_and_a_type_travels,
            what_is_held_is_renewed,
            what_is_handed_back_comes_at_once_and_does_not_count,
            a_pull_that_is_given_up_loses_nothing,
            what_fails_again_and_again_is_a_dead_letter,
            what_ends_its_handler_is_found_out_and_no_neighbour_is,
            a_full_stream_says_so_and_takes_more_later,
        ]);
    };
}

library!(embedded, crate::Place::embedded());
library!(redis, crate::Place::redis());
library!(redis_cluster, crate::Place::redis_cluster());
library!(postgres, crate::Place::postgres());
library!(rabbitmq, crate::Place::rabbitmq("quorum"));

#[test]
fn it_works_on_one_thread_and_all_of_it_can_be_sent_to_another() {
    fn sent<T: Send>(value: T) -> T {
        value
    }
    fn shared<T: Send + Sync + 'static>() {}
    shared::<(Stream, Group, Batch, Received, Message, Error)>();
    let at = Place::embedded();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(sent(async {
        let (stream, mut producer) = sent(open(&at)).await;
        let both = messages(0..2);
        sent(producer.publish(&both)).await.unwrap();
        let mut consumer = sent(stream.group("g").consumer("worker")).await.unwrap();
        let batch = sent(consumer.pull(10, LONG)).await.unwrap();
        sent(batch.retry(&batch.messages()[0], "why")).await.unwrap();
        sent(batch.ack()).await.unwrap();
        let again = sent(some(&mut consumer)).await;
        assert_eq!((numbers(&again), again.messages()[0].attempt()), (vec![0], 2));
        sent(again.release()).await.unwrap();
        sent(consumer.close()).await.unwrap();
    }));
}

#[tokio::test]
async fn an_outage_is_waited_out() {
    let mut server = Redis::start();
    let stream = Stream::at(server.url()).name("s").open().await.unwrap();
    let mut consumer = stream.group("g").lease(LONG).consumer("worker").await.unwrap();
    let mut producer = stream.producer("shop").await.unwrap();
    producer.publish(&messages(0..1)).await.unwrap();
    let held = some(&mut consumer).await;
    server.kill();
    let mut hasty = stream.producer("shop").await;
    assert!(matches!(&hasty, Err(error) if error.is_temporary()), "{hasty:?}");
    let error = consumer.pull(1, GLANCE).await.unwrap_err();
    assert!(error.is_temporary(), "{error}");
    let text = format!("{:#}", anyhow::Error::new(error));
    assert!(text.starts_with("failed to pull messages of group g on stream s: "), "{text}");
    let next = messages(1..4);
    let publishing =
        tokio::spawn(async move { producer.publish(&next).await.map(|ids| ids.len()) });
    tokio::time::sleep(GLANCE).await;
    server.up();
    assert_eq!(publishing.await.unwrap().unwrap(), 3);
    // It was away for less than the lease, and soon found again: what was held still is.
    assert_eq!(held.ack().await.unwrap(), Settled::default());
    let came: BTreeSet<u32> = finish(&mut consumer, 3).await.into_iter().collect();
    assert_eq!(came, BTreeSet::from([1, 2, 3]));
    until("a producer can be made again", async || {
        hasty = stream.producer("shop").await;
        hasty.is_ok()
    })
    .await;
}
