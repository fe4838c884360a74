//! The number of a stream's shards: whoever comes with another one is turned away while events are
//! there that went by the old one, nothing is lost by that, and no key is ever in two shards.

#[path = "support/process.rs"]
mod process;
#[path = "support/streams.rs"]
mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::event::Event;
use aqueduct::spec::Site;
use aqueduct::stream::{Backend, ReaderSpec, Retain, StreamSpec, shard_of};
use process::eventually;
use proptest::prelude::*;
use streams::*;

/// The stream as somebody sees it who has another number in the file.
fn with_shards(at: &Place, shards: u32) -> StreamSpec {
    StreamSpec { shards, ..at.spec.clone() }
}

async fn open(at: &Place, shards: u32) -> Arc<dyn Backend> {
    at.open_as(&with_shards(at, shards)).await
}

/// Why it cannot be opened with that number.
async fn refusal(at: &Place, spec: StreamSpec) -> String {
    let opened = (spec.kind.open)(spec, at.site()).await;
    format!("{:#}", opened.err().expect("it was to be refused"))
}

fn keyed(numbers: std::ops::Range<u64>) -> Vec<Event> {
    numbers.map(|n| Event { key: Some(format!("k{}", n % 7).into()), ..event(n) }).collect()
}

/// Where each event came from is where its key is among so many shards.
fn assert_by(shards: u32, taken: &[aqueduct::event::Delivery]) {
    for delivery in taken {
        let key = delivery.event.key.as_deref().unwrap();
        assert_eq!(delivery.ticket.shard, shard_of(key, shards), "{key}");
    }
}

macro_rules! tests {
    ($($backend:ident($place:expr): [$($test:ident),* $(,)?];)*) => {
        $(mod $backend {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($place).await;
            })*
        })*
    };
}

tests! {
    embedded(super::Place::embedded()): [
        another_number_is_refused_and_loses_nothing,
        what_waits_is_told,
        a_stream_read_to_its_end_changes,
        who_works_by_the_old_number_is_turned_away,
        a_member_at_work_keeps_the_number,
        history_keeps_the_number,
        an_ordered_group_goes_on_behind_the_change,
    ];
    postgres(super::Place::postgres()): [
        another_number_is_refused_and_loses_nothing,
        what_waits_is_told,
        a_stream_read_to_its_end_changes,
        who_works_by_the_old_number_is_turned_away,
        a_member_at_work_keeps_the_number,
        history_keeps_the_number,
        an_ordered_group_goes_on_behind_the_change,
        two_programs_do_not_change_it_by_turns,
    ];
    redis(super::Place::redis()): [
        another_number_is_refused_and_loses_nothing,
        the_number_is_for_good,
        a_server_that_comes_back_with_another_number_is_noticed,
    ];
    redis_cluster(super::Place::redis_cluster()): [
        another_number_is_refused_and_loses_nothing,
        the_number_is_for_good,
        a_server_that_comes_back_with_another_number_is_noticed,
    ];
    rabbitmq(super::Place::rabbitmq("classic")): [
        another_number_is_refused_and_loses_nothing,
        the_number_is_for_good,
    ];
}

async fn another_number_is_refused_and_loses_nothing(at: Place) {
    for (number, (first, others)) in [(8, [4, 1, 9]), (1, [2, 8, 3])].into_iter().enumerate() {
        let key = format!("{}n{number}", at.spec.values.opt_str("key").unwrap_or_default());
        let at = at.named(&format!("s{number}"), &key);
        let backend = open(&at, first).await;
        put(&mut backend.writer().await.unwrap(), keyed(0..40)).await;
        for other in others {
            let said = refusal(&at, with_shards(&at, other)).await;
            let shards = if first == 1 { "1 shard" } else { "8 shards" };
            assert!(said.contains(&format!("stream `s{number}` has {shards}")), "{said}");
            assert!(said.contains(&format!("{other} were asked for")), "{said}");
            assert!(said.contains("run the old file with --until-idle first"), "{said}");
        }
        let again = open(&at, first).await;
        put(&mut again.writer().await.unwrap(), keyed(40..50)).await;
        let taken = finish(&at.member(&again, "g").await, 50).await;
        assert_eq!(sorted(&taken), (0..50).collect::<Vec<_>>());
        assert_by(first, &taken);
    }
}

async fn what_waits_is_told(at: Place) {
    let backend = open(&at, 8).await;
    put(&mut backend.writer().await.unwrap(), keyed(0..40)).await;
    let member = at.member(&backend, "g").await;
    finish(&member, 15).await;
    take(&member, 10).await;
    let said = refusal(&at, with_shards(&at, 4)).await;
    let told = "stream `s` has 8 shards and holds 25 events that group `g` has not acked; 4 were \
                asked for (run the old file with --until-idle first; ";
    assert!(said.contains(told), "{said}");
}

async fn a_stream_read_to_its_end_changes(at: Place) {
    let (mut from, mut shards) = (0, 8);
    let mut slot = None;
    for next in [4, 8, 1, 5] {
        let backend = open(&at, shards).await;
        let mut writer = backend.writer().await.unwrap();
        // The checkpoint is as it was, and the change costs no event.
        assert_eq!(writer.slots("test").await.unwrap().first().map(|it| it.1.order), slot);
        let append = moving("a", slot, Some(from + 40), keyed(from..from + 40));
        assert_eq!(writer.append(&[append]).await.unwrap(), [aqueduct::stream::Appended::Durable]);
        let taken = finish(&at.member(&backend, "g").await, 40).await;
        assert_by(shards, &taken);
        assert_eq!(sorted(&taken), (from..from + 40).collect::<Vec<_>>());
        let status = backend.status().await.unwrap();
        assert_eq!(status.shards.len(), shards as usize);
        (slot, from, shards) = (Some(from + 40), from + 40, next);
    }
}

async fn who_works_by_the_old_number_is_turned_away(at: Place) {
    let old = open(&at, 8).await;
    let mut writer = old.writer().await.unwrap();
    put(&mut writer, keyed(0..40)).await;
    let reader = at.member(&old, "g").await;
    finish(&reader, 40).await;
    let new = open(&at, 4).await;
    for step in [plain(keyed(40..50)), moving("a", None, Some(1), keyed(40..50))] {
        let said = format!("{:#}", writer.append(&[step]).await.unwrap_err());
        assert!(said.contains("has 4 shards by now, and this program works with 8"), "{said}");
    }
    put(&mut new.writer().await.unwrap(), keyed(40..80)).await;
    until("the old member is told", async || match reader.fetch(1, BYTES, GLANCE).await {
        Ok(taken) => {
            assert_eq!(taken.len(), 0);
            false
        }
        Err(error) => format!("{error:#}").contains("has 4 shards by now"),
    })
    .await;
    // With events in it, it does not change back.
    let said = refusal(&at, with_shards(&at, 8)).await;
    assert!(said.contains("has 4 shards and holds 40 events"), "{said}");
    let taken = finish(&at.member(&new, "g").await, 40).await;
    assert_eq!(sorted(&taken), (40..80).collect::<Vec<_>>());
    assert_by(4, &taken);
}

async fn two_programs_do_not_change_it_by_turns(at: Place) {
    let url = format!("{}?application_name=another", at.spec.values.str("url"));
    let other = Place::postgres_at(&url);
    drop(open(&at, 8).await);
    for _ in 0..3 {
        drop(open(&other, 4).await);
        // Whoever failed opens it again.
        let said = refusal(&at, with_shards(&at, 8)).await;
        assert!(said.contains("has 4 shards by now, and this program works with 8"), "{said}");
    }
    // An edit of its own is another matter.
    drop(open(&at, 2).await);
    let said = refusal(&other, with_shards(&other, 4)).await;
    assert!(said.contains("has 2 shards by now, and this program works with 4"), "{said}");
}

async fn a_member_at_work_keeps_the_number(at: Place) {
    let backend = open(&at, 8).await;
    let member = "elsewhere/g/1".to_owned();
    let spec = ReaderSpec { group: at.spec.groups[0].clone(), member };
    let reader = backend.reader(spec).await.unwrap();
    assert!(reader.fetch(1, BYTES, Duration::ZERO).await.unwrap().is_empty());
    let said = refusal(&at, with_shards(&at, 4)).await;
    assert!(said.contains("has 8 shards and member `elsewhere/g/1` is at work on it"), "{said}");
    // It is no other process to itself.
    let site = Site { instance: "elsewhere".into(), ..at.site() };
    (at.spec.kind.open)(with_shards(&at, 4), site).await.unwrap();
}

async fn history_keeps_the_number(at: Place) {
    let kept = at.with(|spec| spec.retain = Retain::Forever).groups(&[]);
    let backend = open(&kept, 8).await;
    put(&mut backend.writer().await.unwrap(), keyed(0..40)).await;
    let said = refusal(&kept, with_shards(&kept, 4)).await;
    assert!(said.contains("holds 40 events that no group has read"), "{said}");
    let read = kept.groups(&["g"]);
    let backend = open(&read, 8).await;
    finish(&read.member(&backend, "g").await, 40).await;
    let said = refusal(&read, with_shards(&read, 4)).await;
    assert!(said.contains("keeps 40 events that its groups have acked"), "{said}");
    // Whoever does not ask for history has none in the way.
    let acked = StreamSpec { retain: Retain::Acked, ..with_shards(&read, 4) };
    let backend = read.open_as(&acked).await;
    assert_eq!(length(&backend).await, 0);
}

async fn an_ordered_group_goes_on_behind_the_change(at: Place) {
    let at = at.with(|spec| spec.groups.iter_mut().for_each(|group| group.ordered = true));
    let (mut from, mut newest) = (0, BTreeMap::new());
    for shards in [8, 3, 8] {
        let backend = open(&at, shards).await;
        put(&mut backend.writer().await.unwrap(), keyed(from..from + 40)).await;
        let member = at.member(&backend, "g").await;
        let taken = finish(&member, 40).await;
        assert_by(shards, &taken);
        for delivery in taken {
            let fence = delivery.fence.unwrap();
            // A sink knows the group's shards by their numbers, whatever these held.
            let before = newest.insert(fence.shard, fence.epoch).unwrap_or_default();
            assert!(fence.epoch >= before, "{fence:?} after {before}");
        }
        member.leave().await.unwrap();
        from += 40;
    }
}

async fn the_number_is_for_good(at: Place) {
    let backend = open(&at, 8).await;
    put(&mut backend.writer().await.unwrap(), keyed(0..40)).await;
    finish(&at.member(&backend, "g").await, 40).await;
    let said = refusal(&at, with_shards(&at, 4)).await;
    let way = "stream `s` has 8 shards, for good; 4 were asked for (run the old file with \
               --until-idle first, then give it another ";
    assert!(said.contains(way), "{said}");
    drop(open(&at, 8).await);
}

/// Its data gone, another process was first to open the stream.
async fn a_server_that_comes_back_with_another_number_is_noticed(at: Place) {
    let backend = open(&at, 8).await;
    let mut writer = backend.writer().await.unwrap();
    let client = aqueduct::client::redis::Redis::open(at.spec.values.list("url")).await.unwrap();
    let key = at.spec.values.str("key");
    for shard in 0..8 {
        let number = format!("{key}:{{{shard}}}:shards");
        client.ask(&number, ::redis::cmd("SET").arg(&number).arg(4)).await.unwrap();
    }
    for step in [plain(keyed(0..8)), moving("a", None, Some(1), keyed(0..8))] {
        let said = format!("{:#}", writer.append(&[step]).await.unwrap_err());
        assert!(said.contains("has 4 shards"), "{said}");
    }
    for shard in 0..8 {
        let number = format!("{key}:{{{shard}}}:shards");
        client.ask(&number, ::redis::cmd("DEL").arg(&number)).await.unwrap();
    }
    put(&mut writer, keyed(0..40)).await;
    let said = refusal(&at, with_shards(&at, 4)).await;
    assert!(said.contains("has 8 shards"), "{said}");
    assert_eq!(sorted(&finish(&at.member(&backend, "g").await, 40).await).len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_ones_own_is_refused_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("embedded:{}", folder.path().join("streams.db").display());
    let stream = |shards| aqueduct::Stream::at(&url).name("s").shards(shards);
    let (eight, four) = (stream(8).open().await.unwrap(), stream(4));
    eight.group("g").create().await.unwrap();
    let mut producer = eight.producer("shop").await.unwrap();
    producer.publish(&[aqueduct::Message::json(&1).unwrap().key("k")]).await.unwrap();
    let told = "stream `s` has 8 shards and holds 1 event that group `g` has not acked";
    let refused = four.open().await.expect_err("it was to be refused");
    let said = format!("{:#}", anyhow::Error::from(refused));
    assert!(said.contains(told), "{said}");
    producer.publish(&[aqueduct::Message::json(&2).unwrap().key("k")]).await.unwrap();
}

/// What is in a stream went by it: it can never be another one.
#[test]
fn a_key_has_the_shard_that_it_always_had() {
    let shards = |key: &str| [2, 3, 8, 16, 1000].map(|shards| shard_of(key, shards));
    let keys = ["", "alice", "user:12345", "ключ ✓", &"long ".repeat(100)];
    assert_eq!(keys.map(shards), PINNED);
    assert_eq!((shard_of("alice", 1), shard_of("alice", 0)), (0, 0));
}

/// Of XXH3 with 64 bits and seed 0, as any other program computes it.
const PINNED: [[u32; 5]; 5] =
    [[0, 1, 2, 2, 138], [0, 0, 0, 0, 80], [1, 1, 3, 3, 147], [1, 2, 5, 5, 509], [0, 0, 4, 4, 468]];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_shard_is_one_of_the_streams_and_the_same_each_time(key in ".{0,80}", shards in 1_u32..2000) {
        let shard = shard_of(&key, shards);
        prop_assert!(shard < shards);
        prop_assert_eq!(shard, shard_of(&key.clone(), shards));
        // The hash alone decides: what a stream of more shards tells apart, one of fewer does not
        // tear.
        prop_assert_eq!(shard_of(&key, shards * 2) % shards, shard);
    }

    /// Of keys that count up, with any prefix, no shard gets more than half again its part.
    #[test]
    fn keys_are_spread_evenly(prefix in "[a-z:/-]{0,12}", shards in 2_u32..33) {
        let (mut counts, each) = (vec![0_u32; shards as usize], 1000);
        for number in 0..shards * each {
            counts[shard_of(&format!("{prefix}{number}"), shards) as usize] += 1;
        }
        for count in &counts {
            prop_assert!((each * 3 / 4..each * 5 / 4).contains(count), "{:?}", counts);
        }
    }
}

const TOPOLOGY: &str = r#"
[http]
listen = "127.0.0.1:{port}"

[source.input]
kind = "tail"
path = "in.log"
to = "orders"
key = "/k"

[stream.orders]
shards = 8

[group.writer]
from = "orders"
to = "table"
ordered = true

[sink.table]
kind = "sqlite"
path = "out.db"
table = "rows"
create = true
columns = { event_id = "@id", n = { from = "n", type = "bigint" } }
"#;

#[test]
fn a_start_and_an_edit_with_another_number_are_refused_until_all_is_read() {
    let place = process::Place::new(TOPOLOGY);
    let lines = |numbers: std::ops::Range<u32>| {
        let line = |n| format!("{{\"k\":\"k{}\",\"n\":{n}}}\n", n % 13);
        numbers.map(line).collect::<String>()
    };
    std::fs::write(place.path("in.log"), lines(0..500)).unwrap();
    // Events wait that nobody reads.
    let running = place.start_with(&["--only", "source.input"], &[]);
    let waiting = || running.get("/streams").1.contains("\"lag\":500");
    eventually("the events are in the stream", waiting);

    let fewer = TOPOLOGY.replace("shards = 8", "shards = 4");
    place.write_topology(&fewer);
    let refused = "stream orders is in use with 8 shards, and their number cannot change meanwhile";
    eventually("the edit is refused", || running.log().contains(refused));
    running.kill();

    let told = "stream `orders` has 8 shards and holds 500 events that group `writer` has not \
                acked; 4 were asked for (run the old file with --until-idle first";
    let running = place.start();
    eventually("the start says it", || running.log().contains(told));
    assert_eq!(running.get("/healthz").0, 503);
    let status = place.done(&["peek", "topology.toml", "orders"]);
    assert!(!status.status.success() && status.stderr.contains(told), "{}", status.stderr);
    // The edit back mends it: no restart is needed.
    place.write_topology(TOPOLOGY);
    let rows = || place.count("out.db", "SELECT count(*) FROM sqlite_master WHERE name = 'rows'");
    let stored = || rows() > 0 && place.count("out.db", "SELECT count(*) FROM rows") == 500;
    eventually("all is stored", stored);
    running.kill();

    std::fs::write(place.path("in.log"), lines(0..900)).unwrap();
    place.run_until_idle();
    place.write_topology(&fewer);
    let looks: [&[&str]; 4] = [
        &["peek", "topology.toml", "orders"],
        &["dead", "list", "topology.toml", "orders"],
        &["group", "list", "topology.toml"],
        &["cursor", "show", "topology.toml"],
    ];
    for look in looks {
        let done = place.done(look);
        let told = "stream `orders` has 8 shards; 4 were asked for (`aqueduct run` with this file";
        assert!(!done.status.success() && done.stderr.contains(told), "{look:?}: {}", done.stderr);
    }
    let unchanged = "SELECT count(*) FROM offsets WHERE shards = 8";
    assert_eq!(place.count("data/streams.db", unchanged), 8, "who only looks changes nothing");
    std::fs::write(place.path("in.log"), lines(0..1200)).unwrap();
    place.run_until_idle();
    let all = "SELECT count(*) * 10000 + count(DISTINCT n) FROM rows";
    assert_eq!(place.count("out.db", all), 1200 * 10_000 + 1200);
    let beyond = "SELECT count(DISTINCT shard) FROM offsets WHERE shards = 4";
    assert_eq!(place.count("data/streams.db", beyond), 8, "what was used is not used anew");
}
