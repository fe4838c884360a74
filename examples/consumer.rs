//! Pulls orders from a group, books each in a SQLite file once, and acknowledges it. Ctrl-C ends it.
//!
//! ```text
//! cargo run --example consumer -- [URL] [STREAM] [GROUP] [BOOK]
//!
//! cargo run --example consumer -- embedded:data/streams.db orders billing book.db
//! ```
//!
//! Start as many as you like: they share the work. Kill any of them (`kill -9` too): the others get
//! its messages when its lease ends. Beside the arguments, the environment: `NAME` (of this consumer,
//! `worker`), `SHARDS` (1), `BATCH` (100), `LEASE_MS` (20000), `ATTEMPTS` (5), `WORK_MS` (0: how long an
//! order takes), `MOST` (stop after so many).

use std::env::var;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aqueduct::{Received, Stream};
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Connection, SqliteConnection};

#[derive(Deserialize)]
struct Order {
    number: i64,
    cents: i64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "embedded:data/streams.db".to_owned());
    let stream = args.next().unwrap_or_else(|| "orders".to_owned());
    let group = args.next().unwrap_or_else(|| "billing".to_owned());
    let mut book = open(&args.next().unwrap_or_else(|| "book.db".to_owned())).await?;
    let (most, batch) = (number("MOST", u64::MAX)?, number("BATCH", 100)?);
    let work = Duration::from_millis(number("WORK_MS", 0)?);

    let orders = Stream::at_cluster(url.split(','))
        .name(&stream)
        .shards(u32::try_from(number("SHARDS", 1)?).context("SHARDS")?)
        .open()
        .await?;
    let mut consumer = orders
        .group(&group)
        .lease(Duration::from_millis(number("LEASE_MS", 20_000)?))
        .attempts(u32::try_from(number("ATTEMPTS", 5)?).context("ATTEMPTS")?)
        .consumer(&var("NAME").unwrap_or_else(|_| "worker".to_owned()))
        .await?;
    println!("waiting for orders of {group} on {stream}");

    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    let mut done = 0;
    while done < most {
        let pulled = tokio::select! {
            // A pull may be dropped at any time: nothing is lost.
            pulled = consumer.pull(batch as usize, Duration::from_secs(1)) => pulled,
            stopped = &mut stop => { stopped?; break }
        };
        let batch = match pulled {
            Ok(batch) => batch,
            // The backend is away. It will be back; the next pull looks for it.
            Err(error) if error.is_temporary() => {
                eprintln!("{:#}", anyhow::Error::new(error));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for message in &batch {
            tokio::time::sleep(work).await;
            if let Err(error) = handle(message, &mut book).await {
                if error.is::<sqlx::Error>() {
                    // The book is at fault and not the order: no attempt is counted.
                    batch.release().await?;
                    return Err(error);
                }
                // Delivered again, alone. The last attempt makes it a dead letter.
                eprintln!("order {}, attempt {}: {error:#}", message.id(), message.attempt());
                batch.retry(message, format!("{error:#}")).await?;
            }
        }
        // All the others. Until here they were leased to this consumer, and the lease renewed.
        let settled = batch.ack().await?;
        if !settled.lost.is_empty() {
            // They took longer than the lease, and somebody else has them now. They are in the book
            // already, so it will not matter.
            println!("{} orders went to another consumer as well", settled.lost.len());
        }
        done += batch.len() as u64;
    }

    // What is left is handed back, so that others have it at once and not after the lease.
    consumer.close().await?;
    book.close().await?;
    println!("stopped well after {done} orders");
    Ok(())
}

/// Books an order under the id of its event. However often it is delivered, it is booked once.
async fn handle(message: &Received, book: &mut SqliteConnection) -> Result<()> {
    let order: Order = message.json().context("this is no order")?;
    if order.cents < 0 {
        bail!("an order of {} cents", order.cents);
    }
    // A program with OpenTelemetry would make this the parent of a span of its own.
    let parent = message.traceparent().unwrap_or("none");
    let booked = sqlx::query(
        "INSERT INTO book (id, number, cents) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
    )
    .bind(message.id().to_string())
    .bind(order.number)
    .bind(order.cents)
    .execute(book)
    .await?;
    println!(
        "{} order {} of {} (shard {}, delivery {}, trace {parent})",
        if booked.rows_affected() == 1 { "booked" } else { "was booked before:" },
        order.number,
        message.key().unwrap_or("nobody"),
        message.shard(),
        message.deliveries(),
    );
    Ok(())
}

async fn open(path: &str) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(30));
    let mut book = SqliteConnection::connect_with(&options).await?;
    let table =
        "CREATE TABLE IF NOT EXISTS book (id TEXT PRIMARY KEY, number INTEGER, cents INTEGER)";
    sqlx::query(table).execute(&mut book).await?;
    Ok(book)
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> Result<u64> {
    match var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(default),
    }
}
