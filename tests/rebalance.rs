//! Who owns the shards of an ordered group while members come, leave and die: each shard is one
//! member's at a time and nobody's for longer than a lease, and each living member has its share.
//!
//! The database itself writes down, by triggers, each change of an owner and each ack, so that
//! nothing is judged by when this test happened to look.

#[path = "support/streams.rs"]
mod streams;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aqueduct::event::Event;
use aqueduct::stream::{Backend, shard_of};
use proptest::prelude::*;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use streams::*;
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(1);
/// How soon shares are to be even again; members look several times a lease.
const SOON: Duration = Duration::from_secs(15);

const WATCH: &str = "
    CREATE TABLE changes (
      n INTEGER PRIMARY KEY, at INTEGER, shard INTEGER, was TEXT, was_until INTEGER,
      was_epoch INTEGER, member TEXT, until INTEGER, epoch INTEGER);
    CREATE TRIGGER changed AFTER UPDATE ON owners
      WHEN old.epoch <> new.epoch OR old.member <> new.member BEGIN
      INSERT INTO changes VALUES (NULL, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER),
        new.shard, old.member, old.until, old.epoch, new.member, new.until, new.epoch);
    END;
    CREATE TABLE acks (shard INTEGER, member TEXT, owner TEXT);
    CREATE TRIGGER acked AFTER DELETE ON leases WHEN old.owner <> '' BEGIN
      INSERT INTO acks SELECT old.shard, old.owner, member FROM owners
        WHERE grp = old.grp AND shard = old.shard;
    END;";

#[derive(Clone, Copy, Debug)]
enum Step {
    Join,
    /// This one of the living, modulo their number, says that it goes.
    Leave(usize),
    /// It says nothing any more.
    Die(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Join),
        1 => (0..8_usize).prop_map(Step::Leave),
        2 => (0..8_usize).prop_map(Step::Die),
    ];
    prop::collection::vec(step, 3..7)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 5, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn each_shard_has_one_owner_and_each_member_its_share(shards in 1_u32..9, steps in steps()) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(shards, &steps));
    }
}

/// A member at work, until told to leave, or that has died.
struct Living {
    name: String,
    leave: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

struct Play {
    at: Place,
    backend: Arc<dyn Backend>,
    shards: u32,
    living: Vec<Living>,
    next: u32,
    /// The longest that something simple took meanwhile, in milliseconds: the machine's fault.
    stall_ms: Arc<AtomicU64>,
}

async fn play(shards: u32, steps: &[Step]) {
    let at = Place::embedded().lease(LEASE).with(|spec| {
        spec.shards = shards;
        spec.groups[0].ordered = true;
    });
    let backend = at.open().await;
    let database = at.folder.path().join("streams.db");
    sqlx::raw_sql(WATCH).execute(&mut connect(&database).await).await.unwrap();
    let stall_ms = Arc::new(AtomicU64::new(0));
    let others = [
        tokio::spawn(feed(backend.clone())),
        tokio::spawn(look_on(backend.clone(), stall_ms.clone())),
    ];
    let mut play = Play { at, backend, shards, living: Vec::new(), next: 0, stall_ms };
    for step in [&[Step::Join], steps].concat() {
        play.take(step).await;
    }
    for living in std::mem::take(&mut play.living) {
        living.leave.store(true, Ordering::SeqCst);
        living.task.await.unwrap();
    }
    others.iter().for_each(JoinHandle::abort);
    let slack = play.slack();
    judge(&mut connect(&database).await, slack).await;
}

async fn connect(database: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(database).busy_timeout(PATIENCE);
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// Events for every shard, again and again.
async fn feed(backend: Arc<dyn Backend>) {
    let mut writer = backend.writer().await.unwrap();
    for number in (0..).step_by(20) {
        let key = |n| Event { key: Some(format!("k{n}").into()), ..event(n) };
        put(&mut writer, (number..number + 20).map(key).collect()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn look_on(backend: Arc<dyn Backend>, stall_ms: Arc<AtomicU64>) {
    loop {
        let since = Instant::now();
        backend.status().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        stall_ms.fetch_max(since.elapsed().as_millis() as u64, Ordering::SeqCst);
    }
}

impl Play {
    fn slack(&self) -> Duration {
        Duration::from_millis(4 * self.stall_ms.load(Ordering::SeqCst))
    }

    async fn take(&mut self, step: Step) {
        let since = Instant::now();
        match step {
            Step::Leave(which) if self.living.len() > 1 => {
                let gone = self.living.remove(which % self.living.len());
                gone.leave.store(true, Ordering::SeqCst);
                gone.task.await.unwrap();
            }
            Step::Die(which) if self.living.len() > 1 => {
                let gone = self.living.remove(which % self.living.len());
                gone.task.abort();
            }
            _ => self.join().await,
        }
        self.even().await;
        let (took, most) = (since.elapsed(), SOON + self.slack());
        assert!(took < most, "{step:?}: shares were even after {took:?}");
    }

    async fn join(&mut self) {
        let reader = self.at.member(&self.backend, "g").await;
        let (name, leave) = (format!("here/g/{}", self.next), Arc::new(AtomicBool::new(false)));
        self.next += 1;
        let (told, shards, stall_ms) = (leave.clone(), self.shards, self.stall_ms.clone());
        let task = tokio::spawn(async move {
            while !told.load(Ordering::SeqCst) {
                let (since, wait) = (Instant::now(), Duration::from_millis(50));
                let taken = reader.fetch(50, BYTES, wait).await.unwrap();
                for delivery in &taken {
                    let key = delivery.event.key.as_deref().unwrap();
                    assert_eq!(delivery.ticket.shard, shard_of(key, shards));
                }
                reader.ack(&tickets(&taken)).await.unwrap();
                let stall = since.elapsed().saturating_sub(wait).as_millis() as u64;
                stall_ms.fetch_max(stall, Ordering::SeqCst);
            }
            reader.leave().await.unwrap();
        });
        self.living.push(Living { name, leave, task });
    }

    /// Waits until the living have all shards, each as many as any other, or one more.
    async fn even(&self) {
        let mut database = connect(&self.at.folder.path().join("streams.db")).await;
        let (shards, members) = (self.shards as usize, self.living.len());
        let mut wanted: Vec<usize> = (0..members)
            .map(|place| shards / members + usize::from(place < shards % members))
            .collect();
        wanted.sort_unstable();
        let owners = "SELECT member FROM owners";
        until("shares are even", async || {
            let found: Vec<(String,)> =
                sqlx::query_as(owners).fetch_all(&mut database).await.unwrap();
            let of = |living: &Living| found.iter().filter(|it| it.0 == living.name).count();
            let mut have: Vec<usize> = self.living.iter().map(of).collect();
            have.sort_unstable();
            have == wanted
        })
        .await;
    }
}

type Change = (i64, i64, String, i64, i64, String, i64, i64);

/// Goes through what the database wrote down.
async fn judge(database: &mut SqliteConnection, slack: Duration) {
    let changes: Vec<Change> = sqlx::query_as(
        "SELECT at, shard, was, was_until, was_epoch, member, until, epoch FROM changes ORDER BY n",
    )
    .fetch_all(&mut *database)
    .await
    .unwrap();
    assert!(!changes.is_empty());
    let most = (LEASE + slack).as_millis() as i64;
    let mut given_up: BTreeMap<i64, i64> = BTreeMap::new();
    for (at, shard, was, was_until, was_epoch, member, until, epoch) in changes {
        if member.is_empty() {
            assert_eq!(epoch, was_epoch, "shard {shard}: giving up makes no new owner");
            given_up.insert(shard, at);
            continue;
        }
        assert!(epoch > was_epoch, "shard {shard}: {member} has epoch {epoch} after {was_epoch}");
        // In the time that leases are counted in.
        let claimed = until - LEASE.as_millis() as i64;
        let free = match (was.is_empty(), given_up.get(&shard)) {
            (false, _) => {
                assert!(claimed >= was_until, "shard {shard}: {member} beside {was}");
                claimed - was_until
            }
            (true, Some(since)) => at - since,
            (true, None) => 0,
        };
        assert!(free <= most, "shard {shard} was nobody's for {free} ms (at most {most})");
    }
    let strangers = "SELECT shard, member, owner FROM acks WHERE member <> owner";
    let strangers: Vec<(i64, String, String)> =
        sqlx::query_as(strangers).fetch_all(&mut *database).await.unwrap();
    assert_eq!(strangers, [], "acks of who is not the owner");
    let (acks,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM acks").fetch_one(database).await.unwrap();
    assert!(acks > 0);
}
