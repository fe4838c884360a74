//! The way in.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::Instant;

use super::Error;
use super::error::Tries;
use super::message::{Ids, Message};
use super::place::Stream;
use crate::event::{Event, EventId};
use crate::source::{BATCH_BYTES, BATCH_EVENTS};
use crate::stream::{Append, Appended, Writer};

/// How long a publish tries to reach the backend, where nothing else is set.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that can be set.
const PATIENCE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Publishes to a stream. Made by [`Stream::producer`].
pub struct Producer {
    stream: Stream,
    ids: Ids,
    writer: Option<Box<dyn Writer>>,
    patience: Duration,
}

impl Producer {
    pub(super) async fn open(stream: Stream, origin: &str) -> Result<Self, Error> {
        let mut producer = Self { ids: Ids::new(origin), writer: None, patience: PATIENCE, stream };
        let writer = producer.stream.writer(origin).await?;
        producer.writer = Some(writer);
        Ok(producer)
    }

    /// How long [`publish`](Self::publish) goes on trying while the backend is away or the stream
    /// is full: 30 s where this is not set. With zero it tries once.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.min(PATIENCE_MAX);
        self
    }

    /// Publishes messages, in order. When it returns, all of them are as durable as the backend is
    /// set up to be ([`Stream::weakness`]); the answer is their ids.
    ///
    /// Up to 1000 messages and about 1 MiB are stored together or not at all (by RabbitMQ, and by the
    /// shards of a Redis Cluster, each by itself); more go in several such parts, one after the
    /// other. After an error, and where its future was dropped midway,
    /// any of the messages may be stored. Publishing *the same* [`Message`]s again is right then:
    /// they keep their ids, so that a sink, and every consumer that keeps one of each id, has each
    /// of them once.
    ///
    /// While the backend is away or the stream is full it tries again, for as long as
    /// [`patience`](Self::patience) says, and errs with [`Error::Away`] or [`Error::Full`] after
    /// that. A message that names a shard which the stream does not have is [`Error::Invalid`], and
    /// nothing is published.
    pub async fn publish<'m>(
        &mut self,
        messages: impl IntoIterator<Item = &'m Message>,
    ) -> Result<Vec<EventId>, Error> {
        let (ids, shards) = (&mut self.ids, self.stream.shards());
        let event = |message: &Message| match message.named_shard() {
            Some(shard) if shard >= shards => Err(Error::Invalid(format!(
                "a message names shard {shard} of stream {}, which has {shards}: 0 to {}",
                self.stream.name(),
                shards - 1
            ))),
            _ => Ok(message.event(ids)),
        };
        let events = messages.into_iter().map(event).collect::<Result<Vec<Event>, Error>>()?;
        let ids = events.iter().map(|event| event.id).collect();
        let end = Instant::now() + self.patience;
        for events in parts(events) {
            self.append(Append { origin: self.ids.source.clone(), moves: Vec::new(), events }, end)
                .await?;
        }
        Ok(ids)
    }

    async fn append(&mut self, append: Append, end: Instant) -> Result<(), Error> {
        let stream = self.stream.name().to_owned();
        let mut tries = Tries::until(end, format!("publish to stream {stream}"));
        let append = [append];
        loop {
            match self.try_append(&append).await {
                Ok(Appended::Durable) => return Ok(()),
                Ok(Appended::Full(behind)) => {
                    if !tries.wait().await {
                        return Err(Error::Full { stream, behind });
                    }
                }
                Ok(Appended::Rewound) => {
                    tries.again(anyhow!("it answered as if to a source")).await?;
                }
                Err(error) => tries.again(error).await?,
            }
        }
    }

    async fn try_append(&mut self, append: &[Append]) -> anyhow::Result<Appended> {
        // Taken, and put back only after it worked: what failed or was given up midway is opened
        // anew.
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.stream.writer_again(&self.ids.source).await?,
        };
        let answer = writer.append(append).await?.into_iter().next();
        self.writer = Some(writer);
        answer.ok_or_else(|| anyhow!("it did not answer"))
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Producer({} to {})", self.ids.source, self.stream.name())
    }
}

/// Cuts events into what is appended at once.
fn parts(events: Vec<Event>) -> Vec<Vec<Event>> {
    let mut parts: Vec<Vec<Event>> = Vec::new();
    let mut bytes = 0;
    for event in events {
        let size = event.size();
        match parts.last_mut() {
            Some(part) if part.len() < BATCH_EVENTS && bytes + size <= BATCH_BYTES => {
                bytes += size;
                part.push(event);
            }
            _ => {
                bytes = size;
                parts.push(vec![event]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_to_the_limits_and_the_order() {
        let mut ids = Ids::new("shop");
        let of = |sizes: &[usize], ids: &mut Ids| -> Vec<Event> {
            sizes.iter().map(|size| Message::new(vec![0; *size]).event(ids)).collect()
        };
        let small = of(&[1; 2500], &mut ids);
        let cut = parts(small.clone());
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert_eq!(cut.concat(), small);
        let large = of(&[10, 2 << 20, 10, 600 << 10, 600 << 10], &mut ids);
        let lengths: Vec<usize> = parts(large).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, 1, 2, 1]);
        assert!(parts(Vec::new()).is_empty());
    }
}
