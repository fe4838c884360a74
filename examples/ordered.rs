//! Pulls orders from an ordered group and books each in a SQLite file, once, and those of a customer
//! in the order in which they were published. Ctrl-C ends it.
//!
//! ```text
//! cargo run --example ordered -- [URL] [STREAM] [GROUP] [BOOK]
//!
//! SHARDS=8 cargo run --example producer -- embedded:data/streams.db orders 100
//! SHARDS=8 cargo run --example ordered -- embedded:data/streams.db orders ledger ledger.db
//! ```
//!
//! Start as many as you like: each shard is one's at a time. Kill any of them (`kill -9` too), or stop
//! one for longer than its lease and continue it: another has its shards then, and the book turns it
//! away. Beside the arguments, the environment: `NAME` (of this consumer, `worker`), `SHARDS` (1),
//! `BATCH` (100), `LEASE_MS` (20000), `ATTEMPTS` (5), `WORK_MS` (0: how long an order takes).

use std::env::var;
use std::time::Duration;

use anyhow::{Context, Result};
use aqueduct::{Batch, Received, Stream};
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Connection, SqliteConnection};

#[derive(Deserialize)]
struct Order {
    number: i64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "embedded:data/streams.db".to_owned());
    let stream = args.next().unwrap_or_else(|| "orders".to_owned());
    let group = args.next().unwrap_or_else(|| "ledger".to_owned());
    let mut book = open(&args.next().unwrap_or_else(|| "ledger.db".to_owned())).await?;
    let batch = usize::try_from(number("BATCH", 100)?)?;

    let orders = Stream::at_cluster(url.split(','))
        .name(&stream)
        .shards(u32::try_from(number("SHARDS", 1)?).context("SHARDS")?)
        .open()
        .await?;
    let mut consumer = orders
        .group(&group)
        .ordered()
        .lease(Duration::from_millis(number("LEASE_MS", 20_000)?))
        .attempts(u32::try_from(number("ATTEMPTS", 5)?).context("ATTEMPTS")?)
        .consumer(&var("NAME").unwrap_or_else(|_| "worker".to_owned()))
        .await?;
    println!("waiting for orders of {group} on {stream}");

    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let pulled = tokio::select! {
            pulled = consumer.pull(batch, Duration::from_secs(1)) => pulled,
            stopped = &mut stop => { stopped?; break }
        };
        match pulled {
            Ok(batch) => handle(&batch, &mut book).await?,
            // The backend is away. It will be back; the next pull looks for it.
            Err(error) if error.is_temporary() => eprintln!("{:#}", anyhow::Error::new(error)),
            Err(error) => return Err(error.into()),
        }
    }

    // The shards are given up, so that others have them at once and not after the lease.
    consumer.close().await?;
    book.close().await?;
    println!("stopped well");
    Ok(())
}

async fn handle(batch: &Batch, book: &mut SqliteConnection) -> Result<()> {
    let work = Duration::from_millis(number("WORK_MS", 0)?);
    // What waits for one that failed, or is another's by now, does not come.
    for message in batch {
        tokio::time::sleep(work).await;
        let Ok(order) = message.json::<Order>() else {
            // It comes again, alone, and what is behind it in its shard waits for it.
            batch.retry(message, "this is no order").await?;
            continue;
        };
        if !store(message, &order, book).await? {
            println!("turned away from shard {}: another one has it", message.shard());
            batch.release().await?;
            return Ok(());
        }
    }
    let settled = batch.ack().await?;
    if !settled.lost.is_empty() {
        println!("{} orders went to another consumer as well", settled.lost.len());
    }
    Ok(())
}

/// Books an order, however often it is delivered, once. `false`: its shard has a newer owner, which
/// has booked something already.
async fn store(message: &Received, order: &Order, book: &mut SqliteConnection) -> Result<bool> {
    let fence = message.fence().context("the group is not ordered")?;
    let mut tx = book.begin().await?;
    let newest = sqlx::query(
        "INSERT INTO fences (grp, shard, epoch) VALUES ($1, $2, $3) ON CONFLICT (grp, shard)
         DO UPDATE SET epoch = excluded.epoch WHERE fences.epoch <= excluded.epoch",
    );
    let newest = newest.bind(&*fence.group).bind(fence.shard).bind(fence.epoch);
    if newest.execute(&mut *tx).await?.rows_affected() == 0 {
        return Ok(false);
    }
    let booked = sqlx::query(
        "INSERT INTO ledger (event, customer, number, shard, epoch) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (event) DO NOTHING",
    );
    let booked = booked.bind(message.id().to_string()).bind(message.key());
    let booked = booked.bind(order.number).bind(fence.shard).bind(fence.epoch);
    let booked = booked.execute(&mut *tx).await?.rows_affected() == 1;
    tx.commit().await?;
    let what = if booked { "booked" } else { "was booked before:" };
    let customer = message.key().unwrap_or("nobody");
    println!("{what} order {} of {customer} (shard {})", order.number, fence.shard);
    Ok(true)
}

async fn open(path: &str) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(30));
    let mut book = SqliteConnection::connect_with(&options).await?;
    for table in [
        "CREATE TABLE IF NOT EXISTS ledger (place INTEGER PRIMARY KEY AUTOINCREMENT,
         event TEXT UNIQUE, customer TEXT, number INTEGER, shard INTEGER, epoch INTEGER)",
        "CREATE TABLE IF NOT EXISTS fences (grp TEXT, shard INTEGER, epoch INTEGER,
         PRIMARY KEY (grp, shard))",
    ] {
        sqlx::query(table).execute(&mut book).await?;
    }
    Ok(book)
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> Result<u64> {
    match var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(default),
    }
}
