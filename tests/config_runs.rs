//! The shipped topologies at work: with real servers, beside clients of other makes, and killed.

#[path = "support/process.rs"]
mod process;
#[path = "support/redis_cli.rs"]
mod redis_cli;
#[path = "support/servers.rs"]
mod servers;

use std::fmt::Write as _;
use std::time::Duration;

use process::{Answer, Place, Request, Running, eventually, lines, seed};
use redis_cli::{cli, cli_all};
use servers::{Postgres, Rabbit, Redis};

/// The path of a shipped topology.
fn shipped(name: &str) -> String {
    format!("{}/config/{name}.toml", env!("CARGO_MANIFEST_DIR"))
}

/// Variables for a shipped topology.
struct Variables(Vec<(&'static str, String)>);

impl Variables {
    fn pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    fn start(&self, place: &Place, args: &[&str]) -> Running {
        place.start_command(args, &self.pairs(), place.port)
    }

    /// Runs it a few times, each killed at some moment, then to its end.
    fn run_killed(&self, place: &Place, file: &str, kills: u32, mut between: impl FnMut(u32)) {
        for kill in 0..kills {
            let running = self.start(place, &["run", file]);
            between(kill);
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..=400)));
            running.kill();
        }
        let mut running = self.start(place, &["run", file, "--until-idle"]);
        assert!(running.wait().success(), "{}", running.log());
        assert!(!running.log().contains("dead letter"), "{}", running.log());
    }
}

fn listen(place: &Place) -> String {
    format!("127.0.0.1:{}", place.port)
}

/// The table as the program that was replaced made it: no column for an event's id.
const PUBLISHED_NUMBERS: &str = "CREATE TABLE published_numbers(id serial primary key, \
     number integer, publisher_id text, received_at timestamptz default now())";

fn numbers(redis: &Redis, postgres: &Postgres, place: &Place, database: &str) -> Variables {
    Variables(vec![
        ("REDIS_ADDR", format!("127.0.0.1:{}", redis.port)),
        ("DB_HOST", "127.0.0.1".into()),
        ("DB_PORT", postgres.port.to_string()),
        ("DB_USER", "postgres".into()),
        ("DB_PASS", "any".into()),
        ("DB_NAME", database.into()),
        ("AUTH_TOKEN", "correct-horse".into()),
        ("HTTP_LISTEN", listen(place)),
        ("AQUEDUCT__GROUP__CONSUMERS__LEASE", "2s".into()),
    ])
}

/// Asks for a run of the publishers.
fn publish(place: &Place, token: &str, run: &str) -> std::io::Result<Answer> {
    Request::post("/publish/publisher")
        .header("Authorization", &format!("Bearer {token}"))
        .header("Idempotency-Key", run)
        .header("Content-Length", "0")
        .send(place.port)
}

// One run that is asked for until it is answered, and one at the end, without being asked for.
#[test]
fn numbers_are_stored_once_a_run_across_kills_and_beside_another_clients() {
    const FOREIGN: u32 = 3000;
    const KILLS: u32 = 6;
    seed();
    let (redis, postgres, place) = (Redis::start(), Postgres::shared(), Place::new(""));
    let database = postgres.database().rsplit_once('/').unwrap().1.to_owned();
    postgres.psql(&database, PUBLISHED_NUMBERS);
    let variables = numbers(&redis, postgres, &place, &database);
    variables.run_killed(&place, &shipped("numbers"), KILLS, |kill| {
        let mut commands = String::new();
        for n in (0..FOREIGN).filter(|n| n % KILLS == kill) {
            let number = 1000 + n;
            let fields = format!("number {number} publisher_id p timestamp 2026-01-01T00:00:00Z");
            writeln!(commands, "XADD numbers-stream * {fields}").unwrap();
        }
        cli_all(redis.port, &commands);
        if kill % 2 == 1 {
            eventually("it is published", || {
                publish(&place, "correct-horse", "the run").is_ok_and(|it| it.status == 200)
            });
        } else {
            let _ = publish(&place, "correct-horse", "the run");
        }
    });
    let published = "SELECT publisher_id, count(*), count(DISTINCT number), min(number), \
                     max(number) FROM published_numbers GROUP BY 1 ORDER BY 1";
    let wanted = "p|3000|3000|1000|3999\n\
                  publisher-1|20|10|1|10\n\
                  publisher-2|20|10|11|20\n\
                  publisher-3|20|10|21|30\n\
                  publisher-4|20|10|31|40\n\
                  publisher-5|20|10|41|50";
    assert_eq!(postgres.psql(&database, published), wanted);
    let missing = "SELECT count(*) FROM published_numbers WHERE received_at IS NULL OR id IS NULL";
    assert_eq!(postgres.psql(&database, missing), "0");
}

#[test]
fn numbers_are_published_at_each_request_with_the_token() {
    let (redis, postgres, place) = (Redis::start(), Postgres::shared(), Place::new(""));
    let database = postgres.database().rsplit_once('/').unwrap().1.to_owned();
    postgres.psql(&database, PUBLISHED_NUMBERS);
    let variables = numbers(&redis, postgres, &place, &database);
    let running = variables.start(&place, &["run", &shipped("numbers")]);
    eventually("it is ready", || running.get("/readyz").0 == 200);
    assert_eq!(publish(&place, "correct-horsf", "1").unwrap().status, 401);
    for run in ["1", "2", "2"] {
        let answer = publish(&place, "correct-horse", run).unwrap().json();
        assert_eq!(answer["source"], "publisher");
        assert_eq!(answer["published"], 50);
        let wanted: Vec<u32> = (1..=50).collect();
        assert_eq!(answer["numbers"], serde_json::json!(wanted));
    }
    let rows = "SELECT count(*), count(DISTINCT number), sum(number) FROM published_numbers";
    eventually("they are stored", || postgres.psql(&database, rows) == "100|50|2550");
    assert!(running.stop().success());
    assert_eq!(postgres.psql(&database, rows), "100|50|2550");
}

#[test]
fn numbers_travel_as_fields_that_other_clients_read_and_make_their_own_table() {
    let (redis, postgres, place) = (Redis::start(), Postgres::shared(), Place::new(""));
    let database = postgres.database().rsplit_once('/').unwrap().1.to_owned();
    let variables = numbers(&redis, postgres, &place, &database);
    let file = shipped("numbers");
    let mut publishers =
        variables.start(&place, &["run", &file, "--until-idle", "--only", "source.publisher"]);
    assert!(publishers.wait().success(), "{}", publishers.log());
    let entries = cli(redis.port, &["XRANGE", "numbers-stream", "-", "+"]);
    let named = |name: &str| entries.lines().filter(|line| *line == name).count();
    assert_eq!((named("number"), named("publisher_id"), named("timestamp")), (50, 50, 50));
    let mut consumers =
        variables.start(&place, &["run", &file, "--until-idle", "--only", "group.consumers"]);
    assert!(consumers.wait().success(), "{}", consumers.log());
    let rows = "SELECT count(*), sum(number), count(received_at) FROM published_numbers";
    assert_eq!(postgres.psql(&database, rows), "50|1275|50");
}

#[test]
fn every_line_of_the_input_is_once_in_the_output_across_kills() {
    const KILLS: u32 = 5;
    seed();
    let (redis, place) = (Redis::start(), Place::new(""));
    let (input, output) = (place.path("volume/input.txt"), place.path("volume/output.txt"));
    std::fs::create_dir(place.path("volume")).unwrap();
    let variables = Variables(vec![
        ("REDIS_ADDR", format!("127.0.0.1:{}", redis.port)),
        ("INPUT_FILE", input.display().to_string()),
        ("OUTPUT_FILE", output.display().to_string()),
        ("DATA_DIR", place.path("volume/state").display().to_string()),
        ("HTTP_LISTEN", listen(&place)),
        ("AQUEDUCT__GROUP__WRITER__LEASE", "2s".into()),
    ]);
    let mut wanted = Vec::new();
    variables.run_killed(&place, &shipped("lines"), KILLS, |kill| {
        let mut text = String::new();
        for n in 0..2000 {
            writeln!(text, "line {n} of part {kill}, with \"quotes\" and ümlauts").unwrap();
        }
        wanted.extend(text.lines().map(|line| line.as_bytes().to_vec()));
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&input).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        cli(redis.port, &["XADD", "line_stream", "*", "line", &format!("by hand {kill}")]);
        wanted.push(format!("by hand {kill}").into_bytes());
    });
    let mut stored = lines(&output);
    stored.sort();
    wanted.sort();
    assert_eq!(stored.len(), wanted.len());
    assert!(stored == wanted);
}

#[test]
fn lines_are_counted_and_kept_in_order_in_the_field_that_others_read() {
    let (redis, place) = (Redis::start(), Place::new(""));
    std::fs::write(place.path("in.txt"), "one\ntwo\nthree\n").unwrap();
    let variables = Variables(vec![
        ("REDIS_ADDR", format!("127.0.0.1:{}", redis.port)),
        ("INPUT_FILE", "in.txt".into()),
        ("OUTPUT_FILE", "out.txt".into()),
        ("HTTP_LISTEN", listen(&place)),
        ("AQUEDUCT__STREAM__LINE_STREAM__RETAIN", "forever".into()),
    ]);
    let running = variables.start(&place, &["run", &shipped("lines")]);
    eventually("what is counted", || {
        running.metric("lines_read_total", "") == 3.0
            && running.metric("lines_written_total", "") == 3.0
    });
    assert!(running.stop().success());
    assert_eq!(std::fs::read_to_string(place.path("out.txt")).unwrap(), "one\ntwo\nthree\n");
    let entries = cli(redis.port, &["XRANGE", "line_stream", "-", "+"]);
    let entries: Vec<&str> = entries.lines().collect();
    let read: Vec<&str> =
        entries.windows(2).filter(|pair| pair[0] == "line").map(|pair| pair[1]).collect();
    assert_eq!(read, ["one", "two", "three"]);
}

#[test]
fn events_of_three_streams_reach_their_consumers_with_the_password_and_not_without() {
    let (redis, place) = (Redis::start_with(&["--requirepass", "hunter2"]), Place::new(""));
    let file = shipped("events");
    let mut variables = Variables(vec![
        ("REDIS_HOST", "127.0.0.1".into()),
        ("REDIS_PORT", redis.port.to_string()),
        ("REDIS_PASSWORD", "hunter2".into()),
        ("HTTP_LISTEN", listen(&place)),
    ]);
    let running = variables.start(&place, &["run", &file]);
    for stream in ["events", "logs", "notifications"] {
        let args = ["publish", &file, "--stream", stream, "--type", stream, "--interval", "1ms"];
        let args = [&args[..], &["--count", "50"]].concat();
        let mut publish = variables.start(&place, &args);
        assert!(publish.wait().success(), "{}", publish.log());
    }
    eventually("all of them printed", || running.output().lines().count() >= 150);
    let output = running.output();
    for stream in ["events", "logs", "notifications"] {
        let kind = format!("\"type\":\"{stream}\"");
        let printed = output.lines().filter(|line| line.contains(&kind)).count();
        assert_eq!(printed, 50, "{stream}");
    }
    eventually("all members, holding nothing", || {
        let (_, streams) = running.get("/streams");
        let streams: serde_json::Value = serde_json::from_str(&streams).unwrap_or_default();
        let groups: Vec<_> = streams.as_array().into_iter().flatten().collect();
        let members = |stream: &&serde_json::Value| {
            let group = &stream["groups"][0];
            let idle = group["lag"] == 0 && group["pending"] == 0;
            group["consumers"].as_array().filter(|_| idle).map_or(0, Vec::len)
        };
        groups.iter().map(members).sum::<usize>() == 7
    });
    assert!(running.stop().success());

    variables.0[2].1 = "swordfish".into();
    let running = variables.start(&place, &["run", &file]);
    eventually("the refusal", || running.get("/healthz").1.contains("stream.events"));
    eventually("a word on the password", || {
        running.get("/healthz").1.to_lowercase().contains("password")
    });
    let told = running.get("/healthz").1 + &running.log();
    assert!(told.contains(&redis.port.to_string()), "no address in {told}");
    assert!(!told.contains("swordfish") && !told.contains("hunter2"), "a secret in {told}");
}

/// Every order of every round is once in each table, and each customer's were written in order.
fn topics_stay_in_order(kind: &str, url: &str) {
    const ORDERS: u32 = 3000;
    const ROUNDS: u32 = 3;
    seed();
    let place = Place::new("");
    let variables = Variables(vec![
        ("TOPICS_KIND", kind.into()),
        ("TOPICS_URL", url.into()),
        ("EVENT_COUNT", ORDERS.to_string()),
        ("PUBLISH_ROUNDS", ROUNDS.to_string()),
        ("PUBLISH_MESSAGES_PER_SEC", "0".into()),
        ("CONSUMER_BATCH_SIZE", "50".into()),
        ("LOG_LEVEL", "info".into()),
        ("HTTP_LISTEN", listen(&place)),
        ("AQUEDUCT__GROUP__BILLING__LEASE", "2s".into()),
        ("AQUEDUCT__GROUP__SHIPPING__LEASE", "2s".into()),
    ]);
    variables.run_killed(&place, &shipped("topics"), 4, |_| {});
    let query = "SELECT customer, round, order_id FROM ";
    for table in ["billing", "shipping"] {
        let query = format!("{query}{table} ORDER BY rowid");
        let rows: Vec<(String, u32, u32)> = place.rows("data/topics.db", &query);
        assert_eq!(rows.len() as u32, ORDERS * ROUNDS, "{table}");
        let mut orders: Vec<(u32, u32)> = rows.iter().map(|(_, round, n)| (*round, *n)).collect();
        orders.sort_unstable();
        orders.dedup();
        assert_eq!(orders.len(), rows.len(), "{table}: one is there twice, and one is not");
        assert_eq!((orders[0], orders[rows.len() - 1]), ((1, 1), (ROUNDS, ORDERS)));
        let mut last = std::collections::HashMap::new();
        for (customer, round, order) in rows {
            let before = last.insert(customer.clone(), (round, order));
            assert!(
                before < Some((round, order)),
                "{table}: {customer} {before:?} {round}/{order}"
            );
        }
    }
}

#[test]
fn topics_without_a_server_keep_each_customers_orders_in_order_across_kills() {
    topics_stay_in_order("embedded", "");
}

#[test]
fn topics_on_redis_keep_each_customers_orders_in_order_across_kills() {
    let redis = Redis::start();
    topics_stay_in_order("redis", &redis.url());
}

#[test]
fn topics_on_postgres_keep_each_customers_orders_in_order_across_kills() {
    topics_stay_in_order("postgres", &Postgres::shared().database());
}

#[test]
fn topics_say_which_variable_is_missing() {
    let place = Place::new("");
    for (kind, url, said) in
        [("redis", "", "`url` is empty"), ("embedded", "redis://x", "unknown key `url`")]
    {
        let mut command = place.command(&["check", &shipped("topics")]);
        let done = command.env("TOPICS_KIND", kind).env("TOPICS_URL", url).output().unwrap();
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(2) && errors.contains(said), "{errors}");
    }
}

/// Publishes to a queue as another program does: through the default exchange.
fn by_hand(url: &str, queue: &str, body: &str) {
    use lapin::options::BasicPublishOptions;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = lapin::Connection::connect(url, Default::default()).await.unwrap();
        let channel = broker.create_channel().await.unwrap();
        channel.confirm_select(Default::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = lapin::BasicProperties::default();
        let sent =
            channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties);
        assert!(sent.await.unwrap().await.unwrap().is_ack());
    });
}

#[test]
fn logs_come_in_over_http_across_kills_and_are_asked_for_by_their_members() {
    const KILLS: u32 = 4;
    seed();
    let (rabbit, postgres, place) = (Rabbit::shared(), Postgres::shared(), Place::new(""));
    let (queues, database) = (rabbit.vhost(), postgres.database());
    let variables = Variables(vec![
        ("RABBITMQ_URL", queues.clone()),
        ("POSTGRES_URL", database.clone()),
        ("REDIS_ADDR", "127.0.0.1:1".into()),
        ("HTTP_LISTEN", listen(&place)),
        ("AQUEDUCT__GROUP__WRITER__LEASE", "2s".into()),
    ]);
    let start = || variables.start(&place, &["run", &shipped("logs")]);
    let mut running = start();
    for n in 0..40 * KILLS {
        let level = if n % 4 == 0 { "error" } else { "info" };
        let entry = format!(r#"{{"level":"{level}","message":"entry {n}","n":{n}}}"#);
        let key = format!("entry-{n}");
        eventually("it is accepted", || {
            let post = Request::post("/log").header("Idempotency-Key", &key).json(&entry);
            post.send(place.port).is_ok_and(|answer| answer.status == 202)
        });
        if n % 40 == 20 {
            running.kill();
            running = start();
        }
    }
    by_hand(&queues, "logs", r#"{"level":"debug","message":"by hand"}"#);
    let name = database.rsplit_once('/').unwrap().1;
    let rows = "SELECT count(*), count(DISTINCT data->>'n') FROM logs";
    eventually("they are stored", || postgres.psql(name, rows) == "161|160");
    let ask = |query: &str| Request::get(query).send(place.port).unwrap();
    let errors = ask("/logs?level=error&limit=1000").json();
    assert_eq!(errors["rows"].as_array().unwrap().len(), 40);
    assert!(errors["rows"].as_array().unwrap().iter().all(|row| row["data"]["level"] == "error"));
    let page = ask("/logs?limit=100").json();
    assert_eq!(page["rows"].as_array().unwrap().len(), 100);
    let next = page["next"].as_str().unwrap();
    let last = ask(&format!("/logs?limit=100&after={next}")).json();
    assert_eq!(last["rows"].as_array().unwrap().len(), 61);
    assert_eq!(ask("/logs?message=by%20hand").json()["rows"][0]["data"]["level"], "debug");
    assert!(running.stop().success());
    let types = "SELECT string_agg(column_name || ' ' || data_type, ', ' ORDER BY \
                 ordinal_position) FROM information_schema.columns WHERE table_name = 'logs'";
    let wanted = "id uuid, data jsonb, inserted_at timestamp with time zone";
    assert_eq!(postgres.psql(name, types), wanted);
}
