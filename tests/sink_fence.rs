//! What a sink that fences must do with the events of ordered groups, asked of each of them: of a
//! shard it stores the events in order, nothing behind a refused one, and nothing of an owner
//! before the newest it has seen.

#[path = "support/sinks.rs"]
mod sinks;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aqueduct::event::{Delivery, Fence, Stored};
use aqueduct::sink::Sink;
use sinks::*;

fn fencing() -> impl Iterator<Item = &'static Subject> {
    let fences = |kind: &str| {
        let mut kinds = aqueduct::sink::KINDS.iter();
        kinds.any(|known| known.name == kind && known.capabilities.fencing)
    };
    SUBJECTS.iter().filter(move |subject| fences(subject.kind))
}

fn of(group: &str, shard: u32, epoch: i64, events: &[Delivery]) -> Vec<Delivery> {
    let fence = Arc::new(Fence { group: group.into(), shard, epoch });
    let fenced = |it: &Delivery| Delivery { fence: Some(fence.clone()), ..it.clone() };
    events.iter().map(fenced).collect()
}

async fn store_ordered(sink: &mut Box<dyn Sink>, batch: &[Delivery]) -> Stored {
    sink.store_ordered(&batch.iter().collect::<Vec<_>>()).await.unwrap()
}

fn sorted(mut bodies: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    bodies.sort();
    bodies
}

#[tokio::test]
async fn an_owner_before_the_newest_stores_nothing() {
    for subject in fencing() {
        let name = subject.name;
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let events = events(50);
        let mut stale = subject.open(directory.path()).await.unwrap();
        let mut owner = subject.open(directory.path()).await.unwrap();
        let whole = Stored::default();
        assert_eq!(
            store_ordered(&mut stale, &of("s/g", 3, 7, &events[..10])).await,
            whole,
            "{name}"
        );
        // The new owner has stored nothing yet: the old one may.
        assert_eq!(store_ordered(&mut stale, &of("s/g", 3, 7, &events[10..12])).await, whole);
        assert_eq!(store_ordered(&mut owner, &of("s/g", 3, 8, &events[5..20])).await, whole);
        let late = of("s/g", 3, 7, &events[20..30]);
        let answer = store_ordered(&mut stale, &late).await;
        assert_eq!(answer.fenced, (0..10).collect::<Vec<_>>(), "{name}");
        assert_eq!(answer.refusals, [], "{name}");
        // Other shards, and a group of the same name of another stream, are not meant.
        assert_eq!(store_ordered(&mut stale, &of("s/g", 4, 7, &events[20..25])).await, whole);
        assert_eq!(store_ordered(&mut stale, &of("t/g", 3, 1, &events[25..30])).await, whole);
        assert_eq!(store_ordered(&mut owner, &of("s/g", 3, 8, &events[30..31])).await, whole);
        let stored = sorted(subject.stored(directory.path()).await);
        assert_eq!(stored, sorted(bodies(&events[..31])), "{name}");
    }
}

#[tokio::test]
async fn what_is_fenced_off_does_not_fail_the_others_of_its_batch() {
    for subject in fencing() {
        let name = subject.name;
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let events = events(40);
        let mut sink = subject.open(directory.path()).await.unwrap();
        store_ordered(&mut sink, &of("s/g", 1, 5, &events[..1])).await;
        let mut batch = of("s/g", 0, 2, &events[1..10]);
        batch.extend(of("s/g", 1, 4, &events[10..20]));
        batch.extend(of("s/g", 2, 2, &events[20..30]));
        // The shard's newer owner, in the same batch.
        batch.extend(of("s/g", 0, 3, &events[30..35]));
        let answer = store_ordered(&mut sink, &batch).await;
        assert_eq!(answer.fenced, (9..19).collect::<Vec<_>>(), "{name}");
        assert_eq!(answer.refusals, [], "{name}");
        let kept = [&events[..10], &events[20..35]].concat();
        assert_eq!(sorted(subject.stored(directory.path()).await), sorted(bodies(&kept)), "{name}");
        assert_eq!(store_ordered(&mut sink, &of("s/g", 0, 2, &events[35..])).await.fenced.len(), 5);
    }
}

#[tokio::test]
async fn nothing_behind_a_refused_event_of_its_shard_is_stored() {
    for subject in fencing() {
        let Some(poison) = subject.poison else { continue };
        let name = subject.name;
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let mut events = events(300);
        for at in [40, 60, 150, 299] {
            events[at].event.body = poison.into();
        }
        let mut sink = subject.open(directory.path()).await.unwrap();
        // Three shards, each in turn.
        let shard = |number: u32| -> Vec<Delivery> {
            let own = events.iter().skip(number as usize).step_by(3).cloned().collect::<Vec<_>>();
            of("s/g", number, 1, &own)
        };
        let shards = [shard(0), shard(1), shard(2)];
        let batch: Vec<Delivery> = (0..300).map(|at| shards[at % 3][at / 3].clone()).collect();
        let answer = store_ordered(&mut sink, &batch).await;
        let refused: Vec<usize> = answer.refusals.iter().map(|refusal| refusal.index).collect();
        // 60, 150 are of the first shard, 40 of the second, 299 of the third.
        assert_eq!((refused, answer.fenced), (vec![40, 60, 299], Vec::new()), "{name}");
        let is_stored = |at: &usize| match at % 3 {
            0 => *at < 60,
            1 => *at < 40,
            _ => *at < 299,
        };
        let kept: Vec<Delivery> = (0..300).filter(is_stored).map(|at| events[at].clone()).collect();
        let stored = sorted(subject.stored(directory.path()).await);
        assert_eq!(stored, sorted(bodies(&kept)), "{name}");
        // Delivered alone, it is refused again; then the shard goes on.
        let alone = store_ordered(&mut sink, &batch[60..61]).await;
        assert_eq!(alone.refusals[0].index, 0, "{name}");
        assert_eq!(store_ordered(&mut sink, &shards[0][21..50]).await, Stored::default(), "{name}");
    }
}

#[tokio::test]
async fn what_comes_again_is_stored_once() {
    for subject in fencing() {
        let name = subject.name;
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let events = events(400);
        let mut sink = subject.open(directory.path()).await.unwrap();
        for (epoch, start, end) in [(1, 0, 150), (2, 100, 250), (3, 0, 300), (3, 300, 400)] {
            let batch = of("s/g", 0, epoch, &events[start..end]);
            assert_eq!(store_ordered(&mut sink, &batch).await, Stored::default(), "{name}");
        }
        // Twice in one batch, and the second time in another shard.
        let twice = [of("s/g", 0, 3, &events[7..9]), of("s/g", 1, 1, &events[7..9])].concat();
        assert_eq!(store_ordered(&mut sink, &twice).await, Stored::default(), "{name}");
        assert_each_once(name, subject.stored(directory.path()).await, &events);
    }
}

/// A process that was stopped while it had the shard: who follows it need not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_keeps_nobody_from_its_shard_in_postgres() {
    let subject = Subject::named("postgres, default columns");
    let directory = tempfile::tempdir().unwrap();
    subject.prepare(directory.path()).await;
    let events = events(20);
    let mut sink = subject.open(directory.path()).await.unwrap();
    store_ordered(&mut sink, &of("s/g", 0, 1, &events[..5])).await;
    // What such a process leaves open: the shard's lock, taken as the sink takes it.
    let lock = aqueduct::event::hash_parts(&[
        b"aqueduct fence",
        b"\"public\".\"aqueduct_fence\"",
        b"s/g",
        &0_u32.to_le_bytes(),
    ]) as i64;
    let mut stopped = pg_connect(directory.path()).await;
    let take = format!("BEGIN; SELECT pg_advisory_xact_lock({lock})");
    sqlx::raw_sql(sqlx::AssertSqlSafe(take)).execute(&mut stopped).await.unwrap();
    let since = Instant::now();
    let stored = store_ordered(&mut sink, &of("s/g", 0, 2, &events[5..])).await;
    assert_eq!(stored, Stored::default());
    assert!(since.elapsed() > Duration::from_secs(1), "the lock was not the sink's");
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    assert!(sqlx::raw_sql("COMMIT").execute(&mut stopped).await.is_err());
}
