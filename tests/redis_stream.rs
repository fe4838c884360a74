//! What is Redis' own: entries, groups and consumers of other programs, a server that comes back
//! with less than it had, and shards of a Redis Cluster that disagree.

#[path = "support/streams.rs"]
mod streams;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aqueduct::event::{Event, EventId, Sequence};
use aqueduct::spec::Value;
use aqueduct::stream::cursor::{CursorMove, To};
use aqueduct::stream::{Appended, Backend, Reader, ReaderSpec, Retain};
use redis::{Connection, FromRedisValue};
use streams::servers::{Redis, RedisCluster, signal};
use streams::*;

const SHORT: Duration = Duration::from_millis(400);

/// Another program's connection.
fn other(url: &str) -> Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

/// What the server answers to another program.
fn ask<T: FromRedisValue>(connection: &mut Connection, command: &[&str]) -> T {
    let mut cmd = redis::cmd(command[0]);
    command[1..].iter().for_each(|arg| {
        cmd.arg(arg);
    });
    cmd.query(connection).unwrap()
}

/// A server of the test's own, a place in it with the key `s`, and another program's connection.
fn alone() -> (Redis, Place, Connection) {
    let server = Redis::start();
    let at = Place::redis_at(&[server.url()]);
    let at = at.with(|spec| spec.values.set("key", Value::Str("s".into())));
    let connection = other(&server.url());
    (server, at, connection)
}

fn bodies(deliveries: &[aqueduct::event::Delivery]) -> Vec<String> {
    deliveries.iter().map(|it| String::from_utf8_lossy(&it.event.body).into_owned()).collect()
}

fn json_event(number: u64, body: &str) -> Event {
    Event { body: body.to_owned().into(), ..event(number) }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_other_programs_are_events() {
    let (_server, at, mut redis) = alone();
    let at = at.lease(SHORT);
    let backend = at.open().await;
    let add = |redis: &mut Connection, fields: &[&str]| -> String {
        ask(redis, &[&["XADD", "s", "*"], fields].concat())
    };
    let id = add(&mut redis, &["number", "7", "publisher_id", "p"]);
    add(&mut redis, &["body", "as it is"]);
    add(&mut redis, &["_id", "1b4e28ba-2fa1-4d2b-883f-0016d3cca427", "a", "1"]);
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(9..10)).await;
    let reader = at.member(&backend, "g").await;
    let taken = take(&reader, 4).await;
    let foreign = r#"{"_id":"1b4e28ba-2fa1-4d2b-883f-0016d3cca427","a":"1"}"#;
    let expected = [r#"{"number":"7","publisher_id":"p"}"#, "as it is", foreign, "event 9"];
    assert_eq!(bodies(&taken), expected);
    let ms: i64 = id.split_once('-').unwrap().0.parse().unwrap();
    assert_eq!(taken[0].event.time_us, ms * 1000);
    assert_eq!(&*taken[0].event.source, "s");
    // Delivered again, it is the same event; and peek shows the same.
    let again = take(&reader, 4).await;
    let ids = |events: &[aqueduct::event::Delivery]| -> Vec<EventId> {
        events.iter().map(|delivery| delivery.event.id).collect()
    };
    assert_eq!(ids(&again), ids(&taken));
    let peeked = backend.peek(10).await.unwrap();
    let mut shown: Vec<EventId> = peeked.iter().map(|event| event.id).collect();
    let mut expected = ids(&taken);
    shown.sort_unstable();
    expected.sort_unstable();
    assert_eq!(shown, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flat_event_is_fields_to_others_and_the_same_body_to_us() {
    let (_server, at, mut redis) = alone();
    let at = at.with(|spec| spec.values.set("flat", Value::Bool(true)));
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let bodies_sent = [
        r#"{"number":7,"publisher_id":"p","deep":{"a": [1, 2]}}"#,
        r#"{"a":"x","b":"é"}"#,
        r#"{"a": "x", "b": 7}"#,
        r#"{ "a" :"\u00e9"}"#,
        r#"{"body":"x","_id":1}"#,
        "no object",
    ];
    let sent: Vec<Event> =
        bodies_sent.iter().zip(0..).map(|(body, number)| json_event(number, body)).collect();
    put(&mut writer, sent.clone()).await;
    let entries: Vec<(String, Vec<String>)> = ask(&mut redis, &["XRANGE", "s", "-", "+"]);
    let fields = |index: usize| -> Vec<&str> {
        entries[index].1.chunks(2).skip(3).flatten().map(String::as_str).collect()
    };
    let deep = r#"{"a": [1, 2]}"#;
    assert_eq!(fields(0), ["_types", "jsj", "number", "7", "publisher_id", "p", "deep", deep]);
    assert_eq!(fields(1), ["a", "x", "b", "é"]);
    assert_eq!(fields(2), ["_types", "sj+", "a", "x", "b", "7"]);
    assert_eq!(fields(3), ["_body", bodies_sent[3], "a", "é"]);
    assert_eq!(fields(4), ["body", bodies_sent[4]]);
    assert_eq!(fields(5), ["body", "no object"]);
    let () =
        redis::cmd("XADD").arg(&["s", "*", "number", "8", "body", "b"]).query(&mut redis).unwrap();
    let taken = finish(&at.member(&backend, "g").await, 7).await;
    for (delivery, event) in taken.iter().zip(&sent) {
        assert_eq!(delivery.event, *event);
    }
    assert_eq!(bodies(&taken[6..]), [r#"{"number":"8","body":"b"}"#]);
    assert_eq!(taken[6].event.id.origin().counts(), Sequence::Hashed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_consumer_read_and_never_acked_comes_within_lease_and_two_seconds() {
    let (_server, at, mut redis) = alone();
    let lease = Duration::from_secs(2);
    let at = at.lease(lease);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..100)).await;
    let read = ["XREADGROUP", "GROUP", "g", "somebody", "COUNT", "100", "STREAMS", "s", ">"];
    let _: redis::Value = ask(&mut redis, &read);
    let start = Instant::now();
    let reader = at.member(&backend, "g").await;
    let mut got = Vec::new();
    let mut next = 100;
    // Also while new events flow without a pause.
    while got.len() < 100 {
        put(&mut writer, events(next..next + 10)).await;
        next += 10;
        let taken = reader.fetch(50, BYTES, Duration::from_millis(20)).await.unwrap();
        reader.ack(&tickets(&taken)).await.unwrap();
        got.extend(taken.iter().filter(|it| it.event.id.sequence() < 100).cloned());
        assert!(start.elapsed() < lease + Duration::from_secs(2), "{} of 100 came", got.len());
    }
    assert!(start.elapsed() >= lease - Duration::from_millis(50));
    assert!(got.iter().all(|it| (it.deliveries, it.attempts) == (2, 0)));
    assert_eq!(sorted(&got), (0..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_programs_group_holds_back_what_it_has_not_acked() {
    let (_server, at, mut redis) = alone();
    let backend = at.open().await;
    let _: String = ask(&mut redis, &["XGROUP", "CREATE", "s", "theirs", "0"]);
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..1000)).await;
    finish(&at.member(&backend, "g").await, 1000).await;
    let read = ["XREADGROUP", "GROUP", "theirs", "c", "COUNT", "400", "STREAMS", "s", ">"];
    let _: redis::Value = ask(&mut redis, &read);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 1000, "the other group has acked nothing");
    let pending: Vec<(String, String, u64, u64)> =
        ask(&mut redis, &["XPENDING", "s", "theirs", "-", "+", "400"]);
    let ids: Vec<&str> = pending.iter().map(|one| &*one.0).collect();
    let _: u64 = ask(&mut redis, &[&["XACK", "s", "theirs"], &ids[1..]].concat());
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(length(&backend).await, 1000, "the first is not acked");
    let _: u64 = ask(&mut redis, &["XACK", "s", "theirs", ids[0]]);
    until("what both acked is gone", async || length(&backend).await == 600).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_empty_is_started_anew() {
    let (mut server, at, _) = alone();
    let at = at.groups(&["g", "late"]).with(|spec| spec.groups[1].latest = true);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let first = moving("a", None, Some(5), events(0..5));
    assert_eq!(writer.append(&[first]).await.unwrap(), [Appended::Durable]);
    let (reader, late) = (at.member(&backend, "g").await, at.member(&backend, "late").await);
    let held = take(&reader, 5).await;
    server.wipe();
    server.up();
    // Another program is the first to come.
    let mut redis = other(&server.url());
    let _: String = ask(&mut redis, &["XADD", "s", "*", "body", "in between"]);
    // The connection broke; after that it is as if nothing had been.
    until("the writer is back", async || writer.slots("test").await.is_ok()).await;
    assert!(writer.slots("test").await.unwrap().is_empty());
    let stale = moving("a", Some(5), Some(6), events(5..6));
    assert_eq!(writer.append(&[stale]).await.unwrap(), [Appended::Rewound]);
    let again = moving("a", None, Some(5), events(0..5));
    assert_eq!(writer.append(&[again]).await.unwrap(), [Appended::Durable]);
    until("what was held can be acked", async || reader.ack(&tickets(&held)).await.is_ok()).await;
    for reader in [reader, late] {
        let mut taken = Vec::new();
        until("all has come", async || {
            taken.extend(reader.fetch(10, BYTES, GLANCE).await.unwrap_or_default());
            taken.len() == 6
        })
        .await;
        assert_eq!(bodies(&taken[..1]), ["in between"]);
        assert_eq!(numbers(&taken[1..]), [0, 1, 2, 3, 4]);
        reader.ack(&tickets(&taken)).await.unwrap();
    }
    until("all is gone", async || length(&backend).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_first_to_an_empty_server_waits_for_the_groups() {
    let (server, at, mut redis) = alone();
    let at = at.groups(&["g", "late"]).with(|spec| spec.groups[1].latest = true);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let _: String = ask(&mut redis, &["FLUSHALL"]);
    put(&mut writer, events(0..3)).await;
    drop((backend, writer));
    let backend = at.open().await;
    for group in ["g", "late"] {
        let taken = finish(&at.member(&backend, group).await, 3).await;
        assert_eq!(numbers(&taken), [0, 1, 2]);
    }
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_set_back_to_an_older_copy_rewinds_the_source() {
    let (mut server, at, _) = alone();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    let step = |from: u64, to: u64| {
        vec![moving("a", (from > 0).then_some(from), Some(to), events(from..to))]
    };
    assert_eq!(writer.append(&step(0, 5)).await.unwrap(), [Appended::Durable]);
    let backup = server.backup();
    assert_eq!(writer.append(&step(5, 9)).await.unwrap(), [Appended::Durable]);
    finish(&reader, 9).await;
    server.restore(&backup);
    server.up();
    until("the writer is back", async || writer.slots("test").await.is_ok()).await;
    assert_eq!(writer.slots("test").await.unwrap(), [("a".into(), position(5))]);
    assert_eq!(writer.append(&step(9, 12)).await.unwrap(), [Appended::Rewound]);
    assert_eq!(writer.append(&step(5, 12)).await.unwrap(), [Appended::Durable]);
    let mut taken = Vec::new();
    until("all has come", async || {
        taken.extend(reader.fetch(20, BYTES, GLANCE).await.unwrap_or_default());
        taken.len() == 12
    })
    .await;
    assert_eq!(numbers(&taken), (0..12).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_entries_leave_the_pending_list() {
    let (_server, at, mut redis) = alone();
    let at = at.lease(SHORT);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let reader = at.member(&backend, "g").await;
    let held = take(&reader, 6).await;
    let ids: Vec<String> =
        held.iter().map(|it| format!("{}-{}", it.ticket.hold, it.ticket.offset)).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let _: u64 = ask(&mut redis, &[&["XDEL", "s"], &ids[..4]].concat());
    // What a member has in hand it may still store: nobody else can.
    assert_eq!(reader.renew(&tickets(&held)).await.unwrap(), []);
    assert_eq!(reader.renew(&tickets(&held)).await.unwrap(), []);
    assert_eq!(group_status(&backend, "g").await.pending, Some(2));
    let other = at.member(&backend, "g").await;
    let taken = finish(&other, 6).await;
    assert_eq!(sorted(&taken), [4, 5, 6, 7, 8, 9]);
    nothing(&other).await;
    // And what a dead consumer had goes as well.
    put(&mut writer, events(20..30)).await;
    let read = ["XREADGROUP", "GROUP", "g", "dead", "COUNT", "10", "STREAMS", "s", ">"];
    let _: redis::Value = ask(&mut redis, &read);
    let _: u64 = ask(&mut redis, &["XTRIM", "s", "MAXLEN", "0"]);
    until("nothing is pending", async || {
        assert!(other.fetch(10, BYTES, SHORT).await.unwrap().is_empty());
        group_status(&backend, "g").await.pending == Some(0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_of_dead_processes_go_once_they_hold_nothing() {
    let (_server, at, mut redis) = alone();
    let at = at.lease(SHORT);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..6)).await;
    for consumer in ["gone-1/g/0", "theirs"] {
        let read = ["XREADGROUP", "GROUP", "g", consumer, "COUNT", "3", "STREAMS", "s", ">"];
        let _: redis::Value = ask(&mut redis, &read);
    }
    let reader = at.member(&backend, "g").await;
    finish(&reader, 6).await;
    until("the dead one is gone", async || {
        reader.fetch(10, BYTES, Duration::from_millis(100)).await.unwrap();
        let status = group_status(&backend, "g").await;
        let names: Vec<_> = status.consumers.iter().map(|consumer| &*consumer.name).collect();
        assert!(names.contains(&"theirs") && names.contains(&"here/g/0"));
        !names.contains(&"gone-1/g/0")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_takes_nothing_by_halves() {
    let (_server, at, mut redis) = alone();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let _: String = ask(&mut redis, &["CONFIG", "SET", "maxmemory", "1mb"]);
    let step = [moving("a", None, Some(5), events(0..5))];
    let error = format!("{:#}", writer.append(&step).await.unwrap_err());
    assert!(error.contains("no memory left") && error.contains("maxmemory"), "{error}");
    assert_eq!((writer.slots("test").await.unwrap().len(), length(&backend).await), (0, 0));
    let _: String = ask(&mut redis, &["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(writer.append(&step).await.unwrap(), [Appended::Durable]);
    assert_eq!(length(&backend).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_found_before_anything_is_written() {
    let (_server, at, mut redis) = alone();
    let at = at.with(|spec| spec.retain = Retain::Forever);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let _: String = ask(&mut redis, &["SET", "{s}:checkpoint:test", "x"]);
    let step = [plain(events(0..2)), moving("a", None, Some(5), events(2..5))];
    let error = format!("{:#}", writer.append(&step).await.unwrap_err());
    assert!(error.contains("no stream of ours"), "{error}");
    assert_eq!(length(&backend).await, 0);
    // The same for one who may write the stream and not the checkpoint.
    let _: u64 = ask(&mut redis, &["DEL", "{s}:checkpoint:test"]);
    let acl = ["ACL", "SETUSER", "default", "reset", "on", "nopass", "+@all", "~s", "%R~{s}*"];
    let _: String = ask(&mut redis, &acl);
    let error = format!("{:#}", writer.append(&step[1..]).await.unwrap_err());
    assert!(error.contains("forbids") && error.contains("ACL"), "{error}");
    assert_eq!(length(&backend).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_noticed() {
    let (server, at, _) = alone();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    assert!(reader.fetch(1, BYTES, GLANCE).await.unwrap().is_empty());
    signal(server.pid(), "STOP");
    let start = Instant::now();
    let (append, fetch) =
        tokio::join!(writer.append(&[]), reader.fetch(1, BYTES, Duration::from_secs(30)));
    let elapsed = start.elapsed();
    signal(server.pid(), "CONT");
    assert!(elapsed < Duration::from_secs(8), "it took {elapsed:?}");
    let error = format!("{:#}", fetch.unwrap_err());
    assert!(error.contains("does not answer"), "{error}");
    // Nothing to append needs no server.
    drop(append);
    put(&mut writer, events(0..3)).await;
    assert_eq!(numbers(&take(&reader, 3).await), [0, 1, 2]);
}

/// A step of slot `a` that makes events for all shards.
fn step(from: u64, to: u64) -> Vec<aqueduct::stream::Append> {
    vec![moving("a", (from > 0).then_some(from), Some(to), events(from..to))]
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_of_a_cluster_that_disagree_come_together() {
    let cluster = RedisCluster::start();
    let at = Place::redis_at(&cluster.urls()).with(|spec| spec.shards = 3);
    let key = at.spec.values.str("key").to_owned();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    assert_eq!(writer.append(&step(0, 100)).await.unwrap(), [Appended::Durable]);
    assert_eq!(writer.append(&step(100, 200)).await.unwrap(), [Appended::Durable]);
    let nodes: Vec<_> = cluster.urls();
    let client = redis::cluster::ClusterClient::new(nodes).unwrap();
    let mut other = client.get_connection().unwrap();
    let mut seed = fastrand::u64(..);
    println!("SEED={seed}");
    for round in 0..8u64 {
        // A crash, or a node that came back older: shards are put back, each to some step before.
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let base = round * 300;
        for to in [300, 400, 500] {
            let append = step(base + to - 100, base + to);
            assert_eq!(writer.append(&append).await.unwrap(), [Appended::Durable]);
        }
        for shard in 0..3u64 {
            let back = base + 200 + 100 * ((seed >> (8 * shard)) % 4);
            let checkpoint = format!("{key}:{{{shard}}}:checkpoint:test");
            let value = format!("{back} note {back}");
            let () =
                redis::cmd("HSET").arg(checkpoint).arg("a").arg(value).query(&mut other).unwrap();
        }
        // The source does what sources do, and puts its batches together in another way.
        let end = base + 500;
        let mut rounds = 0;
        loop {
            let slots = writer.slots("test").await.unwrap();
            let at = slots.first().map_or(0, |slot| slot.1.order);
            if at == end {
                break;
            }
            let _ = writer.append(&step(at, (at + 70).min(end))).await.unwrap();
            rounds += 1;
            assert!(rounds < 100, "the shards never agree: {slots:?}");
        }
    }
    let reader = at.member(&backend, "g").await;
    let mut seen = std::collections::BTreeSet::new();
    until("all has come", async || {
        let taken = reader.fetch(1000, BYTES, GLANCE).await.unwrap();
        reader.ack(&tickets(&taken)).await.unwrap();
        seen.extend(numbers(&taken));
        seen.len() == 2600
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_node_that_was_killed_comes_back() {
    let mut cluster = RedisCluster::start();
    let at = Place::redis_at(&cluster.urls()).with(|spec| spec.shards = 3);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    put(&mut writer, events(0..300)).await;
    assert_eq!(finish(&reader, 300).await.len(), 300);
    cluster.nodes[1].kill();
    until("its part cannot be written", async || {
        writer.append(&[plain(events(300..600))]).await.is_err()
    })
    .await;
    cluster.nodes[1].up();
    until("it can again", async || writer.append(&[plain(events(300..600))]).await.is_ok()).await;
    let mut seen = std::collections::BTreeSet::new();
    until("all has come", async || {
        let taken = reader.fetch(1000, BYTES, GLANCE).await.unwrap_or_default();
        if reader.ack(&tickets(&taken)).await.is_ok() {
            seen.extend(numbers(&taken));
        }
        seen.len() == 300
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_count_of_what_a_group_has_read_holds_nothing_up() {
    let (_server, at, mut redis) = alone();
    let at = at.with(|spec| (spec.max_backlog, spec.retain) = (5, Retain::Forever));
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    for start in [0, 4, 8] {
        put(&mut writer, events(start..start + 4)).await;
        finish(&reader, 4).await;
    }
    // As after some restarts: the group is at the end, and Redis counts nine it has yet to read.
    let newest: Vec<String> = {
        let entries: Vec<(String, Vec<String>)> =
            ask(&mut redis, &["XREVRANGE", "s", "+", "-", "COUNT", "1"]);
        entries.into_iter().map(|(id, _)| id).collect()
    };
    let () = ask(&mut redis, &["XGROUP", "SETID", "s", "g", &newest[0], "ENTRIESREAD", "3"]);
    assert_eq!(group_status(&backend, "g").await.lag, Some(0));
    let full = writer.append(&[plain(events(12..16))]).await.unwrap();
    assert_eq!(full, [Appended::Durable]);
    // Nor does it have more to read than there is.
    let () = ask(&mut redis, &["XTRIM", "s", "MAXLEN", "2"]);
    assert_eq!(group_status(&backend, "g").await.lag, Some(2));
}

fn ordered(at: Place, shards: u32) -> Place {
    at.with(|spec| {
        spec.shards = shards;
        spec.groups[0].ordered = true;
    })
}

/// A new life of the group's only member.
async fn life(at: &Place, backend: &Arc<dyn Backend>) -> Arc<dyn Reader> {
    let group = at.spec.groups[0].clone();
    backend.reader(ReaderSpec { group, member: "here/g/only".into() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_look_of_an_earlier_life_takes_nothing_from_the_new_one() {
    let (_server, at, _) = alone();
    let at = ordered(at, 1);
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..20)).await;
    let before = life(&at, &backend).await;
    assert_eq!(numbers(&take(&before, 5).await), [0, 1, 2, 3, 4]);
    let now = life(&at, &backend).await;
    let first = take(&now, 5).await;
    assert_eq!(numbers(&first), [0, 1, 2, 3, 4]);
    now.ack(&tickets(&first)).await.unwrap();
    before.fetch(5, BYTES, Duration::ZERO).await.unwrap();
    let rest = take(&now, 15).await;
    assert_eq!(numbers(&rest), (5..20).collect::<Vec<_>>());
    let epoch = |it: &aqueduct::event::Delivery| it.fence.as_ref().unwrap().epoch;
    assert!(epoch(&rest[0]) > epoch(&first[0]), "what it may have got, the sink turns away");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_owner_reads_ahead_does_not_grow_with_its_shards() {
    let (_server, at, _) = alone();
    let at = ordered(at, 8);
    let backend = at.open().await;
    let keyed = |n: u64| Event { key: Some(format!("key {n}").into()), ..event(n) };
    put(&mut backend.writer().await.unwrap(), (0..4000).map(keyed).collect()).await;
    let member = at.member(&backend, "g").await;
    for _ in 0..20 {
        let some = member.fetch(80, BYTES, GLANCE).await.unwrap();
        let pending = group_status(&backend, "g").await.pending.unwrap();
        assert!(pending <= 160, "{pending} events in hand where 80 were asked for");
        member.ack(&tickets(&some)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_events_writes_next_to_nothing() {
    for is_ordered in [true, false] {
        let (_server, at, mut redis) = alone();
        let at = at.with(|spec| spec.shards = 4);
        let at = at.with(|spec| spec.groups[0].ordered = is_ordered);
        let backend = at.open().await;
        let member = at.member(&backend, "g").await;
        nothing(&member).await;
        let mut changes = || -> u64 {
            let told: String = ask(&mut redis, &["INFO", "persistence"]);
            let line = told.lines().find_map(|it| it.strip_prefix("rdb_changes_since_last_save:"));
            line.unwrap().trim().parse().unwrap()
        };
        let before = changes();
        assert!(member.fetch(10, BYTES, Duration::from_secs(3)).await.unwrap().is_empty());
        let written = changes() - before;
        assert!(written <= 20, "{written} writes in 3 s (ordered: {is_ordered})");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_fails_half_way_loses_nothing() {
    let (_server, at, mut redis) = alone();
    let at = at.lease(SHORT);
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..10)).await;
    let stale = at.member(&backend, "g").await;
    let held = take(&stale, 10).await;
    let order =
        CursorMove { group: "g".into(), lease: SHORT, shard: None, to: To::Latest, force: true };
    for forbidden in ["xgroup|setid", "xack"] {
        let () = ask(&mut redis, &["ACL", "SETUSER", "default", &format!("-{forbidden}")]);
        let error = backend.move_cursor(&order).await.unwrap_err();
        assert!(format!("{error:#}").contains("forbids this user"), "{forbidden}: {error:#}");
        let () = ask(&mut redis, &["ACL", "SETUSER", "default", "+@all"]);
        // Who held them can do nothing to them any more.
        assert!(stale.ack(&tickets(&held)).await.is_err());
        assert_eq!(group_status(&backend, "g").await.pending, Some(10));
    }
    assert_eq!(sorted(&finish(&at.member(&backend, "g").await, 10).await), sorted(&held));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_shards_that_could_not_be_checked_is_not_recorded() {
    let (_server, at, mut redis) = alone();
    let at = at.with(|spec| spec.shards = 8);
    // Where the number would be, had the stream one shard.
    let () = ask(&mut redis, &["SET", "{s}:shards", "many"]);
    let refused = (at.spec.kind.open)(at.spec.clone(), at.site()).await.err().unwrap();
    assert!(format!("{refused:#}").contains("holds no number of shards"), "{refused:#}");
    assert_eq!(ask::<u32>(&mut redis, &["EXISTS", "s:{0}:shards"]), 0);
    let () = ask(&mut redis, &["SET", "{s}:shards", "1"]);
    let one = at.with(|spec| spec.shards = 1);
    put(&mut one.open().await.writer().await.unwrap(), events(0..1)).await;
}
