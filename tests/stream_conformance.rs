//! What every stream backend must do. A new backend adds a place to `support/streams.rs` and one
//! line at the end of this file.

#[path = "support/streams.rs"]
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aqueduct::event::{Delivery, Event};
use aqueduct::stream::{Appended, Retain, shard_of};
use streams::*;

/// A lease short enough to wait for.
const SHORT: Duration = Duration::from_millis(400);

/// The tests of one backend.
macro_rules! conforms {
    ($backend:ident, $place:expr, [$($test:ident),* $(,)?]) => {
        mod $backend {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($place).await;
            })*
        }
    };
}

async fn events_come_back_in_order_with_all_they_carry(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let mut sent = events(0..3000);
    sent[1].body = Vec::new().into();
    sent[2].body = vec![0xab; 1 << 20].into();
    sent[3].body = vec![0xff, 0, 0xfe, b'\n', b'\r'].into();
    sent[4].key = Some("a key: ✓".into());
    sent[5].trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    sent[6].time_us = -5;
    sent[7].source = "another".into();
    sent[8].kind = Some("order paid: ✓".into());
    sent[9].kind = Some("long ".repeat(100).into());
    for batch in sent.chunks(700) {
        put(&mut writer, batch.to_vec()).await;
    }
    let reader = at.member(&backend, "g").await;
    let mut taken = finish(&reader, sent.len()).await;
    if at.spec.shards > 1 {
        taken.sort_by_key(|delivery| delivery.event.id);
    }
    for (delivery, event) in taken.iter().zip(&sent) {
        assert_eq!(delivery.event, *event);
        assert_eq!((delivery.deliveries, delivery.attempts), (1, 0));
        assert_eq!(&*delivery.stream, "s");
    }
    nothing(&reader).await;
}

async fn a_fetch_keeps_to_its_limits(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let big = |number| Event { body: vec![7; 100_000].into(), ..event(number) };
    put(&mut writer, (0..20).map(big).collect()).await;
    let reader = at.member(&backend, "g").await;
    let fetch = async |events, bytes| reader.fetch(events, bytes, PATIENCE).await.unwrap().len();
    assert_eq!(fetch(3, BYTES).await, 3);
    let some = fetch(1000, 350_000).await;
    assert!((1..=4).contains(&some), "{some} events of 100 kB in 350 kB");
    assert_eq!(fetch(1000, 10).await, 1, "an event larger than the limit comes alone");
}

async fn an_append_whose_checkpoint_is_another_changes_nothing(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    assert!(writer.slots("test").await.unwrap().is_empty());
    let mut append = async |step| writer.append(&[step]).await.unwrap().remove(0);
    assert_eq!(append(moving("a", None, Some(1), events(0..2))).await, Appended::Durable);
    assert_eq!(append(moving("a", None, Some(1), events(2..4))).await, Appended::Rewound);
    assert_eq!(append(moving("a", Some(2), Some(3), events(2..4))).await, Appended::Rewound);
    // The order alone does not make it the same position.
    let mut other = moving("a", Some(1), Some(2), events(2..4));
    other.moves[0].from.as_mut().unwrap().note = "another note".into();
    assert_eq!(append(other).await, Appended::Rewound);
    assert_eq!(append(moving("b", Some(1), Some(2), events(2..4))).await, Appended::Rewound);
    // One of two steps does not fit: neither is made.
    let mut both = moving("a", Some(1), Some(2), events(2..4));
    both.moves.extend(moving("b", Some(1), Some(2), Vec::new()).moves);
    assert_eq!(append(both).await, Appended::Rewound);
    assert_eq!(append(moving("a", Some(1), Some(u64::MAX), events(2..3))).await, Appended::Durable);
    assert_eq!(append(moving("b", None, Some(5), Vec::new())).await, Appended::Durable);

    let slots: BTreeMap<_, _> = writer.slots("test").await.unwrap().into_iter().collect();
    let expected = [("a".into(), position(u64::MAX)), ("b".into(), position(5))];
    assert_eq!(slots, expected.into_iter().collect());
    assert!(writer.slots("tes").await.unwrap().is_empty());

    let mut append = async |step| writer.append(&[step]).await.unwrap().remove(0);
    assert_eq!(append(moving("a", Some(u64::MAX), None, Vec::new())).await, Appended::Durable);
    assert_eq!(append(moving("a", Some(u64::MAX), None, Vec::new())).await, Appended::Rewound);
    assert_eq!(append(moving("a", None, Some(9), Vec::new())).await, Appended::Durable);

    let reader = at.member(&backend, "g").await;
    assert_eq!(sorted(&finish(&reader, 3).await), [0, 1, 2]);
    nothing(&reader).await;
}

async fn one_rewound_append_leaves_the_others_of_its_call(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let appends = [
        moving("a", None, Some(1), events(0..2)),
        moving("b", Some(4), Some(5), events(2..4)),
        plain(events(4..6)),
        moving("a", Some(1), Some(2), events(6..8)),
        moving("a", Some(1), Some(3), events(8..10)),
    ];
    use Appended::{Durable, Rewound};
    let answers = writer.append(&appends).await.unwrap();
    assert_eq!(answers, [Durable, Rewound, Durable, Durable, Rewound]);
    assert_eq!(writer.slots("test").await.unwrap(), [("a".into(), position(2))]);
    let reader = at.member(&backend, "g").await;
    assert_eq!(sorted(&finish(&reader, 6).await), [0, 1, 4, 5, 6, 7]);
    nothing(&reader).await;
}

async fn of_racing_writers_exactly_one_moves_the_checkpoint(at: Place) {
    let backend = at.open().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut writer = backend.writer().await.unwrap();
        tasks.spawn(async move {
            let mut won = 0;
            for step in 0..20u64 {
                let from = (step > 0).then_some(step);
                let append = moving("a", from, Some(step + 1), events(step..step + 1));
                match writer.append(&[append]).await.unwrap()[0] {
                    Appended::Durable => won += 1,
                    Appended::Rewound => {
                        // Somebody else made this step, or has yet to make the one before.
                        while writer.slots("test").await.unwrap().first().map_or(0, |s| s.1.order)
                            <= step
                        {
                            tokio::task::yield_now().await;
                        }
                    }
                    Appended::Full(_) => panic!("nothing is full"),
                }
            }
            won
        });
    }
    assert_eq!(tasks.join_all().await.iter().sum::<u32>(), 20);
    let reader = at.member(&backend, "g").await;
    assert_eq!(sorted(&finish(&reader, 20).await), (0..20).collect::<Vec<_>>());
    nothing(&reader).await;
}

async fn every_group_has_every_event(at: Place) {
    let at = at.groups(&["a", "b"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let (a, b) = (at.member(&backend, "a").await, at.member(&backend, "b").await);
    assert_eq!(finish(&a, 10).await.len(), 10);
    let held = take(&b, 4).await;
    nothing(&a).await;
    assert_eq!(finish(&b, 6).await.len(), 6);
    // The tickets of one group are nothing to another.
    a.ack(&tickets(&held)).await.unwrap();
    assert_eq!(group_status(&backend, "b").await.pending, Some(4));
}

async fn members_share_the_work_without_overlap(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for size in [1, 7, 100, 1000] {
        let (member, done) = (at.member(&backend, "g").await, done.clone());
        tasks.spawn(async move {
            let (start, mut mine) = (Instant::now(), Vec::new());
            while done.load(Ordering::SeqCst) < 5000 && start.elapsed() < PATIENCE * 3 {
                let taken = member.fetch(size, BYTES, GLANCE / 4).await.unwrap();
                assert!(taken.len() <= size);
                member.ack(&tickets(&taken)).await.unwrap();
                done.fetch_add(taken.len(), Ordering::SeqCst);
                mine.extend(numbers(&taken));
            }
            nothing(&member).await;
            mine
        });
    }
    for start in (0..5000).step_by(250) {
        put(&mut writer, events(start..start + 250)).await;
    }
    let mut all: Vec<u64> = tasks.join_all().await.concat();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..5000), "{} events, not each once", all.len());
}

async fn what_a_silent_member_held_goes_to_another(at: Place) {
    let at = at.lease(SHORT);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let (dead, alive) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let held = take(&dead, 10).await;
    dead.ack(&tickets(&held[3..5])).await.unwrap();
    assert!(alive.fetch(100, BYTES, Duration::ZERO).await.unwrap().is_empty());
    let taken = take(&alive, 8).await;
    assert_eq!(numbers(&taken), [0, 1, 2, 5, 6, 7, 8, 9]);
    assert!(taken.iter().all(|delivery| delivery.deliveries == 2 && delivery.attempts == 0));
    assert_eq!(take(&alive, 8).await[0].deliveries, 3);
}

async fn a_renewed_lease_is_kept(at: Place) {
    let at = at.lease(SHORT * 2);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let (slow, other) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let held = tickets(&take(&slow, 10).await);
    let start = Instant::now();
    while start.elapsed() < SHORT * 6 {
        assert!(slow.renew(&held).await.unwrap().is_empty());
        let stolen = other.fetch(100, BYTES, SHORT / 4).await.unwrap();
        assert!(stolen.is_empty(), "renewed, and yet delivered to another");
    }
    slow.ack(&held).await.unwrap();
    tokio::time::sleep(SHORT * 2).await;
    nothing(&other).await;
}

async fn a_part_that_is_not_renewed_is_not_kept(at: Place) {
    let at = at.lease(SHORT);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let (slow, other) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let held = tickets(&take(&slow, 10).await);
    let start = Instant::now();
    let mut stolen = Vec::new();
    while start.elapsed() < SHORT * 3 {
        assert!(slow.renew(&held[..5]).await.unwrap().is_empty());
        let taken = other.fetch(100, BYTES, SHORT / 4).await.unwrap();
        other.ack(&tickets(&taken)).await.unwrap();
        stolen.extend(numbers(&taken));
    }
    assert_eq!(stolen, [5, 6, 7, 8, 9]);
    assert_eq!(slow.renew(&held).await.unwrap(), held[5..]);
}

async fn a_stale_member_can_do_no_harm(at: Place) {
    let at = at.lease(SHORT);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..4)).await;
    let (stale, owner) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let old = take(&stale, 4).await;
    let new = take(&owner, 4).await;
    assert_eq!(numbers(&new), [0, 1, 2, 3]);
    let held = tickets(&old);
    assert_eq!(stale.renew(&held).await.unwrap(), held);
    stale.ack(&held).await.unwrap();
    stale.release(&held).await.unwrap();
    assert_eq!(stale.charge(held[0]).await.unwrap(), None);
    stale.refund(held[0]).await.unwrap();
    stale.bury(&old[0], "not mine to bury").await.unwrap();
    assert!(backend.dead().await.unwrap().is_empty());
    assert!(owner.renew(&tickets(&new)).await.unwrap().is_empty());
    assert_eq!(group_status(&backend, "g").await.pending, Some(4));
    assert_eq!(owner.charge(new[0].ticket).await.unwrap(), Some(1));
}

async fn a_member_that_starts_anew_gets_what_it_held_at_once(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..4)).await;
    let spec = aqueduct::stream::ReaderSpec { group: group("g"), member: "here/g/again".into() };
    let first = backend.reader(spec.clone()).await.unwrap();
    let held = take(&first, 4).await;
    first.ack(&tickets(&held[..1])).await.unwrap();
    drop(first);
    let second = backend.reader(spec).await.unwrap();
    let taken = take(&second, 3).await;
    assert_eq!(numbers(&taken), [1, 2, 3]);
    assert!(taken.iter().all(|delivery| delivery.deliveries == 2));
}

async fn what_is_released_is_delivered_at_once_and_not_counted(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..6)).await;
    let (one, other) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let held = take(&one, 6).await;
    assert_eq!(one.charge(held[3].ticket).await.unwrap(), Some(1));
    let waiting = tokio::spawn({
        let other = other.clone();
        async move {
            let start = Instant::now();
            (take(&other, 4).await, start.elapsed())
        }
    });
    one.release(&tickets(&held[2..])).await.unwrap();
    let (taken, _) = waiting.await.unwrap();
    let mut got: Vec<_> = taken.iter().map(|d| (d.event.id.sequence(), d.deliveries)).collect();
    got.sort_unstable();
    assert_eq!(got, [(2, 1), (3, 1), (4, 1), (5, 1)]);
    let charged = taken.iter().find(|delivery| delivery.event.id.sequence() == 3).unwrap();
    assert_eq!(charged.attempts, 1, "an attempt stays with its event");
    // The one that handed them back has nothing to say any more.
    assert_eq!(one.renew(&tickets(&held)).await.unwrap(), tickets(&held[2..]));
    one.ack(&tickets(&held)).await.unwrap();
    assert_eq!(group_status(&backend, "g").await.pending, Some(4));
}

async fn attempts_are_counted_across_deliveries_and_openings(at: Place) {
    let at = at.lease(SHORT);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..5)).await;
    let reader = at.member(&backend, "g").await;
    let held = take(&reader, 5).await;
    let ticket = held[2].ticket;
    assert_eq!(reader.charge(ticket).await.unwrap(), Some(1));
    assert_eq!(reader.charge(ticket).await.unwrap(), Some(2));
    reader.refund(ticket).await.unwrap();
    assert_eq!(reader.charge(ticket).await.unwrap(), Some(2));
    reader.refund(held[1].ticket).await.unwrap();
    drop((reader, writer, backend));

    let backend = at.open().await;
    let reader = at.member(&backend, "g").await;
    let mut attempts: Vec<_> =
        take(&reader, 5).await.iter().map(|d| (d.event.id.sequence(), d.attempts)).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [(0, 0), (1, 0), (2, 2), (3, 0), (4, 0)]);
}

async fn dead_letters_are_kept_by_event_and_group(at: Place) {
    let at = at.groups(&["a", "b"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..5)).await;
    let (a, b) = (at.member(&backend, "a").await, at.member(&backend, "b").await);
    let (of_a, of_b) = (take(&a, 5).await, take(&b, 5).await);
    a.charge(of_a[2].ticket).await.unwrap();
    a.bury(&of_a[2], "the first reason").await.unwrap();
    a.bury(&of_a[2], "again").await.unwrap();
    b.bury(&of_b[2], "of the other").await.unwrap();
    a.bury(&of_a[4], "too long").await.unwrap();
    let dead = backend.dead().await.unwrap();
    let shown: Vec<_> =
        dead.iter().map(|d| (&*d.group, d.event.id.sequence(), &*d.reason, d.attempts)).collect();
    let first = ("a", 2, "the first reason", 1);
    assert_eq!(shown, [first, ("b", 2, "of the other", 0), ("a", 4, "too long", 0)]);
    assert_eq!(dead[0].event, event(2));
    assert!(dead[0].time_us > 1_600_000_000_000_000);
    // Buried is acked.
    a.ack(&tickets(&[&of_a[..2], &of_a[3..4]].concat())).await.unwrap();
    let status = group_status(&backend, "a").await;
    assert_eq!((status.lag, status.pending), (Some(0), Some(0)));

    drop((a, b, writer, backend));
    let backend = at.open().await;
    assert_eq!(backend.drop_dead(&[event(2).id]).await.unwrap(), 2);
    assert_eq!(backend.dead().await.unwrap().len(), 1);
    assert_eq!(backend.drop_dead(&[event(77).id]).await.unwrap(), 0);
    assert_eq!(backend.drop_dead(&[]).await.unwrap(), 1);
    assert!(backend.dead().await.unwrap().is_empty());
}

async fn a_replayed_letter_goes_to_its_group_alone(at: Place) {
    let at = at.groups(&["a", "b"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..3)).await;
    let (a, b) = (at.member(&backend, "a").await, at.member(&backend, "b").await);
    for delivery in take(&a, 3).await {
        a.bury(&delivery, "no").await.unwrap();
    }
    finish(&b, 3).await;
    assert_eq!(backend.replay_dead(&[event(1).id]).await.unwrap(), 1);
    put(&mut writer, events(3..4)).await;
    let taken = take(&a, 2).await;
    assert_eq!(numbers(&taken), [1, 3]);
    assert_eq!(taken[0].event.only_group.as_deref(), Some("a"));
    assert_eq!(taken[0].event.body, event(1).body);
    assert_eq!((taken[0].deliveries, taken[0].attempts), (1, 0));
    assert_eq!(numbers(&finish(&b, 1).await), [3]);
    nothing(&b).await;
    assert_eq!(group_status(&backend, "b").await.lag, Some(0));
    // Buried again, it is one letter again.
    a.bury(&taken[0], "still no").await.unwrap();
    let dead = backend.dead().await.unwrap();
    assert_eq!(dead.len(), 3);
    assert!(dead.iter().all(|letter| letter.event.only_group.is_none()));
    assert_eq!(backend.replay_dead(&[]).await.unwrap(), 3);
    assert_eq!(backend.replay_dead(&[]).await.unwrap(), 0);
    let again: BTreeSet<u64> = numbers(&take(&a, 3).await).into_iter().collect();
    assert_eq!(again, [0, 1, 2].into());
}

async fn the_status_tells_the_numbers(at: Place) {
    let at = at.groups(&["a", "b"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let a = at.member(&backend, "a").await;
    let held = take(&a, 6).await;
    a.ack(&tickets(&held[..2])).await.unwrap();
    let status = backend.status().await.unwrap();
    assert_eq!((&*status.stream, status.length), ("s", Some(10)));
    let groups: Vec<_> = status.groups.iter().map(|g| (&*g.name, g.lag, g.pending)).collect();
    assert_eq!(groups, [("a", Some(4), Some(4)), ("b", Some(10), Some(0))]);
    let consumers: Vec<_> =
        status.groups[0].consumers.iter().map(|c| (&*c.name, c.pending)).collect();
    assert_eq!(consumers, [("here/a/0", Some(4))]);
    assert!(status.groups[0].consumers[0].idle_ms.unwrap() < 20_000);
    assert!(status.groups[1].consumers.is_empty());
    let _idle = at.member(&backend, "b").await;
    let status = backend.status().await.unwrap();
    let consumers: Vec<_> =
        status.groups[1].consumers.iter().map(|c| (&*c.name, c.pending)).collect();
    assert_eq!(consumers, [("here/b/1", Some(0))], "one that was given nothing yet");
}

async fn a_full_backlog_takes_no_more_until_the_slowest_group_caught_up(at: Place) {
    let at = at.groups(&["fast", "slow"]).with(|spec| spec.max_backlog = 100);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let (fast, slow) = (at.member(&backend, "fast").await, at.member(&backend, "slow").await);
    // More than the whole limit: it must get in some time, and does when there is nothing else.
    put(&mut writer, events(0..150)).await;
    finish(&fast, 150).await;
    let step = |from: Option<u64>, to| vec![moving("a", from, Some(to), events(150..190))];
    assert_eq!(writer.append(&step(None, 1)).await.unwrap(), [Appended::Full(150)]);
    let held = take(&slow, 150).await;
    assert_eq!(writer.append(&step(None, 1)).await.unwrap(), [Appended::Full(150)]);
    assert!(writer.slots("test").await.unwrap().is_empty());
    slow.ack(&tickets(&held[..60])).await.unwrap();
    assert_eq!(writer.append(&step(None, 1)).await.unwrap(), [Appended::Full(90)]);
    slow.ack(&tickets(&held)).await.unwrap();
    let three = [step(None, 1), step(Some(1), 2), step(Some(2), 3)].concat();
    use Appended::{Durable, Full};
    assert_eq!(writer.append(&three).await.unwrap(), [Durable, Durable, Full(80)]);
    // A step without events always fits.
    let skip = moving("a", Some(2), Some(4), Vec::new());
    assert_eq!(writer.append(&[skip]).await.unwrap(), [Durable]);
    assert_eq!(finish(&slow, 80).await.len(), 80);
}

async fn without_a_group_there_is_no_backlog(at: Place) {
    let at = at.groups(&[]).with(|spec| spec.max_backlog = 10);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..50)).await;
    put(&mut writer, events(50..100)).await;
    assert_eq!(length(&backend).await, 100);
}

async fn acked_events_go_when_the_last_group_has_them(at: Place) {
    let at = at.groups(&["a", "b"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..3000)).await;
    let (a, b) = (at.member(&backend, "a").await, at.member(&backend, "b").await);
    finish(&a, 3000).await;
    let held = take(&b, 3000).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 3000, "the other group has acked nothing");
    b.ack(&tickets(&held[1..])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 3000, "the first event is not acked");
    b.ack(&tickets(&held)).await.unwrap();
    until("all is gone", async || length(&backend).await == 0).await;
    put(&mut writer, events(3000..3001)).await;
    assert_eq!(numbers(&finish(&a, 1).await), [3000]);
}

async fn without_a_group_nothing_goes(at: Place) {
    let at = at.groups(&[]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 10);
}

async fn forever_is_forever(at: Place) {
    let at = at.with(|spec| spec.retain = Retain::Forever);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    finish(&at.member(&backend, "g").await, 10).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 10);
    // Who comes later still gets all of it.
    let mut spec = at.spec.clone();
    spec.groups.push(group("late"));
    let backend = at.open_as(&spec).await;
    assert_eq!(finish(&at.member(&backend, "late").await, 10).await.len(), 10);
}

async fn an_age_keeps_what_is_young_and_what_is_not_acked(at: Place) {
    let age = Duration::from_secs(2);
    let at = at.with(|spec| spec.retain = Retain::Age(age));
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let start = Instant::now();
    put(&mut writer, events(0..10)).await;
    let reader = at.member(&backend, "g").await;
    let held = take(&reader, 10).await;
    tokio::time::sleep(age + Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 10, "it is old, but not acked");
    reader.ack(&tickets(&held)).await.unwrap();
    until("the old ones are gone", async || length(&backend).await == 0).await;
    assert!(start.elapsed() >= age);
    put(&mut writer, events(10..20)).await;
    finish(&reader, 10).await;
    tokio::time::sleep(age / 4).await;
    assert_eq!(length(&backend).await, 10, "they are acked, but young");
}

async fn a_new_group_starts_where_it_says(at: Place) {
    let at = at.with(|spec| spec.retain = Retain::Forever);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..5)).await;
    let mut spec = at.spec.clone();
    spec.groups.push(group("earliest"));
    spec.groups.push(aqueduct::stream::GroupSpec { latest: true, ..group("latest") });
    let second = at.open_as(&spec).await;
    put(&mut writer, events(5..7)).await;
    let (earliest, latest) =
        (at.member(&second, "earliest").await, at.member(&second, "latest").await);
    assert_eq!(numbers(&finish(&latest, 2).await), [5, 6]);
    assert_eq!(numbers(&finish(&earliest, 7).await), (0..7).collect::<Vec<_>>());
    drop((backend, writer, second, earliest, latest));
    // Opened again, they are not new any more.
    let backend = at.open_as(&spec).await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(7..8)).await;
    assert_eq!(numbers(&finish(&at.member(&backend, "latest").await, 1).await), [7]);
    assert_eq!(numbers(&finish(&at.member(&backend, "earliest").await, 1).await), [7]);
}

async fn a_dropped_group_holds_nothing_back(at: Place) {
    let at = at.groups(&["a", "gone"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let (a, gone) = (at.member(&backend, "a").await, at.member(&backend, "gone").await);
    finish(&a, 10).await;
    take(&gone, 5).await;
    drop((gone, backend));
    // Not in the file any more, it stays and is shown.
    let at = at.groups(&["a"]);
    let backend = at.open().await;
    let gone = group_status(&backend, "gone").await;
    assert_eq!((gone.lag, gone.pending), (Some(5), Some(5)));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 10);
    assert!(backend.drop_group("gone").await.unwrap());
    assert!(!backend.drop_group("gone").await.unwrap());
    until("all is gone", async || length(&backend).await == 0).await;
    let names = backend.status().await.unwrap().groups;
    assert_eq!(names.iter().map(|group| &*group.name).collect::<Vec<_>>(), ["a"]);
}

async fn a_key_keeps_to_its_shard(at: Place) {
    if !at.spec.kind.capabilities.shards {
        return;
    }
    let at = at.with(|spec| spec.shards = 4);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let keyed = |n: u64| Event { key: Some(format!("key {}", n % 13).into()), ..event(n) };
    for start in (0..1000).step_by(100) {
        put(&mut writer, (start..start + 100).map(keyed).collect()).await;
    }
    for start in (1000..2000).step_by(100) {
        put(&mut writer, events(start..start + 100)).await;
    }
    let reader = at.member(&backend, "g").await;
    let taken = finish(&reader, 2000).await;
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut unkeyed: BTreeMap<u32, usize> = BTreeMap::new();
    for delivery in &taken {
        let number = delivery.event.id.sequence();
        match delivery.event.key.as_deref() {
            Some(key) => {
                assert_eq!(delivery.ticket.shard, shard_of(key, 4));
                let before = last.insert(key, number);
                assert!(before.is_none_or(|before| before < number), "{key} is out of order");
            }
            None => *unkeyed.entry(delivery.ticket.shard).or_default() += 1,
        }
    }
    assert_eq!(numbers(&taken).into_iter().collect::<BTreeSet<_>>().len(), 2000);
    assert!(unkeyed.len() > 1, "batches without keys take turns: {unkeyed:?}");
}

/// An event's type and the shard that its producer named: also through the dead letters and back.
async fn type_and_named_shard_stay_with_the_event(at: Place) {
    let at = at.with(|spec| spec.shards = 4);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let key = "a key";
    let named = (shard_of(key, 4) + 1) % 4;
    let with = |number: u64, shard| Event {
        key: Some(key.into()),
        kind: Some("order-paid".into()),
        shard,
        ..event(number)
    };
    // There is no shard 9: the key is what is left to go by.
    let sent = vec![with(0, Some(named)), with(1, None), with(2, Some(9)), event(3)];
    put(&mut writer, sent.clone()).await;
    let reader = at.member(&backend, "g").await;
    let placed = |taken: &[Delivery]| {
        for delivery in taken {
            let number = delivery.event.id.sequence();
            let event = Event { only_group: None, ..delivery.event.clone() };
            assert_eq!(event, sent[number as usize]);
            match number {
                0 => assert_eq!(delivery.ticket.shard, named),
                1 | 2 => assert_eq!(delivery.ticket.shard, shard_of(key, 4)),
                _ => {}
            }
        }
    };
    let taken = take(&reader, 4).await;
    placed(&taken);
    for delivery in &taken {
        reader.bury(delivery, "no").await.unwrap();
    }
    for letter in backend.dead().await.unwrap() {
        assert_eq!(letter.event, sent[letter.event.id.sequence() as usize]);
    }
    assert_eq!(backend.replay_dead(&[]).await.unwrap(), 4);
    placed(&finish(&reader, 4).await);
    nothing(&reader).await;
}

async fn a_fetch_waits_and_wakes(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    let start = Instant::now();
    assert!(reader.fetch(10, BYTES, Duration::from_millis(300)).await.unwrap().is_empty());
    assert!(start.elapsed() >= Duration::from_millis(300));
    // Much sooner than a poll, on the whole.
    let mut waited = Duration::ZERO;
    for number in 0..20 {
        let waiting = tokio::spawn({
            let reader = reader.clone();
            async move { (reader.fetch(10, BYTES, PATIENCE).await.unwrap(), Instant::now()) }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        put(&mut writer, events(number..number + 1)).await;
        let durable = Instant::now();
        let (taken, woken) = waiting.await.unwrap();
        waited += woken.saturating_duration_since(durable);
        assert_eq!(numbers(&taken), [number]);
        reader.ack(&tickets(&taken)).await.unwrap();
    }
    assert!(waited < Duration::from_millis(20 * 50), "20 events waited {waited:?} in all");
}

async fn many_waiting_members_all_get_work(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let member = at.member(&backend, "g").await;
        tasks.spawn(async move { member.fetch(10, BYTES, PATIENCE).await.unwrap().len() });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    put(&mut writer, events(0..80)).await;
    assert_eq!(tasks.join_all().await, [10; 8]);
}

async fn a_fetch_that_is_given_up_loses_nothing(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    for number in 0..200 {
        put(&mut writer, events(number..number + 1)).await;
        let micros = Duration::from_micros(number * 13 % 700);
        let given_up = tokio::time::timeout(micros, reader.fetch(1, BYTES, PATIENCE)).await;
        let taken = match given_up {
            Ok(taken) => taken.unwrap(),
            Err(_) => take(&reader, 1).await,
        };
        assert_eq!(numbers(&taken), [number]);
        reader.ack(&tickets(&taken)).await.unwrap();
    }
    let status = group_status(&backend, "g").await;
    assert_eq!((status.lag, status.pending), (Some(0), Some(0)));
}

async fn peek_shows_the_newest_and_touches_nothing(at: Place) {
    let at = at.with(|spec| spec.shards = if spec.kind.capabilities.shards { 3 } else { 1 });
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    assert!(backend.peek(5).await.unwrap().is_empty());
    for start in (0..100).step_by(10) {
        put(&mut writer, events(start..start + 10)).await;
    }
    let shown: Vec<u64> =
        backend.peek(15).await.unwrap().iter().map(|event| event.id.sequence()).collect();
    assert_eq!(shown, (85..100).collect::<Vec<_>>());
    assert_eq!(backend.peek(1000).await.unwrap().len(), 100);
    assert_eq!(group_status(&backend, "g").await.lag, Some(100));
}

async fn opened_again_it_is_as_it_was(at: Place) {
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let first = moving("a", None, Some(7), events(0..100));
    assert_eq!(writer.append(&[first]).await.unwrap(), [Appended::Durable]);
    let reader = at.member(&backend, "g").await;
    let held = take(&reader, 60).await;
    reader.ack(&tickets(&held[..50])).await.unwrap();
    reader.release(&tickets(&held[50..])).await.unwrap();
    drop((reader, writer, backend));

    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    assert_eq!(writer.slots("test").await.unwrap(), [("a".into(), position(7))]);
    let status = group_status(&backend, "g").await;
    assert_eq!((status.lag, status.pending), (Some(50), Some(0)));
    let reader = at.member(&backend, "g").await;
    let mut left = numbers(&finish(&reader, 50).await);
    left.sort_unstable();
    assert_eq!(left, (50..100).collect::<Vec<_>>());
}

macro_rules! all {
    ($backend:ident, $place:expr) => {
        conforms!(
            $backend,
            $place,
            [
                events_come_back_in_order_with_all_they_carry,
                a_fetch_keeps_to_its_limits,
                an_append_whose_checkpoint_is_another_changes_nothing,
                one_rewound_append_leaves_the_others_of_its_call,
                of_racing_writers_exactly_one_moves_the_checkpoint,
                every_group_has_every_event,
                members_share_the_work_without_overlap,
                what_a_silent_member_held_goes_to_another,
                a_renewed_lease_is_kept,
                a_part_that_is_not_renewed_is_not_kept,
                a_stale_member_can_do_no_harm,
                a_member_that_starts_anew_gets_what_it_held_at_once,
                what_is_released_is_delivered_at_once_and_not_counted,
                attempts_are_counted_across_deliveries_and_openings,
                dead_letters_are_kept_by_event_and_group,
                a_replayed_letter_goes_to_its_group_alone,
                the_status_tells_the_numbers,
                a_full_backlog_takes_no_more_until_the_slowest_group_caught_up,
                without_a_group_there_is_no_backlog,
                acked_events_go_when_the_last_group_has_them,
                without_a_group_nothing_goes,
                forever_is_forever,
                an_age_keeps_what_is_young_and_what_is_not_acked,
                a_new_group_starts_where_it_says,
                a_dropped_group_holds_nothing_back,
                a_key_keeps_to_its_shard,
                type_and_named_shard_stay_with_the_event,
                a_fetch_waits_and_wakes,
                many_waiting_members_all_get_work,
                a_fetch_that_is_given_up_loses_nothing,
                peek_shows_the_newest_and_touches_nothing,
                opened_again_it_is_as_it_was,
            ]
        );
    };
}

all!(embedded, super::Place::embedded());
all!(redis, super::Place::redis());
all!(redis_cluster, super::Place::redis_cluster());
all!(redis_shards, super::Place::redis().with(|spec| spec.shards = 3));

// Here events spread over the shards one by one, and come back in no order.
conforms!(
    redis_cluster_shards,
    super::Place::redis_cluster().with(|spec| spec.shards = 3),
    [
        events_come_back_in_order_with_all_they_carry,
        a_fetch_keeps_to_its_limits,
        an_append_whose_checkpoint_is_another_changes_nothing,
        one_rewound_append_leaves_the_others_of_its_call,
        of_racing_writers_exactly_one_moves_the_checkpoint,
        every_group_has_every_event,
        members_share_the_work_without_overlap,
        a_renewed_lease_is_kept,
        a_full_backlog_takes_no_more_until_the_slowest_group_caught_up,
        without_a_group_there_is_no_backlog,
        without_a_group_nothing_goes,
        forever_is_forever,
        an_age_keeps_what_is_young_and_what_is_not_acked,
        type_and_named_shard_stay_with_the_event,
        a_fetch_waits_and_wakes,
        a_fetch_that_is_given_up_loses_nothing,
        peek_shows_the_newest_and_touches_nothing,
    ]
);
all!(postgres, super::Place::postgres());

/// The tests of a backend that keeps no history and shows nothing without handing it out.
macro_rules! without_history {
    ($backend:ident, $place:expr) => {
        conforms!(
            $backend,
            $place,
            [
                events_come_back_in_order_with_all_they_carry,
                an_append_whose_checkpoint_is_another_changes_nothing,
                one_rewound_append_leaves_the_others_of_its_call,
                of_racing_writers_exactly_one_moves_the_checkpoint,
                every_group_has_every_event,
                members_share_the_work_without_overlap,
                what_a_silent_member_held_goes_to_another,
                a_renewed_lease_is_kept,
                a_part_that_is_not_renewed_is_not_kept,
                a_stale_member_can_do_no_harm,
                a_member_that_starts_anew_gets_what_it_held_at_once,
                what_is_released_is_delivered_at_once_and_not_counted,
                attempts_are_counted_across_deliveries_and_openings,
                dead_letters_are_kept_by_event_and_group,
                a_replayed_letter_goes_to_its_group_alone,
                a_full_backlog_takes_no_more_until_the_slowest_group_caught_up,
                a_key_keeps_to_its_shard,
                type_and_named_shard_stay_with_the_event,
                a_fetch_waits_and_wakes,
                a_fetch_that_is_given_up_loses_nothing,
                opened_again_it_is_as_it_was,
            ]
        );
    };
}

without_history!(rabbitmq_quorum, super::Place::rabbitmq("quorum"));
without_history!(rabbitmq_classic, super::Place::rabbitmq("classic"));
