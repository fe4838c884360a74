//! Compare, publish, confirm, move the checkpoint.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;

use super::Broker;
use super::checkpoint::Checkpoint;
use super::message::Message;
use crate::source::Slot;
use crate::stream::{Append, Appended, Writer, shard_for};

/// A hand to write with.
pub(super) struct StreamWriter {
    broker: Arc<Broker>,
    /// Events without a key go to one shard a batch, in turn.
    turn: u32,
}

impl StreamWriter {
    /// A hand on the broker's stream. What the checkpoint says of another life of the broker is
    /// forgotten.
    pub async fn open(broker: Arc<Broker>) -> Result<Self> {
        broker.checkpoint().await?;
        Ok(Self { broker, turn: 0 })
    }
}

#[async_trait]
impl Writer for StreamWriter {
    async fn slots(&mut self, origin: &str) -> Result<Vec<Slot>> {
        self.broker.checkpoint().await?.lock().await.slots(origin).await
    }

    async fn append(&mut self, appends: &[Append]) -> Result<Vec<Appended>> {
        let broker = self.broker.clone();
        // One at a time: between the look at the checkpoint and its move nobody else may append.
        let mut checkpoint = match appends.iter().any(|append| !append.moves.is_empty()) {
            true => Some(broker.checkpoint().await?.lock().await),
            false => None,
        };
        let mut turn = match &mut checkpoint {
            Some(checkpoint) => Some(Checkpoint::turn(checkpoint).await?),
            None => None,
        };
        let mut answers = Vec::with_capacity(appends.len());
        let mut messages = Vec::new();
        for append in appends {
            let count = append.events.len() as u64;
            let behind = broker.behind(messages.len() as u64, count).await?;
            if let Some(behind) = behind {
                answers.push(Appended::Full(behind));
                continue;
            }
            if let Some(turn) = &mut turn
                && !turn.step(&append.origin, &append.moves).await?
            {
                answers.push(Appended::Rewound);
                continue;
            }
            self.pack(append, &mut messages)?;
            answers.push(Appended::Durable);
        }
        let _flight = broker.in_flight.take_off(appends.iter().flat_map(|it| &it.events));
        broker.publish(&messages).await?;
        broker.published(messages.len() as u64);
        if let Some(turn) = turn {
            turn.commit().await?;
        }
        Ok(answers)
    }
}

impl StreamWriter {
    fn pack(&mut self, append: &Append, messages: &mut Vec<Message>) -> Result<()> {
        let names = &self.broker.names;
        let unkeyed = self.turn % names.shards;
        self.turn = self.turn.wrapping_add(1);
        messages.reserve(append.events.len());
        for event in &append.events {
            let shard = shard_for(event, names.shards).unwrap_or(unkeyed);
            let key = names.routing_key(shard);
            messages.push(Message::event(event, names.exchange.clone(), key)?);
        }
        Ok(())
    }
}
