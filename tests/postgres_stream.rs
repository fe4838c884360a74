//! What only the PostgreSQL stream does: processes on several machines share it; the server is
//! killed, and its database dropped or put back to an older copy; words come from other processes.

#[path = "support/streams.rs"]
mod streams;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aqueduct::spec::Site;
use aqueduct::stream::{Appended, Backend, ReaderSpec};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use streams::servers::Postgres;
use streams::*;

/// Tells a child process of the tests which role it plays, and where.
const ROLE: &str = "AQUEDUCT_TEST_ROLE";
const URL: &str = "AQUEDUCT_TEST_URL";

const LONG: Duration = Duration::from_secs(3600);

fn url(at: &Place) -> String {
    at.spec.values.str("url").to_owned()
}

fn database(at: &Place) -> String {
    url(at).rsplit('/').next().unwrap().to_owned()
}

/// What `psql` answers in the place's database, in the shared server.
fn psql(at: &Place, sql: &str) -> String {
    Postgres::shared().psql(&database(at), sql)
}

/// Runs statements until they do not wait for a transaction that waits for them.
async fn insist(at: &Place, statements: &str) {
    until("it was let through", async || {
        let mut conn = PgConnection::connect(&url(at)).await.unwrap();
        let statements = AssertSqlSafe(statements.to_owned());
        match sqlx::raw_sql(statements).execute(&mut conn).await {
            Err(error) => {
                assert!(error.to_string().contains("deadlock"), "{error}");
                false
            }
            Ok(_) => true,
        }
    })
    .await;
}

/// The same stream, with connections of its own, as another process would have them.
fn another(at: &Place) -> Place {
    let groups = at.spec.groups.clone();
    let other = Place::postgres_at(&format!("{}?application_name=another", url(at)));
    other.with(|spec| spec.groups = groups)
}

/// A child process in a role, and what it says.
struct Role {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Role {
    /// Starts this test program anew.
    fn start(role: &str, at: &Place) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "plays_a_role", "--nocapture"])
            .env(ROLE, role)
            .env(URL, url(at))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut role = Self { child, said };
        assert!(role.said.by_ref().map_while(Result::ok).any(|line| line.ends_with("ready")));
        role
    }

    /// The numbers in the next `lines` that it says.
    fn numbers(&mut self, lines: usize) -> Vec<u64> {
        let said = self.said.by_ref().take(lines);
        said.flat_map(|line| parse(&line.unwrap())).collect()
    }

    /// `kill -9`; answers the numbers it still said.
    fn kill(mut self) -> Vec<u64> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.said.map_while(Result::ok).flat_map(|line| parse(&line)).collect()
    }
}

fn parse(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// What a child process does; nothing in the process that runs the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plays_a_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let at = Place::postgres_at(&std::env::var(URL).unwrap()).lease(LONG);
    let instance = format!("child-{}", std::process::id());
    let site = Site { instance: instance.clone(), ..at.site() };
    let backend = (at.spec.kind.open)(at.spec.clone(), site).await.unwrap();
    let member = format!("{instance}/g/0");
    let reader = backend.reader(ReaderSpec { group: at.spec.groups[0].clone(), member });
    let reader = reader.await.unwrap();
    if role == "holder" {
        let held = take(&reader, 10).await;
        reader.charge(held[4].ticket).await.unwrap();
        println!("\nready");
        return std::future::pending::<()>().await;
    }
    println!("\nready");
    loop {
        let taken = reader.fetch(7, BYTES, PATIENCE).await.unwrap();
        let numbers: Vec<String> = numbers(&taken).iter().map(u64::to_string).collect();
        println!("{}", numbers.join(" "));
        reader.ack(&tickets(&taken)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_keeps_nothing_from_the_living() {
    let at = Place::postgres().lease(LONG);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let holder = Role::start("holder", &at);
    let reader = at.member(&backend, "g").await;
    nothing(&reader).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    nothing(&reader).await;
    assert_eq!(group_status(&backend, "g").await.pending, Some(10));
    holder.kill();
    let killed = Instant::now();
    let taken = take(&reader, 10).await;
    assert!(killed.elapsed() < Duration::from_secs(5), "it took {:?}", killed.elapsed());
    assert!(taken.iter().all(|delivery| delivery.deliveries == 2));
    let attempts = taken.iter().map(|delivery| delivery.attempts).sum::<u32>();
    assert_eq!(attempts, 1, "the attempt was charged durably");
    until("the dead one is forgotten", async || {
        let consumers = group_status(&backend, "g").await.consumers;
        consumers.iter().all(|consumer| consumer.name.starts_with("here/"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_a_group_and_are_killed_at_it() {
    let at = Place::postgres().lease(LONG);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let feed = tokio::spawn(async move {
        let mut next = 0;
        while !stopped.load(Ordering::SeqCst) {
            put(&mut writer, events(next..next + 20)).await;
            next += 20;
        }
        next
    });
    let mut seen = BTreeSet::new();
    for lines in [3, 10, 25] {
        let mut worker = Role::start("worker", &at);
        let other = Role::start("worker", &at);
        seen.extend(worker.numbers(lines));
        seen.extend(worker.kill());
        seen.extend(other.kill());
    }
    stop.store(true, Ordering::SeqCst);
    let end = feed.await.unwrap();
    let reader = at.member(&backend, "g").await;
    let start = Instant::now();
    loop {
        let taken = reader.fetch(1000, BYTES, GLANCE).await.unwrap();
        reader.ack(&tickets(&taken)).await.unwrap();
        seen.extend(numbers(&taken));
        let group = group_status(&backend, "g").await;
        if (group.lag, group.pending) == (Some(0), Some(0)) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{} of {end} came", seen.len());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..end).collect::<Vec<_>>());
}

/// A source and two members at work while something happens.
struct Work {
    at: Arc<Place>,
    backend: Arc<dyn Backend>,
    sent: Arc<AtomicU64>,
    rewound: Arc<AtomicU64>,
    end: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    source: tokio::task::JoinHandle<()>,
    members: Vec<tokio::task::JoinHandle<BTreeSet<u64>>>,
}

impl Work {
    async fn start(at: Place) -> Self {
        let at = Arc::new(at.with(|spec| spec.groups[0].latest = true));
        let backend = at.open().await;
        let (sent, rewound, stop) = (Arc::default(), Arc::default(), Arc::default());
        let end = Arc::new(AtomicU64::new(u64::MAX));
        let gathering = || gather(at.clone(), backend.clone(), Arc::clone(&stop));
        let members = (0..2).map(|_| tokio::spawn(gathering())).collect();
        let source = tokio::spawn(source_of(
            backend.clone(),
            "a",
            0,
            end.clone(),
            Arc::clone(&sent),
            Arc::clone(&rewound),
        ));
        Self { at, backend, sent, rewound, end, stop, source, members }
    }

    /// Waits until so many more events are sent.
    async fn sends(&self, more: u64) {
        let wanted = self.sent.load(Ordering::SeqCst) + more;
        until("it was sent", async || self.sent.load(Ordering::SeqCst) >= wanted).await;
    }

    /// Waits until the source was told to go back, `times` in all.
    async fn is_told(&self, times: u64) {
        until("the source was told", async || self.rewound.load(Ordering::SeqCst) >= times).await;
    }

    /// Ends it, and expects each event to have been delivered, and soon.
    async fn finish(self) {
        let end = self.sent.load(Ordering::SeqCst) + 500;
        self.end.store(end, Ordering::SeqCst);
        tokio::time::timeout(PATIENCE, self.source).await.unwrap().unwrap();
        let start = Instant::now();
        until("the group is done", async || {
            let group = group_status(&self.backend, "g").await;
            (group.lag, group.pending) == (Some(0), Some(0))
        })
        .await;
        assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
        self.stop.store(true, Ordering::SeqCst);
        let mut seen = BTreeSet::new();
        for member in self.members {
            seen.append(&mut member.await.unwrap());
        }
        let lost: Vec<u64> = (0..end).filter(|number| !seen.contains(number)).collect();
        assert!(lost.is_empty(), "{} are lost: {:?}…", lost.len(), &lost[..lost.len().min(9)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_killed_and_comes_back() {
    let mut server = Postgres::start();
    let work = Work::start(Place::postgres_at(&server.database()).lease(LONG)).await;
    for down in [0, 500, 2500] {
        work.sends(500).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(down)).await;
        server.up();
    }
    work.sends(500).await;
    work.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_database_is_filled_again() {
    let work = Work::start(Place::postgres()).await;
    work.sends(500).await;
    let name = database(&work.at);
    for sql in ["DROP DATABASE $ WITH (FORCE)", "CREATE DATABASE $"] {
        Postgres::shared().psql("postgres", &sql.replace('$', &name));
    }
    work.is_told(1).await;
    work.sends(500).await;
    // The tables alone, and the connections stay.
    insist(&work.at, "DROP SCHEMA aqueduct CASCADE").await;
    work.is_told(2).await;
    work.sends(500).await;
    work.finish().await;
}

const TABLES: [&str; 10] = [
    "streams",
    "messages",
    "offsets",
    "checkpoints",
    "groups",
    "cursors",
    "leases",
    "members",
    "dead",
    "meta",
];

/// Copies all tables from one schema to another, at one moment.
async fn copy_tables(at: &Place, prepare: &str, each: &str) {
    let tables: Vec<String> = TABLES.iter().map(|table| each.replace('$', table)).collect();
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
    insist(at, &format!("{begin}; {prepare}; {}; COMMIT", tables.join("; "))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_set_back_while_connections_stay() {
    let work = Work::start(Place::postgres().lease(LONG)).await;
    work.sends(1000).await;
    copy_tables(&work.at, "CREATE SCHEMA copy", "CREATE TABLE copy.$ AS TABLE aqueduct.$").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for times in [1, 2] {
        let all: Vec<String> = TABLES.iter().map(|table| format!("aqueduct.{table}")).collect();
        let empty = format!("TRUNCATE {}", all.join(", "));
        copy_tables(&work.at, &empty, "INSERT INTO aqueduct.$ SELECT * FROM copy.$").await;
        work.is_told(times).await;
        work.sends(1000).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    work.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_replaced_by_an_older_copy() {
    let work = Work::start(Place::postgres().lease(LONG)).await;
    work.sends(1000).await;
    let (name, copy) = (database(&work.at), format!("{}_copy", database(&work.at)));
    let server = Postgres::shared();
    server.psql("postgres", &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    let end = format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
         WHERE datname = '{name}'"
    );
    server.psql("postgres", &end);
    server.psql("postgres", &format!("CREATE DATABASE {copy} TEMPLATE {name}"));
    server.psql("postgres", &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    work.sends(1000).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.psql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
    server.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {copy}"));
    work.is_told(1).await;
    work.sends(1000).await;
    work.finish().await;
}

// The lease's token is drawn anew each time: what a member holds from before never fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_from_before_acks_nothing_after() {
    let at = Place::postgres();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    put(&mut writer, events(0..10)).await;
    let before = take(&reader, 10).await;
    psql(&at, "DELETE FROM aqueduct.leases; UPDATE aqueduct.cursors SET next = 0");
    assert_eq!(reader.renew(&tickets(&before)).await.unwrap(), tickets(&before));
    let again = take(&reader, 10).await;
    reader.ack(&tickets(&before)).await.unwrap();
    assert_eq!(group_status(&backend, "g").await.pending, Some(10));
    reader.ack(&tickets(&again)).await.unwrap();
    assert_eq!(group_status(&backend, "g").await.pending, Some(0));
}

// What was read before may be kept in memory; it is not what stands there now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_before_is_not_delivered_after() {
    let at = Place::postgres();
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    put(&mut writer, events(0..500)).await;
    assert_eq!(finish(&reader, 500).await.len(), 500);
    psql(&at, "DELETE FROM aqueduct.messages");
    psql(&at, "UPDATE aqueduct.cursors SET next = 0; UPDATE aqueduct.offsets SET next = 0");
    let other = another(&at).open().await;
    put(&mut other.writer().await.unwrap(), events(500..1000)).await;
    assert_eq!(numbers(&finish(&reader, 500).await), (500..1000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_is_told_much_sooner_than_it_looks() {
    let at = Place::postgres();
    let (backend, other) = (at.open().await, another(&at).open().await);
    let mut writer = other.writer().await.unwrap();
    let reader = at.member(&backend, "g").await;
    let mut waited = Duration::ZERO;
    for number in 0..20 {
        let waiting = tokio::spawn({
            let reader = reader.clone();
            async move { (reader.fetch(10, BYTES, PATIENCE).await.unwrap(), Instant::now()) }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        put(&mut writer, events(number..number + 1)).await;
        let durable = Instant::now();
        let (taken, woken) = waiting.await.unwrap();
        waited += woken.saturating_duration_since(durable);
        assert_eq!(numbers(&taken), [number]);
        reader.ack(&tickets(&taken)).await.unwrap();
    }
    assert!(waited < Duration::from_millis(20 * 100), "20 events waited {waited:?} in all");

    // So is who waits for what another process hands back.
    put(&mut writer, events(20..21)).await;
    let site = Site { instance: "there".into(), ..at.site() };
    let there = (at.spec.kind.open)(another(&at).spec, site).await.unwrap();
    let spec = ReaderSpec { group: at.spec.groups[0].clone(), member: "there/g/0".into() };
    let holder = there.reader(spec).await.unwrap();
    let held = take(&holder, 1).await;
    assert!(reader.fetch(10, BYTES, Duration::ZERO).await.unwrap().is_empty());
    let waiting = tokio::spawn(async move { reader.fetch(10, BYTES, PATIENCE).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let start = Instant::now();
    holder.release(&tickets(&held)).await.unwrap();
    assert_eq!(numbers(&waiting.await.unwrap()), [20]);
    assert!(start.elapsed() < Duration::from_millis(500), "it took {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_start_at_once_make_the_tables_once() {
    let at = Place::postgres();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let url = format!("{}?application_name=program{number}", url(&at));
        tasks.spawn(async move {
            let at = Place::postgres_at(&url);
            let step = moving(&format!("{number}"), None, Some(1), events(number..number + 1));
            let mut writer = at.open().await.writer().await.unwrap();
            assert_eq!(writer.append(&[step]).await.unwrap(), [Appended::Durable]);
        });
    }
    tasks.join_all().await;
    let backend = at.open().await;
    let mut taken = numbers(&finish(&at.member(&backend, "g").await, 8).await);
    taken.sort_unstable();
    assert_eq!(taken, (0..8).collect::<Vec<_>>());
}

// As if this machine's clock and the server's were an hour apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_by_the_clock_of_the_server() {
    let at = Place::postgres().lease(Duration::from_secs(600));
    let clock = "SET allow_system_table_mods = on;
        ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock;
        CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz VOLATILE
          LANGUAGE sql AS 'SELECT pg_catalog.true_clock() + interval ''1 hour'''";
    psql(&at, clock);
    let backend = at.open().await;
    let mut writer = backend.writer().await.unwrap();
    put(&mut writer, events(0..10)).await;
    let reader = at.member(&backend, "g").await;
    let held = take(&reader, 10).await;
    let left = "SELECT min(deadline) - (extract(epoch FROM clock_timestamp()) * 1000)::bigint
        FROM aqueduct.leases";
    for renewed in [false, true] {
        if renewed {
            assert!(reader.renew(&tickets(&held)).await.unwrap().is_empty());
        }
        let left: i64 = psql(&at, left).parse().unwrap();
        assert!((540_000..=600_000).contains(&left), "the lease has {left} ms");
    }
    let other = at.member(&backend, "g").await;
    nothing(&other).await;
}

/// Why it cannot be opened.
async fn refusal(at: &Place) -> String {
    let opened = (at.spec.kind.open)(at.spec.clone(), at.site()).await;
    format!("{:#}", opened.err().expect("it was to be refused"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_will_not_do_is_refused_with_the_remedy() {
    let at = Place::postgres_at("postgres://me:hunter2@127.0.0.1:1/db");
    let message = refusal(&at).await;
    assert!(message.contains("127.0.0.1:1") && message.contains("refused"), "{message}");
    assert!(message.contains("(nobody listens there") && !message.contains("hunter2"), "{message}");

    let at = Place::postgres();
    let message = refusal(&Place::postgres_at(&format!("{}x", url(&at)))).await;
    assert!(message.contains("does not exist (create the database"), "{message}");

    psql(&at, "CREATE SCHEMA aqueduct; CREATE TABLE aqueduct.groups (name text)");
    let message = refusal(&at).await;
    assert!(message.contains("schema `aqueduct` holds somebody else's tables (name"), "{message}");

    let at = Place::postgres();
    drop(at.open().await);
    psql(&at, "UPDATE aqueduct.meta SET value = 7 WHERE key = 'version'");
    let message = refusal(&another(&at)).await;
    assert!(message.contains("of version \"7\", and this program knows version 2 ("), "{message}");
    psql(&at, "UPDATE aqueduct.meta SET value = 2 WHERE key = 'version'");
    drop(another(&at).open().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_rights_is_told_and_one_with_few_is_enough() {
    let at = Place::postgres();
    let user = format!("user_of_{}", database(&at));
    psql(&at, &format!("CREATE USER {user}"));
    let theirs = Place::postgres_at(&url(&at).replace("postgres@", &format!("{user}@")));
    let message = refusal(&theirs).await;
    assert!(message.contains("failed to create schema `aqueduct` (have it created"), "{message}");
    assert!(message.contains(&format!("permission denied for database {}", database(&at))));
    psql(&at, &format!("CREATE SCHEMA aqueduct AUTHORIZATION {user}"));
    let backend = theirs.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..10)).await;
    finish(&theirs.member(&backend, "g").await, 10).await;
    drop(backend);
    psql(&at, &format!("DROP OWNED BY {user}; DROP USER {user}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told() {
    let server = Postgres::start();
    server.psql("postgres", "CREATE USER me PASSWORD 'hunter2'");
    let ask = "COPY (SELECT 'host all me 127.0.0.1/32 scram-sha-256' UNION ALL
        SELECT 'host all all 127.0.0.1/32 trust') TO '";
    let file = server.psql("postgres", "SHOW hba_file");
    server.psql("postgres", &format!("{ask}{file}'"));
    server.psql("postgres", "SELECT pg_reload_conf()");
    let at = Place::postgres_at(&server.url("postgres").replace("postgres@", "me:hunter3@"));
    until("the password is asked for", async || {
        let opened = (at.spec.kind.open)(at.spec.clone(), at.site()).await;
        let message = opened.err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(!message.contains("hunter"), "{message}");
        message.contains("password authentication failed")
            && message.contains("(change the password or the user in `url`)")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_schemas_share_nothing_but_the_server() {
    let at = Place::postgres();
    let mut other = at.spec.clone();
    other.name = "other".into();
    other.groups[0].from = "other".into();
    let elsewhere = Place::postgres_at(&url(&at)).with(|spec| {
        let schema = aqueduct::spec::Value::Str("It's \"mine\"".into());
        spec.values.set("schema", schema);
    });
    let (one, two) = (at.open().await, at.open_as(&other).await);
    let three = elsewhere.open().await;
    for (backend, events) in [(&one, events(0..5)), (&two, events(5..7)), (&three, events(7..8))] {
        let step = moving("a", None, Some(1), events);
        let mut writer = backend.writer().await.unwrap();
        assert_eq!(writer.append(&[step]).await.unwrap(), [Appended::Durable]);
    }
    assert_eq!(numbers(&take(&at.member(&one, "g").await, 5).await), [0, 1, 2, 3, 4]);
    assert_eq!(numbers(&take(&at.member(&two, "g").await, 2).await), [5, 6]);
    assert_eq!(numbers(&take(&elsewhere.member(&three, "g").await, 1).await), [7]);
    // However many streams and members there are, connections are few.
    let members: Vec<_> = {
        let mut members = Vec::new();
        for _ in 0..20 {
            members.push(at.member(&one, "g").await);
        }
        members
    };
    let fetches = members.iter().map(|member| member.fetch(1, BYTES, GLANCE));
    futures_util::future::join_all(fetches).await;
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()",
        database(&at)
    );
    let connections: u64 = psql(&at, &count).parse().unwrap();
    assert!(connections <= 2 * 6, "{connections} connections for two schemas");
}

/// A schema as version 1 left it: the first to open it brings it up to date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_version_is_brought_up_to_date() {
    let at = Place::postgres();
    let backend = at.open().await;
    put(&mut backend.writer().await.unwrap(), events(0..5)).await;
    drop(backend);
    let before = "DROP TABLE aqueduct.owners; ALTER TABLE aqueduct.offsets DROP COLUMN shards;
        ALTER TABLE aqueduct.cursors DROP COLUMN ordered;
        ALTER TABLE aqueduct.members DROP COLUMN ordered, DROP COLUMN lease;
        UPDATE aqueduct.meta SET value = 1 WHERE key = 'version'";
    psql(&at, before);
    let at = another(&at);
    let backend = at.open().await;
    assert_eq!(numbers(&finish(&at.member(&backend, "g").await, 5).await), [0, 1, 2, 3, 4]);
    psql(&at, "SELECT epoch FROM aqueduct.owners");
}

/// What is looked at before the number of shards changes stays as it is until it has changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_shards_waits_for_who_moves_a_cursor() {
    let at = Place::postgres();
    drop(at.open().await);
    let mut other = PgConnection::connect(&url(&at)).await.unwrap();
    let moves = "BEGIN; SELECT id FROM aqueduct.streams FOR UPDATE";
    sqlx::raw_sql(moves).execute(&mut other).await.unwrap();
    let four = another(&at).with(|spec| spec.shards = 4);
    let opening = tokio::spawn(async move { four.open().await });
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND wait_event_type = 'Lock'",
        database(&at)
    );
    until("it waits", async || psql(&at, &waits) == "1").await;
    assert_eq!(psql(&at, "SELECT shards FROM aqueduct.offsets"), "1");
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    opening.await.unwrap();
    assert_eq!(psql(&at, "SELECT DISTINCT shards FROM aqueduct.offsets"), "4");
}
