//! What the stream's things are called at the broker.

use std::sync::Arc;

use anyhow::{Context, Result};
use lapin::types::ShortString;

use crate::stream::{Claim, StreamSpec};

/// The names of one stream.
#[derive(Debug)]
pub(super) struct Names {
    /// Where events are published.
    pub exchange: ShortString,
    /// The exchange that stands for the number of shards.
    pub number: ShortString,
    /// How many shards there are; with more than one the exchange routes by shard.
    pub shards: u32,
    /// The groups, as the file declares them.
    pub groups: Vec<GroupNames>,
    /// The names of the queues of dead letters, each once.
    pub dead: Vec<ShortString>,
}

/// The queues of one group.
#[derive(Clone, Debug)]
pub(super) struct GroupNames {
    /// The group.
    pub name: Arc<str>,
    /// Its queues, by shard.
    pub queues: Vec<ShortString>,
    /// Where an event waits that was charged for a delivery alone: nobody consumes it, whoever
    /// charged it takes it out at once, and when that one dies another does.
    pub suspects: ShortString,
    /// Where its dead letters are.
    pub dead: ShortString,
}

impl Names {
    /// The names that `spec` asks for. Errs where one is too long.
    pub fn new(spec: &StreamSpec) -> Result<Self> {
        let exchange = short(spec.values.opt_str("exchange").unwrap_or(&spec.name))?;
        let shards = spec.shards.max(1);
        let mut groups = Vec::with_capacity(spec.groups.len());
        let mut dead = Vec::new();
        for group in &spec.groups {
            let own = format!("{}.{}", spec.name, group.name);
            let queue = group.values.opt_str("queue").unwrap_or(&own);
            let names = GroupNames::new(&group.name, queue, &group.dead, shards)?;
            if !dead.contains(&names.dead) {
                dead.push(names.dead.clone());
            }
            groups.push(names);
        }
        if dead.is_empty() {
            dead.push(short(&format!("{}.dead", spec.name))?);
        }
        let number = short(&format!("{exchange}.shards"))?;
        Ok(Self { exchange, number, shards, groups, dead })
    }

    /// What nobody else may use at the broker at `place`: whoever shares a queue gets a part of
    /// what is in it.
    pub fn claims(&self, place: &str) -> Vec<Claim> {
        let mut claims =
            vec![Claim::stream(format!("the exchange `{}` at {place}", self.exchange))];
        for group in &self.groups {
            let mut claim = |queue: &ShortString, key, shared| {
                let what = format!("the queue `{queue}` at {place}");
                claims.push(Claim { what, group: Some((group.name.clone(), key)), shared });
            };
            for queue in group.queues.iter().chain([&group.suspects]) {
                claim(queue, "queue", false);
            }
            claim(&group.dead, "dead", true);
        }
        claims
    }

    /// The queues of a group of the file.
    pub fn group(&self, name: &str) -> Result<&GroupNames> {
        let found = self.groups.iter().find(|group| *group.name == *name);
        found.with_context(|| format!("the file declares no group `{name}` on this stream"))
    }

    /// What a message to this shard is published with.
    pub fn routing_key(&self, shard: u32) -> ShortString {
        match self.shards {
            1 => ShortString::default(),
            _ => shard.to_string().into(), // ten digits at most
        }
    }
}

impl GroupNames {
    fn new(name: &str, queue: &str, dead: &str, shards: u32) -> Result<Self> {
        let queues = match shards {
            1 => vec![short(queue)?],
            _ => (0..shards).map(|it| short(&format!("{queue}.{it}"))).collect::<Result<_>>()?,
        };
        let suspects = short(&format!("{queue}.suspects"))?;
        Ok(Self { name: name.into(), queues, suspects, dead: short(dead)? })
    }

    /// Of a group that is gone from the file.
    pub fn by_default(spec: &StreamSpec, name: &str) -> Result<Self> {
        let (queue, dead) = (format!("{}.{name}", spec.name), format!("{}.dead", spec.name));
        Self::new(name, &queue, &dead, spec.shards.max(1))
    }
}

/// A name as the protocol carries it.
pub(super) fn short(name: &str) -> Result<ShortString> {
    ShortString::try_new(name).ok().with_context(|| {
        let start: String = name.chars().take(40).collect();
        format!("the name `{start}…` of {} bytes is too long for RabbitMQ (255 bytes)", name.len())
    })
}
