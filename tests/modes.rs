//! All members of a group are ordered, or none: who comes with the other mode is refused while one
//! of the first lives, also where both come at once, and takes over when nobody lives any more; and
//! who slept meanwhile gets nothing when it wakes.

#[path = "support/process.rs"]
mod process;
#[path = "support/streams.rs"]
mod streams;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aqueduct::event::{Delivery, Event};
use aqueduct::stream::cursor::{CursorMove, To};
use aqueduct::stream::{Backend, GroupSpec, Reader, ReaderSpec, Retain, shard_of};
use process::{Running, eventually, free_port};
use rustix::process::Signal;
use sqlx::Connection;
use streams::*;

const SHARDS: u32 = 6;
/// Keys of events.
const KEYS: u64 = 29;
/// A lease short enough to wait for.
const SHORT: Duration = Duration::from_millis(800);
/// A lease that nobody could wait for.
const LONG: Duration = Duration::from_secs(300);

macro_rules! tests {
    ($($backend:ident($place:expr): [$($test:ident),* $(,)?];)*) => {
        $(mod $backend {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($place.with(|spec| spec.shards = super::SHARDS)).await;
            })*
        })*
    };
    ($($backend:ident($place:expr),)*) => {
        tests! {
            $($backend($place): [
                the_other_mode_is_refused_while_a_member_lives,
                who_holds_something_is_not_followed_by_the_other_mode,
                of_two_modes_at_once_one_gets_in,
                what_ended_well_makes_way_at_once,
                an_ordered_member_that_slept_gets_nothing,
                a_member_without_order_that_slept_gets_nothing,
                an_ordered_group_stays_one_when_its_cursor_is_moved,
            ];)*
        }
    };
}

tests! {
    embedded(super::Place::embedded()),
    postgres(super::Place::postgres()),
    redis(super::Place::redis()),
    redis_cluster(super::Place::redis_cluster()),
}

fn keyed(numbers: std::ops::Range<u64>) -> Vec<Event> {
    numbers.map(|n| Event { key: Some(format!("k{}", n % KEYS).into()), ..event(n) }).collect()
}

async fn put_keyed(backend: &Arc<dyn Backend>, numbers: std::ops::Range<u64>) {
    put(&mut backend.writer().await.unwrap(), keyed(numbers)).await;
}

/// A member of group `g` as another file has it.
async fn join(
    at: &Place,
    backend: &Arc<dyn Backend>,
    ordered: bool,
    name: &str,
) -> anyhow::Result<Arc<dyn Reader>> {
    let group = GroupSpec { ordered, ..at.spec.groups[0].clone() };
    let member = format!("there/g/{name}");
    backend.reader(ReaderSpec { group, member }).await
}

/// The same, and why it may not.
async fn refusal(at: &Place, backend: &Arc<dyn Backend>, ordered: bool) -> String {
    let joined = join(at, backend, ordered, "refused").await;
    format!("{:#}", joined.err().expect("it was to be refused"))
}

/// The same, as soon as it may.
async fn join_in_time(
    at: &Place,
    backend: &Arc<dyn Backend>,
    ordered: bool,
    name: &str,
) -> Arc<dyn Reader> {
    let start = Instant::now();
    loop {
        match join(at, backend, ordered, name).await {
            Ok(member) => return member,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Fetches until it has `count` events, and acks nothing.
async fn take_all(reader: &Arc<dyn Reader>, count: usize) -> Vec<Delivery> {
    let (start, mut taken) = (Instant::now(), Vec::new());
    while taken.len() < count {
        // Always with so much room that no shard's share of it is full.
        taken.extend(reader.fetch(1000, BYTES, GLANCE / 4).await.unwrap());
        assert!(start.elapsed() < PATIENCE, "{} of {count} events came", taken.len());
    }
    taken
}

async fn finish_all(reader: &Arc<dyn Reader>, count: usize) -> Vec<Delivery> {
    let taken = take_all(reader, count).await;
    reader.ack(&tickets(&taken)).await.unwrap();
    taken
}

fn assert_in_order(deliveries: &[Delivery]) {
    let mut last = BTreeMap::new();
    for delivery in deliveries {
        let fence = delivery.fence.as_ref().expect("a delivery of an ordered group");
        let (key, number) = (delivery.event.key.clone().unwrap(), delivery.event.id.sequence());
        assert_eq!(fence.shard, shard_of(&key, SHARDS));
        let before = last.insert(key, number);
        assert!(before < Some(number), "{number} after {before:?}");
    }
}

/// When a member fetched last, and how long it did not at most.
struct Fetched(Instant, Duration);

async fn the_other_mode_is_refused_while_a_member_lives(at: Place) {
    let at = at.lease(SHORT * 2);
    let backend = at.open().await;
    for ordered in [true, false, true] {
        let member = join_in_time(&at, &backend, ordered, "first").await;
        let fetched = Arc::new(Mutex::new(Fetched(Instant::now(), Duration::ZERO)));
        // It has nothing to do, and lives all the same.
        let idle = tokio::spawn({
            let (member, fetched) = (member.clone(), fetched.clone());
            async move {
                while let Ok(some) = member.fetch(10, BYTES, GLANCE / 4).await {
                    assert!(some.is_empty());
                    let mut fetched = fetched.lock().unwrap();
                    *fetched = Fetched(Instant::now(), fetched.1.max(fetched.0.elapsed()));
                }
            }
        });
        let started = Instant::now();
        while started.elapsed() < SHORT * 5 {
            let refused = join(&at, &backend, !ordered, "refused").await;
            let Some(said) = refused.err().map(|error| format!("{error:#}")) else {
                let Fetched(last, silent) = &*fetched.lock().unwrap();
                let silent = last.elapsed().max(*silent);
                assert!(silent > SHORT, "followed, and it fetched all {silent:?}");
                return println!("the machine let it be silent for {silent:?}");
            };
            let mine = format!("group `g` has `ordered = {}` here", !ordered);
            let theirs = "member `there/g/first`, which is at work on it, has";
            assert!(said.contains(&mine), "{said}");
            assert!(said.contains(&format!("{theirs} `ordered = {ordered}`")), "{said}");
            assert!(said.contains(&(at.spec.kind.place)(&at.spec)), "{said}");
            assert!(said.contains("stop that one, or make the files agree"), "{said}");
            // Its own kind may come and go meanwhile.
            join(&at, &backend, ordered, "second").await.unwrap().leave().await.unwrap();
        }
        idle.abort();
        let _ = idle.await;
        member.leave().await.unwrap();
    }
}

async fn who_holds_something_is_not_followed_by_the_other_mode(at: Place) {
    let at = at.lease(LONG);
    let backend = at.open().await;
    for ordered in [false, true, false] {
        put_keyed(&backend, 0..60).await;
        let member = join(&at, &backend, ordered, "first").await.unwrap();
        let held = take_all(&member, 60).await;
        // It fetches no more, and what it holds may be on its way to a sink.
        member.leave().await.unwrap();
        let said = refusal(&at, &backend, !ordered).await;
        assert!(said.contains("`there/g/first`"), "{said}");
        member.ack(&tickets(&held)).await.unwrap();
    }
}

async fn of_two_modes_at_once_one_gets_in(at: Place) {
    let at = Arc::new(at.lease(LONG));
    let backend = at.open().await;
    let mut winners = BTreeMap::from([(false, 0), (true, 0)]);
    for round in 0..24 {
        // The one goes first now and then, and not always the same.
        let lead = Duration::from_micros(round % 8 * 300);
        let come = |ordered: bool, after: Duration| {
            let (at, backend) = (at.clone(), backend.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let name = format!("{}", 2 * round + u64::from(ordered));
                (ordered, join(&at, &backend, ordered, &name).await)
            })
        };
        let one = come(round % 2 == 0, Duration::ZERO);
        let other = come(round % 2 != 0, lead);
        let ordered = match (one.await.unwrap(), other.await.unwrap()) {
            ((ordered, Ok(member)), (_, Err(said))) | ((_, Err(said)), (ordered, Ok(member))) => {
                assert!(format!("{said:#}").contains("make the files agree"), "{said:#}");
                member.leave().await.unwrap();
                ordered
            }
            ((_, Ok(_)), (_, Ok(_))) => panic!("round {round}: both got in"),
            ((_, Err(one)), (_, Err(other))) => panic!("round {round}: {one:#}; {other:#}"),
        };
        *winners.get_mut(&ordered).unwrap() += 1;
    }
    println!("{winners:?}");
}

async fn what_ended_well_makes_way_at_once(at: Place) {
    let at = at.lease(LONG);
    let backend = at.open().await;
    put_keyed(&backend, 0..60).await;
    for ordered in [false, true, false, true] {
        // With the names that they had before.
        let one = join(&at, &backend, ordered, "0").await.unwrap();
        let other = join(&at, &backend, ordered, "1").await.unwrap();
        for member in [one, other] {
            let held = member.fetch(10, BYTES, GLANCE).await.unwrap();
            member.release(&tickets(&held)).await.unwrap();
            member.leave().await.unwrap();
        }
    }
    let member = join(&at, &backend, true, "1").await.unwrap_or_else(|it| panic!("{it:#}"));
    let all = finish_all(&member, 60).await;
    assert_in_order(&all);
    assert!(sorted(&all).into_iter().eq(0..60));
    assert!(all.iter().all(|it| it.deliveries == 1), "it was handed back, and never delivered");
}

/// One of the old mode falls asleep with events in its hand, and everything is done by the other
/// mode: from the first that was not acked, and whatever the sleeper does when it wakes.
async fn slept(at: Place, ordered: bool) {
    let at = at.lease(SHORT * 2);
    let backend = at.open().await;
    put_keyed(&backend, 0..60).await;
    let sleeper = join_in_time(&at, &backend, ordered, "sleeper").await;
    let held = take_all(&sleeper, 60).await;
    sleeper.ack(&tickets(&held[..10])).await.unwrap();
    let next = join_in_time(&at, &backend, !ordered, "next").await;
    let mut all = take_all(&next, 50).await;
    let mut expected = (0..60).collect::<Vec<u64>>();
    expected.retain(|number| !numbers(&held[..10]).contains(number));
    assert_eq!(sorted(&all), expected);
    put_keyed(&backend, 60..90).await;
    let woke = sleeper.fetch(100, BYTES, GLANCE).await;
    let said = format!("{:#}", woke.expect_err("it was to get nothing"));
    assert!(said.contains("`ordered"), "{said}");
    let old = tickets(&held[10..]);
    if let Ok(lost) = sleeper.renew(&old).await {
        assert_eq!(lost.len(), old.len());
    }
    let _ = sleeper.ack(&old).await;
    let _ = sleeper.release(&old).await;
    put_keyed(&backend, 90..120).await;
    assert!(next.renew(&tickets(&all)).await.unwrap().is_empty());
    assert!(refusal(&at, &backend, ordered).await.contains("there/g/next"));
    all.extend(take_all(&next, 60).await);
    expected.extend(60..120);
    assert_eq!(sorted(&all), expected);
    if !ordered {
        assert_in_order(&all);
    }
    assert_eq!(group_status(&backend, "g").await.pending, Some(110));
    next.ack(&tickets(&all)).await.unwrap();
    assert_eq!(group_status(&backend, "g").await.pending, Some(0));
}

async fn an_ordered_member_that_slept_gets_nothing(at: Place) {
    slept(at, true).await;
}

async fn a_member_without_order_that_slept_gets_nothing(at: Place) {
    slept(at, false).await;
}

async fn an_ordered_group_stays_one_when_its_cursor_is_moved(at: Place) {
    let at = at.with(|spec| spec.retain = Retain::Forever).lease(LONG);
    let backend = at.open().await;
    put_keyed(&backend, 0..60).await;
    let member = join(&at, &backend, true, "0").await.unwrap();
    finish_all(&member, 60).await;
    let to = To::Earliest;
    let order = CursorMove { group: "g".into(), lease: LONG, shard: None, to, force: true };
    backend.move_cursor(&order).await.unwrap().unwrap();
    let again = join(&at, &backend, true, "0").await.unwrap();
    assert!(refusal(&at, &backend, false).await.contains("there/g/0"));
    let all = finish_all(&again, 60).await;
    assert_in_order(&all);
}

/// Redis reads for a member without order before it can be looked whether it still may.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_took_out_of_an_ordered_group_is_not_passed_over() {
    let server = servers::Redis::start();
    let at = Place::redis_at(&[server.url()]);
    let at = at.with(|spec| spec.groups[0].ordered = true).lease(LONG);
    let backend = at.open().await;
    let mut other = ::redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let member = at.member(&backend, "g").await;
    let mut all = Vec::new();
    for start in (0..100).step_by(20) {
        put_keyed(&backend, start..start + 10).await;
        // While the owner holds what was before, and before it reads again.
        let key = at.spec.values.str("key");
        let mut read = ::redis::cmd("XREADGROUP");
        read.arg("GROUP").arg("g").arg("stale").arg("COUNT").arg(7).arg("STREAMS");
        let _: ::redis::Value = read.arg(key).arg(">").query(&mut other).unwrap();
        put_keyed(&backend, start + 10..start + 20).await;
        all.extend(finish_all(&member, 20).await);
    }
    assert_eq!(numbers(&all), (0..100).collect::<Vec<_>>());
}

/// A fetch that was under way when nobody seemed to live any more may still take something: whoever
/// comes with the other mode waits for it, and finds that somebody holds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mode_waits_for_a_fetch_under_way() {
    let at = Place::postgres().with(|spec| spec.shards = 2).lease(SHORT);
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), keyed(0..60)).await;
    let sleeper = join(&at, &backend, false, "sleeper").await.unwrap();
    let held = take_all(&sleeper, 60).await;
    sleeper.release(&tickets(&held)).await.unwrap();
    sleeper.leave().await.unwrap();
    let url = at.spec.values.str("url").to_owned();
    let at = Arc::new(at);
    // What a fetch under way does: it takes what is free, and ends in its own time.
    let comes_during = async |end: &'static str| {
        let mut other = sqlx::postgres::PgConnection::connect(&url).await.unwrap();
        let took = "SET search_path TO aqueduct; BEGIN;
            SELECT id FROM leases WHERE deadline = 0 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED";
        sqlx::raw_sql(took).execute(&mut other).await.unwrap();
        let (at, backend) = (at.clone(), backend.clone());
        let joining = tokio::spawn(async move { join(&at, &backend, true, "first").await });
        let database = url.rsplit('/').next().unwrap();
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = '{database}' AND wait_event_type = 'Lock'"
        );
        until("it waits", async || servers::Postgres::shared().psql(database, &waits) == "1").await;
        sqlx::raw_sql(end).execute(&mut other).await.unwrap();
        joining.await.unwrap()
    };
    let takes = "INSERT INTO leases
          (grp, shard, first, last, owner, token, deadline, deliveries, attempts)
          SELECT grp, shard, first + 100000, last + 100000, 'there/g/late', 77,
            (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 60000, 1, 0
          FROM leases WHERE deadline = 0 ORDER BY id LIMIT 1;
        COMMIT";
    let joined = comes_during(takes).await;
    let said = format!("{:#}", joined.err().expect("somebody holds something"));
    assert!(said.contains("there/g/late"), "{said}");
    // Whom that refuses waits for nobody, and so nobody waits for it.
    let mut other = sqlx::postgres::PgConnection::connect(&url).await.unwrap();
    let holds = "SET search_path TO aqueduct; BEGIN; SELECT id FROM leases FOR UPDATE";
    sqlx::raw_sql(holds).execute(&mut other).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, join(&at, &backend, true, "first")).await;
    refused.expect("it waits").err().expect("somebody holds something");
    let gone = "DELETE FROM leases WHERE token = 77; COMMIT";
    sqlx::raw_sql(gone).execute(&mut other).await.unwrap();
    let joined = comes_during("COMMIT").await;
    joined.unwrap_or_else(|it| panic!("{it:#}"));
}

/// A file of a tail, a stream and a group into a table.
fn topology(stream: &str, lease: Duration, ordered: bool) -> String {
    format!(
        r#"
[http]
listen = "127.0.0.1:{{port}}"
[source.input]
kind = "tail"
path = "input.log"
to = "lines"
key = "/k"
[stream.lines]
{stream}
shards = {SHARDS}
[group.writer]
from = "lines"
to = "table"
members = 2
batch = 50
lease = "{}ms"
ordered = {ordered}
[sink.table]
kind = "sqlite"
path = "table.db"
table = "rows"
columns = {{ event_id = "@id", k = "k", n = {{ from = "n", type = "bigint" }} }}
"#,
        lease.as_millis()
    )
}

/// Lines that go through a stream into a table, some of it with another file than the rest.
struct Flow {
    place: process::Place,
    input: File,
    lines: u64,
}

impl Flow {
    fn new(stream: &str, lease: Duration) -> Self {
        let place = process::Place::new(&topology(stream, lease, true));
        let otherwise = topology(stream, lease, false).replace("{port}", "0");
        std::fs::write(place.path("otherwise.toml"), otherwise).unwrap();
        let input = File::create(place.path("input.log")).unwrap();
        Self { place, input, lines: 0 }
    }

    /// A process that is a part of the file.
    fn start(&self, file: &str, only: &str) -> Running {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let variables = [("AQUEDUCT__HTTP__LISTEN", &*listen)];
        self.place.start_command(&["run", file, "--only", only], &variables, port)
    }

    /// Writes so many lines, and waits until the table has them.
    fn pass(&mut self, lines: u64) {
        self.write(lines);
        self.arrive();
    }

    fn write(&mut self, lines: u64) {
        let mut text = String::new();
        for n in self.lines..self.lines + lines {
            writeln!(text, r#"{{"k":"k{}","n":{n}}}"#, n.wrapping_mul(0x9e37_79b9) % KEYS).unwrap();
        }
        self.input.write_all(text.as_bytes()).unwrap();
        self.lines += lines;
    }

    fn arrive(&self) {
        let all = self.lines as i64;
        eventually("all lines are in the table", || self.stored() >= all);
        assert_eq!(self.stored(), all);
        let each = self.place.count("table.db", "SELECT COUNT(DISTINCT n) FROM rows");
        assert_eq!(each, all);
    }

    fn stored(&self) -> i64 {
        let there = self.place.path("table.db").exists()
            && self
                .place
                .count("table.db", "SELECT COUNT(*) FROM sqlite_master WHERE name = 'rows'")
                > 0;
        if there { self.place.count("table.db", "SELECT COUNT(*) FROM rows") } else { 0 }
    }

    /// Of each key, the rows from this line on stand in the order of the lines.
    fn assert_in_order(&self, from: u64) {
        let query = format!(
            "SELECT COUNT(*) FROM (SELECT n, LAG(n) OVER (PARTITION BY k ORDER BY rowid) AS before
             FROM rows WHERE n >= {from}) WHERE before > n"
        );
        assert_eq!(self.place.count("table.db", &query), 0, "rows that overtook another");
    }
}

fn healthy(running: &Running) {
    eventually("all works", || running.get("/healthz").0 == 200);
}

/// Waits until a process says that it waits for another one's mode to go.
fn waits(running: &Running, ordered: bool) {
    let said = format!("group `writer` has `ordered = {ordered}` here, and member `");
    eventually("it waits", || {
        let (status, text) = running.get("/healthz");
        status == 503 && text.contains(&said) && text.contains("make the files agree")
    });
    eventually("the log says so", || running.log().contains(&said));
}

#[test]
fn of_two_processes_whose_files_disagree_the_second_waits_and_goes_on_in_order() {
    let mut flow = Flow::new("kind = \"embedded\"", LONG);
    let source = flow.start("topology.toml", "source.input");
    let mut first = flow.start("otherwise.toml", "group.writer");
    flow.pass(500);
    let second = flow.start("topology.toml", "group.writer");
    waits(&second, true);
    flow.pass(500);
    assert_eq!((first.get("/healthz").0, source.get("/healthz").0), (200, 200));
    // The other way round, once the first is gone: with a lease that nobody could wait for.
    assert!(first.end().success());
    healthy(&second);
    flow.pass(3000);
    flow.assert_in_order(1000);
    let third = flow.start("otherwise.toml", "group.writer");
    waits(&third, false);
    flow.pass(500);
    flow.assert_in_order(1000);
    assert_eq!(second.get("/healthz").0, 200);
    // One that is killed is not waited for longer than it takes to find that out.
    second.kill();
    healthy(&third);
    flow.pass(500);
}

#[test]
fn a_process_that_was_stopped_gets_nothing_once_another_mode_took_over() {
    let server = servers::Redis::start();
    let stream = format!("kind = \"redis\"\nurl = \"{}\"", server.url());
    let mut flow = Flow::new(&stream, SHORT * 5);
    let _source = flow.start("topology.toml", "source.input");
    let first = flow.start("otherwise.toml", "group.writer");
    flow.pass(500);
    let second = flow.start("topology.toml", "group.writer");
    waits(&second, true);
    let pid = rustix::process::Pid::from_raw(first.pid() as i32).unwrap();
    // Not with the table's lock in its hand.
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    healthy(&second);
    flow.pass(1000);
    flow.assert_in_order(500);
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    for _ in 0..40 {
        flow.write(50);
        std::thread::sleep(Duration::from_millis(20));
    }
    waits(&first, false);
    flow.arrive();
    flow.assert_in_order(500);
    assert_eq!(second.get("/healthz").0, 200);
}

#[test]
fn an_edit_of_the_mode_takes_effect_at_once() {
    for stream in ["kind = \"embedded\"".to_owned(), redis_stream(), postgres_stream()] {
        let mut flow = Flow::new(&stream, LONG);
        let running = flow.place.start();
        flow.pass(500);
        for (generation, ordered) in [(2, false), (3, true), (4, false), (5, true)] {
            // In the middle of it all.
            let from = flow.lines;
            flow.write(1000);
            flow.place.write_topology(&topology(&stream, LONG, ordered));
            eventually("the edit is applied", || {
                let ready: serde_json::Value =
                    serde_json::from_str(&running.get("/readyz").1).unwrap_or_default();
                ready["generation"] == generation
            });
            healthy(&running);
            let since = flow.lines;
            flow.pass(500);
            flow.assert_in_order(if ordered { since } else { flow.lines });
            println!("{generation}: {} lines", flow.lines - from);
        }
        let log = running.log();
        assert!(!log.contains("make the files agree"), "{log}");
        assert!(running.stop().success());
    }
}

fn redis_stream() -> String {
    static SERVER: std::sync::OnceLock<servers::Redis> = std::sync::OnceLock::new();
    let server = SERVER.get_or_init(servers::Redis::start);
    format!("kind = \"redis\"\nurl = \"{}\"", server.url())
}

fn postgres_stream() -> String {
    let url = servers::Postgres::shared().database();
    format!("kind = \"postgres\"\nurl = \"{url}\"")
}
