//! What a stream backend must do for the members of an ordered group: a shard has one owner at a
//! time, its events come in order, and who lost it can do nothing to them.

#[path = "support/streams.rs"]
mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aqueduct::event::{Delivery, Event};
use aqueduct::stream::{Backend, Reader, shard_of};
use streams::servers::{Redis, signal};
use streams::*;

/// A lease short enough to wait for.
const LEASE: Duration = Duration::from_millis(800);
/// How soon what takes a lease or less has to be done, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(15);
const SHARDS: u32 = 6;

macro_rules! conforms {
    ($($backend:ident: $place:expr),* $(,)?) => {
        $(mod $backend {
            conforms!(@tests $place, [
                events_of_a_shard_come_in_order_to_one_member,
                a_silent_owner_is_followed_by_one_of_a_greater_epoch,
                who_lost_a_shard_can_do_nothing_to_it,
                an_owner_that_fetches_keeps_its_shards,
                what_an_owner_gives_up_moves_at_once,
                three_members_share_and_one_that_leaves_is_replaced,
                a_member_that_joins_gets_its_share,
                a_refused_event_does_not_fill_the_hand,
                charges_outlive_an_owner,
                nothing_is_lost_doubled_or_out_of_order_while_members_come_and_go,
            ]);
        })*
    };
    (@tests $place:expr, [$($test:ident),* $(,)?]) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            crate::$test(crate::ordered($place)).await;
        })*
    };
}

fn ordered(at: Place) -> Place {
    at.lease(LEASE).with(|spec| {
        spec.shards = SHARDS;
        spec.groups.iter_mut().for_each(|group| group.ordered = true);
    })
}

/// A key of each shard.
fn keys() -> Vec<String> {
    let of = |shard| (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, SHARDS) == shard);
    (0..SHARDS).filter_map(of).collect()
}

/// Events whose keys go round the shards.
fn keyed(numbers: std::ops::Range<u64>) -> Vec<Event> {
    let keys = keys();
    let key = |number: u64| keys[(number % u64::from(SHARDS)) as usize].clone();
    numbers.map(|n| Event { key: Some(key(n).into()), ..event(n) }).collect()
}

fn epochs(deliveries: &[Delivery]) -> BTreeMap<u32, i64> {
    let fences = deliveries.iter().map(|delivery| delivery.fence.as_ref().unwrap());
    fences.map(|fence| (fence.shard, fence.epoch)).collect()
}

/// Each shard's events come in the order of their numbers.
fn assert_in_order(deliveries: &[Delivery]) {
    let mut last = BTreeMap::new();
    for delivery in deliveries {
        let (shard, number) = (delivery.ticket.shard, delivery.event.id.sequence());
        let fence = delivery.fence.as_ref().unwrap();
        assert_eq!((fence.shard, fence.group.starts_with("s/g/")), (shard, true));
        let before = last.insert(shard, number);
        assert!(before < Some(number), "{number} of shard {shard} after {before:?}");
    }
}

async fn put_keyed(backend: &Arc<dyn Backend>, numbers: std::ops::Range<u64>) {
    put(&mut backend.writer().await.unwrap(), keyed(numbers)).await;
}

async fn events_of_a_shard_come_in_order_to_one_member(at: Place) {
    let backend = at.open().await;
    for start in (0..1200).step_by(100) {
        put_keyed(&backend, start..start + 100).await;
    }
    let (one, other) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let (mut ones, mut others, start) = (Vec::new(), Vec::new(), Instant::now());
    while ones.len() + others.len() < 1200 {
        for (member, all) in [(&one, &mut ones), (&other, &mut others)] {
            let some = member.fetch(70, BYTES, GLANCE / 8).await.unwrap();
            member.ack(&tickets(&some)).await.unwrap();
            all.extend(some);
        }
        assert!(start.elapsed() < PATIENCE, "{} and {} of 1200", ones.len(), others.len());
    }
    let mut all: Vec<u64> = [numbers(&ones), numbers(&others)].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..1200));
    assert_in_order(&ones);
    assert_in_order(&others);
    assert_eq!(group_status(&backend, "g").await.pending, Some(0));
}

async fn a_silent_owner_is_followed_by_one_of_a_greater_epoch(at: Place) {
    let lease = LEASE * 4;
    let at = at.lease(lease);
    let backend = at.open().await;
    put_keyed(&backend, 0..60).await;
    let silent = at.member(&backend, "g").await;
    let since = Instant::now();
    let held = take(&silent, 60).await;
    silent.ack(&tickets(&held[..7])).await.unwrap();
    let next = at.member(&backend, "g").await;
    let mut taken = next.fetch(100, BYTES, Duration::ZERO).await.unwrap();
    let waited = since.elapsed();
    assert!(taken.is_empty() || waited >= lease, "taken over after {waited:?}");
    let since = Instant::now();
    taken.extend(take(&next, 53 - taken.len()).await);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert_eq!(sorted(&taken), sorted(&held[7..]), "from the first that is not acked");
    assert_in_order(&taken);
    assert!(taken.iter().all(|delivery| delivery.deliveries == 2));
    let (old, new) = (epochs(&held), epochs(&taken));
    assert!(new.iter().all(|(shard, epoch)| *epoch > old[shard]), "{old:?} {new:?}");
}

async fn who_lost_a_shard_can_do_nothing_to_it(at: Place) {
    let backend = at.open().await;
    put_keyed(&backend, 0..12).await;
    let stale = at.member(&backend, "g").await;
    let old = take(&stale, 12).await;
    let owner = at.member(&backend, "g").await;
    let new = take(&owner, 12).await;
    let held = tickets(&old);
    let mut lost = stale.renew(&held).await.unwrap();
    lost.sort_unstable();
    let mut all = held.clone();
    all.sort_unstable();
    assert_eq!(lost, all, "a renewal tells what is lost");
    stale.ack(&held).await.unwrap();
    assert_eq!(stale.charge(held[0]).await.unwrap(), None);
    stale.refund(held[0]).await.unwrap();
    stale.bury(&old[0], "not mine to bury").await.unwrap();
    stale.release(&held).await.unwrap();
    stale.leave().await.unwrap();
    assert!(backend.dead().await.unwrap().is_empty());
    assert!(owner.renew(&tickets(&new)).await.unwrap().is_empty());
    assert_eq!(group_status(&backend, "g").await.pending, Some(12));
    owner.ack(&tickets(&new)).await.unwrap();
    assert_eq!(group_status(&backend, "g").await.pending, Some(0));
}

async fn an_owner_that_fetches_keeps_its_shards(at: Place) {
    let backend = at.open().await;
    put_keyed(&backend, 0..6).await;
    let (owner, other) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    // The other holds half of the shards, and the owner what is left.
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    until("both have theirs", async || {
        ones.extend(finish_now(&owner).await);
        others.extend(finish_now(&other).await);
        ones.len() + others.len() == 6
    })
    .await;
    // The longest from a fetch of a member's until its next one is done: at most so long it was
    // silent, which is the machine's fault where it is a lease.
    let (mut stall, mut round) = (Duration::ZERO, Instant::now());
    let mut look = async |later: &mut Vec<Delivery>, others_later: &mut Vec<Delivery>| {
        let before = std::mem::replace(&mut round, Instant::now());
        later.extend(finish_now(&owner).await);
        others_later.extend(finish_now(&other).await);
        stall = stall.max(before.elapsed());
    };
    let since = Instant::now();
    while since.elapsed() < LEASE * 3 {
        look(&mut Vec::new(), &mut Vec::new()).await;
    }
    put_keyed(&backend, 6..12).await;
    let (mut later, mut others_later) = (Vec::new(), Vec::new());
    until("both have more", async || {
        look(&mut later, &mut others_later).await;
        later.len() + others_later.len() == 6
    })
    .await;
    let both = epochs(&[ones, others].concat());
    let after = epochs(&[later, others_later].concat());
    let moved = after.iter().filter(|(shard, epoch)| both[shard] != **epoch).count();
    let few = moved <= SHARDS as usize / 2;
    assert!(few || stall >= LEASE, "{moved} moved, and only what went to who came later may");
}

/// What a fetch took that was given up half-way is behind nothing that is delivered after it.
async fn a_fetch_given_up_half_way_leaves_no_gap(at: Place) {
    // Nothing comes back by itself in time.
    let at = at.lease(Duration::from_secs(60));
    let backend = at.open().await;
    put_keyed(&backend, 0..600).await;
    let member = at.member(&backend, "g").await;
    let (mut all, mut given_up, start) = (Vec::new(), 0, Instant::now());
    for turn in 0.. {
        let patience = Duration::from_micros(turn * 211 % 40_000);
        match tokio::time::timeout(patience, member.fetch(20, BYTES, GLANCE)).await {
            Err(_) => given_up += 1,
            Ok(some) => {
                let some = some.unwrap();
                member.ack(&tickets(&some)).await.unwrap();
                all.extend(some);
            }
        }
        if all.len() >= 600 {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{} of 600, {given_up} given up", all.len());
    }
    assert!(given_up > 0);
    assert_in_order(&all);
    assert!(sorted(&all).into_iter().eq(0..600));
}

async fn finish_now(reader: &Arc<dyn Reader>) -> Vec<Delivery> {
    let some = reader.fetch(1000, BYTES, GLANCE / 8).await.unwrap();
    reader.ack(&tickets(&some)).await.unwrap();
    some
}

async fn what_an_owner_gives_up_moves_at_once(at: Place) {
    // A lease that nobody could wait for.
    let at = at.lease(Duration::from_secs(60));
    let backend = at.open().await;
    put_keyed(&backend, 0..60).await;
    let (one, other) = (at.member(&backend, "g").await, at.member(&backend, "g").await);
    let held = take(&one, 30).await;
    let waiting = tokio::spawn({
        let other = other.clone();
        async move { take(&other, 60).await }
    });
    one.release(&tickets(&held)).await.unwrap();
    one.leave().await.unwrap();
    let taken = waiting.await.unwrap();
    assert!(sorted(&taken).into_iter().eq(0..60));
    assert_in_order(&taken);
    assert!(taken.iter().all(|delivery| delivery.deliveries == 1), "what was handed back");
}

/// Which member has which shards, once each shard's event has come to somebody.
async fn owners(backend: &Arc<dyn Backend>, members: &[Arc<dyn Reader>], at: u64) -> Vec<usize> {
    put_keyed(backend, at..at + u64::from(SHARDS)).await;
    let mut got: Vec<Vec<Delivery>> = vec![Vec::new(); members.len()];
    until("all came", async || {
        for (member, got) in members.iter().zip(&mut got) {
            got.extend(finish_now(member).await);
        }
        got.iter().map(Vec::len).sum::<usize>() == SHARDS as usize
    })
    .await;
    got.iter().map(Vec::len).collect()
}

async fn balanced(backend: &Arc<dyn Backend>, members: &[Arc<dyn Reader>], at: &mut u64) {
    let share = SHARDS as usize / members.len();
    until("the members have equal shares", async || {
        let owners = owners(backend, members, *at).await;
        *at += u64::from(SHARDS);
        owners.iter().all(|shards| *shards == share)
    })
    .await;
}

async fn three_members_share_and_one_that_leaves_is_replaced(at: Place) {
    let backend = at.open().await;
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(at.member(&backend, "g").await);
    }
    let mut next = 0;
    balanced(&backend, &members, &mut next).await;
    // One falls silent: the others have its shards after a lease.
    let silent = members.pop();
    let since = Instant::now();
    balanced(&backend, &members, &mut next).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    drop(silent);
}

async fn a_member_that_joins_gets_its_share(at: Place) {
    let at = at.lease(Duration::from_secs(20));
    let backend = at.open().await;
    let mut members = vec![at.member(&backend, "g").await];
    let mut next = 0;
    balanced(&backend, &members, &mut next).await;
    members.push(at.member(&backend, "g").await);
    let since = Instant::now();
    balanced(&backend, &members, &mut next).await;
    assert!(since.elapsed() < SOON, "not before the lease of 20 s: {:?}", since.elapsed());
}

async fn a_refused_event_does_not_fill_the_hand(at: Place) {
    let at = at.lease(Duration::from_secs(20));
    let backend = at.open().await;
    let key = &keys()[2];
    let same = (0..500).map(|n| Event { key: Some(key.as_str().into()), ..event(n) });
    put(&mut backend.writer().await.unwrap(), same.collect()).await;
    let member = at.member(&backend, "g").await;
    let mut held = Vec::new();
    let mut empty = 0;
    while empty < 3 {
        let some = member.fetch(50, BYTES, GLANCE / 4).await.unwrap();
        empty = if some.is_empty() { empty + 1 } else { 0 };
        held.extend(some);
    }
    assert!((50..=150).contains(&held.len()), "{} events of a shard in hand", held.len());
    // It does not keep other shards' events away, and goes on when its own are done with.
    put_keyed(&backend, 500..506).await;
    let others = take(&member, 5).await;
    assert!(others.iter().all(|delivery| delivery.ticket.shard != held[0].ticket.shard));
    member.ack(&tickets(&held)).await.unwrap();
    let more = take(&member, 50).await;
    assert_eq!(numbers(&more)[0], held.len() as u64);
}

async fn charges_outlive_an_owner(at: Place) {
    let backend = at.open().await;
    put_keyed(&backend, 0..18).await;
    let first = at.member(&backend, "g").await;
    let held = take(&first, 18).await;
    assert_eq!(first.charge(held[4].ticket).await.unwrap(), Some(1));
    assert_eq!(first.charge(held[4].ticket).await.unwrap(), Some(2));
    first.refund(held[4].ticket).await.unwrap();
    let second = at.member(&backend, "g").await;
    let taken = take(&second, 18).await;
    let charged = taken.iter().find(|it| it.event.id == held[4].event.id).unwrap();
    assert_eq!((charged.attempts, charged.deliveries), (1, 2));
    second.bury(charged, "no").await.unwrap();
    let letters = backend.dead().await.unwrap();
    assert_eq!((letters.len(), letters[0].attempts), (1, 1));
    assert_eq!(group_status(&backend, "g").await.pending, Some(17));
}

async fn nothing_is_lost_doubled_or_out_of_order_while_members_come_and_go(at: Place) {
    const EVENTS: u64 = 6000;
    let backend = at.open().await;
    let at = Arc::new(at);
    let stop = Arc::new(AtomicBool::new(false));
    let seed = std::env::var("AQUEDUCT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("AQUEDUCT_SEED={seed}");
    // What a sink with a fence would do: newer owners first, and each event once, in order.
    #[derive(Default)]
    struct Kept {
        epochs: BTreeMap<u32, i64>,
        numbers: BTreeMap<u32, Vec<u64>>,
    }
    let kept: Arc<std::sync::Mutex<Kept>> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for which in 0..4 {
        let (at, backend, stop, kept) = (at.clone(), backend.clone(), stop.clone(), kept.clone());
        let mut random = fastrand::Rng::with_seed(seed + which);
        tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let member = at.member(&backend, "g").await;
                for _ in 0..random.u32(1..40) {
                    let some = member.fetch(random.usize(1..80), BYTES, GLANCE / 10).await.unwrap();
                    if random.u8(..50) == 0 {
                        tokio::time::sleep(LEASE * 3 / 2).await;
                    }
                    let mut done = Vec::new();
                    {
                        let mut kept = kept.lock().unwrap();
                        for delivery in &some {
                            let fence = delivery.fence.as_ref().unwrap();
                            let newest = kept.epochs.entry(fence.shard).or_default();
                            if *newest <= fence.epoch {
                                *newest = fence.epoch;
                                let number = delivery.event.id.sequence();
                                let numbers = kept.numbers.entry(fence.shard).or_default();
                                if !numbers.contains(&number) {
                                    numbers.push(number);
                                }
                                done.push(delivery.ticket);
                            }
                        }
                    }
                    member.ack(&done).await.unwrap();
                }
                match random.bool() {
                    true => member.leave().await.unwrap(),
                    false => drop(member),
                }
            }
        });
    }
    for start in (0..EVENTS).step_by(200) {
        put_keyed(&backend, start..start + 200).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let since = Instant::now();
    let count = || kept.lock().unwrap().numbers.values().map(Vec::len).sum::<usize>();
    while count() < EVENTS as usize {
        assert!(since.elapsed() < PATIENCE * 3, "{} of {EVENTS}", count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::SeqCst);
    while tasks.join_next().await.transpose().unwrap().is_some() {}
    for (shard, numbers) in &kept.lock().unwrap().numbers {
        assert!(numbers.is_sorted(), "shard {shard}: out of order");
    }
}

mod given_up {
    mod embedded {
        conforms!(@tests crate::Place::embedded(), [a_fetch_given_up_half_way_leaves_no_gap]);
    }
    mod postgres {
        conforms!(@tests crate::Place::postgres(), [a_fetch_given_up_half_way_leaves_no_gap]);
    }
}

conforms!(
    embedded: crate::Place::embedded(),
    postgres: crate::Place::postgres(),
    redis: crate::Place::redis(),
    redis_cluster: crate::Place::redis_cluster(),
);

/// A server that stands still for longer than anybody waits reads what it was asked to read once it
/// goes on, and has nobody to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_for_an_answer_that_was_lost_comes_before_what_stands_behind_it() {
    let server = Redis::start();
    let at = ordered(Place::redis_at(&[server.url()])).lease(Duration::from_secs(60));
    let at = at.with(|spec| spec.shards = 1);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    put(&mut writer, events(0..5)).await;
    finish(&reader, 5).await;
    put(&mut writer, events(5..10)).await;
    signal(server.pid(), "STOP");
    reader.fetch(5, BYTES, Duration::from_secs(1)).await.unwrap_err();
    signal(server.pid(), "CONT");
    put(&mut writer, events(10..15)).await;
    assert_eq!(numbers(&take(&reader, 10).await), (5..15).collect::<Vec<_>>());
}
