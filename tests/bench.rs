//! `aqueduct bench` on every backend: what it says, and that nothing of it is left behind.

#[path = "support/process.rs"]
mod process;
#[path = "support/redis_cli.rs"]
mod redis_cli;
#[path = "support/servers.rs"]
mod servers;

use process::{Done, Place, Running, eventually, scale};
use redis_cli::cli;
use serde_json::Value as Json;
use servers::{Postgres, Rabbit, Redis, RedisCluster};

/// Events of a bench; `scripts/soak bench` makes them more.
fn events() -> u64 {
    scale("AQUEDUCT_EVENTS", 6000)
}

/// Runs a bench at a URL, whose verdict has to be good: of one stream.
fn good(place: &Place, url: &str, args: &[&str]) -> Json {
    let events = events().to_string();
    let args = [&["bench", "--stream", url, "--events", &events, "--json"], args].concat();
    let stream = good_of(place.done(&args));
    println!("{stream:#}");
    stream
}

fn good_of(done: Done) -> Json {
    assert!(done.status.success(), "{}\n{}", done.stdout, done.stderr);
    let said: Json = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(said["verdict"], "good");
    for stream in said["streams"].as_array().unwrap() {
        assert_eq!(stream["verdict"], "good");
        // Where a member dies, a queue may hold two of one event.
        let may_double = stream["kind"] == "rabbitmq" && stream["killed"] != 0;
        for none in ["lost", "doubled", "foreign"] {
            let allowed = none == "doubled" && may_double;
            assert!(allowed || stream[none] == 0, "{none}: {stream:#}");
        }
        assert!(stream["latency_ms"]["p50"].as_f64() <= stream["latency_ms"]["max"].as_f64());
    }
    said["streams"][0].clone()
}

/// Two groups, in order, of members that are killed.
const KILLED: [&str; 5] = ["--kill", "--lease", "1s", "--groups", "2"];

fn twice() -> Json {
    (2 * events()).into()
}

fn checked_in_order(stream: &Json) {
    assert_eq!((&stream["published"], &stream["delivered"]), (&events().into(), &twice()));
    assert_eq!(stream["out_of_order"], 0);
    assert!(stream["killed"].as_u64().unwrap() >= 1, "{stream:#}");
}

#[test]
fn embedded_streams_are_tried_beside_the_users_which_is_not_touched() {
    let place = Place::new(
        "[stream.orders]\nshards = 3\n[stream.other]\n\
         [group.billing]\nfrom = \"orders\"\nto = \"out\"\n\
         [sink.out]\nkind = \"sqlite\"\npath = \"out.db\"\ntable = \"t\"\n",
    );
    assert!(place.done(&["publish", "topology.toml", "--stream", "orders", "x"]).status.success());
    let before = std::fs::read(place.path("data/streams.db")).unwrap();
    let args = ["bench", "topology.toml", "--events", "3000", "--json"];
    let all = place.done(&args);
    let said: Json = serde_json::from_str(&all.stdout).unwrap();
    assert_eq!(said["streams"].as_array().unwrap().len(), 2);
    let first = good_of(all);
    let what = first["stream"].as_str().unwrap();
    assert!(what.starts_with("stream orders, embedded: 3 shards, 1 group of 4 members"), "{what}");
    let one =
        good_of(place.done(&[&args[..], &["--only", "stream.other", "--keys", "0"]].concat()));
    assert!(one["stream"].as_str().unwrap().starts_with("stream other, embedded: 1 shard,"));
    assert_eq!(std::fs::read(place.path("data/streams.db")).unwrap(), before);
    let mut left: Vec<_> = std::fs::read_dir(place.path("data"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("streams.db"))
        .collect();
    left.sort();
    assert_eq!(left, [""; 0]);
}

#[test]
fn killed_members_lose_and_double_nothing_and_a_folder_it_made_is_gone() {
    let place = Place::new("");
    checked_in_order(&good(&place, "embedded:new/streams.db", &KILLED));
    assert!(!place.path("new").exists());
}

#[test]
fn redis_keeps_its_promises_and_has_no_key_left() {
    let (redis, place) = (Redis::start(), Place::new(""));
    cli(redis.port, &["SET", "theirs", "1"]);
    checked_in_order(&good(&place, &redis.url(), &KILLED));
    assert_eq!(cli(redis.port, &["KEYS", "*"]), "theirs");
    let unordered = good(&place, &redis.url(), &["--ordered=false", "--shards", "1"]);
    assert_eq!(unordered["out_of_order"], Json::Null);
    assert_eq!(cli(redis.port, &["KEYS", "*"]), "theirs");
}

#[test]
fn a_redis_cluster_keeps_its_promises_and_has_no_key_left() {
    let (cluster, place) = (RedisCluster::start(), Place::new(""));
    checked_in_order(&good(&place, &cluster.urls()[0], &KILLED));
    for url in cluster.urls() {
        let port = url.trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
        assert_eq!(cli(port, &["KEYS", "*"]), "", "{url}");
    }
}

#[test]
fn postgres_keeps_its_promises_and_has_no_row_left() {
    let (postgres, place) = (Postgres::shared(), Place::new(""));
    let url = postgres.database();
    checked_in_order(&good(&place, &url, &KILLED));
    let database = url.rsplit_once('/').unwrap().1;
    for table in [
        "streams",
        "messages",
        "offsets",
        "checkpoints",
        "groups",
        "cursors",
        "leases",
        "members",
        "owners",
        "dead",
    ] {
        let count = postgres.psql(database, &format!("SELECT count(*) FROM aqueduct.{table}"));
        assert_eq!(count, "0", "{table}");
    }
}

#[test]
fn rabbitmq_keeps_its_promises_and_has_neither_queue_nor_exchange_left() {
    let (rabbit, place) = (Rabbit::shared(), Place::new(""));
    let url = rabbit.vhost();
    let vhost = url.rsplit_once('/').unwrap().1;
    let stream = good(&place, &url, &KILLED);
    assert_eq!((&stream["delivered"], &stream["out_of_order"]), (&twice(), &Json::Null));
    assert!(stream["killed"].as_u64().unwrap() >= 1);
    let list = |what: &str| rabbit.ctl(&["-q", what, "-p", vhost, "name", "--no-table-headers"]);
    assert_eq!(list("list_queues").trim(), "");
    let exchanges = list("list_exchanges");
    let own = exchanges.lines().filter(|name| !name.is_empty() && !name.starts_with("amq."));
    assert_eq!(own.collect::<Vec<_>>(), [""; 0]);
    let asked = place.done(&["bench", "--stream", &url, "--ordered"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(asked.stderr.contains("the stream is of kind rabbitmq"), "{}", asked.stderr);
    assert!(!asked.stderr.contains("--only"), "{}", asked.stderr);
}

#[test]
fn at_a_rate_no_more_is_published_than_was_due() {
    let place = Place::new("");
    let args = ["bench", "--stream", "embedded:s.db", "--for", "2s", "--rate", "2000/s", "--json"];
    let stream = good_of(place.done(&args));
    let published = stream["published"].as_u64().unwrap();
    assert!((1..=4004).contains(&published), "{published}");
}

/// A bench that goes on until it is stopped, and has begun; its stream's name.
fn begun(place: &Place, url: &str) -> (Running, String) {
    let args = ["bench", "--stream", url, "--for", "10m", "--patience", "2s"];
    let running = place.start_command(&args, &[], place.port);
    eventually("a name", || running.log().contains("--remove bench-"));
    let log = running.log();
    let (_, rest) = log.split_once("--remove ").unwrap();
    let name = rest.split_whitespace().next().unwrap().to_owned();
    (running, name)
}

#[test]
fn one_that_is_stopped_says_so_and_leaves_nothing_and_one_that_is_killed_is_removed_by_its_name() {
    let (redis, place) = (Redis::start(), Place::new(""));
    let keys = || cli(redis.port, &["KEYS", "*"]);
    let (running, _) = begun(&place, &redis.url());
    eventually("a stream", || keys().contains("bench-"));
    assert_eq!(running.stop().code(), Some(1));
    assert_eq!(keys(), "");
    let (running, name) = begun(&place, &redis.url());
    eventually("events", || keys().contains(&name));
    running.kill();
    assert!(keys().contains(&name));
    let removed = place.done(&["bench", "--stream", &redis.url(), "--remove", &name]);
    assert!(removed.status.success(), "{}", removed.stderr);
    assert_eq!(keys(), "");
    let wrong = place.done(&["bench", "--stream", &redis.url(), "--remove", "orders"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_server_that_goes_away_is_a_verdict_that_says_what_is_left() {
    let (mut redis, place) = (Redis::start(), Place::new(""));
    let (mut running, name) = begun(&place, &redis.url());
    let holds = |shard| cli(redis.port, &["XLEN", &format!("{name}:{{{shard}}}")]) != "0";
    eventually("events", || (0..8).any(&holds));
    redis.kill();
    assert_eq!(running.wait().code(), Some(1));
    eventually("all it said", || running.log().contains("not every verdict"));
    let said = running.output();
    let verdict = said.lines().find(|line| line.contains("verdict")).unwrap();
    assert!(verdict.contains("broken: cannot "), "{verdict}");
    assert!(verdict.contains(&format!("--remove {name}")), "{verdict}");
    assert!(verdict.contains(&redis.port.to_string()), "no address in {verdict}");
}

#[test]
fn what_makes_no_sense_or_is_not_there_is_said_without_a_secret() {
    let place = Place::new("");
    for (args, code, said) in [
        (&["--stream", "redis://:hunter2@127.0.0.1:1"][..], 1, "127.0.0.1:1"),
        (&["--stream", "http://u:hunter2@h"], 2, "no stream can be at such a URL"),
        (&["--stream", "embedded:s.db", "--rate", "0/s"], 2, "--rate"),
        (&["--stream", "embedded:s.db", "--body", "big"], 2, "--body"),
        (&["nowhere.toml"], 2, "nowhere.toml"),
        (&[], 2, "<FILE>"),
    ] {
        let done = place.done(&[&["bench"], args].concat());
        assert_eq!(done.status.code(), Some(code), "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(said), "{}", done.stderr);
        assert!(!done.stderr.contains("hunter2"), "{}", done.stderr);
    }
}
