//! An ordered consumer as a real program, several of which are killed, told to end, and stopped for
//! longer than their lease.

#[path = "support/orders.rs"]
mod orders;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::time::Duration;

use orders::{Orders, Program};
use process::eventually;
use rustix::process::Signal;
use servers::{Postgres, Redis, RedisCluster};

const TABLES: &str =
    "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('ledger', 'fences')";
const AUDIT: [&str; 2] = [
    "CREATE TABLE stale (shard INTEGER)",
    "CREATE TRIGGER audit AFTER UPDATE ON fences WHEN new.epoch < old.epoch
     BEGIN INSERT INTO stale VALUES (new.shard); END",
];

/// Consumers of an ordered group are killed, told to end, and stopped for longer than their lease,
/// while producers publish; what comes of it is told by a store that each of them writes, fenced by
/// the epoch of its shard.
fn each_key_is_handled_in_order(orders: Orders) {
    const KEYS: u64 = 12;
    const EACH: u64 = 100;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let producers = publish_by_key(&orders, KEYS, EACH);
    let ledger = |sql: &str| match orders.place.path("ledger.db").exists() {
        true => orders.place.count("ledger.db", sql),
        false => 0,
    };
    let all = "SELECT count(*) FROM ledger";
    let mut names = 0..;
    let mut start = || orders.keep_in_order(&format!("ledger-{}", names.next().unwrap()));
    let mut running: Vec<Program> = (0..3).map(|_| start()).collect();
    eventually("the ledger is there", || orders.place.path("ledger.db").exists());
    // What a store lets through of an owner that another one had followed is written down, also where
    // it was stored before.
    eventually("its tables are", || ledger(TABLES) == 2);
    for sql in AUDIT {
        orders.place.count("ledger.db", sql);
    }
    eventually("something is in it", || running.iter().any(|it| it.said().contains("booked")));
    let mut said = String::new();
    for _ in 0..16 {
        std::thread::sleep(Duration::from_millis(random.u64(50..400)));
        let place = random.usize(0..running.len());
        match random.u8(0..4) {
            0 => running[place].signal(Signal::KILL),
            1 => running[place].signal(Signal::INT),
            _ => {
                running[place].signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(random.u64(650..1100)));
                running[place].signal(Signal::CONT);
                continue;
            }
        }
        let (_, log) = running.swap_remove(place).end();
        said.push_str(&log);
        running.push(start());
    }
    producers.join().unwrap();
    eventually("all is booked", || ledger(all) >= (KEYS * EACH) as i64);
    for consumer in running {
        eventually("it can be asked to end", || consumer.catches_interrupts());
        consumer.signal(Signal::INT);
        let (status, log) = consumer.end();
        assert!(status.success() && log.contains("stopped well"), "{log}");
        said.push_str(&log);
    }
    println!("turned away {} times", said.matches("turned away").count());
    let rows: Vec<(String, i64, i64, i64)> = orders
        .place
        .rows("ledger.db", "SELECT customer, number, shard, epoch FROM ledger ORDER BY place");
    let mut by_key = std::collections::BTreeMap::<String, Vec<i64>>::new();
    let mut epochs = std::collections::BTreeMap::<i64, i64>::new();
    for (customer, number, shard, epoch) in rows {
        by_key.entry(customer).or_default().push(number);
        let before = epochs.insert(shard, epoch);
        assert!(before <= Some(epoch), "shard {shard}: {epoch} after {before:?}");
    }
    assert_eq!(ledger("SELECT count(*) FROM stale"), 0, "stores by who was followed");
    assert_eq!(by_key.len() as u64, KEYS);
    for (key, numbers) in by_key {
        assert_eq!(numbers, (1..=EACH as i64).collect::<Vec<_>>(), "{key}");
    }
    assert!(epochs.len() > 1, "{epochs:?}");
}

/// Producers that race, each with keys of its own, on a thread of their own.
fn publish_by_key(orders: &Orders, keys: u64, each: u64) -> std::thread::JoinHandle<()> {
    let url = match orders.url.strip_prefix("embedded:") {
        Some(file) => format!("embedded:{}", orders.place.path(file).display()),
        None => orders.url.clone(),
    };
    let shards = orders.shards;
    let publish = async move |producer: u64| {
        let stream = aqueduct::Stream::at_cluster(url.split(',')).name("orders").shards(shards);
        let stream = stream.open().await.unwrap();
        stream.group("ledger").ordered().create().await.unwrap();
        let producer_of = stream.producer("shop").await.unwrap();
        let mut shop = producer_of.patience(Duration::from_secs(60));
        for number in 1..=each {
            let of = (0..keys).filter(|key| key % 3 == producer);
            let message = |key: u64| {
                let order = serde_json::json!({ "number": number });
                aqueduct::Message::json(&order).unwrap().key(format!("customer-{key}"))
            };
            let messages: Vec<_> = of.map(message).collect();
            shop.publish(&messages).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { tokio::join!(publish(0), publish(1), publish(2)) });
    })
}

#[test]
fn embedded() {
    each_key_is_handled_in_order(Orders::at("embedded:streams.db"));
}

#[test]
fn redis() {
    let server = Redis::start();
    each_key_is_handled_in_order(Orders::at(server.url()));
}

#[test]
fn redis_cluster() {
    let cluster = RedisCluster::start();
    each_key_is_handled_in_order(Orders::at(cluster.urls().join(",")));
}

#[test]
fn postgres() {
    each_key_is_handled_in_order(Orders::at(Postgres::shared().database()));
}
