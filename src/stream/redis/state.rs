//! One open stream, and its groups.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use anyhow::Result;
use redis::Value;
use tokio::sync::Notify;

use super::entry::Format;
use super::held::Name;
use super::keys::{self, Shard};
use super::member::Inner;
use crate::client::redis::{Redis, Script, address, code};
use crate::stream::StreamSpec;

/// The consumer that holds what members handed back, until another takes it.
pub(super) const FREE: &str = "aqueduct:free";

/// The scripts, by what they do.
pub(super) struct Scripts {
    pub append: Script,
    pub bury: Script,
    pub consumers: Script,
    pub held: Script,
    pub left: Script,
    pub replay: Script,
    pub status: Script,
    pub trim: Script,
}

/// All of them.
pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    append: Script::new(include_str!("lua/append.lua")),
    bury: Script::new(include_str!("lua/bury.lua")),
    consumers: Script::new(include_str!("lua/consumers.lua")),
    held: Script::new(include_str!("lua/held.lua")),
    left: Script::new(include_str!("lua/left.lua")),
    replay: Script::new(include_str!("lua/replay.lua")),
    status: Script::new(include_str!("lua/status.lua")),
    trim: Script::new(include_str!("lua/trim.lua")),
});

/// What this process knows of a stream, however often it is opened.
#[derive(Default)]
pub(super) struct Known {
    /// Wakes members when something was handed back.
    pub handed_back: Notify,
    /// Groups that were there. Should one be missing later, the server has lost it, and with it
    /// which events came since: then `latest` does not count.
    groups: Mutex<HashSet<Arc<str>>>,
    /// The members that this process has had, each in its last life.
    pub members: Mutex<HashMap<Name, Weak<Inner>>>,
    /// When it was last tended, and when its consumers were looked at.
    pub tended: Mutex<Tended>,
}

/// When something was last done.
#[derive(Default)]
pub(super) struct Tended {
    /// Trimmed.
    pub trimmed: Option<Instant>,
    /// Consumers looked at.
    pub consumers: Option<Instant>,
    /// It is under way.
    pub busy: bool,
}

/// What is known of the streams that this process has opened: as many as its topology files name.
static KNOWN: LazyLock<Mutex<HashMap<String, Arc<Known>>>> = LazyLock::new(Mutex::default);

/// A lock that outlives a panic elsewhere: what it guards is whole between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that is open.
pub(super) struct Stream {
    /// As the topology file has it.
    pub spec: StreamSpec,
    /// Where it is.
    pub redis: Redis,
    /// Its shards' keys.
    pub shards: Vec<Shard>,
    /// How its entries are written.
    pub format: Format,
    /// What this process knows of it.
    pub known: Arc<Known>,
}

impl Stream {
    /// Connects, and creates what groups are missing.
    pub async fn open(spec: StreamSpec) -> Result<Self> {
        let urls = spec.values.list("url");
        let redis = Redis::open(urls).await?;
        let key = keys::base(&spec);
        let place = urls.iter().filter_map(|url| address(url)).collect::<Vec<_>>().join(" ");
        let known = lock(&KNOWN).entry(format!("{place} {key}")).or_default().clone();
        let (shards, format) = (keys::shards(&spec), Format::new(&spec, key));
        let stream = Self { redis, shards, format, known, spec };
        stream.create_groups(false).await?;
        stream.tell_durability().await;
        Ok(stream)
    }

    /// Creates the groups that are missing: at the start they ask for, or, where they had been
    /// there (`again`), at the oldest entry.
    pub async fn create_groups(&self, again: bool) -> Result<()> {
        for group in &self.spec.groups {
            let known = again || lock(&self.known.groups).contains(&group.name);
            let start = if group.latest && !known { "$" } else { "0" };
            for shard in &self.shards {
                let mut cmd = redis::cmd("XGROUP");
                cmd.arg("CREATE").arg(&shard.stream).arg(&*group.name).arg(start).arg("MKSTREAM");
                match self.redis.ask(&shard.stream, &cmd).await {
                    Err(error) if code(&error) != Some("BUSYGROUP") => return Err(error),
                    _ => {}
                }
            }
            lock(&self.known.groups).insert(group.name.clone());
        }
        Ok(())
    }

    /// The answer of a command or script on a group, or `None` where the group was not there: it
    /// is now.
    pub async fn of_group(&self, answer: Result<Value>) -> Result<Option<Value>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if is_group_missing(&error) => {
                self.create_groups(true).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets a group and what it holds.
    pub async fn drop_group(&self, group: &str) -> Result<bool> {
        lock(&self.known.groups).retain(|known| **known != *group);
        let mut dropped = false;
        for shard in &self.shards {
            let mut cmd = redis::cmd("XGROUP");
            cmd.arg("DESTROY").arg(&shard.stream).arg(group);
            match self.redis.ask(&shard.stream, &cmd).await {
                Ok(answer) => dropped |= answer == Value::Int(1),
                // Without the stream, there is no group either.
                Err(error) if code(&error) == Some("ERR") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(dropped)
    }

    /// Says what "durable" means as the server is set up.
    async fn tell_durability(&self) {
        for setting in ["appendonly", "appendfsync"] {
            let mut cmd = redis::cmd("CONFIG");
            cmd.arg("GET").arg(setting);
            // Not everybody may ask.
            if let Ok(Value::Array(answer)) = self.redis.ask(&self.shards[0].stream, &cmd).await
                && let Some(Value::BulkString(value)) = answer.get(1)
            {
                let value = String::from_utf8_lossy(value);
                tracing::debug!(stream = %self.spec.name, "redis is set up with {setting} {value}");
            }
        }
    }
}

/// Whether an error says that a group, or the stream with its groups, is not there.
pub(super) fn is_group_missing(error: &anyhow::Error) -> bool {
    code(error) == Some("NOGROUP") || format!("{error:#}").contains("NOGROUP")
}
