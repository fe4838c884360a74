//! What every sink promises, asked of each of them: see `support/sinks.rs` for how a new one plugs
//! in.

#[path = "support/sinks.rs"]
mod sinks;

use aqueduct::event::Refusal;
use sinks::*;

#[tokio::test]
async fn each_event_is_stored_once_in_the_order_of_its_batch() {
    for subject in SUBJECTS {
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let events = events(2_500);
        let mut sink = subject.open(directory.path()).await.unwrap();
        assert_eq!(store(&mut sink, &[]).await.unwrap(), [], "{}", subject.name);
        for batch in events.chunks(999) {
            assert_eq!(store(&mut sink, batch).await.unwrap(), [], "{}", subject.name);
        }
        for batch in events.chunks(1_000) {
            assert_eq!(store(&mut sink, batch).await.unwrap(), [], "{}", subject.name);
        }
        let stored = subject.stored(directory.path()).await;
        match subject.in_order {
            true => assert_eq!(stored, bodies(&events), "{}", subject.name),
            false => assert_each_once(subject.name, stored, &events),
        }
    }
}

/// Whatever is delivered again, in whatever pieces, by whom, and whether it was opened anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redelivery_stores_nothing_twice() {
    let mut random = seeded("redelivery_stores_nothing_twice");
    for subject in SUBJECTS {
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let events = events(3_000);
        // Pieces that overlap, some in disorder, until every event was in one.
        let mut pieces = Vec::new();
        for _ in 0..60 {
            let start = random.usize(..events.len());
            let end = (start + random.usize(1..300)).min(events.len());
            pieces.push(events[start..end].to_vec());
            if random.u8(..4) == 0 {
                random.shuffle(pieces.last_mut().unwrap());
            }
        }
        pieces.extend(events.chunks(random.usize(1..200)).map(<[_]>::to_vec));
        random.shuffle(&mut pieces);
        let half = pieces.split_off(pieces.len() / 2);
        let writers = [pieces, half].map(|pieces| {
            let path = directory.path().to_owned();
            let reopen = random.usize(5..40);
            tokio::spawn(async move {
                let mut sink = subject.open(&path).await.unwrap();
                for (at, piece) in pieces.iter().enumerate() {
                    if at % reopen == 0 {
                        sink = subject.open(&path).await.unwrap();
                    }
                    assert_eq!(store(&mut sink, piece).await.unwrap(), [], "{}", subject.name);
                }
            })
        });
        for writer in writers {
            writer.await.unwrap();
        }
        assert_each_once(subject.name, subject.stored(directory.path()).await, &events);
    }
}

/// Deliveries that nobody waited for to the end: whatever they did, the next one mends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_dropped_midway_leaves_nothing_half() {
    let mut random = seeded("a_store_that_is_dropped_midway_leaves_nothing_half");
    for subject in SUBJECTS {
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let events = events(4_000);
        for batch in events.chunks(50) {
            let mut sink = subject.open(directory.path()).await.unwrap();
            let limit = std::time::Duration::from_micros(random.u64(..1_500));
            let _ = tokio::time::timeout(limit, store(&mut sink, batch)).await;
        }
        let mut sink = subject.open(directory.path()).await.unwrap();
        assert_eq!(store(&mut sink, &events).await.unwrap(), [], "{}", subject.name);
        assert_each_once(subject.name, subject.stored(directory.path()).await, &events);
    }
}

#[tokio::test]
async fn a_refused_event_takes_no_other_with_it() {
    for subject in SUBJECTS {
        let Some(poison) = subject.poison else { continue };
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let mut batch = events(1_000);
        for at in [0, 333, 334, 999] {
            batch[at].event.body = poison.into();
        }
        let mut sink = subject.open(directory.path()).await.unwrap();
        let refusals = store(&mut sink, &batch).await.unwrap();
        let which: Vec<_> = refusals.iter().map(|refusal| refusal.index).collect();
        assert_eq!(which, [0, 333, 334, 999], "{}: {refusals:?}", subject.name);
        assert!(refusals.iter().all(|it| !it.reason.is_empty()), "{}", subject.name);
        // Alone it is refused again, and it is stored once it is right.
        let again = store(&mut sink, &batch[333..334]).await.unwrap();
        let reason = refusals[1].reason.clone();
        assert_eq!(again, [Refusal { index: 0, reason }], "{}", subject.name);
        let good = events(1_000);
        assert_eq!(store(&mut sink, &good).await.unwrap(), [], "{}", subject.name);
        assert_each_once(subject.name, subject.stored(directory.path()).await, &good);
    }
}

#[tokio::test]
async fn bodies_of_any_size_and_bytes_arrive_as_they_are() {
    for subject in SUBJECTS.iter().filter(|subject| subject.exact) {
        let directory = tempfile::tempdir().unwrap();
        subject.prepare(directory.path()).await;
        let mut batch = vec![
            counted("sizes", 0, format!(r#"{{"n":0,"text":"{}"}}"#, "y".repeat(9_000_000))),
            counted("sizes", 1, r#"{"n":1, "text" : "zero \u0000, é, \ud83d\ude00"}"#),
            counted("sizes", 2, format!(r#"{{"n":2,"text":"{}"}}"#, "z".repeat(70_000))),
        ];
        if subject.any_bytes {
            batch.push(counted("sizes", 3, b"\xff\xfe not \x00 UTF-8 \r".as_slice()));
        }
        let mut sink = subject.open(directory.path()).await.unwrap();
        assert_eq!(store(&mut sink, &batch).await.unwrap(), [], "{}", subject.name);
        assert_eq!(store(&mut sink, &batch).await.unwrap(), [], "{}", subject.name);
        let stored = subject.stored(directory.path()).await;
        assert!(stored == bodies(&batch), "{}: {} stored", subject.name, stored.len());
    }
}

#[tokio::test]
async fn trouble_outside_is_an_error_that_passes() {
    for subject in SUBJECTS.iter().filter(|subject| subject.kind != "postgres") {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("later");
        std::fs::write(&place, "a file where a directory is wanted").unwrap();
        let error = match subject.open(&place).await {
            Ok(_) => panic!("{}: opened where there can be no directory", subject.name),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains("there is no directory"), "{}: {error}", subject.name);
        assert!(error.contains(place.to_str().unwrap()), "{}: {error}", subject.name);
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        subject.prepare(&place).await;
        let events = events(10);
        let mut sink = subject.open(&place).await.unwrap();
        store(&mut sink, &events[..5]).await.unwrap();
        // What is gone from under a sink is no place to store anything in.
        let moved = directory.path().join("moved");
        std::fs::rename(&place, &moved).unwrap();
        assert!(store(&mut sink, &events).await.is_err(), "{}", subject.name);
        std::fs::rename(&moved, &place).unwrap();
        let mut sink = subject.open(&place).await.unwrap();
        assert_eq!(store(&mut sink, &events).await.unwrap(), [], "{}", subject.name);
        assert_each_once(subject.name, subject.stored(&place).await, &events);
    }
}
