//! The stream backend `rabbitmq`: an exchange, and a durable queue for each group.
//!
//! - [`link`]: connections, and what their errors mean; [`names`], [`declare`] and [`settle`]: what
//!   has to be there before the first event.
//! - [`message`]: an event as a message, also one that another program put there; [`publish`]:
//!   messages on their way, until the broker confirms them.
//! - [`writer`] and [`checkpoint`]: compare and append, with the checkpoint in `data_dir`;
//!   [`in_flight`]: what is between the two.
//! - [`reader`], [`intake`], [`hand`]: what a member gets and holds; [`suspects`]: how attempts are
//!   counted by a broker that counts none; [`dead`]: where events go when nobody wants them.
//! - [`status`]: how much is waiting.
//!
//! Nothing here connects again by itself: any error ends the life of the actor that met it, and
//! its next life opens the stream anew, declares everything anew, and only then publishes.

mod checkpoint;
mod dead;
mod declare;
mod hand;
mod in_flight;
mod intake;
mod link;
mod message;
mod names;
mod publish;
mod reader;
mod settle;
mod status;
mod suspects;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use self::checkpoint::Checkpoint;
use self::in_flight::InFlight;
use self::link::Link;
use self::message::Message;
use self::names::{GroupNames, Names};
use self::publish::Publisher;
use self::reader::Member;
use self::settle::Settling;
use self::status::Counter;
use self::writer::StreamWriter;
use super::cursor::{CursorMove, Moved, Refused, ShardCursor};
use super::{
    Backend, Capabilities, DeadLetter, Kind, Reader, ReaderSpec, StreamSpec, StreamStatus, Writer,
};
use crate::event::{Event, EventId};
use crate::source::Dead;
use crate::spec::{Complaint, Default as KeyDefault, Key, Site, Ty, Values};

/// `kind = "rabbitmq"`
pub static KIND: Kind = Kind {
    name: "rabbitmq",
    doc: "RabbitMQ: an exchange, and a durable queue for each group. It keeps no history, and \
          other programs may publish to its queues.",
    keys: &[
        Key {
            name: "url",
            ty: Ty::Url(&["amqp", "amqps"]),
            default: KeyDefault::Required,
            doc: "The broker, and the virtual host: amqp://user:password@host:5672/vhost.",
        },
        Key {
            name: "exchange",
            ty: Ty::Str,
            default: KeyDefault::Derived("the stream's name"),
            doc: "The durable exchange that events are published to: fanout, or with several \
                  shards direct, with the shard as the routing key.",
        },
        Key {
            name: "queue_type",
            ty: Ty::Choice(&["quorum", "classic"]),
            default: KeyDefault::Toml("\"quorum\""),
            doc: "What queues are made as, where they are not there yet. A classic queue is kept \
                  on one node of a cluster.",
        },
    ],
    group_keys: &[Key {
        name: "queue",
        ty: Ty::Str,
        default: KeyDefault::Derived("STREAM.GROUP"),
        doc: "The group's durable queue; one that is there is used as it is. Shard I of several \
              has QUEUE.I.",
    }],
    capabilities: Capabilities {
        foreign_identity: false,
        history: false,
        shards: true,
        transactional_checkpoint: false,
        ordered: false,
    },
    check,
    place: |spec| {
        let exchange = spec.values.opt_str("exchange").unwrap_or(&spec.name);
        format!("the exchange `{exchange}` at {}", link::place(spec.values.str("url")))
    },
    claims: |spec| match Names::new(spec) {
        Ok(names) => names.claims(&link::place(spec.values.str("url"))),
        // Who opens it says why.
        Err(_) => Vec::new(),
    },
    open: |spec, site| Box::pin(open(spec, site)),
};

fn check(values: &Values) -> Vec<Complaint> {
    let exchange = values.opt_str("exchange").unwrap_or_default();
    let mut complaints = Vec::new();
    if exchange.len() > 200 || exchange.starts_with("amq.") {
        let message = "`exchange` is no name for an exchange of one's own (at most 200 bytes, and \
                       not `amq.…`, which are the broker's)"
            .to_owned();
        complaints.push(Complaint { key: "exchange", message });
    }
    complaints
}

async fn open(spec: StreamSpec, site: Site) -> Result<Arc<dyn Backend>> {
    let names = Names::new(&spec)?;
    let url = spec.values.str("url").to_owned();
    let link = Link::connect(&url, &format!("{} {}", site.instance, spec.name)).await?;
    let quorum = spec.values.str("queue_type") != "classic";
    let declared = declare::declare(&link, &names, &spec, quorum).await;
    let made = declared.with_context(|| format!("RabbitMQ at {}", link::place(&url)))?;
    let settled = match quorum {
        true => OnceCell::new(),
        false => OnceCell::new_with(Some(())),
    };
    let counter = Counter::new(link.channel().await?);
    let in_flight = InFlight::of(&url, names.exchange.as_str());
    Ok(Arc::new(RabbitMq(Arc::new(Broker {
        url,
        spec,
        site,
        names,
        link,
        counter,
        settling: Settling { since: Instant::now(), made },
        settled,
        publisher: OnceCell::new(),
        checkpoint: OnceCell::new(),
        in_flight,
    }))))
}

/// One stream at the broker, opened.
struct Broker {
    url: String,
    spec: StreamSpec,
    site: Site,
    names: Names,
    /// To declare, count and consume with. Nothing is published on it: see [`Publisher`].
    link: Link,
    counter: Counter,
    settling: Settling,
    settled: OnceCell<()>,
    publisher: OnceCell<Publisher>,
    checkpoint: OnceCell<Mutex<Checkpoint>>,
    in_flight: Arc<InFlight>,
}

impl Broker {
    /// Publishes and waits until all of it is confirmed.
    async fn publish(&self, messages: &[Message]) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let name = format!("{} {} publisher", self.site.instance, self.spec.name);
        let publish = async {
            self.settled.get_or_try_init(|| self.settling.end(&self.link, &self.names)).await?;
            let publisher =
                self.publisher.get_or_try_init(|| Publisher::open(&self.url, &name)).await?;
            // What the broker holds now may be another's: everything has to be declared anew.
            ensure!(publisher.is_open(), "the connection is gone");
            publisher.publish(messages).await
        };
        publish.await.with_context(|| format!("RabbitMQ at {}", link::place(&self.url)))
    }

    /// Whether it does, as far as is known.
    fn takes_messages(&self) -> bool {
        self.publisher.get().is_none_or(Publisher::takes_messages)
    }

    /// The checkpoint, once it is known to be of this life of the broker.
    async fn checkpoint(&self) -> Result<&Mutex<Checkpoint>> {
        let open = async || {
            let mut checkpoint = Checkpoint::open(&self.site.data_dir, &self.spec.name).await?;
            checkpoint.attach(&self.link, self.names.exchange.as_str()).await?;
            anyhow::Ok(Mutex::new(checkpoint))
        };
        self.checkpoint.get_or_try_init(open).await
    }
}

/// Why there are no cursors.
const NO_HISTORY: &str = "a queue of RabbitMQ keeps no history, what is acked is gone from it \
                          (`embedded`, `postgres` and `redis` streams have cursors)";

struct RabbitMq(Arc<Broker>);

#[async_trait]
impl Backend for RabbitMq {
    async fn writer(&self) -> Result<Box<dyn Writer>> {
        Ok(Box::new(StreamWriter::open(self.0.clone()).await?))
    }

    async fn reader(&self, spec: ReaderSpec) -> Result<Arc<dyn Reader>> {
        Ok(Arc::new(Member::open(self.0.clone(), spec).await?))
    }

    async fn status(&self) -> Result<StreamStatus> {
        let status = self.0.status().await;
        status.with_context(|| format!("RabbitMQ at {}", link::place(&self.0.url)))
    }

    async fn peek(&self, _: usize) -> Result<Vec<Event>> {
        bail!(
            "a queue shows its messages only by handing them out, which would change their order \
             and count as deliveries (`aqueduct status` tells how many there are)"
        )
    }

    async fn drop_group(&self, group: &str) -> Result<bool> {
        let names = match self.0.names.group(group) {
            Ok(names) => names.clone(),
            Err(_) => GroupNames::by_default(&self.0.spec, group)?,
        };
        let mut any = false;
        for queue in names.queues.iter().chain([&names.suspects]) {
            any |= declare::delete(&self.0.link, queue).await?;
        }
        Ok(any)
    }

    async fn cursor(&self, group: &str) -> Result<Vec<ShardCursor>> {
        bail!("group {group} has no cursor: {NO_HISTORY}")
    }

    async fn move_cursor(&self, order: &CursorMove) -> Result<Result<Vec<Moved>, Refused>> {
        bail!("group {} has no cursor to move: {NO_HISTORY}", order.group)
    }

    async fn erase(&self) -> Result<()> {
        let Broker { link, names, .. } = &*self.0;
        let queues = names.groups.iter().flat_map(|it| it.queues.iter().chain([&it.suspects]));
        let queues: Vec<_> = queues.chain(&names.dead).cloned().collect();
        for queue in &queues {
            declare::delete(link, queue).await?;
        }
        let life = self.0.checkpoint().await?.lock().await.life().await?;
        let marks = [names.exchange.clone(), names.number.clone(), settle::mark(names)?];
        for exchange in marks.into_iter().chain(life) {
            declare::delete_exchange(link, &exchange).await?;
        }
        Ok(())
    }

    async fn dead(&self) -> Result<Vec<DeadLetter>> {
        self.0.dead().await
    }

    async fn file_dead(&self, dead: &[Dead]) -> Result<()> {
        self.0.file_dead(dead).await
    }

    async fn replay_dead(&self, ids: &[EventId]) -> Result<u64> {
        self.0.replay_dead(ids).await
    }

    async fn drop_dead(&self, ids: &[EventId]) -> Result<u64> {
        self.0.drop_dead(ids).await
    }
}
