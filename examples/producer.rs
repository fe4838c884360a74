//! Publishes orders to a stream, in batches.
//!
//! ```text
//! cargo run --example producer -- [URL] [STREAM] [COUNT]
//!
//! cargo run --example producer -- embedded:data/streams.db orders 100
//! cargo run --example producer -- redis://localhost:6379 orders 100
//! cargo run --example producer -- redis://node-1:6379,redis://node-2:6379 orders 100   (a Cluster)
//! ```
//!
//! Beside the arguments, the environment: `GROUP` (the group that is created first, `billing`:
//! RabbitMQ keeps only what some group wants), `SHARDS` (1), `CUSTOMERS` (10: the keys), `BATCH`
//! (10: orders published at once), `FIRST` (1: the number of the first order). An order has the same
//! id however often it is published, so this may be killed and started again.

use std::env::var;
use std::time::Instant;

use anyhow::{Context, Result};
use aqueduct::{Message, Stream};
use serde::Serialize;

#[derive(Serialize)]
struct Order {
    number: u64,
    customer: String,
    cents: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "embedded:data/streams.db".to_owned());
    let name = args.next().unwrap_or_else(|| "orders".to_owned());
    let count: u64 = args.next().map_or(Ok(100), |text| text.parse()).context("COUNT")?;
    let group = var("GROUP").unwrap_or_else(|_| "billing".to_owned());
    let (customers, batch) = (number("CUSTOMERS", 10)?.max(1), number("BATCH", 10)?.max(1));
    let first = number("FIRST", 1)?;

    // The URL tells the backend. Everybody who opens a stream has to name as many shards.
    let orders = Stream::at_cluster(url.split(','))
        .name(&name)
        .shards(u32::try_from(number("SHARDS", 1)?).context("SHARDS")?)
        .open()
        .await?;
    if let Some(weakness) = orders.weakness().await {
        eprintln!("beware: {weakness}");
    }

    // From here on the group misses nothing, whether a consumer of it runs or not.
    orders.group(&group).create().await?;

    // "shop" names where the events come from; ids are filed under it.
    let mut producer = orders.producer("shop").await?;

    let (start, end) = (Instant::now(), first + count);
    let mut next = first;
    while next < end {
        let numbers = next..end.min(next + batch);
        let messages = numbers.clone().map(|number| message(number, customers));
        let messages: Vec<Message> = messages.collect::<Result<_>>()?;
        // Durable when it returns. It tries for 30 s where the backend is away. These very messages
        // could be published again after an error: they keep their ids.
        let ids = producer.publish(&messages).await?;
        println!("published orders {} to {}, first id {}", numbers.start, numbers.end - 1, ids[0]);
        next = numbers.end;
    }
    println!("{count} orders are in {name}, after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn message(number: u64, customers: u64) -> Result<Message> {
    let customer = format!("customer-{}", number % customers);
    let order = Order { number, customer: customer.clone(), cents: 100 * number };
    let message = Message::json(&order)?
        // All orders of a customer go to one shard, in order.
        .key(customer)
        // Whoever publishes order 17 publishes this event: also this program, started again.
        .idempotency(format!("order-{number}"));
    // A program with OpenTelemetry puts the present span's `traceparent` here.
    Ok(match var("TRACEPARENT") {
        Ok(parent) => message.traceparent(&parent),
        Err(_) => message,
    })
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> Result<u64> {
    match var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(default),
    }
}
