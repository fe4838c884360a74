//! Events change hands when they must, as soon as they may, and at no other time.

#[path = "support/process.rs"]
mod process;
#[path = "support/redis_cli.rs"]
mod redis_cli;
#[path = "support/servers.rs"]
mod servers;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use process::{Place, eventually, free_port};
use redis_cli::{cli, cli_all};
use servers::{Postgres, Redis};

const TOPOLOGY: &str = r#"
[runtime]
data_dir = "data"

[http]
listen = "127.0.0.1:{port}"

[source.numbers]
kind = "publisher"
to = "numbers"
n = "1..EVENTS"
body = { number = "{n}" }

[stream.numbers]
kind = "redis"
url = "REDIS"

[group.writer]
from = "numbers"
to = "db"
members = 2
batch = 500
lease = "LEASE"
attempts = 1

[sink.db]
kind = "postgres"
url = "POSTGRES"
table = "numbers"
columns = { event_id = "@id", number = { from = "number", type = "bigint" } }
"#;

struct Flow {
    place: Place,
    redis: Redis,
    database: String,
}

impl Flow {
    fn new(events: u64, lease: &str) -> Self {
        let redis = Redis::start();
        let url = Postgres::shared().database();
        let topology = TOPOLOGY
            .replace("EVENTS", &events.to_string())
            .replace("LEASE", lease)
            .replace("REDIS", &redis.url())
            .replace("POSTGRES", &url);
        let database = url.rsplit_once('/').unwrap().1.to_owned();
        Self { place: Place::new(&topology), redis, database }
    }

    fn psql(&self, sql: &str) -> String {
        Postgres::shared().psql(&self.database, sql)
    }

    /// Rows, and different numbers among them; nothing where there is no table yet.
    fn rows(&self) -> (u64, u64) {
        if self.psql("SELECT to_regclass('numbers')").is_empty() {
            return (0, 0);
        }
        let rows = self.psql("SELECT count(*), count(DISTINCT number) FROM numbers");
        let (rows, different) = rows.split_once('|').unwrap();
        (rows.parse().unwrap(), different.parse().unwrap())
    }

    fn only(&self, part: &str) {
        let args = ["run", "topology.toml", "--until-idle", "--only", part];
        let done = self.place.done(&args);
        assert!(done.status.success(), "{}", done.stderr);
    }
}

#[test]
fn a_stop_under_load_leaves_nothing_waiting_for_a_lease() {
    const EVENTS: u64 = 150_000;
    let flow = Flow::new(EVENTS, "120s");
    for least in [5_000.0, 10_000.0, 20_000.0] {
        let running = flow.place.start();
        eventually("load", || running.metric("aqueduct_events_stored", "") >= least);
        assert!(running.stop().success());
        let (rows, different) = flow.rows();
        assert!(rows == different && rows < EVENTS, "{rows} rows, no load was left to stop");
    }
    // All that the stopped ones had in hand goes to the next one at once: no lease has run out.
    let began = Instant::now();
    flow.place.run_until_idle();
    assert!(began.elapsed() < Duration::from_secs(60), "it waited for {:?}", began.elapsed());
    assert_eq!(flow.rows(), (EVENTS, EVENTS));
    assert!(cli(flow.redis.port, &["XPENDING", "numbers", "writer"]).starts_with('0'));
}

#[test]
fn what_another_client_reads_and_never_acks_is_stored_within_the_lease_and_two_seconds() {
    const LEASE: Duration = Duration::from_secs(3);
    let flow = Flow::new(500, "3s");
    let running = flow.place.start();
    eventually("our own", || flow.rows().0 == 500);
    // In one transaction, so that no member of ours is there first.
    let mut commands = "MULTI\n".to_owned();
    for n in 1001..=1100 {
        writeln!(commands, "XADD numbers * body \"{{\\\"number\\\":{n}}}\"").unwrap();
    }
    commands.push_str("XREADGROUP GROUP writer foreigner COUNT 100 STREAMS numbers >\nEXEC\n");
    let began = Instant::now();
    let said = cli_all(flow.redis.port, &commands);
    assert_eq!(said.matches("{\"number\":1").count(), 100, "{said}");
    eventually("the foreigner's", || flow.rows().0 == 600);
    let took = began.elapsed();
    println!("stored {took:?} after they were read, with a lease of {LEASE:?}");
    assert!(took > LEASE - Duration::from_millis(100), "after {took:?} it was still leased");
    assert!(took < LEASE + Duration::from_secs(2), "{took:?}");
    assert_eq!(flow.rows(), (600, 600));
    assert!(running.stop().success());
    let pending = cli(flow.redis.port, &["XPENDING", "numbers", "writer"]);
    assert!(pending.starts_with('0'), "{pending}");
}

#[test]
fn a_sink_that_takes_three_leases_for_a_batch_keeps_it() {
    const EVENTS: u64 = 5000;
    let flow = Flow::new(EVENTS, "1s");
    flow.only("source.numbers");
    flow.psql("CREATE TABLE numbers(event_id uuid PRIMARY KEY, number bigint)");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            flow.psql("BEGIN; LOCK TABLE numbers IN EXCLUSIVE MODE; SELECT pg_sleep(4); COMMIT")
        });
        let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' \
                      AND relation = 'numbers'::regclass AND granted";
        eventually("the lock", || flow.psql(locked) == "1");
        let running = [
            flow.place.start(),
            flow.place.start_beside(free_port(), &[("AQUEDUCT__RUNTIME__DATA_DIR", "data2")]),
        ];
        eventually("everything", || flow.rows().0 == EVENTS);
        eventually("its acks", || {
            cli(flow.redis.port, &["XPENDING", "numbers", "writer"]).starts_with('0')
        });
        let delivered =
            running.each_ref().map(|running| running.metric("aqueduct_events_delivered", ""));
        println!("delivered by each process: {delivered:?}");
        assert_eq!(delivered[0] + delivered[1], EVENTS as f64, "deliveries, of each event one");
        assert!(delivered[0] > 0.0 && delivered[1] > 0.0, "both had some in hand");
        for running in running {
            assert!(running.stop().success());
        }
    });
    assert_eq!(flow.rows(), (EVENTS, EVENTS));
    let dead = flow.place.done(&["dead", "list", "topology.toml", "numbers"]);
    assert_eq!(dead.stdout, "", "{}", dead.stderr);
}
