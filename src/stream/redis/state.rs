//! One open stream, and its groups.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use anyhow::{Context, Result};
use redis::Value;
use tokio::sync::Notify;

use super::entry::{Format, bytes};
use super::held::Name;
use super::keys::{self, Shard};
use super::member::Inner;
use crate::client::redis::{Redis, Script, address, code};
use crate::stream::{StreamSpec, shards};

/// The consumer that holds what members handed back, until another takes it.
pub(super) const FREE: &str = "aqueduct:free";

/// The scripts, by what they do.
pub(super) struct Scripts {
    pub ack: Script,
    pub append: Script,
    pub bury: Script,
    pub consumers: Script,
    pub count: Script,
    pub cursor: Script,
    pub held: Script,
    pub join: Script,
    pub left: Script,
    pub move_cursor: Script,
    pub own: Script,
    pub replay: Script,
    pub status: Script,
    pub trim: Script,
}

/// All of them.
pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    ack: Script::new(include_str!("lua/ack.lua")),
    append: Script::new(include_str!("lua/append.lua")),
    bury: Script::new(include_str!("lua/bury.lua")),
    consumers: Script::new(include_str!("lua/consumers.lua")),
    count: Script::new(include_str!("lua/count.lua")),
    cursor: Script::new(include_str!("lua/cursor.lua")),
    held: Script::new(include_str!("lua/held.lua")),
    join: Script::new(include_str!("lua/join.lua")),
    left: Script::new(include_str!("lua/left.lua")),
    move_cursor: Script::new(include_str!("lua/move.lua")),
    own: Script::new(include_str!("lua/own.lua")),
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
        stream.agree().await?;
        stream.create_groups(false).await?;
        Ok(stream)
    }

    /// Records how many shards there are, beside each, or errs where the number is another one. It
    /// never changes: shards of a Redis Cluster cannot change it at once.
    async fn agree(&self) -> Result<()> {
        let wanted = self.spec.shards.max(1);
        // The only shard and the first of several have different keys, so whoever is first to write
        // the one looks at the other: before, and after, for another may do the same at once.
        self.is_not_otherwise().await?;
        for (index, shard) in self.shards.iter().enumerate() {
            let key = shard.number();
            let mut cmd = redis::cmd("SETNX");
            cmd.arg(&key).arg(wanted);
            let new = self.redis.ask(&key, &cmd).await? == Value::Int(1);
            if !new && let Some(found) = self.number(&key).await?.filter(|it| *it != wanted) {
                return Err(self.refusal(found));
            }
            if new
                && index == 0
                && let Err(error) = self.is_not_otherwise().await
            {
                self.redis.ask(&key, redis::cmd("DEL").arg(&key)).await?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Errs where the stream has one shard and several are asked for, or the other way round.
    async fn is_not_otherwise(&self) -> Result<()> {
        match self.number(&keys::otherwise(&self.spec).number()).await {
            Ok(None) => Ok(()),
            Ok(Some(found)) => Err(self.refusal(found)),
            // A user who may not look there has never opened the stream with that number.
            Err(error) if code(&error) == Some("NOPERM") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The number of shards that is recorded under a key.
    async fn number(&self, key: &str) -> Result<Option<u32>> {
        match self.redis.ask(key, redis::cmd("GET").arg(key)).await? {
            Value::Nil => Ok(None),
            found => {
                let text = String::from_utf8_lossy(&bytes(found)).into_owned();
                let number = text.parse();
                Ok(Some(number.with_context(|| format!("key `{key}` holds no number of shards"))?))
            }
        }
    }

    /// What is said where there are `recorded` shards.
    pub fn refusal(&self, recorded: u32) -> anyhow::Error {
        shards::fixed(&self.spec, recorded, "give it another `key`")
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
            Err(error) if code(&error) == Some("CURSOR") => Err(moved()),
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
            let mut cmd = redis::cmd("DEL");
            cmd.arg(shard.owner(group)).arg(shard.living(group)).arg(shard.cursor(group));
            self.redis.ask(&shard.stream, &cmd).await?;
        }
        Ok(dropped)
    }

    /// What the server's settings promise less than that an entry stays. A server of several is
    /// asked for all; nobody may be allowed to ask.
    pub async fn weakness(&self) -> Option<String> {
        let (appendonly, appendfsync) =
            (self.setting("appendonly").await?, self.setting("appendfsync").await?);
        let loses = match (&*appendonly, &*appendfsync) {
            ("yes", "always") => return None,
            ("yes", "everysec") => "the last second",
            ("yes", _) => "what the kernel has not written",
            _ => "everything since its last snapshot",
        };
        Some(format!(
            "the Redis server has appendonly {appendonly}, appendfsync {appendfsync}: killed with \
             its machine, it loses {loses}, though the requests were answered (set appendonly yes \
             and appendfsync always)"
        ))
    }

    async fn setting(&self, name: &str) -> Option<String> {
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("GET").arg(name);
        match self.redis.ask(&self.shards.first()?.stream, &cmd).await {
            Ok(Value::Array(answer)) => match answer.get(1) {
                Some(Value::BulkString(value)) => Some(String::from_utf8_lossy(value).into()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What ends the life of a member of whose group somebody has moved the cursor, or changed the
/// mode.
pub(super) fn moved() -> anyhow::Error {
    anyhow::anyhow!(
        "somebody has moved the group's cursor, or its `ordered` is another one by now: its \
         members begin anew"
    )
}

/// Whether an error says that a group, or the stream with its groups, is not there.
pub(super) fn is_group_missing(error: &anyhow::Error) -> bool {
    code(error) == Some("NOGROUP") || format!("{error:#}").contains("NOGROUP")
}
