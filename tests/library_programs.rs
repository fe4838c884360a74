//! The examples as real programs, killed and stopped in the middle, beside each other and beside
//! `aqueduct run`, with an oracle of what was published against what was booked.

#[path = "support/orders.rs"]
mod orders;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orders::{Orders, PATIENCE, Program, within};
use process::eventually;
use rustix::process::Signal;
use servers::{Postgres, Rabbit, Redis, RedisCluster};

/// Two consumers; one is killed in the middle of a batch, another is stopped for longer than its
/// lease in the middle of one, and the last has to end well.
fn every_order_is_booked_once(orders: Orders) {
    let slow = [("LEASE_MS", "1000"), ("WORK_MS", "20"), ("BATCH", "50")];
    orders.publish(200, &[("BATCH", "25")]);
    // The same orders again, as by a producer that was killed and does not know how far it came.
    orders.publish(100, &[("BATCH", "25")]);
    let killed = orders.consume("killed", &slow);
    eventually("the first consumer works", || killed.handled() >= 10);
    killed.signal(Signal::KILL);
    let seen = killed.handled();
    drop(killed);
    let stopped = orders.consume("stopped", &slow);
    eventually("the second consumer works", || stopped.handled() >= 10);
    stopped.signal(Signal::STOP);
    let last = orders.consume("last", &[("LEASE_MS", "1000")]);
    // What one handled and had not settled when it was stopped, the other handles as its next
    // delivery. (The same order published twice is delivered anew.)
    let both = || {
        let other = last.said();
        let next = |line: &str| {
            let (order, rest) = line.split_once("order ")?.1.split_once(" of ")?;
            let (customer, delivery) = rest.split_once(", delivery ")?;
            let delivery: u32 = delivery.split_once(',')?.0.parse().ok()?;
            Some(format!("order {order} of {customer}, delivery {},", delivery + 1))
        };
        stopped.said().lines().filter_map(next).any(|next| other.contains(&next))
    };
    let mut overtaken = within(PATIENCE, || orders.booked() == 200 && both());
    stopped.signal(Signal::CONT);
    // RabbitMQ knows nothing of leases: what is with a connection stays there. And a process that is
    // stopped within a write keeps a SQLite file locked: then it is stopped once more.
    while orders.booked() < 200 && !orders.url.starts_with("amqp") {
        std::thread::sleep(Duration::from_millis(15));
        stopped.signal(Signal::STOP);
        overtaken = within(PATIENCE, || orders.booked() == 200 && both());
        stopped.signal(Signal::CONT);
    }
    eventually("all is booked", || orders.booked() == 200);
    println!("it was overtaken while it was stopped: {overtaken}");
    let told = || !overtaken || stopped.said().contains("went to another consumer as well");
    if !within(PATIENCE, told) {
        panic!("who was overtaken is not told: {}\n--- last:\n{}", stopped.said(), last.said());
    }
    orders.check(200);
    assert!(seen + stopped.handled() + last.handled() >= 200);

    // A consumer that is asked to stop says so, with nothing left in its hands.
    for consumer in [stopped, last] {
        consumer.signal(Signal::INT);
        let (status, said) = consumer.end();
        assert!(status.success() && said.contains("stopped well"), "{said}");
    }
    // Nothing is left but what was published twice, if that.
    orders.publish(10, &[("FIRST", "201")]);
    let idle = orders.consume("idle", &[]);
    eventually("the next ones are booked", || orders.booked() == 210);
    orders.check(210);
    idle.signal(Signal::INT);
    assert!(idle.end().0.success());
}

#[test]
fn embedded() {
    every_order_is_booked_once(Orders::at("embedded:streams.db"));
}

#[test]
fn redis() {
    let server = Redis::start();
    every_order_is_booked_once(Orders::at(server.url()));
}

#[test]
fn redis_cluster() {
    let cluster = RedisCluster::start();
    every_order_is_booked_once(Orders::at(cluster.urls().join(",")));
}

#[test]
fn postgres() {
    every_order_is_booked_once(Orders::at(Postgres::shared().database()));
}

#[test]
fn rabbitmq() {
    every_order_is_booked_once(Orders::at(Rabbit::shared().vhost()));
}

/// The consumer of the next test, run as a process of its own: one order takes it down.
#[test]
#[ignore = "a part of another test"]
fn a_consumer_that_an_order_takes_down() {
    let Ok(url) = std::env::var("ORDERS_URL") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let orders = aqueduct::Stream::at(url).name("orders").shards(3).open().await.unwrap();
        let group = orders.group("billing").lease(Duration::from_millis(500)).attempts(2);
        let mut consumer = group.consumer("worker").await.unwrap();
        loop {
            let batch = consumer.pull(100, Duration::from_secs(1)).await.unwrap();
            let number = |it: &aqueduct::Received| {
                it.json::<serde_json::Value>().unwrap()["number"].as_u64().unwrap()
            };
            if let Some(poison) = batch.iter().find(|it| number(it) == 17) {
                println!("attempt {} in a batch of {}", poison.attempt(), batch.len());
                std::process::abort();
            }
            batch.ack().await.unwrap();
            batch.iter().for_each(|message| println!("handled {}", number(message)));
        }
    });
}

/// It is delivered among others twice, then alone as often as it may be; all others are handled.
fn an_order_that_takes_its_consumers_down_is_a_dead_letter(orders: Orders, kind: &str) {
    orders.place.write_topology(&format!("[stream.orders]\n{kind}\nshards = {}\n", orders.shards));
    orders.publish(60, &[]);
    let mut said = String::new();
    let mut deaths = 0;
    let start = Instant::now();
    let handled =
        |said: &str| (1..=60).filter(|n| said.contains(&format!("handled {n}\n"))).count();
    // The life after the last death finds that it is spent.
    let letters = || orders.place.done(&["dead", "list", "topology.toml", "orders"]);
    while handled(&said) < 59 || !letters().stdout.contains("\"number\":17") {
        assert!(start.elapsed() < Duration::from_secs(60), "{said}");
        let log = orders.place.path("poisoned.log");
        let file = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "a_consumer_that_an_order_takes_down",
            "--exact",
            "--ignored",
            "--nocapture",
        ]);
        command.env("ORDERS_URL", &orders.url).current_dir(orders.place.dir.path());
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let mut program = Program { child: command.spawn().unwrap(), log };
        let ended = within(PATIENCE, || program.child.try_wait().unwrap().is_some());
        deaths += u32::from(ended);
        said.push_str(&program.said());
    }
    let dead = letters();
    assert_eq!((deaths, dead.stdout.matches("\"number\"").count()), (4, 1), "{said}");
    for alone in ["attempt 1 in a batch of 1\n", "attempt 2 in a batch of 1\n"] {
        assert_eq!(said.matches(alone).count(), 1, "{said}");
    }
    assert_eq!(handled(&said), 59);
}

#[test]
fn poison_on_embedded() {
    let orders = Orders::at("embedded:streams.db");
    an_order_that_takes_its_consumers_down_is_a_dead_letter(orders, "path = \"streams.db\"");
}

#[test]
fn poison_on_redis() {
    let server = Redis::start();
    let orders = Orders::at(server.url());
    let kind = format!("kind = \"redis\"\nurl = {}", urls(&orders.url));
    an_order_that_takes_its_consumers_down_is_a_dead_letter(orders, &kind);
}

#[test]
fn poison_on_postgres() {
    let orders = Orders::at(Postgres::shared().database());
    let kind = format!("kind = \"postgres\"\nurl = {}", urls(&orders.url));
    an_order_that_takes_its_consumers_down_is_a_dead_letter(orders, &kind);
}

#[test]
fn poison_on_rabbitmq() {
    let orders = Orders::at(Rabbit::shared().vhost());
    let kind = format!("kind = \"rabbitmq\"\nurl = {}", urls(&orders.url));
    an_order_that_takes_its_consumers_down_is_a_dead_letter(orders, &kind);
}

/// What a producer of the library publishes is stored by `aqueduct run`, and what that reads from a
/// stream is what a consumer of the library gets: the same events.
fn the_program_and_the_library_see_the_same(orders: Orders, kind: &str) {
    static PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    orders.place.write_topology(&format!(
        "[stream.orders]\n{kind}\nshards = {}\n\
         [group.store]\nfrom = \"orders\"\nto = \"db\"\n\
         [sink.db]\nkind = \"sqlite\"\npath = \"store.db\"\ntable = \"store\"\ncreate = true\n\
         columns = {{ id = \"@id\", number = {{ from = \"number\", type = \"bigint\" }}, \
         source = \"@source\", key = \"@key\", trace = \"@trace\", stream = \"@stream\" }}\n",
        orders.shards
    ));
    let mut run = orders.place.start();
    eventually("the group of the topology is there", || {
        assert!(run.exited().is_none(), "{}", run.log());
        let status = orders.place.done(&["status", "topology.toml", "--once"]);
        status.status.success() && status.stdout.contains("store")
    });
    orders.publish(60, &[("TRACEPARENT", PARENT)]);
    let consumer = orders.consume("consumer", &[]);
    eventually("the library's consumer has all", || orders.booked() == 60);
    let all = "SELECT count(*) FROM store";
    eventually("the sink has all", || orders.place.count("store.db", all) == 60);
    type Row = (String, i64);
    let book: Vec<Row> = orders.place.rows("book.db", "SELECT id, number FROM book ORDER BY id");
    let store: Vec<Row> = orders.place.rows("store.db", "SELECT id, number FROM store ORDER BY id");
    assert_eq!(book, store);
    let said = consumer.said();
    let rest: Vec<(i64, String, String, String, String)> =
        orders.place.rows("store.db", "SELECT number, source, key, trace, stream FROM store");
    for (number, source, key, trace, stream) in rest {
        assert_eq!((&*source, &*stream), ("shop", "orders"));
        assert_eq!((&*trace, key.clone()), (&PARENT[3..35], format!("customer-{}", number % 10)));
        let line = format!("order {number} of {key} (shard ");
        let line = said.lines().find(|it| it.contains(&line)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.ends_with(&format!("delivery 1, trace {PARENT})")), "{line}");
    }
    assert!(run.stop().success());
}

fn urls(text: &str) -> String {
    let urls: Vec<String> = text.split(',').map(|url| format!("\"{url}\"")).collect();
    if let [one] = &urls[..] { one.clone() } else { format!("[{}]", urls.join(", ")) }
}

#[test]
fn the_same_on_embedded() {
    let orders = Orders::at("embedded:streams.db");
    the_program_and_the_library_see_the_same(orders, "path = \"streams.db\"");
}

#[test]
fn the_same_on_redis() {
    let server = Redis::start();
    let orders = Orders::at(server.url());
    let kind = format!("kind = \"redis\"\nurl = {}", urls(&orders.url));
    the_program_and_the_library_see_the_same(orders, &kind);
}

#[test]
fn the_same_on_redis_cluster() {
    let cluster = RedisCluster::start();
    let orders = Orders::at(cluster.urls().join(","));
    let kind = format!("kind = \"redis\"\nurl = {}", urls(&orders.url));
    the_program_and_the_library_see_the_same(orders, &kind);
}

#[test]
fn the_same_on_postgres() {
    let orders = Orders::at(Postgres::shared().database());
    let kind = format!("kind = \"postgres\"\nurl = {}", urls(&orders.url));
    the_program_and_the_library_see_the_same(orders, &kind);
}

#[test]
fn the_same_on_rabbitmq() {
    let orders = Orders::at(Rabbit::shared().vhost());
    let kind = format!("kind = \"rabbitmq\"\nurl = {}", urls(&orders.url));
    the_program_and_the_library_see_the_same(orders, &kind);
}
