//! Dead letters: messages in a durable queue that nobody consumes.
//!
//! A queue shows its messages only by handing them out. So who lists, replays or drops takes all
//! of them, and gives back what stays; an exclusive queue of a name of its own is the lock that
//! keeps two of these apart. A letter that is there twice (its member died between filing it and
//! acking the event) is one letter.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};

use super::link::{Link, answer, code, explain};
use super::message::{Decoder, Letter, Message};
use super::names::short;
use super::{Broker, declare};
use crate::event::{EventId, now_us};
use crate::fault;
use crate::source::Dead;
use crate::stream::{DeadLetter, shard_for};

/// Whose a dead letter is where the stream has no group. No group can have this name.
const NOBODY: &str = "-";
/// How long another one who looks may take.
const LOCK_MAX: Duration = Duration::from_secs(10);
/// How long between two looks at the lock: the broker logs each as an error.
const LOCK_PAUSE: Duration = Duration::from_millis(200);
/// Messages that are asked for at once.
const AT_ONCE: usize = 64;

/// All messages of one queue of dead letters, in our hands.
struct Opened {
    /// Ends with this: what is neither acked nor given back then goes back.
    _link: Link,
    channel: Channel,
    queue: ShortString,
    letters: Vec<(u64, DeadLetter)>,
}

impl Opened {
    async fn open(broker: &Broker, queue: &ShortString) -> Result<Self> {
        let name = format!("{} {} dead letters", broker.site.instance, broker.spec.name);
        let link = Link::connect(&broker.url, &name).await?;
        lock(&link, queue).await?;
        let channel = link.channel().await?;
        let mut decoder = Decoder::new(broker.spec.name.clone());
        let mut letters = Vec::new();
        loop {
            let get = || {
                let got = channel.basic_get(queue.clone(), BasicGetOptions::default());
                answer("take a dead letter out", got)
            };
            let got = try_join_all((0..AT_ONCE).map(|_| get())).await?;
            let complete = got.iter().any(Option::is_none);
            for message in got.into_iter().flatten() {
                let tag = message.delivery.delivery_tag;
                let read = decoder.read(message.delivery);
                let (group, reason, time_us) = read.letter.unwrap_or_else(|| {
                    let why = "another program put it there".to_owned();
                    (NOBODY.to_owned(), why, read.event.time_us)
                });
                let attempts = read.counts.attempts;
                letters.push((
                    tag,
                    DeadLetter { event: read.event, group, reason, attempts, time_us },
                ));
            }
            if complete {
                break;
            }
        }
        letters.sort_by_key(|(tag, letter)| (letter.time_us, *tag));
        let mut opened = Self { _link: link, channel, queue: queue.clone(), letters };
        let mut known = HashSet::new();
        opened.forget(|letter| !known.insert((letter.event.id, letter.group.clone()))).await?;
        Ok(opened)
    }

    /// Acks those that `which` says; how many.
    async fn forget(&mut self, mut which: impl FnMut(&DeadLetter) -> bool) -> Result<u64> {
        let mut gone = Vec::new();
        self.letters.retain(|(tag, letter)| {
            let go = which(letter);
            if go {
                gone.push(*tag);
            }
            !go
        });
        for tag in &gone {
            let acked = self.channel.basic_ack(*tag, BasicAckOptions { multiple: false });
            answer("forget a dead letter", acked).await?;
        }
        Ok(gone.len() as u64)
    }

    /// Gives the rest back.
    async fn close(self) -> Result<()> {
        let left = self.letters.len() as u64;
        for (tag, _) in &self.letters {
            let options = BasicNackOptions { multiple: false, requeue: true };
            answer("put a dead letter back", self.channel.basic_nack(*tag, options)).await?;
        }
        // Whoever looks next is to find them.
        let end = Instant::now() + LOCK_MAX;
        while declare::count(&self.channel, &self.queue).await?.0 < left && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// Waits until nobody else looks at these letters.
async fn lock(link: &Link, queue: &ShortString) -> Result<()> {
    let name = short(&format!("{queue}.lock"))?;
    let end = Instant::now() + LOCK_MAX;
    loop {
        let channel = link.channel().await?;
        let options = QueueDeclareOptions::exclusive().auto_delete();
        let declared = channel.queue_declare(name.clone(), options, FieldTable::default());
        match answer("lock the dead letters", async { Ok(declared.await) }).await? {
            Ok(_) => return Ok(()),
            Err(error) if code(&error) == Some(405) && Instant::now() < end => {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(error) if code(&error) == Some(405) => bail!(
                "somebody else has been looking at the dead letters for {} s (try again)",
                LOCK_MAX.as_secs()
            ),
            Err(error) => return Err(explain(error)).context("failed to lock the dead letters"),
        }
    }
}

impl Broker {
    /// All dead letters, oldest first.
    pub async fn dead(&self) -> Result<Vec<DeadLetter>> {
        let mut all = Vec::new();
        for queue in &self.names.dead {
            let opened = Opened::open(self, queue).await?;
            all.extend(opened.letters.iter().map(|(_, letter)| letter.clone()));
            opened.close().await?;
        }
        all.sort_by_key(|letter| letter.time_us);
        Ok(all)
    }

    /// Files what never was in the stream as a dead letter of each group.
    pub async fn file_dead(&self, dead: &[Dead]) -> Result<()> {
        let groups = self.names.groups.iter().map(|group| (&*group.name, &group.dead));
        let mut groups: Vec<_> = groups.collect();
        if groups.is_empty() {
            groups.extend(self.names.dead.iter().map(|queue| (NOBODY, queue)));
        }
        let mut messages = Vec::with_capacity(groups.len() * dead.len());
        for (group, queue) in groups {
            for Dead { event, reason } in dead {
                let letter = Letter { group, reason, attempts: 0, time_us: now_us() };
                messages.push(Message::letter(event, &letter, queue.clone())?);
            }
        }
        self.publish(&messages).await
    }

    /// Puts dead letters back, each into the queue of the group that gave it up.
    pub async fn replay_dead(&self, ids: &[EventId]) -> Result<u64> {
        let ids: HashSet<EventId> = ids.iter().copied().collect();
        let wanted = |letter: &DeadLetter| ids.is_empty() || ids.contains(&letter.event.id);
        let mut count = 0;
        for queue in &self.names.dead {
            let mut opened = Opened::open(self, queue).await?;
            fault::point("replay.before", opened.letters.iter().map(|(_, it)| &it.event));
            let mut messages = Vec::new();
            for (_, letter) in opened.letters.iter().filter(|(_, letter)| wanted(letter)) {
                let Ok(group) = self.names.group(&letter.group) else {
                    let (id, group) = (letter.event.id, letter.group.clone());
                    opened.close().await?;
                    bail!(
                        "dead letter {id} is of group {group:?}, which the file has no more (bring \
                         the group back, or drop the letter)"
                    );
                };
                let shard = shard_for(&letter.event, self.names.shards).unwrap_or(0);
                let to = group.queues[shard as usize].clone();
                messages.push(Message::replay(&letter.event, &letter.group, to)?);
            }
            // In the queue first: a crash between the two leaves the letter, and the event once
            // more, which its sink keeps once.
            self.publish(&messages).await?;
            fault::point("replay.within", opened.letters.iter().map(|(_, it)| &it.event));
            count += opened.forget(wanted).await?;
            opened.close().await?;
        }
        Ok(count)
    }

    /// Forgets dead letters.
    pub async fn drop_dead(&self, ids: &[EventId]) -> Result<u64> {
        let ids: HashSet<EventId> = ids.iter().copied().collect();
        let mut count = 0;
        for queue in &self.names.dead {
            let mut opened = Opened::open(self, queue).await?;
            count +=
                opened.forget(|letter| ids.is_empty() || ids.contains(&letter.event.id)).await?;
            opened.close().await?;
        }
        Ok(count)
    }
}
