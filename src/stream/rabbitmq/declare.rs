//! What has to be at the broker before the first event: the exchange, and every queue of every
//! group of the file. What is there already is used as it is.

use anyhow::{Context, Result};
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind, Queue};

use super::link::{Link, answer, code, explain};
use super::names::Names;
use crate::stream::{StreamSpec, shards};

/// Deliveries of one message after which a quorum queue gives it up by itself: never, in effect.
/// Newer brokers would after 20, and without a word.
const DELIVERIES_MAX: i64 = 1_000_000_000;

/// Declares all of it. Whether a queue was made. Errs where the stream has another number of shards.
pub(super) async fn declare(
    link: &Link,
    names: &Names,
    spec: &StreamSpec,
    quorum: bool,
) -> Result<bool> {
    let mut made = false;
    let mut channel = link.channel().await?;
    let kind = if names.shards > 1 { ExchangeKind::Direct } else { ExchangeKind::Fanout };
    let word = if names.shards > 1 { "direct" } else { "fanout" };
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let declared =
        channel.exchange_declare(names.exchange.clone(), kind, options, FieldTable::default());
    let what = format!("declare the durable {word} exchange `{}`", names.exchange);
    if let Err(error) = answer(&what, declared).await {
        // One shard and several have exchanges of different kinds.
        if has_exchange(link, &names.number).await? {
            record(link, names, spec).await?;
        }
        return Err(error);
    }
    record(link, names, spec).await?;
    for group in &names.groups {
        for (shard, queue) in group.queues.iter().enumerate() {
            channel = ensure(link, channel, queue, quorum, &mut made).await?;
            let bound = channel.queue_bind(
                queue.clone(),
                names.exchange.clone(),
                names.routing_key(shard as u32),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            answer(&format!("bind queue `{queue}` to exchange `{}`", names.exchange), bound)
                .await?;
        }
        channel = ensure(link, channel, &group.suspects, quorum, &mut made).await?;
    }
    for queue in &names.dead {
        channel = ensure(link, channel, queue, quorum, &mut made).await?;
    }
    Ok(made)
}

/// Records how many shards there are, or errs where the number is another one. It never changes:
/// nothing at a broker could keep who publishes by the old one from doing so.
///
/// The record is an exchange that nothing is published to; its alternate exchange, of which there is
/// none, is named after the number. A broker compares that when an exchange is declared again.
async fn record(link: &Link, names: &Names, spec: &StreamSpec) -> Result<()> {
    let mut arguments = FieldTable::default();
    let number = AMQPValue::LongString(format!("{}.{}", names.number, names.shards).into());
    arguments.insert("alternate-exchange".into(), number);
    let (channel, name) = (link.channel().await?, &names.number);
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let made = channel.exchange_declare(name.clone(), ExchangeKind::Fanout, options, arguments);
    let what = format!("declare the exchange `{name}`");
    match answer(&what, async { Ok(made.await) }).await? {
        Ok(()) => Ok(()),
        Err(error) => match recorded(&error.to_string(), name.as_str()) {
            Some(number) if number != names.shards => {
                let way = "give it another `exchange`, and its groups another `queue`";
                Err(shards::fixed(spec, number, way))
            }
            _ => Err(explain(error)).context(what),
        },
    }
}

/// The number in ``inequivalent arg …: received 'NAME.4' but current is 'NAME.8'``.
fn recorded(refusal: &str, name: &str) -> Option<u32> {
    let (_, current) = refusal.split_once("but current is")?;
    let (_, number) = current.split_once(&format!("{name}."))?;
    number.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// Sees to it that a queue is there. The broker closes a channel that asked for one that is not:
/// the one to go on with comes back.
async fn ensure(
    link: &Link,
    channel: Channel,
    queue: &ShortString,
    quorum: bool,
    made: &mut bool,
) -> Result<Channel> {
    let (channel, found) = look(link, channel, queue).await?;
    if found.is_none() {
        let options = QueueDeclareOptions::durable();
        let declared = channel.queue_declare(queue.clone(), options, arguments(quorum));
        answer(&format!("declare queue `{queue}`"), declared).await?;
        *made = true;
    }
    Ok(channel)
}

/// Looks for a queue.
async fn look(
    link: &Link,
    channel: Channel,
    queue: &ShortString,
) -> Result<(Channel, Option<Queue>)> {
    match state(&channel, queue).await? {
        Ok(found) => Ok((channel, Some(found))),
        Err(error) if code(&error) == Some(404) => Ok((link.channel().await?, None)),
        Err(error) => Err(explain(error)).with_context(|| format!("failed to look at `{queue}`")),
    }
}

/// Asks for a queue's state.
async fn state(channel: &Channel, queue: &ShortString) -> Result<lapin::Result<Queue>> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let asked = channel.queue_declare(queue.clone(), options, FieldTable::default());
    // The refusal is for the caller to judge, the silence is not.
    answer("ask for a queue's state", async { Ok(asked.await) }).await
}

/// How many messages are ready in a queue that must be there, and how many consumers it has.
pub(super) async fn count(channel: &Channel, queue: &ShortString) -> Result<(u64, u64)> {
    let found = state(channel, queue).await?.map_err(explain);
    let found = found.with_context(|| format!("failed to look at queue `{queue}`"))?;
    Ok((found.message_count().into(), found.consumer_count().into()))
}

/// Removes a queue and what is in it. `false`: there was none.
pub(super) async fn delete(link: &Link, queue: &ShortString) -> Result<bool> {
    // A broker says the same of a queue that was there and of one that was not.
    let (channel, found) = look(link, link.channel().await?, queue).await?;
    let gone = channel.queue_delete(queue.clone(), QueueDeleteOptions::default());
    answer(&format!("delete queue `{queue}`"), gone).await?;
    Ok(found.is_some())
}

fn arguments(quorum: bool) -> FieldTable {
    let mut arguments = FieldTable::default();
    let kind = if quorum { "quorum" } else { "classic" };
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    if quorum {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERIES_MAX));
    }
    arguments
}

/// Removes an exchange, where it is there.
pub(super) async fn delete_exchange(link: &Link, exchange: &ShortString) -> Result<()> {
    let channel = link.channel().await?;
    let gone = channel.exchange_delete(exchange.clone(), ExchangeDeleteOptions::default());
    answer(&format!("delete exchange `{exchange}`"), gone).await
}

/// Whether an exchange is there.
pub(super) async fn has_exchange(link: &Link, name: &ShortString) -> Result<bool> {
    let channel = link.channel().await?;
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let asked = channel.exchange_declare(
        name.clone(),
        ExchangeKind::Fanout,
        options,
        FieldTable::default(),
    );
    match answer("ask for an exchange", async { Ok(asked.await) }).await? {
        Ok(()) => Ok(true),
        Err(error) if code(&error) == Some(404) => Ok(false),
        Err(error) => Err(explain(error)).with_context(|| format!("failed to look at `{name}`")),
    }
}

/// Returns when the broker has heard all that was said on a channel before: it answers in order, and
/// this is the cheapest thing to ask.
pub(super) async fn hear(channel: &Channel, exchange: &ShortString) -> Result<()> {
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let kind = ExchangeKind::Fanout;
    let asked = channel.exchange_declare(exchange.clone(), kind, options, FieldTable::default());
    answer("be heard", asked).await
}

/// Makes a durable exchange that nothing is published to.
pub(super) async fn mark(link: &Link, name: &ShortString) -> Result<()> {
    let channel = link.channel().await?;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let made = channel.exchange_declare(
        name.clone(),
        ExchangeKind::Fanout,
        options,
        FieldTable::default(),
    );
    answer(&format!("declare the exchange `{name}`"), made).await
}
