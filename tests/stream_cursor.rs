//! What every stream backend must do with the cursors of its groups: a cursor never passes an event
//! that is not acked, and it goes where it is put, whatever members hold.

#[path = "support/streams.rs"]
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aqueduct::event::{Delivery, Ticket, now_us};
use aqueduct::stream::cursor::{CursorMove, Moved, Offset, Refused, ShardCursor, To};
use aqueduct::stream::{Backend, Reader, ReaderSpec, Retain};
use streams::*;

/// A lease short enough to wait for.
const SHORT: Duration = Duration::from_millis(400);

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

macro_rules! all {
    ($($backend:ident: $place:expr),* $(,)?) => {
        $(conforms!($backend, $place, [
            a_cursor_never_passes_an_event_that_is_not_acked,
            a_cursor_goes_back_and_forward,
            pending_events_are_counted_where_they_stand,
            a_cursor_goes_to_a_time,
            a_group_that_runs_keeps_its_cursor,
            a_group_that_runs_keeps_the_cursor_of_each_shard,
            who_holds_events_while_the_cursor_moves_can_do_nothing_to_what_comes,
            a_member_goes_on_from_where_the_cursor_was_put,
            a_place_that_is_not_there_is_refused,
            a_cursor_moved_back_keeps_what_is_behind_it,
            each_shard_has_its_own,
            an_owner_loses_its_shards,
        ]);)*
    };
}

all!(
    embedded: super::Place::embedded(),
    redis: super::Place::redis(),
    redis_cluster: super::Place::redis_cluster(),
    postgres: super::Place::postgres(),
);

// A queue has no cursor; what is promised of the events holds all the same.
conforms!(
    rabbitmq,
    super::Place::rabbitmq("quorum"),
    [a_cursor_never_passes_an_event_that_is_not_acked, a_queue_has_no_cursor]
);

fn seed() -> u64 {
    let seed = std::env::var("AQUEDUCT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..) >> 16);
    println!("AQUEDUCT_SEED={seed}");
    seed
}

fn order(to: To) -> CursorMove {
    CursorMove { group: "g".into(), lease: SHORT, shard: None, to, force: false }
}

async fn cursor(backend: &Arc<dyn Backend>) -> ShardCursor {
    backend.cursor("g").await.unwrap()[0]
}

/// Moves the cursor as soon as no member counts as running.
async fn put_at(backend: &Arc<dyn Backend>, order: &CursorMove) -> Vec<Moved> {
    let start = Instant::now();
    loop {
        match backend.move_cursor(order).await.unwrap() {
            Ok(moved) => return moved,
            Err(Refused::Running(_)) if start.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(refused) => panic!("{refused}"),
        }
    }
}

async fn refused(backend: &Arc<dyn Backend>, order: &CursorMove) -> String {
    let before = backend.cursor("g").await.unwrap();
    let Err(Refused::Wrong(why)) = backend.move_cursor(order).await.unwrap() else {
        panic!("{order:?} was not refused")
    };
    assert_eq!(backend.cursor("g").await.unwrap(), before, "nothing was to be moved");
    why
}

/// A place as the ticket of an event there says.
fn place_of(at: &Place, ticket: Ticket) -> Offset {
    match at.spec.kind.name {
        "redis" => Offset::Entry { ms: ticket.hold, seq: ticket.offset },
        _ => Offset::Number(ticket.offset),
    }
}

fn forever(at: Place) -> Place {
    at.with(|spec| spec.retain = Retain::Forever)
}

/// Ends a member as a clean stop does.
async fn end(member: Arc<dyn Reader>) {
    member.leave().await.unwrap();
}

/// What is held and was never acked, in each shard the first of it.
struct Oracle {
    unacked: BTreeSet<u64>,
    places: BTreeMap<u64, (u32, Offset)>,
}

impl Oracle {
    fn learn(&mut self, at: &Place, taken: &[Delivery]) {
        if !at.spec.kind.capabilities.history {
            return;
        }
        for it in taken {
            let place = (it.ticket.shard, place_of(at, it.ticket));
            let known = self.places.insert(it.event.id.sequence(), place);
            assert!(known.is_none_or(|known| known == place), "an event has one place");
        }
    }

    /// No cursor is past what is not acked.
    async fn check(&self, backend: &Arc<dyn Backend>) {
        let shards = backend.cursor("g").await.unwrap();
        for number in &self.unacked {
            if let Some((shard, place)) = self.places.get(number) {
                let shown = shards[*shard as usize];
                assert!(shown.position <= *place, "{number} at {place} is not acked: {shown:?}");
            }
        }
        for shown in shards {
            assert!(shown.oldest <= shown.position && shown.position <= shown.delivered);
            assert!(shown.delivered <= shown.end);
        }
    }
}

async fn a_cursor_never_passes_an_event_that_is_not_acked(at: Place) {
    const EVENTS: u64 = 400;
    let mut random = fastrand::Rng::with_seed(seed());
    let history = at.spec.kind.capabilities.history;
    let shards = if history { 3 } else { 1 };
    let at = forever(at).lease(SHORT).with(|spec| {
        spec.shards = shards;
        spec.retain = if history { Retain::Forever } else { Retain::Acked };
    });
    let mut backend = at.open().await;
    for start in (0..EVENTS).step_by(40) {
        put(&mut backend.writer().await.unwrap(), events(start..start + 40)).await;
    }
    let mut oracle = Oracle { unacked: (0..EVENTS).collect(), places: BTreeMap::new() };
    let mut members: Vec<(Arc<dyn Reader>, Vec<Delivery>)> = Vec::new();
    for step in 0..120 {
        if members.len() < 3 {
            members.push((at.member(&backend, "g").await, Vec::new()));
        }
        let which = random.usize(..members.len());
        match random.u32(..20) {
            0..8 => {
                let count = random.usize(1..40);
                let taken = members[which].0.fetch(count, BYTES, Duration::ZERO).await.unwrap();
                oracle.learn(&at, &taken);
                members[which].1.extend(taken);
            }
            8..16 => {
                // Some of what it holds, in no order. What it lost meanwhile is nobody's business.
                let (member, held) = &mut members[which];
                random.shuffle(held);
                let some = held.split_off(held.len() - random.usize(..=held.len().min(15)));
                let lost: BTreeSet<Ticket> =
                    member.renew(&tickets(&some)).await.unwrap().into_iter().collect();
                member.ack(&tickets(&some)).await.unwrap();
                for it in some.iter().filter(|it| !lost.contains(&it.ticket)) {
                    oracle.unacked.remove(&it.event.id.sequence());
                }
            }
            16 => {
                let (member, held) = &mut members[which];
                member.release(&tickets(held)).await.unwrap();
                held.clear();
            }
            17 => tokio::time::sleep(SHORT / 4).await,
            // Gone without a word.
            18 => drop(members.swap_remove(which)),
            _ => {
                members.clear();
                drop(backend);
                backend = at.open().await;
            }
        }
        if history && step % 3 == 0 {
            oracle.check(&backend).await;
        }
    }
    // A start from nothing delivers all that was never acked.
    drop(members);
    drop(backend);
    let backend = at.open().await;
    let reader = at.member(&backend, "g").await;
    let (start, mut came) = (Instant::now(), BTreeSet::new());
    while !oracle.unacked.is_subset(&came) {
        let taken = reader.fetch(100, BYTES, GLANCE / 4).await.unwrap();
        oracle.learn(&at, &taken);
        came.extend(numbers(&taken));
        reader.ack(&tickets(&taken)).await.unwrap();
        let left: Vec<_> = oracle.unacked.difference(&came).collect();
        assert!(start.elapsed() < PATIENCE, "{left:?} never came");
    }
    if history {
        until("the cursor is at the end", async || {
            let shards = backend.cursor("g").await.unwrap();
            shards.iter().all(|it| it.position == it.end && it.pending == 0)
        })
        .await;
    }
}

async fn a_cursor_goes_back_and_forward(at: Place) {
    let at = forever(at).lease(SHORT);
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..100)).await;
    let fresh = cursor(&backend).await;
    assert_eq!((fresh.position, fresh.delivered), (fresh.oldest, fresh.oldest));
    assert_eq!((fresh.pending, fresh.lag), (0, Some(100)));
    let member = at.member(&backend, "g").await;
    let taken = finish(&member, 60).await;
    let shown = cursor(&backend).await;
    assert_eq!((shown.position, shown.delivered, shown.pending, shown.lag), {
        (shown.delivered, shown.delivered, 0, Some(40))
    });
    assert!(place_of(&at, taken[59].ticket) < shown.position && shown.position < shown.end);
    end(member).await;

    // Back to an event that was acked.
    let tenth = place_of(&at, taken[10].ticket);
    let moved = put_at(&backend, &order(To::At(tenth))).await;
    let back =
        Moved { shard: 0, from: shown.position, to: tenth, again: Some(50), skipped: Some(0) };
    assert_eq!(moved, [back]);
    let set = cursor(&backend).await;
    assert_eq!((set.position, set.delivered, set.pending, set.lag), (tenth, tenth, 0, Some(90)));
    assert_eq!(group_status(&backend, "g").await.lag, Some(90));
    let member = at.member(&backend, "g").await;
    let again = finish(&member, 20).await;
    assert_eq!(numbers(&again), (10..30).collect::<Vec<_>>());
    assert_eq!(again[0].event, taken[10].event, "the same events, with the same ids");
    assert_eq!((again[0].deliveries, again[0].attempts), (1, 0));
    end(member).await;

    // Forward, over what was never delivered.
    let moved = put_at(&backend, &order(To::At(place_of(&at, taken[55].ticket)))).await;
    assert_eq!((moved[0].again, moved[0].skipped), (Some(0), Some(25)));
    let member = at.member(&backend, "g").await;
    assert_eq!(numbers(&finish(&member, 45).await), (55..100).collect::<Vec<_>>());
    end(member).await;

    let moved = put_at(&backend, &order(To::Earliest)).await;
    assert_eq!((moved[0].to, moved[0].again, moved[0].skipped), (fresh.oldest, Some(100), Some(0)));
    let moved = put_at(&backend, &order(To::Latest)).await;
    assert_eq!((moved[0].to, moved[0].again, moved[0].skipped), (shown.end, Some(0), Some(100)));
    put(&mut backend.writer().await.unwrap(), events(100..103)).await;
    let member = at.member(&backend, "g").await;
    assert_eq!(numbers(&finish(&member, 3).await), [100, 101, 102]);
    nothing(&member).await;
    let shown = cursor(&backend).await;
    assert_eq!((shown.position, shown.lag), (shown.end, Some(0)));
}

async fn pending_events_are_counted_where_they_stand(at: Place) {
    let at = forever(at).lease(SHORT);
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..50)).await;
    let member = at.member(&backend, "g").await;
    let held = take(&member, 30).await;
    // Not acked: 0..5, 10..15, 25..30.
    let acked = [&held[5..10], &held[15..25]].concat();
    member.ack(&tickets(&acked)).await.unwrap();
    let shown = cursor(&backend).await;
    assert_eq!(shown.position, place_of(&at, held[0].ticket));
    assert_eq!((shown.pending, shown.lag), (15, Some(20)));
    end(member).await;
    let moved = put_at(&backend, &order(To::At(place_of(&at, held[12].ticket)))).await;
    assert_eq!(moved[0].from, shown.position);
    assert_eq!((moved[0].again, moved[0].skipped), (Some(10), Some(7)));
    let shown = cursor(&backend).await;
    assert_eq!((shown.pending, shown.lag), (0, Some(38)));
    let member = at.member(&backend, "g").await;
    assert_eq!(numbers(&finish(&member, 38).await), (12..50).collect::<Vec<_>>());
    nothing(&member).await;
}

async fn a_cursor_goes_to_a_time(at: Place) {
    let at = forever(at).lease(SHORT);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let mut times = vec![now_us()];
    // Far more chunks than one look at the middle finds.
    for batch in 0..40u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        times.push(now_us());
        tokio::time::sleep(Duration::from_millis(5)).await;
        put(&mut writer, events(batch * 3..batch * 3 + 3)).await;
    }
    let all = cursor(&backend).await;
    for batch in [0, 1, 17, 38, 39] {
        put_at(&backend, &order(To::Time(times[batch + 1]))).await;
        let member = at.member(&backend, "g").await;
        let taken = take(&member, 1).await;
        assert_eq!(numbers(&taken), [batch as u64 * 3], "the first event since then");
        end(member).await;
    }
    assert_eq!(put_at(&backend, &order(To::Time(times[0]))).await[0].to, all.oldest);
    assert_eq!(put_at(&backend, &order(To::Time(0))).await[0].to, all.oldest);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(put_at(&backend, &order(To::Time(now_us()))).await[0].to, all.end);
}

async fn a_group_that_runs_keeps_its_cursor(at: Place) {
    let at = forever(at).lease(Duration::from_secs(20));
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..10)).await;
    let order = CursorMove { lease: Duration::from_secs(20), ..order(To::Latest) };
    // One that waits for events runs, too.
    let (busy, idle) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let held = take(&busy, 10).await;
    nothing(&idle).await;
    let before = cursor(&backend).await;
    let refusal = backend.move_cursor(&order).await.unwrap().unwrap_err();
    assert_eq!(refusal, Refused::Running(vec!["here/g/0".into(), "here/g/1".into()]));
    assert_eq!(cursor(&backend).await, before);
    // Another opening of the stream sees it too, as another process would.
    let other = at.open().await;
    assert!(matches!(other.move_cursor(&order).await.unwrap(), Err(Refused::Running(_))));
    busy.ack(&tickets(&held)).await.unwrap();
    end(busy).await;
    let refusal = backend.move_cursor(&order).await.unwrap().unwrap_err();
    assert_eq!(refusal, Refused::Running(vec!["here/g/1".into()]));
    end(idle).await;
    let start = Instant::now();
    put_at(&backend, &order).await;
    assert!(start.elapsed() < Duration::from_secs(15), "who has left does not run");
}

async fn a_group_that_runs_keeps_the_cursor_of_each_shard(at: Place) {
    let at = forever(at).lease(Duration::from_secs(20)).with(|spec| spec.shards = 3);
    let backend = at.open().await;
    let idle = at.member(&backend, "g").await;
    nothing(&idle).await;
    let order = CursorMove { lease: Duration::from_secs(20), ..order(To::Latest) };
    for shard in 0..3 {
        let order = CursorMove { shard: Some(shard), ..order.clone() };
        let refusal = backend.move_cursor(&order).await.unwrap().unwrap_err();
        assert_eq!(refusal, Refused::Running(vec!["here/g/0".into()]), "shard {shard}");
    }
    end(idle).await;
    put_at(&backend, &CursorMove { shard: Some(2), ..order }).await;
}

/// What a member can do to what it holds. It may also find that it has to begin anew.
async fn meddle(member: &Arc<dyn Reader>, held: &[Delivery]) {
    let all = tickets(held);
    if let Ok(lost) = member.renew(&all).await {
        assert_eq!(lost, all, "nothing of it is the member's any more");
    }
    let _ = member.ack(&all).await;
    assert!(!matches!(member.charge(all[0]).await, Ok(Some(_))));
    let _ = member.refund(all[0]).await;
    let _ = member.bury(&held[1], "not mine to bury").await;
    let _ = member.ack(&all).await;
    let _ = member.release(&all).await;
}

async fn who_holds_events_while_the_cursor_moves_can_do_nothing_to_what_comes(at: Place) {
    let at = forever(at).lease(Duration::from_secs(20));
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..20)).await;
    let stale = at.member(&backend, "g").await;
    let held = take(&stale, 20).await;
    stale.ack(&tickets(&held[..5])).await.unwrap();
    let forced = CursorMove { force: true, ..order(To::Earliest) };
    let moved = put_at(&backend, &forced).await;
    assert_eq!((moved[0].again, moved[0].skipped), (Some(5), Some(0)));
    let set = cursor(&backend).await;
    meddle(&stale, &held).await;
    assert_eq!(cursor(&backend).await, set, "old tickets move no new cursor");
    // Nor do they reach what another member is given of the same events.
    let other = at.member(&backend, "g").await;
    let taken = take(&other, 20).await;
    assert_eq!(numbers(&taken), (0..20).collect::<Vec<_>>());
    meddle(&stale, &held).await;
    assert!(backend.dead().await.unwrap().is_empty());
    let shown = cursor(&backend).await;
    assert_eq!((shown.position, shown.pending), (set.position, 20));
    assert!(other.renew(&tickets(&taken)).await.unwrap().is_empty());
    other.ack(&tickets(&taken)).await.unwrap();
    assert_eq!(cursor(&backend).await.position, set.end);

    // Forward: what was held goes with it, and nobody brings it back.
    put(&mut backend.writer().await.unwrap(), events(20..30)).await;
    let held = take(&other, 6).await;
    let moved = put_at(&backend, &CursorMove { to: To::Latest, ..forced.clone() }).await;
    assert_eq!((moved[0].again, moved[0].skipped), (Some(0), Some(10)));
    meddle(&other, &held).await;
    let shown = cursor(&backend).await;
    assert_eq!((shown.position, shown.pending, shown.lag), (shown.end, 0, Some(0)));
    nothing(&at.member(&backend, "g").await).await;
}

/// A member as its actor runs it: after an error it begins a new life under its old name.
struct Lives<'a> {
    backend: &'a Arc<dyn Backend>,
    spec: ReaderSpec,
    reader: Arc<dyn Reader>,
}

impl<'a> Lives<'a> {
    async fn new(at: &Place, backend: &'a Arc<dyn Backend>) -> Self {
        let spec = ReaderSpec { group: at.spec.groups[0].clone(), member: "here/g/lives".into() };
        let reader = backend.reader(spec.clone()).await.unwrap();
        Self { backend, spec, reader }
    }

    async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let (start, mut taken) = (Instant::now(), Vec::new());
        while taken.len() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count} events came", taken.len());
            match self.reader.fetch(count, BYTES, GLANCE / 2).await {
                Ok(some) => taken.extend(some),
                Err(_) => self.reader = self.backend.reader(self.spec.clone()).await.unwrap(),
            }
        }
        taken
    }
}

async fn a_member_goes_on_from_where_the_cursor_was_put(at: Place) {
    let at = forever(at).lease(Duration::from_secs(20));
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..30)).await;
    let mut lives = Lives::new(&at, &backend).await;
    let held = lives.take(30).await;
    lives.reader.ack(&tickets(&held[..10])).await.unwrap();
    for to in [To::Earliest, To::At(place_of(&at, held[4].ticket))] {
        let forced = CursorMove { force: true, ..order(to) };
        put_at(&backend, &forced).await;
        let first = if to == To::Earliest { 0 } else { 4 };
        let taken = lives.take(30 - first as usize).await;
        assert_eq!(numbers(&taken), (first..30).collect::<Vec<_>>());
        assert!(taken.iter().all(|it| it.deliveries == 1), "delivered once since the move");
        lives.reader.ack(&tickets(&taken[..3])).await.unwrap();
        assert_eq!(cursor(&backend).await.pending, 27 - first);
    }
    // New events come as ever.
    put_at(&backend, &CursorMove { force: true, ..order(To::Latest) }).await;
    put(&mut backend.writer().await.unwrap(), events(30..35)).await;
    let taken = lives.take(5).await;
    assert_eq!(numbers(&taken), [30, 31, 32, 33, 34]);
    lives.reader.ack(&tickets(&taken)).await.unwrap();
    let shown = cursor(&backend).await;
    assert_eq!((shown.position, shown.pending), (shown.end, 0));
}

async fn a_place_that_is_not_there_is_refused(at: Place) {
    let at = at.lease(SHORT).groups(&["g", "slow"]);
    let backend = at.open().await;
    let began = now_us();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let empty = cursor(&backend).await;
    assert_eq!((empty.oldest, empty.position, empty.lag), (empty.end, empty.end, Some(0)));
    assert_eq!(put_at(&backend, &order(To::Time(began))).await[0].to, empty.end);
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..2000)).await;
    let (member, slow) = (at.member(&backend, "g").await, at.member(&backend, "slow").await);
    let held = finish(&member, 2000).await;
    finish(&slow, 1000).await;
    end(member).await;
    // Every group has acked the first thousand: they go.
    until("the first ones are gone", async || length(&backend).await <= 1000).await;
    let shown = cursor(&backend).await;
    assert!(shown.oldest > place_of(&at, held[0].ticket));
    for gone in [held[0].ticket, held[500].ticket] {
        let why = refused(&backend, &order(To::At(place_of(&at, gone)))).await;
        assert!(why.contains(&format!("holds {} to {}", shown.oldest, shown.end)), "{why}");
    }
    let why = refused(&backend, &order(To::Time(began))).await;
    assert!(why.contains("its oldest event is of") && why.contains("earliest"), "{why}");
    let ahead = match shown.end {
        Offset::Number(end) => Offset::Number(end + 1),
        Offset::Entry { ms, seq } => Offset::Entry { ms, seq: seq + 1 },
    };
    refused(&backend, &order(To::At(ahead))).await;
    let other_kind = match shown.end {
        Offset::Number(_) => Offset::Entry { ms: 1, seq: 0 },
        Offset::Entry { .. } => Offset::Number(1500),
    };
    let why = refused(&backend, &order(To::At(other_kind))).await;
    assert!(why.contains(&shown.oldest.to_string()), "{why}");
    let why = refused(&backend, &CursorMove { shard: Some(1), ..order(To::Latest) }).await;
    assert!(why.contains("no shard 1"), "{why}");
    let nobody = CursorMove { group: "nobody".into(), ..order(To::Latest) };
    assert!(refused(&backend, &nobody).await.contains("no group nobody"));
    assert!(backend.cursor("nobody").await.is_err());
    // What is there can be had again.
    let moved = put_at(&backend, &order(To::Earliest)).await;
    assert_eq!((moved[0].to, moved[0].again), (shown.oldest, Some(1000)));
    let member = at.member(&backend, "g").await;
    assert_eq!(numbers(&finish(&member, 1000).await), (1000..2000).collect::<Vec<_>>());
}

async fn a_cursor_moved_back_keeps_what_is_behind_it(at: Place) {
    let at = at.lease(SHORT).groups(&["g", "slow"]);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let (mut number, slow) = (0, at.member(&backend, "slow").await);
    for _ in 0..6 {
        let events_of = events(number..number + 50);
        number += 50;
        put(&mut writer, events_of).await;
        let member = at.member(&backend, "g").await;
        finish(&member, 50).await;
        end(member).await;
        let held = take(&slow, 50).await;
        // The last that holds them back lets go while the other goes back to them.
        let racing = tokio::spawn({
            let (slow, backend) = (slow.clone(), backend.clone());
            async move {
                slow.ack(&tickets(&held)).await.unwrap();
                // Which sees to it that the stream is trimmed.
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(700) {
                    backend.status().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        let moved = put_at(&backend, &order(To::Earliest)).await;
        racing.await.unwrap();
        let (to, again) = (moved[0].to, moved[0].again.unwrap());
        let shown = cursor(&backend).await;
        assert_eq!((shown.oldest, shown.position), (to, to), "nothing behind it is dropped");
        let member = at.member(&backend, "g").await;
        let taken = finish(&member, again as usize).await;
        assert_eq!(numbers(&taken), (number - again..number).collect::<Vec<_>>());
        end(member).await;
    }
}

async fn each_shard_has_its_own(at: Place) {
    let at = forever(at).lease(SHORT).with(|spec| spec.shards = 3);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let keyed = |n: u64| {
        let key = Some(format!("key {n}").into());
        aqueduct::event::Event { key, ..event(n) }
    };
    put(&mut writer, (0..300).map(keyed).collect()).await;
    let member = at.member(&backend, "g").await;
    let taken = finish(&member, 300).await;
    end(member).await;
    let of = |shard| taken.iter().filter(move |it| it.ticket.shard == shard);
    let third = of(1).nth(3).unwrap();
    let why = refused(&backend, &order(To::At(place_of(&at, third.ticket)))).await;
    assert!(why.contains("--shard"), "{why}");
    let one = CursorMove { shard: Some(1), ..order(To::At(place_of(&at, third.ticket))) };
    let moved = put_at(&backend, &one).await;
    assert_eq!(moved.len(), 1);
    assert_eq!((moved[0].shard, moved[0].again), (1, Some(of(1).count() as u64 - 3)));
    let shown = backend.cursor("g").await.unwrap();
    assert_eq!(shown.iter().map(|it| it.shard).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(shown[0].position == shown[0].end && shown[2].position == shown[2].end);
    let member = at.member(&backend, "g").await;
    let again = finish(&member, of(1).count() - 3).await;
    assert!(numbers(&again).into_iter().eq(of(1).skip(3).map(|it| it.event.id.sequence())));
    end(member).await;
    let moved = put_at(&backend, &order(To::Earliest)).await;
    assert_eq!(moved.iter().map(|it| it.again.unwrap()).sum::<u64>(), 300);
    assert_eq!(finish(&at.member(&backend, "g").await, 300).await.len(), 300);
}

async fn an_owner_loses_its_shards(at: Place) {
    let at = forever(at).lease(Duration::from_secs(20)).with(|spec| {
        spec.shards = 2;
        spec.groups[0].ordered = true;
    });
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    for start in (0..40).step_by(4) {
        put(&mut writer, events(start..start + 4)).await;
    }
    let mut lives = Lives::new(&at, &backend).await;
    let held = lives.take(40).await;
    let old: BTreeMap<u32, i64> = fences(&held);
    let refusal = backend.move_cursor(&order(To::Earliest)).await.unwrap().unwrap_err();
    assert_eq!(refusal, Refused::Running(vec!["here/g/lives".into()]));
    let forced = CursorMove { force: true, ..order(To::Earliest) };
    put_at(&backend, &forced).await;
    let set = backend.cursor("g").await.unwrap();
    let stale = lives.reader.clone();
    meddle(&stale, &held[..3]).await;
    assert_eq!(backend.cursor("g").await.unwrap(), set);
    let again = lives.take(40).await;
    assert_eq!(sorted(&again), (0..40).collect::<Vec<_>>());
    for (shard, epoch) in fences(&again) {
        assert!(epoch > old[&shard], "of shard {shard} the owner is a newer one");
        let order = again.iter().filter(|it| it.ticket.shard == shard);
        assert!(order.map(|it| it.event.id.sequence()).is_sorted());
    }
    lives.reader.ack(&tickets(&again)).await.unwrap();
    let shown = backend.cursor("g").await.unwrap();
    assert!(shown.iter().all(|it| it.position == it.end));
}

fn fences(deliveries: &[Delivery]) -> BTreeMap<u32, i64> {
    let fences = deliveries.iter().map(|it| it.fence.as_ref().unwrap());
    fences.map(|fence| (fence.shard, fence.epoch)).collect()
}

async fn a_queue_has_no_cursor(at: Place) {
    let backend = at.open().await;
    let shown = backend.cursor("g").await.unwrap_err().to_string();
    let moved = backend.move_cursor(&order(To::Earliest)).await.unwrap_err().to_string();
    for error in [shown, moved] {
        assert!(error.contains("group g") && error.contains("no history"), "{error}");
    }
}
