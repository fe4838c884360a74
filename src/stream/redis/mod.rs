//! The stream backend on Redis Streams: a server or a Redis Cluster, shared with whatever other
//! programs read and write there.
//!
//! - [`keys`]: what is where. [`entry`]: an event as an entry, and the other way round ([`flat`]).
//! - [`state`]: one open stream, and its groups.
//! - [`append`]: the way in. [`member`]: the way out, with [`lanes`] that read, what a member has
//!   in its [`hand`], and the commands about it ([`held`]); that of an [`ordered`] group.
//! - [`cursor`]: where groups stand, and how they are put elsewhere.
//! - [`dead`]: dead letters. [`status`]: what there is. [`tend`]: what is dropped.
//!
//! What has to happen at once happens in a script (`lua/`). A script leaves half of itself behind
//! where a command in it fails, so each looks before it writes.
//!
//! The pending list of a group carries both counts of an entry in the one that Redis keeps there:
//! attempts times 1000 plus deliveries. So they are gone with the ack, and what another program
//! counts there is deliveries.

mod append;
mod cursor;
mod dead;
mod entry;
mod flat;
mod hand;
mod held;
mod keys;
mod lanes;
mod member;
mod ordered;
mod state;
mod status;
mod tend;

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;

use self::append::StreamWriter;
use self::member::Member;
use self::state::Stream;
use super::cursor::{CursorMove, Moved, Refused, ShardCursor};
use super::{
    Backend, Capabilities, Claim, DeadLetter, Kind, Reader, ReaderSpec, StreamSpec, StreamStatus,
    Writer,
};
use crate::client::redis::address;
use crate::event::{Event, EventId};
use crate::source::Dead;
use crate::spec::{Complaint, Default as KeyDefault, Key, Site, Ty, Values};

/// `kind = "redis"`
pub static KIND: Kind = Kind {
    name: "redis",
    doc: "A Redis Stream (Redis 6.2 or newer, or a Redis Cluster). Other programs may write to it \
          and read from it.",
    keys: &[
        Key {
            name: "url",
            ty: Ty::Urls(&["redis", "rediss"]),
            default: KeyDefault::Required,
            doc: "`redis://USER:PASSWORD@HOST:PORT/DB`, with TLS `rediss://`; for a Redis Cluster a \
                  list of some of its nodes.",
        },
        Key {
            name: "key",
            ty: Ty::Str,
            default: KeyDefault::Derived("the stream's name"),
            doc: "The key of the stream; shard number i of several is `KEY:{i}`. What belongs to \
                  it is beside it, under keys that start with `{KEY}:`.",
        },
        Key {
            name: "field",
            ty: Ty::Str,
            default: KeyDefault::Toml("\"body\""),
            doc: "The field that holds the body. An entry of another program without it becomes a \
                  JSON object of all its fields, with strings as values (bytes that are not UTF-8 \
                  become U+FFFD).",
        },
        Key {
            name: "flat",
            ty: Ty::Bool,
            default: KeyDefault::Toml("false"),
            doc: "Each member of a body that is a JSON object is a field of its own; `_types` \
                  keeps which of them are no strings, and `_body` the body where its spelling \
                  cannot be made again. Any other body goes into `field`.",
        },
    ],
    group_keys: &[],
    capabilities: Capabilities {
        foreign_identity: true,
        history: true,
        shards: true,
        transactional_checkpoint: true,
        ordered: true,
    },
    check,
    place,
    claims: |spec| vec![Claim::stream(place(spec))],
    open: |spec, site| Box::pin(open(spec, site)),
};

fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    if let Some(key) = values.opt_str("key").filter(|key| !keys::is_sound(key)) {
        let key_shown = crate::spec::text::shown(key);
        complaints.push(Complaint {
            key: "key",
            message: format!(
                "`{key_shown}` has a brace that makes no hash tag (as `{{app}}:events`, or no \
                 brace at all)"
            ),
        });
    }
    if entry::RESERVED.contains(&values.str("field")) {
        complaints.push(Complaint {
            key: "field",
            message: format!(
                "`{}` is what an event travels with (any name but {})",
                values.str("field"),
                crate::spec::text::listed(entry::RESERVED.iter().copied(), "and")
            ),
        });
    }
    complaints
}

fn place(spec: &StreamSpec) -> String {
    let mut servers: Vec<String> =
        spec.values.list("url").iter().filter_map(|url| address(url)).collect();
    servers.sort_unstable();
    format!("key {} on {}", keys::base(spec), servers.join(", "))
}

async fn open(spec: StreamSpec, _site: Site) -> Result<Arc<dyn Backend>> {
    let stream = Arc::new(Stream::open(spec).await?);
    Ok(Arc::new(Backing { stream }))
}

/// An open stream.
struct Backing {
    stream: Arc<Stream>,
}

#[async_trait]
impl Backend for Backing {
    async fn writer(&self) -> Result<Box<dyn Writer>> {
        Ok(Box::new(StreamWriter::new(self.stream.clone())))
    }

    async fn reader(&self, spec: ReaderSpec) -> Result<Arc<dyn Reader>> {
        match spec.group.ordered {
            true => Ok(Arc::new(ordered::Member::open(self.stream.clone(), spec).await?)),
            false => Ok(Arc::new(Member::open(self.stream.clone(), spec).await?)),
        }
    }

    async fn status(&self) -> Result<StreamStatus> {
        self.stream.tend();
        status::status(&self.stream).await
    }

    async fn weakness(&self) -> Option<String> {
        self.stream.weakness().await
    }

    async fn peek(&self, count: usize) -> Result<Vec<Event>> {
        status::peek(&self.stream, count).await
    }

    async fn drop_group(&self, group: &str) -> Result<bool> {
        self.stream.drop_group(group).await
    }

    async fn cursor(&self, group: &str) -> Result<Vec<ShardCursor>> {
        cursor::show(&self.stream, group).await
    }

    async fn move_cursor(&self, order: &CursorMove) -> Result<Result<Vec<Moved>, Refused>> {
        cursor::set(&self.stream, order).await
    }

    async fn erase(&self) -> Result<()> {
        let status = status::status(&self.stream).await?;
        let groups: Vec<String> = status.groups.into_iter().map(|group| group.name).collect();
        for group in &groups {
            self.stream.drop_group(group).await?;
        }
        for shard in &self.stream.shards {
            let mut cmd = ::redis::cmd("UNLINK");
            cmd.arg(&shard.stream).arg(shard.number());
            for name in dead::names(&self.stream) {
                cmd.arg(shard.dead(&name));
            }
            self.stream.redis.ask(&shard.stream, &cmd).await?;
        }
        Ok(())
    }

    async fn dead(&self) -> Result<Vec<DeadLetter>> {
        dead::list(&self.stream).await
    }

    async fn file_dead(&self, dead: &[Dead]) -> Result<()> {
        dead::file(&self.stream, dead).await
    }

    async fn replay_dead(&self, ids: &[EventId]) -> Result<u64> {
        dead::replay(&self.stream, ids).await
    }

    async fn drop_dead(&self, ids: &[EventId]) -> Result<u64> {
        dead::forget(&self.stream, ids).await
    }
}
