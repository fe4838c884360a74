//! Ordered groups of the library: a shard is one consumer's at a time, and its messages come in
//! order, whatever programs do with them.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/streams.rs"]
mod streams;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aqueduct::stream::cursor::{CursorMove, To};
use aqueduct::{
    Batch, Consumer, Error, EventId, Group, Message, Producer, Received, Settled, Stream, shard_of,
};
use futures_util::FutureExt;
use programs::*;
use streams::{GLANCE, PATIENCE, Place, until};
use tokio::time::{Instant, timeout};

const SHARDS: u32 = 4;

fn sharded(at: Place) -> Place {
    at.with(|spec| {
        spec.shards = SHARDS;
        spec.groups.iter_mut().for_each(|group| group.ordered = true);
    })
}

/// The stream, a producer, and the group, which is there from the beginning.
async fn open(at: &Place) -> (Stream, Producer, Group) {
    let stream = stream_at(at).open().await.unwrap();
    let group = stream.group("g").ordered().lease(LONG);
    group.create().await.unwrap();
    let producer = stream.producer("shop").await.unwrap();
    (stream, producer, group)
}

/// The key of a shard.
fn key(shard: u32) -> String {
    (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, SHARDS) == shard).unwrap()
}

/// A message for each number: those of a shard are a number of shards apart.
fn keyed(numbers: std::ops::Range<u32>) -> Vec<Message> {
    let keys: Vec<String> = (0..SHARDS).map(key).collect();
    let keyed = |number: u32| {
        Message::json(&number).unwrap().key(keys[(number % SHARDS) as usize].as_str())
    };
    numbers.map(keyed).collect()
}

/// What belongs to a shard of the first `count` messages.
fn all_of(shard: u32, count: u32) -> Vec<u32> {
    (0..count).filter(|number| number % SHARDS == shard).collect()
}

fn shards(batch: &Batch) -> BTreeSet<u32> {
    batch.messages().iter().map(Received::shard).collect()
}

fn epoch(message: &Received) -> i64 {
    let fence = message.fence().unwrap();
    assert_eq!((fence.shard, fence.group.starts_with("s/g/")), (message.shard(), true));
    fence.epoch
}

/// A store of what was handled, as programs should keep one: each message once, and nothing of a
/// consumer that another one has followed.
#[derive(Default)]
struct Store {
    epochs: HashMap<u32, i64>,
    seen: HashSet<EventId>,
    of_shard: BTreeMap<u32, Vec<u32>>,
}

impl Store {
    /// `false`: the shard has a newer owner.
    fn put(&mut self, message: &Received) -> bool {
        let newest = self.epochs.entry(message.shard()).or_insert(i64::MIN);
        if *newest > epoch(message) {
            return false;
        }
        *newest = epoch(message);
        if self.seen.insert(message.id()) {
            self.of_shard.entry(message.shard()).or_default().push(number(message));
        }
        true
    }

    /// The first `count` messages were handled, but for some; those of each shard in order.
    fn check(&self, count: u32, but: &[u32]) {
        for shard in 0..SHARDS {
            let mut all = all_of(shard, count);
            all.retain(|number| !but.contains(number));
            assert_eq!(self.of_shard.get(&shard).unwrap_or(&Vec::new()), &all, "shard {shard}");
        }
    }
}

/// Handles and acknowledges all there is, until `count` are in the store.
async fn finish(consumer: &mut Consumer, store: &mut Store, count: usize) {
    while store.seen.len() < count {
        let batch = some(consumer).await;
        assert!(batch.iter().all(|message| store.put(message)), "a newer owner stored something");
        assert_eq!(batch.ack().await.unwrap(), Settled::default());
    }
}

async fn a_shard_is_one_consumers_at_a_time_and_comes_in_order(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    let (log, published) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let consume = async |name: usize| {
        let mut consumer = group.consumer("worker").await.unwrap();
        let mut empty = 0;
        while empty < 3 {
            let most = fastrand::usize(1..30);
            let batch = consumer.pull(most, Duration::from_millis(100)).await.unwrap();
            assert!(batch.len() <= most);
            for message in &batch {
                let entry = (message.shard(), epoch(message), name, number(message));
                log.lock().unwrap().push(entry);
            }
            assert_eq!(batch.ack().await.unwrap(), Settled::default());
            empty =
                if published.load(Ordering::Relaxed) && batch.is_empty() { empty + 1 } else { 0 };
        }
        consumer.close().await.unwrap();
    };
    let publish = async {
        let (mut sent, start) = (0, Instant::now());
        let both = || log.lock().unwrap().iter().map(|it| it.2).collect::<BTreeSet<_>>().len() == 2;
        while sent < 400 || !both() {
            assert!(start.elapsed() < PATIENCE, "one consumer got nothing");
            producer.publish(&keyed(sent..sent + 20)).await.unwrap();
            sent += 20;
        }
        published.store(true, Ordering::Relaxed);
        sent
    };
    let (sent, (), ()) = tokio::join!(publish, consume(1), consume(2));
    let log = log.lock().unwrap();
    for shard in 0..SHARDS {
        let of_shard: Vec<_> = log.iter().filter(|entry| entry.0 == shard).collect();
        let numbers: Vec<u32> = of_shard.iter().map(|entry| entry.3).collect();
        assert_eq!(numbers, all_of(shard, sent), "shard {shard}");
        assert!(of_shard.is_sorted_by_key(|entry| entry.1), "{of_shard:?}");
        let owners: BTreeSet<(i64, usize)> = of_shard.iter().map(|it| (it.1, it.2)).collect();
        let epochs: BTreeSet<i64> = owners.iter().map(|owner| owner.0).collect();
        assert_eq!(owners.len(), epochs.len(), "an epoch is one consumer's: {owners:?}");
    }
}

async fn more_of_a_shard_comes_once_all_of_it_is_settled(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..80)).await.unwrap();
    let mut consumer = group.consumer("worker").await.unwrap();
    let (mut open, mut store) = (Vec::<Batch>::new(), Store::default());
    let is_open = |open: &[Batch]| open.iter().flat_map(shards).collect::<BTreeSet<u32>>();
    while is_open(&open).len() < SHARDS as usize {
        let batch = consumer.pull(3, PATIENCE).await.unwrap();
        assert!(shards(&batch).is_disjoint(&is_open(&open)), "{batch:?} besides {open:?}");
        open.push(batch);
    }
    nothing(&mut consumer).await;
    // Part of it does not do.
    let first = open.remove(0);
    let (one, rest) = first.messages().split_first().unwrap();
    assert!(store.put(one));
    assert_eq!(first.ack_only([one]).await.unwrap(), Settled::default());
    if rest.iter().any(|message| message.shard() == one.shard()) {
        let next = consumer.pull(100, GLANCE).await.unwrap();
        assert_eq!(next.len(), 0);
    }
    // Nor does a wait that is under way have to end for it.
    let settle = async {
        tokio::time::sleep(GLANCE).await;
        assert!(rest.iter().all(|message| store.put(message)));
        assert_eq!(first.ack().await.unwrap(), Settled::default());
        Instant::now()
    };
    let pull = async {
        let next = consumer.pull(1, LONG).await.unwrap();
        (next, Instant::now())
    };
    let (settled, (next, came)) = tokio::join!(settle, pull);
    assert!(came - settled < PATIENCE / 10, "{:?}", came - settled);
    assert!(shards(&next).is_subset(&shards(&first)), "{next:?}");
    for batch in open.into_iter().chain([next]) {
        assert!(batch.iter().all(|message| store.put(message)));
        batch.ack().await.unwrap();
    }
    finish(&mut consumer, &mut store, 80).await;
    store.check(80, &[]);
}

/// A batch with three of a shard at least, and these.
async fn several(consumer: &mut Consumer) -> (Batch, Vec<Received>) {
    loop {
        let batch = consumer.pull(40, PATIENCE).await.unwrap();
        for shard in 0..SHARDS {
            let of_shard = batch.iter().filter(|message| message.shard() == shard);
            let of_shard: Vec<Received> = of_shard.cloned().collect();
            if of_shard.len() >= 3 {
                return (batch, of_shard);
            }
        }
        batch.release().await.unwrap();
    }
}

async fn a_retry_keeps_its_shard_waiting_and_no_other(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..160)).await.unwrap();
    let mut consumer = group.attempts(3).consumer("worker").await.unwrap();
    let (batch, of_shard) = several(&mut consumer).await;
    let (poison, mut store) = (number(&of_shard[1]), Store::default());
    let behind: Vec<EventId> = of_shard[2..].iter().map(Received::id).collect();
    for message in &batch {
        if number(message) == poison {
            let settled = batch.retry(message, "no").await.unwrap();
            assert_eq!((&settled.waiting, settled.dead.len(), settled.lost.len()), (&behind, 0, 0));
            continue;
        }
        let is_behind = message.shard() == of_shard[0].shard() && number(message) > poison;
        assert!(store.put(message) && !is_behind, "{message:?} was to be passed over");
    }
    // Who handled one all the same is told that it comes again.
    let settled = batch.ack_only([&of_shard[2]]).await.unwrap();
    assert_eq!((settled.waiting, settled.lost.len()), (vec![of_shard[2].id()], 0));
    assert_eq!(batch.ack().await.unwrap(), Settled::default());

    let (mut tries, mut dead) = (vec![1], Vec::new());
    while store.seen.len() < 159 {
        let batch = some(&mut consumer).await;
        for message in &batch {
            if number(message) != poison {
                let waits = message.shard() == of_shard[0].shard() && dead.is_empty();
                assert!(!waits, "{message:?} came before what it waits for was done with");
                assert!(store.put(message) && message.deliveries() == 1, "{message:?}");
                continue;
            }
            assert_eq!(batch.len(), 1);
            tries.push(message.attempt());
            dead.extend(batch.retry(message, "no").await.unwrap().dead);
        }
        assert_eq!(batch.ack().await.unwrap(), Settled::default());
    }
    assert_eq!((tries, dead), (vec![1, 2, 3], vec![of_shard[1].id()]));
    store.check(160, &[poison]);
    let letters = at.open().await.dead().await.unwrap();
    assert_eq!((letters.len(), &*letters[0].reason), (1, "no"));
}

/// As with a program that panics or returns early in the middle of a batch.
async fn what_is_dropped_unsettled_comes_again_before_all_behind_it(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..80)).await.unwrap();
    let mut consumer = group.attempts(1).consumer("worker").await.unwrap();
    let (batch, of_shard) = several(&mut consumer).await;
    drop(batch);
    let (poison, mut store, mut ended) = (number(&of_shard[1]), Store::default(), 1);
    while store.seen.len() < 79 {
        let batch = some(&mut consumer).await;
        if batch.iter().any(|message| number(message) == poison) {
            assert!(ended == 1 || batch.len() == 1);
            ended += 1;
            drop(batch);
            continue;
        }
        assert!(batch.iter().all(|message| store.put(message)));
        assert_eq!(batch.ack().await.unwrap(), Settled::default());
    }
    // Twice among others, and once alone, which was the one attempt that it had.
    assert_eq!(ended, 3);
    store.check(80, &[poison]);
    let letters = at.open().await.dead().await.unwrap();
    assert_eq!((letters.len(), letters[0].event.id), (1, of_shard[1].id()));
    nothing(&mut consumer).await;
}

async fn a_shard_is_settled_from_the_first_on(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..40)).await.unwrap();
    let mut consumer = group.consumer("worker").await.unwrap();
    let (batch, of_shard) = several(&mut consumer).await;
    let [first, second, third] = &of_shard[..3] else { panic!("{batch:?}") };
    let error = batch.ack_only([first, third]).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    let told =
        format!("message {} is to be acknowledged before message {}", third.id(), second.id());
    assert!(error.to_string().starts_with(&told), "{error}");
    // Nothing was; and in which order they are named is all the same.
    assert_eq!(batch.ack_only([second, first]).await.unwrap(), Settled::default());
    // What is given up stands in nobody's way.
    assert_eq!(batch.give_up(third, "hopeless").await.unwrap().dead, [third.id()]);
    let others =
        batch.iter().filter(|message| !of_shard[..3].iter().any(|it| it.id() == message.id()));
    let others: Vec<&Received> = others.collect();
    assert_eq!(batch.ack_only(others).await.unwrap(), Settled::default());
    assert_eq!(batch.ack().await.unwrap(), Settled::default());
}

async fn who_closes_or_is_dropped_gives_its_shards_up_at_once(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..80)).await.unwrap();
    let mut one = group.consumer("one").await.unwrap();
    let (kept, of_shard) = several(&mut one).await;
    let mut held = HashMap::new();
    held.extend(kept.iter().map(|message| (message.shard(), epoch(message))));
    // A pull that was given up still fetches.
    let _ = timeout(Duration::from_millis(1), one.pull(1, LONG)).await;
    one.close().await.unwrap();
    let mut two = group.consumer("two").await.unwrap();
    let (batch, again) = several(&mut two).await;
    for message in &batch {
        assert_eq!(message.deliveries(), 1, "what is handed back was not delivered");
        assert!(held.get(&message.shard()).is_none_or(|before| epoch(message) > *before));
    }
    assert_eq!(kept.iter().count(), 0, "what is another's is not to be handled");
    let ids: Vec<EventId> = kept.messages().iter().map(Received::id).collect();
    assert_eq!(kept.ack().await.unwrap().lost, ids);
    assert!(number(&of_shard[0]) < SHARDS && number(&again[0]) < SHARDS, "from the first on");

    let gone: BTreeSet<u32> = numbers(&batch).into_iter().collect();
    drop(two);
    drop(batch);
    let mut three = group.consumer("three").await.unwrap();
    let (mut store, start) = (Store::default(), Instant::now());
    while store.seen.len() < 80 {
        let batch = some(&mut three).await;
        for message in &batch {
            let before = u32::from(gone.contains(&number(message)));
            assert_eq!(message.deliveries(), 1 + before, "{}", number(message));
            assert!(store.put(message));
        }
        batch.ack().await.unwrap();
    }
    assert!(start.elapsed() < LONG / 2);
    store.check(80, &[]);
}

async fn who_lost_a_shard_is_told_and_given_no_more_of_it(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..80)).await.unwrap();
    let mut consumer = group.lease(SHORT).consumer("worker").await.unwrap();
    // Much is in its hand, and little given.
    drop(several(&mut consumer).await);
    let batch = consumer.pull(3, PATIENCE).await.unwrap();
    let ids: Vec<EventId> = batch.iter().map(Received::id).collect();
    let mut store = Store::default();
    assert!(batch.iter().all(|message| store.put(message)));
    // All that anybody holds is nobody's any more, and every shard has to be claimed anew.
    let lease = Duration::ZERO;
    let order = CursorMove { group: "g".into(), lease, shard: None, to: To::Earliest, force: true };
    at.open().await.move_cursor(&order).await.unwrap().unwrap();
    until("it knows", async || batch.iter().count() == 0).await;
    assert_eq!(batch.ack().await.unwrap().lost, ids);
    let before = store.epochs.clone();
    let (mut seen, start) = (BTreeMap::<u32, Vec<u32>>::new(), Instant::now());
    while seen.values().map(Vec::len).sum::<usize>() < 80 {
        assert!(start.elapsed() < PATIENCE, "{seen:?}");
        let batch = some(&mut consumer).await;
        for message in &batch {
            let old = before.get(&message.shard());
            assert!(old.is_none_or(|old| epoch(message) > *old), "it was lost");
            assert!(store.put(message));
            seen.entry(message.shard()).or_default().push(number(message));
        }
        batch.ack().await.unwrap();
    }
    store.check(80, &[]);
    assert!(seen.iter().all(|(shard, numbers)| *numbers == all_of(*shard, 80)), "{seen:?}");
    nothing(&mut consumer).await;
}

async fn who_does_not_pull_leaves_its_shards_to_others(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..80)).await.unwrap();
    let group = group.lease(SHORT);
    let mut one = group.consumer("one").await.unwrap();
    // Much is in its hand, and nothing given.
    drop(several(&mut one).await);
    let mut store = Store::default();
    let batch = one.pull(3, PATIENCE).await.unwrap();
    // While it has something to settle it is not at rest.
    let mut two = group.consumer("two").await.unwrap();
    let end = Instant::now() + SHORT * 4;
    while Instant::now() < end {
        let others = two.pull(100, GLANCE / 4).await.unwrap();
        assert!(shards(&others).is_disjoint(&shards(&batch)), "{others:?}");
        assert!(others.iter().all(|message| store.put(message)));
        others.ack().await.unwrap();
    }
    assert!(batch.iter().all(|message| store.put(message)));
    assert_eq!(batch.ack().await.unwrap(), Settled::default());
    finish(&mut two, &mut store, 80).await;
    store.check(80, &[]);
    // What it still has in its hand is another's by now.
    nothing(&mut one).await;
    two.close().await.unwrap();
    producer.publish(&keyed(80..120)).await.unwrap();
    finish(&mut one, &mut store, 120).await;
    store.check(120, &[]);
}

async fn what_is_handed_back_comes_again_from_the_first_on_and_before_all_behind_it(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..80)).await.unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut consumer = group.attempts(1_000_000).consumer("worker").await.unwrap();
    let mut batch = some(&mut consumer).await;
    for _ in 0..60 {
        // Nothing is settled: what comes of a shard begins with its first.
        let mut firsts = BTreeMap::new();
        for message in batch.messages() {
            firsts.entry(message.shard()).or_insert(number(message));
        }
        assert!(firsts.iter().all(|(shard, first)| shard == first), "{firsts:?}");
        // A pull is under way meanwhile, and handing back may be given up midway.
        let limit =
            if random.bool() { PATIENCE } else { Duration::from_micros(random.u64(..4000)) };
        let (released, next) = tokio::join!(
            timeout(limit, batch.release()),
            consumer.pull(random.usize(1..6), GLANCE / 8)
        );
        if let Ok(released) = released {
            assert_eq!(released.unwrap(), Settled::default());
        } else if random.bool() {
            batch.release().await.unwrap();
        }
        batch = next.unwrap();
    }
    drop(batch);
    let mut store = Store::default();
    let start = Instant::now();
    finish(&mut consumer, &mut store, 80).await;
    assert!(start.elapsed() < LONG / 2);
    store.check(80, &[]);
}

/// A consumer that does with its batches whatever comes to its mind.
async fn wild(group: Group, store: Arc<Mutex<Store>>, count: usize, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let done = || store.lock().unwrap().seen.len() == count;
    while !done() {
        let mut consumer = group.consumer("wild").await.unwrap();
        let mut open = Vec::<Batch>::new();
        for _ in 0..random.usize(10..60) {
            let (most, wait) = (random.usize(1..30), Duration::from_micros(random.u64(0..60_000)));
            let pulled = match random.u8(0..3) {
                0 => timeout(wait, consumer.pull(most, LONG)).await.ok(),
                _ => Some(consumer.pull(most, wait).await),
            };
            open.extend(pulled.map(|batch| batch.unwrap()));
            if open.len() > random.usize(0..3) {
                let batch = open.swap_remove(random.usize(0..open.len()));
                settle(batch, &store, &mut random).await;
            }
        }
        // What it leaves unsettled counts as delivered, and is soon under suspicion.
        while random.u8(0..8) > 0
            && let Some(batch) = open.pop()
        {
            settle(batch, &store, &mut random).await;
        }
        match random.bool() {
            true => consumer.close().await.unwrap(),
            false => drop(consumer),
        }
    }
}

async fn settle(batch: Batch, store: &Mutex<Store>, random: &mut fastrand::Rng) {
    let (at, what) = (random.usize(0..=batch.len()), random.u8(0..20));
    for (index, message) in batch.iter().enumerate() {
        if index == at {
            match what {
                0 | 1 => drop(batch.retry(message, "at random").await.unwrap()),
                2 => drop(batch.release().await.unwrap()),
                3 => return,
                4 => tokio::time::sleep(Duration::from_millis(random.u64(0..50))).await,
                5 => drop(batch.ack_only(batch.iter().take(index)).await.unwrap()),
                _ => {}
            }
            if what < 3 {
                continue;
            }
        }
        if !store.lock().unwrap().put(message) {
            return;
        }
    }
    batch.ack().await.unwrap();
}

async fn whatever_programs_do_each_shard_is_handled_in_order(at: Place) {
    let (_, mut producer, group) = open(&at).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let group = group.lease(Duration::from_secs(2)).attempts(1_000_000);
    let store = Arc::<Mutex<Store>>::default();
    let count = 240;
    let publishing = tokio::spawn(async move {
        for number in (0..count).step_by(5) {
            producer.publish(&keyed(number..number + 5)).await.unwrap();
        }
    });
    let wild = (0..3).map(|n| {
        let wild = wild(group.clone(), store.clone(), count as usize, seed.wrapping_add(n));
        tokio::spawn(wild)
    });
    let wild: Vec<_> = wild.collect();
    publishing.await.unwrap();
    let start = Instant::now();
    for wild in wild {
        while !wild.is_finished() {
            let store = store.lock().unwrap();
            assert!(start.elapsed() < PATIENCE * 4, "{:?}", store.of_shard);
            drop(store);
            tokio::time::sleep(GLANCE / 8).await;
        }
        wild.await.unwrap();
    }
    store.lock().unwrap().check(count, &[]);
    let mut last = group.consumer("last").await.unwrap();
    let backend = at.open().await;
    until("all of it is settled", async || {
        let batch = last.pull(100, GLANCE).await.unwrap();
        assert!(batch.iter().all(|message| store.lock().unwrap().put(message)));
        batch.ack().await.unwrap();
        let status = streams::group_status(&backend, "g").await;
        (status.pending, status.lag) == (Some(0), Some(0))
    })
    .await;
    store.lock().unwrap().check(count, &[]);
}

/// What may take a process down is delivered while nobody else in it has anything: a test that makes
/// such messages runs by itself.
static TURN: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

macro_rules! ordered {
    ($backend:ident, $place:expr, $($turn:ident: [$($test:ident),* $(,)?]),*) => {
        mod $backend {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let _turn = super::TURN.$turn().await;
                super::$test(super::sharded($place)).await;
            })*)*
        }
    };
    ($backend:ident, $place:expr) => {
        ordered!($backend, $place,
            read: [
                a_shard_is_one_consumers_at_a_time_and_comes_in_order,
                more_of_a_shard_comes_once_all_of_it_is_settled,
                a_retry_keeps_its_shard_waiting_and_no_other,
                a_shard_is_settled_from_the_first_on,
                who_closes_or_is_dropped_gives_its_shards_up_at_once,
                who_lost_a_shard_is_told_and_given_no_more_of_it,
                who_does_not_pull_leaves_its_shards_to_others,
            ],
            write: [
                what_is_dropped_unsettled_comes_again_before_all_behind_it,
                what_is_handed_back_comes_again_from_the_first_on_and_before_all_behind_it,
                whatever_programs_do_each_shard_is_handled_in_order,
            ]
        );
    };
}

ordered!(embedded, crate::Place::embedded());
ordered!(redis, crate::Place::redis());
ordered!(redis_cluster, crate::Place::redis_cluster());
ordered!(postgres, crate::Place::postgres());

#[tokio::test]
async fn the_key_says_the_same_and_without_it_there_is_no_fence() {
    let at = sharded(Place::embedded());
    let (stream, mut producer, _) = open(&at).await;
    producer.publish(&keyed(0..4)).await.unwrap();
    let set = |value: &str| stream.group("g").set("ordered", value);
    let error = set("perhaps").create().await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    let mut by_key = set("true").consumer("worker").await.unwrap();
    assert!(some(&mut by_key).await.iter().all(|message| message.fence().is_some()));
    by_key.close().await.unwrap();
    let mut other = stream.group("other").consumer("worker").await.unwrap();
    assert!(some(&mut other).await.iter().all(|message| message.fence().is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_threads_may_go_over_a_batch_and_settle_of_it() {
    let at = sharded(Place::embedded());
    let (_, mut producer, group) = open(&at).await;
    producer.publish(&keyed(0..8)).await.unwrap();
    let mut consumer = group.consumer("worker").await.unwrap();
    let batch = Arc::new(some(&mut consumer).await);
    // Threads of their own: this test ends whatever the two are stuck in.
    let (settled, runtime) = (Arc::new(AtomicBool::new(false)), tokio::runtime::Handle::current());
    let goes_over = std::thread::spawn({
        let (batch, settled) = (batch.clone(), settled.clone());
        move || {
            while !settled.load(Ordering::Relaxed) {
                assert_eq!(batch.iter().count(), batch.len());
            }
        }
    });
    let settles = std::thread::spawn({
        let batch = batch.clone();
        move || {
            for _ in 0..50_000 {
                runtime.block_on(batch.ack_only([])).unwrap();
            }
            settled.store(true, Ordering::Relaxed);
        }
    });
    until("neither waits for the other", async || goes_over.is_finished() && settles.is_finished())
        .await;
    assert!(goes_over.join().is_ok() && settles.join().is_ok());
    assert_eq!(batch.ack().await.unwrap(), Settled::default());
}

#[tokio::test]
async fn an_acknowledgement_that_was_dropped_takes_nothing_from_the_program() {
    let at = sharded(Place::embedded());
    let (_, mut producer, group) = open(&at).await;
    let mut store = Store::default();
    producer.publish(&keyed(0..40)).await.unwrap();
    let mut consumer = group.lease(SHORT).consumer("worker").await.unwrap();
    let (batch, of_shard) = several(&mut consumer).await;
    let first = number(&of_shard[0]);
    {
        let ack = batch.ack_only([&of_shard[0]]);
        tokio::pin!(ack);
        assert!(ack.as_mut().now_or_never().is_none());
        // The backend goes on, and nobody asks what it answers.
        tokio::time::sleep(GLANCE / 2).await;
    }
    // The leases are renewed meanwhile.
    tokio::time::sleep(SHORT).await;
    let due: Vec<u32> = numbers(&batch);
    let others: Vec<u32> = batch.messages().iter().map(number).filter(|it| *it != first).collect();
    assert!(others.iter().all(|number| due.contains(number)), "{others:?} but {due:?}");
    assert!(batch.messages().iter().all(|message| store.put(message)));
    let settled = batch.ack().await.unwrap();
    assert!(settled.lost.iter().all(|id| *id == of_shard[0].id()), "{settled:?}");
    finish(&mut consumer, &mut store, 40).await;
    store.check(40, &[]);
}

#[tokio::test]
async fn what_waits_behind_a_message_is_bounded_in_bytes() {
    const MIB: usize = 1 << 20;
    let at = sharded(Place::embedded());
    let (_, mut producer, group) = open(&at).await;
    let body = vec![b'x'; MIB];
    for _ in 0..24 {
        let large = Message::new(body.clone()).key(key(0).as_str());
        producer.publish(&[large]).await.unwrap();
    }
    let mut consumer = group.consumer("worker").await.unwrap();
    let batch = consumer.pull(1, PATIENCE).await.unwrap();
    assert_eq!(batch.len(), 1);
    let backend = at.open().await;
    for _ in 0..8 {
        assert_eq!(consumer.pull(100, GLANCE / 4).await.unwrap().len(), 0);
    }
    let held = streams::group_status(&backend, "g").await.pending.unwrap();
    assert!((8..=14).contains(&held), "{held} of a MiB each");
    // Nothing else is kept from coming.
    batch.ack().await.unwrap();
    let mut seen = 1;
    while seen < 24 {
        let batch = some(&mut consumer).await;
        seen += batch.len();
        assert_eq!(batch.ack().await.unwrap(), Settled::default());
    }
}

#[tokio::test]
async fn rabbitmq_says_that_it_cannot() {
    let stream = stream_at(&Place::rabbitmq("quorum")).open().await.unwrap();
    for error in [
        stream.group("g").ordered().create().await.unwrap_err(),
        stream.group("g").ordered().consumer("worker").await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Invalid(_)) && !error.is_temporary());
        assert_eq!(
            error.to_string(),
            "`ordered = true` on `s`, a `rabbitmq` stream, which cannot keep one member at a time \
             per shard (kinds that can: `embedded`, `redis` and `postgres`)"
        );
    }
}
